"""Stage 1: train SIPE from image-level tags.

    python train_resnet50_SIPE.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the pictures and tags of the training list. Writes RUN_DIR/ckpt/final.pth, which make_cam.py reads; RUN_DIR/ckpt/last.pth, from
which a stopped run goes on; RUN_DIR/tensorboard. Several GPUs: torchrun --nproc_per_node N train_resnet50_SIPE.py ...
"""

import argparse
import functools
import os
import sys
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.datasets import Pyramids, TrainingCrops, kept_classes
from data.entries import Entries
from data.images import read_mask, to_stored_frame
from data.loaders import ResumableBatches, inference_loader, training_loader
from data.registry import DATASETS, Dataset, open_dataset
from data.transforms import normalize
from errors import InputError
from network.losses import classification_loss, consistency_loss
from network.sipe import SIPE
from tool import cam_file, metrics, stage, training
from tool.imagenet_weights import start_backbone
from tool.visualize import training_sheet

RECIPE = (*training.RECIPE, "resize_long")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS))
    training.add_flags(
        parser, batch_size=16, max_epochs=5, lr_help="learning rate of the backbone; classifier and side branches take 10 times it"
    )
    parser.add_argument(
        "--weights",
        default="imagenet",
        help="start of the backbone: imagenet (torchvision's V1 weights, downloaded once), "
        "none (every layer and BatchNorm's statistics learn from scratch), or a file with a ResNet-50 state dict in "
        "torchvision's layout (default imagenet)",
    )
    parser.add_argument(
        "--resize_long",
        type=int,
        nargs=2,
        default=[320, 640],
        metavar=("MIN", "MAX"),
        help="range of the random long side before the crop, pixels (default 320 640)",
    )
    parser.add_argument(
        "--val_list",
        help="after each epoch, IS-CAM mIoU at one scale on this list. It reads pixel labels, which the method "
        "does without; nothing is chosen by it (default: off)",
    )
    args = stage.parse(parser, argv)
    training.check_flags(parser, args)
    if not 1 <= args.resize_long[0] <= args.resize_long[1]:
        parser.error("--resize_long takes the smallest and the largest side, in this order")
    return args


def build_model(weights: str, num_classes: int) -> SIPE:
    model = SIPE(num_classes, pretrained=weights != "none")
    if weights != "none":
        start_backbone(model.resnet50, weights)
    return model


def train_step(model: nn.Module, batch: dict, course: training.Training) -> tuple[dict[str, torch.Tensor], Any]:
    """One step of SGD; returns losses with the gradient norm before clipping, and what the network found."""
    with course.run.autocast():
        found = model(normalize(batch["image"], batch["inside"]), batch["label"], batch["inside"])
        losses = {"cls": classification_loss(found.score, batch["label"]), "gsc": consistency_loss(found.cam, found.is_cam)}
    norm = course.descend(losses["cls"] + losses["gsc"], max_norm=1.0)
    return {**losses, "grad_norm": norm}, found


@torch.no_grad()
def validate(model: SIPE, dataset: Dataset, entries: Entries, labels: np.ndarray, run: stage.Stage, num_workers: int) -> float:
    """mIoU of the IS-CAM at scale 1, in percent; every process takes its share of the pictures."""
    model.eval()
    entries, labels = run.shard(entries), run.shard(labels)
    matrix = np.zeros((dataset.num_classes, dataset.num_classes), np.int64)
    loader = inference_loader(Pyramids(entries, labels, [1.0]), num_workers, pin_memory=run.on_gpu)
    for item in tqdm(loader, desc="validation", leave=False, disable=not run.is_main):
        keys = kept_classes(item.label)
        with run.autocast():
            found = model.localize(normalize(item.images[0][None].to(run.device)), item.label[None].to(run.device))
        label = cam_file.fuse([found.is_cam[0].cpu()[keys]], item.size, normalize=True).argmax(0).numpy()
        prediction = keys.astype(np.uint8)[to_stored_frame(label, item.orientation)]
        truth = read_mask(entries[item.index].mask, dataset.num_classes, prediction.shape)
        matrix += metrics.confusion(truth, prediction, dataset.num_classes)
    model.train()
    miou = metrics.miou(sum(run.gather(matrix)))
    return float("nan") if miou is None else miou


def validation_set(args: argparse.Namespace, dataset: Dataset) -> tuple[Entries, np.ndarray] | None:
    """Pictures and labels of --val_list; every mask must be there before the training begins."""
    if not args.val_list:
        return None
    entries = dataset.entries(args.val_list)
    for entry in entries:
        if not os.path.isfile(entry.mask):
            raise InputError(f"{entry.mask}: no such mask; give a --val_list of pictures that have one")
    return entries, dataset.labels(entries)


def train(args: argparse.Namespace, run: stage.Stage, dataset: Dataset, entries: Entries, labels: np.ndarray) -> None:
    ckpt, kept = run.run_dir / "ckpt", training.recipe(args, RECIPE, dataset.digest(entries, labels.tobytes()))
    epoch_steps = len(entries) // args.batch_size
    course = training.Training(
        args, run, kept, dataset.class_names, ckpt / "last.pth", ckpt / "final.pth", epoch_steps, run.run_dir / "tensorboard"
    )
    if course.is_complete:
        return run.say(f"{course.final} is complete")

    validation = validation_set(args, dataset)
    stage.seed_everything(args.seed)
    model = build_model(args.weights, dataset.num_classes).to(run.device, memory_format=torch.channels_last)
    course.begin(model, model.backbone_parameters(), model.head_parameters())
    if args.weights == "none" and run.world_size > 1 and run.on_gpu:
        model.resnet50 = nn.SyncBatchNorm.convert_sync_batchnorm(model.resnet50)  # statistics of the whole batch, as on one GPU
    parallel = course.parallel(model.train())

    crops = TrainingCrops(entries, labels, args.resize_long, args.crop_size, args.seed)
    batches = ResumableBatches(len(entries), args.batch_size, args.max_epochs, args.seed, course.start, run.rank, run.world_size)
    run.say(f"{len(entries)} pictures, {dataset.num_classes - 1} classes, {course.plan}")
    if validation:
        run.say(f"validation reads the pixel labels of {len(validation[0])} pictures; nothing is chosen by it")
    for batch in course.batches(training_loader(crops, batches, args.num_workers, pin_memory=run.on_gpu)):
        losses, found = train_step(parallel, batch, course)
        picture = functools.partial(training_sheet, batch["image"], found.cam, found.is_cam, batch["label"])
        course.record(losses, picture, "picture_cam_is_cam")
        if course.epoch_ends and validation:
            miou = validate(model, dataset, *validation, run, args.num_workers)
            run.say(f"after {course.step // epoch_steps} epochs: IS-CAM mIoU {miou:.2f} at one scale (from pixel labels)")
            course.journal.scalar(course.step, "validation/is_cam_miou", miou)
    course.finish()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    entries = dataset.entries(args.list)
    training.check_batch(args, len(entries), stage.world_size())
    labels = dataset.labels(entries)
    with stage.start(args) as run:
        train(args, run, dataset, entries, labels)


if __name__ == "__main__":
    sys.exit(stage.run(main))
