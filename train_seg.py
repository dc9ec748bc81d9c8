"""Stage 8: train a segmentation network on pseudo labels.

    python train_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the pictures of the training list and RUN_DIR/seg_label (or --label_dir: any folder of NAME.png with class ids, 255 where unknown).
Writes RUN_DIR/ckpt/seg.pth, which infer_seg.py and predict.py read; RUN_DIR/ckpt/seg_last.pth, from which a stopped run goes on;
RUN_DIR/tensorboard/seg. Several GPUs: torchrun --nproc_per_node N train_seg.py ...
"""

import argparse
import functools
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.datasets import LabelledCrops
from data.entries import Entries
from data.images import picture_size, read_mask
from data.loaders import ResumableBatches, training_loader
from data.registry import DATASETS, Dataset, open_dataset
from data.transforms import normalize
from errors import InputError
from network.deeplab import NETWORKS, DeepLab
from network.losses import class_weights, segmentation_loss
from tool import label_file, outputs, stage, training
from tool.imagenet_weights import start_backbone
from tool.visualize import segmentation_sheet

LR = {"deeplabv2": 2.5e-4, "deeplabv3": 1e-3}  # deeplabv2 sums 36 taps of a feature that nothing normalises: 1e-3 is too much for it
RECIPE = (*training.RECIPE, "network", "output_stride", "scales", "max_side", "class_balance")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS))
    training.add_flags(
        parser,
        batch_size=16,
        max_epochs=30,
        lr_help="learning rate of the backbone; the classifier takes 10 times it (default 0.00025 with deeplabv2, 0.001 with deeplabv3)",
        lr=None,
        momentum=0.9,
        wt_dec=5e-4,
    )
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default=NETWORKS[0],
        help=f"head and backbone; DeepLab-v2 on ResNet-101 is the paper's (default {NETWORKS[0]})",
    )
    parser.add_argument(
        "--output_stride",
        type=int,
        choices=(8, 16),
        default=8,
        help="pixels a cell of the network's output; 16 takes a third of the time, with coarser borders (default 8)",
    )
    parser.add_argument(
        "--weights",
        default="imagenet",
        help="start of the backbone: imagenet (torchvision's V1 weights, downloaded once) or a file with a state dict of the same ResNet "
        "in torchvision's layout (default imagenet)",
    )
    parser.add_argument("--label_dir", type=Path, help="folder of the labels NAME.png (default RUN_DIR/seg_label)")
    parser.add_argument(
        "--scales",
        type=float,
        nargs=2,
        default=[0.5, 2.0],
        metavar=("MIN", "MAX"),
        help="range of the random factor by which pictures are resized before the crop (default 0.5 2.0)",
    )
    stage.add_max_side(parser)
    parser.add_argument(
        "--class_balance",
        type=float,
        default=0.0,
        help="weigh each class by 1 / its share of the pixels to this power: 0 all pixels alike, 1 all classes alike (default 0)",
    )
    args = stage.parse(parser, argv)
    args.lr = LR[args.network.split("_")[0]] if args.lr is None else args.lr
    training.check_flags(parser, args)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    training.check_scale_range(parser, args.scales)
    if not 0 <= args.class_balance <= 1:
        parser.error("--class_balance is from 0 to 1")
    return args


def survey(index: int, entries: Entries, label_dir: Path, num_classes: int) -> tuple[int, bytes, np.ndarray]:
    """A picture's place on the list, a digest of its label, and how many pixels of each class this has, (K,) int64."""
    entry = entries[index]
    label = read_mask(label_file.path_of(label_dir, entry.name), num_classes, picture_size(entry.picture))
    return index, hashlib.sha256(label).digest(), np.bincount(label.ravel(), minlength=256)[:num_classes]


