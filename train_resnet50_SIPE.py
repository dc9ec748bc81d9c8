"""Stage 1: train SIPE from image-level tags.

    python train_resnet50_SIPE.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the pictures and tags of the training list. Writes RUN_DIR/ckpt/final.pth, which make_cam.py reads; RUN_DIR/ckpt/last.pth, from
which a stopped run goes on; RUN_DIR/tensorboard. Several GPUs: torchrun --nproc_per_node N train_resnet50_SIPE.py ...
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.datasets import Pyramids, TrainingCrops, kept_classes
from data.images import read_mask, to_stored_frame
from data.loaders import ResumableBatches, inference_loader, training_loader
from data.registry import DATASETS, Dataset, Entry, open_dataset
from data.transforms import normalize
from errors import InputError
from network.losses import classification_loss, consistency_loss
from network.sipe import SIPE
from tool import cam_file, checkpoint, metrics, optim, stage
from tool.imagenet_weights import fetch_torchvision
from tool.journal import Journal
from tool.visualize import training_sheet

# a run goes on only with the recipe that it began with
RECIPE = ("dataset", "weights", "seed", "batch_size", "max_epochs", "crop_size", "resize_long", "lr", "momentum", "wt_dec", "amp")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS))
    parser.add_argument(
        "--list", "--train_list", help="training pictures: a list's name or a text file (default: the dataset's own, train_aug)"
    )
    parser.add_argument(
        "--weights",
        default="imagenet",
        help="start of the backbone: imagenet (torchvision's V1 weights, downloaded once), "
        "none (every layer and BatchNorm's statistics learn from scratch), or a file with a ResNet-50 state dict in "
        "torchvision's layout (default imagenet)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from RUN_DIR/ckpt/last.pth where it is there; --no-resume starts over (default: resume)",
    )
    parser.add_argument("--seed", type=int, default=15, help="of weights, order and augmentation (default 15)")
    parser.add_argument("--batch_size", type=int, default=16, help="pictures a step, all processes together (default 16)")
    parser.add_argument("--max_epochs", "--max_epoches", type=int, default=5, help="times that every picture is seen (default 5)")
    parser.add_argument("--crop_size", type=int, default=512, help="side of the training crop, pixels, best a multiple of 16 (default 512)")
    parser.add_argument(
        "--resize_long",
        type=int,
        nargs=2,
        default=[320, 640],
        metavar=("MIN", "MAX"),
        help="range of the random long side before the crop, pixels (default 320 640)",
    )
    parser.add_argument(
        "--lr", type=float, default=0.1, help="learning rate of the backbone; classifier and side branches take 10 times it (default 0.1)"
    )
    parser.add_argument("--momentum", type=float, default=1e-4, help="of SGD; the published numbers have practically none (default 1e-4)")
    parser.add_argument("--wt_dec", type=float, default=1e-4, help="weight decay (default 1e-4)")
    parser.add_argument(
        "--save_every", type=int, default=500, help="save last.pth every so many steps too; 0: only after an epoch (default 500)"
    )
    parser.add_argument(
        "--log_every",
        "--print_freq",
        type=int,
        default=50,
        help="steps between scalars in TensorBoard; pictures come 10 times as rarely (default 50)",
    )
    parser.add_argument(
        "--val_list",
        help="after each epoch, IS-CAM mIoU at one scale on this list. It reads pixel labels, which the method "
        "does without; nothing is chosen by it (default: off)",
    )
    args = stage.parse(parser, argv)
    for flag in ("batch_size", "max_epochs", "crop_size", "log_every"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} is at least 1")
    for flag in ("seed", "lr", "momentum", "wt_dec", "save_every"):
        if not 0 <= getattr(args, flag) < 2**32:
            parser.error(f"--{flag} is at least 0, and below 2 to the 32nd")
    if not 1 <= args.resize_long[0] <= args.resize_long[1]:
        parser.error("--resize_long takes the smallest and the largest side, in this order")
    return args


def build_model(weights: str, num_classes: int) -> SIPE:
    model = SIPE(num_classes, pretrained=weights != "none")
    if weights == "imagenet":
        try:
            tensors = fetch_torchvision()
        except OSError as error:
            raise InputError(
                f"--weights imagenet: torchvision cannot download its weights ({error}); give --weights a file, "
                "for example one that python -m tool.imagenet_weights FILE makes"
            ) from None
        checkpoint.fill(model.resnet50, tensors, "torchvision's ResNet-50")
    elif weights != "none":
        checkpoint.load_backbone(model.resnet50, weights)
    return model


def recipe(args: argparse.Namespace, digest: str) -> dict[str, Any]:
    """What a run keeps to its end: its flags, and (the digest of) the pictures, tags and classes that it learns from."""
    return {name: getattr(args, name) for name in RECIPE} | {"digest": digest}


def read_own(path: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint that this very run wrote. Raises InputError for one of another recipe."""
    content = checkpoint.read(path)
    before = content.get("arguments")
    before = before if isinstance(before, dict) else {}
    changed = [name for name, value in kept.items() if before.get(name) != value]
    if changed:
        told = [f"--{name} {before.get(name)} (now {kept[name]})" for name in changed if name != "digest"]
        told = told or ["other pictures, tags or classes than the dataset has now"]
        raise InputError(f"{path}: was trained with {', '.join(told)}; use the same again, another --run_dir, or --no-resume")
    return content


