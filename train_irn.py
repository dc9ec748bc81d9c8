"""Stage 5: train IRN, which finds class boundaries, from inter-pixel labels.

    python train_irn.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the images of the training list and RUN_DIR/ir_label. Writes RUN_DIR/ckpt/irn.pth, which make_seg_labels.py reads,
RUN_DIR/ckpt/irn_last.pth to resume from, and RUN_DIR/tensorboard/irn. Several GPUs: torchrun --nproc_per_node N train_irn.py ...
"""

import argparse
import functools
import hashlib
import sys

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.datasets import CropOptions, LabelledCrops, MultiscaleImages, inference_loader
from data.images import IGNORE
from data.registry import Dataset, Samples, open_dataset
from data.transforms import Scaling, normalize
from errors import InputError
from exchange.weights import load_pretrained
from network.irn import IRN, STRIDE, inter_pixel_losses, sum_over_pairs
from network.random_walk import search_paths
from tool import label_file, trainer
from tool.context import Context, cli_main, run_context, world_size
from tool.flags import stage_parser
from tool.visualize import edge_sheet

KEPT = (*trainer.KEPT, "scales")
RADIUS = 10  # of the pairs, cells of the /4 grid


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__)
    lr_help = "learning rate of the edge branch; the displacement branch takes ten times this rate"
    trainer.add_flags(parser, batch_size=32, max_epochs=3, lr_help=lr_help)
    trainer.add_weights(parser)
    trainer.add_scale_range(parser, 0.5, 1.5)
    args = trainer.parse(parser, argv)
    if args.crop_size % STRIDE or args.crop_size < 2 * STRIDE * RADIUS:
        parser.error(
            f"--crop_size is a multiple of {STRIDE}, at least {2 * STRIDE * RADIUS}: pairs of cells reach that far"
        )
    return args


def train_step(run: trainer.Trainer, batch: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One step of SGD; returns the losses with the gradient norm, and the edge logits (B, 1, C/4, C/4)."""
    context = run.context
    with context.autocast():
        logits, displacement = run.network(normalize(batch["image"], batch["inside"]))
    label = batch["target"][:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    sums = sum_over_pairs(logits, displacement, label, search_paths(RADIUS), IGNORE)
    losses = inter_pixel_losses(
        sums._replace(count=context.all_reduce_mean(sums.count))
    )  # means over the pairs of all processes
    norm = run.step(sum(losses.values()) / 2)
    return {
        **dict(zip(losses, context.all_reduce_mean(torch.stack([*losses.values()])))),
        "grad_norm": norm,
    }, logits


@torch.no_grad()
def mean_displacement(
    model: IRN, samples: Samples, args: argparse.Namespace, context: Context
) -> torch.Tensor:
    """(2,) the mean displacement over the images, each cut or padded to the crop at its top left corner, in cells."""
    loader = inference_loader(
        MultiscaleImages(context.shard(samples), None, Scaling((1.0,))),
        args.num_workers,
        pin_memory=context.is_cuda,
    )
    total = torch.zeros(2, dtype=torch.float64)
    for item in tqdm(loader, desc="mean displacement", unit="image", disable=not context.is_main):
        image = normalize(item.images[0][None].to(context.device))
        image = F.pad(
            image, (0, args.crop_size - image.shape[3], 0, args.crop_size - image.shape[2])
        )
        with context.autocast():
            total += model(image)[1].mean((0, 2, 3)).cpu()
    return sum(context.all_gather_object(total)) / len(samples)


def train(
    args: argparse.Namespace, context: Context, dataset: Dataset, samples: Samples, digest: str
) -> None:
    files, terms = trainer.RunFiles.of(args.run_dir, "irn"), trainer.terms_of(args, KEPT, digest)
    if trainer.is_finished(args, files, terms, context):
        return
    torch.manual_seed(args.seed)
    model = IRN()
    load_pretrained(model.resnet50, args.weights)
    model.to(context.device, memory_format=torch.channels_last).train()
    run = trainer.Trainer(
        args,
        context,
        files,
        terms,
        dataset.class_names,
        len(samples),
        model,
        model.parameter_groups(),
    )
    context.print(f"{len(samples)} images, {run.plan}")
    options = CropOptions(tuple(args.scales), args.crop_size, args.seed)
    crops = LabelledCrops(samples, args.run_dir / "ir_label", dataset.num_classes, options)
    for batch in run.batches(crops):
        losses, logits = train_step(run, batch)
        run.log(
            losses,
            "image_label_edge",
            functools.partial(edge_sheet, batch["image"], batch["target"], logits),
        )
    model.eval()
    model.set_mean_displacement(mean_displacement(model, samples, args, context))
    run.finish()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    samples = dataset.samples(args.list)
    trainer.check_batch(args, len(samples), world_size())
    folder, content = args.run_dir / "ir_label", hashlib.sha256()
    label_file.check_folder(folder, dataset.class_names)
    for name in samples.names():
        path = label_file.path_of(folder, name)
        if not path.is_file():
            raise InputError(
                f"{path}: no such inter-pixel label; run make_ir_labels.py on this list first"
            )
        content.update(path.read_bytes())
    with run_context(args) as context:
        train(args, context, dataset, samples, dataset.digest(samples, content.digest()))


if __name__ == "__main__":
    sys.exit(cli_main(main))