def survey_labels(entries: Entries, args: argparse.Namespace, num_classes: int, run: stage.Stage) -> tuple[Entries, bytes, np.ndarray]:
    """Read every label once, before the training: the pictures that have labelled pixels, all digests, and the pixels of each class.

    Raises InputError for a label that is missing, unreadable, of another size than its picture or of unknown classes, and where no
    pixel at all has a label.
    """
    work = functools.partial(survey, entries=entries, label_dir=args.label_dir, num_classes=num_classes)
    results = outputs.in_parallel(work, run.shard(range(len(entries))), args.num_workers)
    mine = list(tqdm(results, desc="labels", unit="picture", disable=not run.is_main))
    found = sorted((one for part in run.gather(mine) for one in part), key=lambda one: one[0])
    useful = [index for index, _, counts in found if counts.any()]
    if not useful:
        raise InputError(f"{args.label_dir}: no pixel of the {len(entries)} labels has a class, all are 255; make the labels anew")
    if len(useful) < len(entries):
        run.say(f"{len(entries) - len(useful)} pictures are left out: no pixel of their labels has a class")
    return entries.select(useful), b"".join(digest for _, digest, _ in found), sum(counts for *_, counts in found)


def train_step(
    model: nn.Module, batch: dict, weight: torch.Tensor, course: training.Training
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One step of SGD; returns the loss with the gradient norm, and the class logits (B, K, h, w)."""
    run = course.run
    with run.autocast():
        logits = model(normalize(batch["image"], batch["inside"]))
    total, count = segmentation_loss(logits, batch["label"], weight)
    loss = total / run.mean(count).clamp(min=1)  # the mean over the pixels of all processes
    norm = course.descend(loss)
    return {"loss": run.mean(loss), "grad_norm": norm}, logits.detach()


def train(args: argparse.Namespace, run: stage.Stage, dataset: Dataset, entries: Entries) -> None:
    entries, digests, counts = survey_labels(entries, args, dataset.num_classes, run)
    training.check_batch(args, len(entries), run.world_size)
    ckpt, kept = run.run_dir / "ckpt", training.recipe(args, RECIPE, dataset.digest(entries, digests))
    epoch_steps = len(entries) // args.batch_size
    course = training.Training(
        args, run, kept, dataset.class_names, ckpt / "seg_last.pth", ckpt / "seg.pth", epoch_steps, run.run_dir / "tensorboard/seg"
    )
    if course.is_complete:
        return run.say(f"{course.final} is complete")

    stage.seed_everything(args.seed)
    model = DeepLab(args.network, dataset.num_classes, args.output_stride)
    start_backbone(model.backbone, args.weights, args.network.split("_")[1])
    model.to(run.device, memory_format=torch.channels_last).train()
    course.begin(model, model.backbone.parameters(), model.classifier.parameters())
    if run.world_size > 1 and run.on_gpu:
        model.classifier = nn.SyncBatchNorm.convert_sync_batchnorm(model.classifier)  # statistics of the whole batch, as on one GPU
    parallel = course.parallel(model)

    weight = class_weights(torch.from_numpy(counts), args.class_balance).to(run.device)
    label_path = functools.partial(label_file.path_of, args.label_dir)
    crops = LabelledCrops(entries, label_path, dataset.num_classes, args.scales, args.crop_size, args.seed, args.max_side)
    batches = ResumableBatches(len(entries), args.batch_size, args.max_epochs, args.seed, course.start, run.rank, run.world_size)
    run.say(f"{len(entries)} pictures, {dataset.num_classes - 1} classes, {args.network}, {course.plan}")
    for batch in course.batches(training_loader(crops, batches, args.num_workers, pin_memory=run.on_gpu)):
        losses, logits = train_step(parallel, batch, weight, course)
        picture = functools.partial(segmentation_sheet, batch["image"], batch["label"], logits)
        course.record(losses, picture, "picture_label_prediction")
    course.finish()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    entries = dataset.entries(args.list)
    label_file.check_classes(args.label_dir, dataset.class_names)
    if args.network.startswith("deeplabv3") and args.batch_size < 2 * stage.world_size():
        raise InputError(f"--batch_size {args.batch_size}: DeepLab-v3 learns its statistics from 2 pictures a process or more; use more")
    with stage.start(args) as run:
        train(args, run, dataset, entries)


if __name__ == "__main__":
    sys.exit(stage.run(main))