def restore(content: dict[str, Any], parts: dict[str, Any], path: Path) -> int:
    """Put every part back to where last.pth has it; returns how many steps are done."""
    try:
        for name, part in parts.items():
            part.load_state_dict(content[name])
        torch.set_rng_state(content["rng"])
        return content["step"]
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be resumed ({str(error).splitlines()[0]}); use --no-resume to start over") from None


def train_step(model: nn.Module, batch: dict, run: stage.Stage, optimizer, schedule, scaler) -> tuple[dict[str, torch.Tensor], Any]:
    """One step of SGD; returns losses with the gradient norm before clipping, and what the network found."""
    with run.autocast():
        found = model(normalize(batch["image"], batch["inside"]), batch["label"], batch["inside"])
        losses = {"cls": classification_loss(found.score, batch["label"]), "gsc": consistency_loss(found.cam, found.is_cam)}
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(losses["cls"] + losses["gsc"]).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() >= scale:  # else fp16 overflowed and the optimizer left this step out
        schedule.step()
    return {**losses, "grad_norm": norm}, found


@torch.no_grad()
def validate(model: SIPE, dataset: Dataset, entries: list[Entry], labels: np.ndarray, run: stage.Stage, num_workers: int) -> float:
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
        prediction = keys[to_stored_frame(label, item.orientation)]
        truth = read_mask(entries[item.index].mask, dataset.num_classes, prediction.shape)
        matrix += metrics.confusion(truth, prediction, dataset.num_classes)
    model.train()
    miou = metrics.miou(sum(run.gather(matrix)))
    return float("nan") if miou is None else miou


def validation_set(args: argparse.Namespace, dataset: Dataset) -> tuple[list[Entry], np.ndarray] | None:
    """Pictures and labels of --val_list; every mask must be there before the training begins."""
    if not args.val_list:
        return None
    entries = dataset.entries(args.val_list)
    for entry in entries:
        if not os.path.isfile(entry.mask):
            raise InputError(f"{entry.mask}: no such mask; give a --val_list of pictures that have one")
    return entries, dataset.labels(entries)


