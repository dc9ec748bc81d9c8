"""Stage 5: train IRN, which finds class boundaries, from inter-pixel labels.

    python train_irn.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the images of the training list and RUN_DIR/ir_label. Writes RUN_DIR/ckpt/irn.pth, which
make_seg_labels.py reads, RUN_DIR/ckpt/irn_last.pth to resume from, and RUN_DIR/tensorboard/irn.
Several GPUs: torchrun --nproc_per_node N train_irn.py ...
"""

import argparse
import functools
import hashlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.datasets import CropOptions, LabelledCrops, MultiscaleImages
from data.images import IGNORE
from data.registry import Dataset, Samples, open_dataset
from data.transforms import Scaling, normalize
from errors import InputError
from exchange.weights import load_pretrained
from network.irn import IRN, STRIDE, inter_pixel_losses, sum_over_pairs
from network.random_walk import search_paths
from tool import checkpoint, flags, inference, label_file, trainer
from tool.context import Context, cli_main, run_context, world_size
from tool.options import TrainingDefaults
from tool.visualize import edge_sheet

RESUME_FLAGS = (*flags.RESUME_FLAGS, "scales")
RADIUS = 10  # of the pairs, cells of the /4 grid
LEAST_CROP = 2 * STRIDE * RADIUS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    flags.add_training_flags(
        parser,
        TrainingDefaults(batch_size=32, max_epochs=3),
        "learning rate of the edge branch; the displacement branch takes ten times this rate",
    )
    flags.add_weights(parser)
    flags.add_scale_range(parser, 0.5, 1.5)
    args = flags.parse_training(parser, argv)
    if args.crop_size % STRIDE or args.crop_size < LEAST_CROP:
        parser.error(
            f"--crop_size is a multiple of {STRIDE}, at least {LEAST_CROP}:"
            " pairs of cells reach that far"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    samples = dataset.samples(args.list)
    trainer.check_batch(args.batch_size, len(samples), world_size(), args.list)
    folder = args.run_dir / "ir_label"
    label_file.check_folder(folder, dataset.class_names)
    digest = dataset.digest(samples, digest_labels(samples, folder))
    with run_context(args.run_dir, args.device, args.amp) as context:
        train(args, context, dataset, samples, digest)


def digest_labels(samples: Samples, folder: Path) -> bytes:
    """A digest of all inter-pixel labels. Raises InputError if one is missing."""
    content = hashlib.sha256()
    for sample in samples:
        path = label_file.path_of(folder, sample.name)
        if not path.is_file():
            raise InputError(
                f"{path}: no such inter-pixel label; run make_ir_labels.py on this list first"
            )
        content.update(path.read_bytes())
    return content.digest()


def train(
    args: argparse.Namespace, context: Context, dataset: Dataset, samples: Samples, digest: str
) -> None:
    """Train to the final checkpoint, unless it is there."""
    job = trainer.TrainingJob(
        files=trainer.RunFiles.of(args.run_dir, "irn"),
        options=flags.training_options(args),
        arguments=flags.resume_arguments(args, RESUME_FLAGS, digest),
        class_names=dataset.class_names,
        num_samples=len(samples),
        kind=checkpoint.IRN_KIND,
    )
    if trainer.is_finished(job, context):
        return
    torch.manual_seed(args.seed)
    model = IRN()
    load_pretrained(model.resnet50, args.weights)
    model.to(context.device, memory_format=torch.channels_last).train()
    run = trainer.Trainer(job, model, context)
    context.print(f"{len(samples)} images, {run.plan}")
    options = CropOptions(tuple(args.scales), args.crop_size, args.seed)
    crops = LabelledCrops(samples, args.run_dir / "ir_label", dataset.num_classes, options)
    for batch in run.batches(crops):
        losses, logits = train_step(run, batch)
        draw_sheet = functools.partial(edge_sheet, batch["image"], batch["target"], logits)
        run.log(losses, "image_label_edge", draw_sheet)
    model.eval()
    model.set_mean_displacement(mean_displacement(model, samples, args, context))
    run.finish()


def train_step(
    run: trainer.Trainer, batch: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One step of SGD; returns the losses with the gradient norm, and the edge logits.

    The edge logits are (B, 1, C/4, C/4).
    """
    context = run.context
    with context.autocast():
        logits, displacement = run.network(normalize(batch["image"], batch["inside"]))
    middle = slice(STRIDE // 2, None, STRIDE)  # of each cell
    target = batch["target"][:, middle, middle]
    sums = sum_over_pairs(logits, displacement, target, search_paths(RADIUS), IGNORE)
    # so that the losses are means over the pairs of all processes
    sums = sums._replace(count=context.all_reduce_mean(sums.count))
    losses = inter_pixel_losses(sums)
    norm = run.step(sum(losses.values()) / 2)
    means = context.all_reduce_mean(torch.stack([*losses.values()]))
    return {**dict(zip(losses, means)), "grad_norm": norm}, logits


@torch.no_grad()
def mean_displacement(
    model: IRN, samples: Samples, args: argparse.Namespace, context: Context
) -> torch.Tensor:
    """(2,) the mean displacement over the images, in cells.

    Each image is cut or padded to the crop at its top left corner.
    """
    images = MultiscaleImages(context.shard(samples), None, Scaling((1.0,)))
    loader = inference.image_loader(images, args.num_workers, context)
    total = torch.zeros(2, dtype=torch.float64)
    bar = tqdm(loader, desc="mean displacement", unit="image", disable=not context.is_main)
    for item in bar:
        image = normalize(item.images[0][None].to(context.device))
        missing_rows = args.crop_size - image.shape[2]
        missing_columns = args.crop_size - image.shape[3]
        crop = F.pad(image, (0, missing_columns, 0, missing_rows))
        with context.autocast():
            _, displacement = model(crop)
            total += displacement.mean((0, 2, 3)).cpu()
    return sum(context.all_gather_object(total)) / len(samples)


if __name__ == "__main__":
    sys.exit(cli_main(main))
