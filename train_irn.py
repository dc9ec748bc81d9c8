"""Stage 5: train IRN, which finds class boundaries, from inter-pixel labels.

    python train_irn.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the pictures of the training list and RUN_DIR/ir_label. Writes RUN_DIR/ckpt/irn.pth, which make_seg_labels.py reads;
RUN_DIR/ckpt/irn_last.pth, from which a stopped run goes on; RUN_DIR/tensorboard/irn. Several GPUs: torchrun --nproc_per_node N
train_irn.py ...
"""

import argparse
import functools
import hashlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.datasets import LabelledCrops, Pyramids
from data.entries import Entries
from data.loaders import ResumableBatches, inference_loader, training_loader
from data.registry import DATASETS, Dataset, open_dataset
from data.transforms import normalize
from errors import InputError
from network.irn import IRN, STRIDE, inter_pixel_losses, sum_over_pairs
from tool import label_file, stage, training
from tool.imagenet_weights import start_backbone
from tool.random_walk import search_paths
from tool.visualize import edge_sheet

RECIPE = (*training.RECIPE, "scales")
RADIUS = 10  # of the pairs, cells of the /4 grid


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS))
    training.add_flags(
        parser, batch_size=32, max_epochs=3, lr_help="learning rate of the edge branch; the displacement branch takes 10 times it"
    )
    parser.add_argument(
        "--weights",
        default="imagenet",
        help="the backbone, which stays as it is: imagenet (torchvision's V1 weights, downloaded once) or a file with a ResNet-50 "
        "state dict in torchvision's layout (default imagenet)",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs=2,
        default=[0.5, 1.5],
        metavar=("MIN", "MAX"),
        help="range of the random factor by which pictures are resized before the crop (default 0.5 1.5)",
    )
    args = stage.parse(parser, argv)
    training.check_flags(parser, args)
    training.check_scale_range(parser, args.scales)
    if args.crop_size % STRIDE or args.crop_size < 2 * STRIDE * RADIUS:
        parser.error(f"--crop_size is a multiple of {STRIDE}, from {2 * STRIDE * RADIUS} up: pairs of cells reach that far")
    return args


def train_step(model: nn.Module, batch: dict, course: training.Training) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One step of SGD; returns the losses with the gradient norm, and the edge logits (B, 1, C/4, C/4)."""
    run = course.run
    with run.autocast():
        logits, displacement = model(normalize(batch["image"], batch["inside"]))
    label = batch["label"][:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    sums = sum_over_pairs(logits, displacement, label, search_paths(RADIUS))
    losses = inter_pixel_losses(sums._replace(count=run.mean(sums.count)))  # means over the pairs of all processes
    norm = course.descend(sum(losses.values()) / 2)
    return {**dict(zip(losses, run.mean(torch.stack([*losses.values()])))), "grad_norm": norm}, logits


@torch.no_grad()
def mean_displacement(model: IRN, entries: Entries, args: argparse.Namespace, run: stage.Stage) -> torch.Tensor:
    """(2,) the mean displacement over the pictures, each cut or padded to the crop at its top left corner, in cells."""
    mine = run.shard(entries)
    loader = inference_loader(Pyramids(mine, None, [1.0]), args.num_workers, pin_memory=run.on_gpu)
    total = torch.zeros(2, dtype=torch.float64)
    for item in tqdm(loader, desc="mean displacement", unit="picture", disable=not run.is_main):
        image = normalize(item.images[0][None].to(run.device))
        image = F.pad(image, (0, args.crop_size - image.shape[3], 0, args.crop_size - image.shape[2]))
        with run.autocast():
            total += model(image)[1].mean((0, 2, 3)).cpu()
    return sum(run.gather(total)) / len(entries)


def train(args: argparse.Namespace, run: stage.Stage, dataset: Dataset, entries: Entries, folder: Path, digest: str) -> None:
    ckpt, kept = run.run_dir / "ckpt", training.recipe(args, RECIPE, digest)
    epoch_steps = len(entries) // args.batch_size
    course = training.Training(
        args, run, kept, dataset.class_names, ckpt / "irn_last.pth", ckpt / "irn.pth", epoch_steps, run.run_dir / "tensorboard/irn"
    )
    if course.is_complete:
        return run.say(f"{course.final} is complete")

    stage.seed_everything(args.seed)
    model = IRN()
    start_backbone(model.resnet50, args.weights)
    model.to(run.device, memory_format=torch.channels_last).train()
    course.begin(model, model.edge_parameters(), model.displacement_parameters())
    parallel = course.parallel(model)

    label_path = functools.partial(label_file.path_of, folder)
    crops = LabelledCrops(entries, label_path, dataset.num_classes, args.scales, args.crop_size, args.seed)
    batches = ResumableBatches(len(entries), args.batch_size, args.max_epochs, args.seed, course.start, run.rank, run.world_size)
    run.say(f"{len(entries)} pictures, {course.plan}")
    for batch in course.batches(training_loader(crops, batches, args.num_workers, pin_memory=run.on_gpu)):
        losses, logits = train_step(parallel, batch, course)
        picture = functools.partial(edge_sheet, batch["image"], batch["label"], logits)
        course.record(losses, picture, "picture_label_edge")
    model.eval()
    model.set_mean_displacement(mean_displacement(model, entries, args, run))
    course.finish()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    entries = dataset.entries(args.list)
    training.check_batch(args, len(entries), stage.world_size())
    folder = args.run_dir / "ir_label"
    content = hashlib.sha256()
    for name in entries.names():
        path = label_file.path_of(folder, name)
        if not label_file.is_whole(path):
            raise InputError(f"{path}: no whole inter-pixel label; run make_ir_labels.py on this list first")
        content.update(path.read_bytes())
    with stage.start(args) as run:
        train(args, run, dataset, entries, folder, dataset.digest(entries, content.digest()))


if __name__ == "__main__":
    sys.exit(stage.run(main))