def train(args: argparse.Namespace, run: stage.Stage, dataset: Dataset, entries: list[Entry], labels: np.ndarray) -> None:
    last, final = run.run_dir / "ckpt/last.pth", run.run_dir / "ckpt/final.pth"
    kept = recipe(args, dataset.digest(entries, labels))
    if args.resume and final.is_file() and read_own(final, kept):
        return run.say(f"{final} is complete")
    before = read_own(last, kept) if args.resume and last.is_file() else None

    validation = validation_set(args, dataset)
    stage.seed_everything(args.seed)
    if not args.resume and run.is_main:  # what is left of an earlier training must not pass for this one
        last.unlink(missing_ok=True)
        final.unlink(missing_ok=True)
    model = build_model(args.weights, dataset.num_classes).to(run.device, memory_format=torch.channels_last)
    epoch_steps = len(entries) // args.batch_size
    steps = epoch_steps * args.max_epochs
    optimizer, schedule = optim.poly_sgd(model.backbone_parameters(), model.head_parameters(), args.lr, steps, args.momentum, args.wt_dec)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp is torch.float16)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    start = restore(before, parts, last) if before else 0
    about = {"arguments": kept, "class_names": list(dataset.class_names)}
    if args.weights == "none" and run.world_size > 1 and run.on_gpu:
        model.resnet50 = nn.SyncBatchNorm.convert_sync_batchnorm(model.resnet50)  # statistics of the whole batch, as on one GPU
    parallel = (DistributedDataParallel(model) if run.world_size > 1 else model).train()

    crops = TrainingCrops(entries, labels, args.resize_long, args.crop_size, args.seed)
    batches = ResumableBatches(len(entries), args.batch_size, args.max_epochs, args.seed, start, run.rank, run.world_size)
    origin = f", from step {start}" if start else ""
    run.say(f"{len(entries)} pictures, {dataset.num_classes - 1} classes, {steps} steps on {run.device}{origin}")
    if validation:
        run.say(f"validation reads the pixel labels of {len(validation[0])} pictures; nothing is chosen by it")
    journal = Journal(run.run_dir / "tensorboard" if run.is_main else None, start, args.log_every, epoch_steps)
    bar = tqdm(
        training_loader(crops, batches, args.num_workers, pin_memory=run.on_gpu),
        initial=start,
        total=steps,
        desc="train",
        disable=not run.is_main,
    )
    for step, batch in enumerate(bar, start + 1):
        batch = {name: value.to(run.device, non_blocking=True) for name, value in batch.items()}
        losses, found = train_step(parallel, batch, run, optimizer, schedule, scaler)
        epoch_ends = step % epoch_steps == 0
        saves = epoch_ends or (args.save_every and step % args.save_every == 0)
        if saves and not all(weights.isfinite().all() for weights in model.parameters()):
            raise InputError(f"step {step}: the weights are not finite any more; train anew (--no-resume) with a smaller --lr")
        if journal.wants(step):
            speed = (step - start) * args.batch_size / bar.format_dict["elapsed"]
            scalars = {name: value.item() for name, value in losses.items()}
            journal.scalars(step, scalars | {"lr": schedule.get_last_lr()[0], "images/s": speed}, bar)
        if journal.wants(step, pictures=True):
            sheet = training_sheet(batch["image"], found.cam, found.is_cam, batch["label"])
            journal.picture(step, "train/picture_cam_is_cam", sheet)
        if run.is_main and saves:
            progress = {"step": step, "epoch": step // epoch_steps, "rng": torch.get_rng_state()}
            checkpoint.save(last, about | progress | {name: part.state_dict() for name, part in parts.items()})
        if epoch_ends and validation:
            miou = validate(model, dataset, *validation, run, args.num_workers)
            run.say(f"after {step // epoch_steps} epochs: IS-CAM mIoU {miou:.2f} at one scale (from pixel labels)")
            journal.scalar(step, "validation/is_cam_miou", miou)
    journal.close()
    if run.is_main:
        checkpoint.save(final, about | {"model": model.state_dict()})
        last.unlink(missing_ok=True)
    run.say(f"wrote {final}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    entries = dataset.entries(args.list)
    if len(entries) < args.batch_size:
        raise InputError(f"--list {args.list}: {len(entries)} pictures do not fill a batch; use --batch_size {len(entries)} or less")
    if args.batch_size % stage.world_size():
        raise InputError(f"--batch_size {args.batch_size}: is not a multiple of the {stage.world_size()} processes; choose one that is")
    labels = dataset.labels(entries)
    with stage.start(args) as run:
        train(args, run, dataset, entries, labels)


if __name__ == "__main__":
    sys.exit(stage.run(main))
