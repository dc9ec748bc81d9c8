"""Stage 2: localization maps (IS-CAM and general CAM) of every picture.

    python make_cam.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads RUN_DIR/ckpt/final.pth (or --ckpt; the authors' checkpoints work too) and the pictures and tags of --list. Writes
RUN_DIR/cam/NAME.npz (see tool/cam_file.py); pictures that have a whole file are skipped, so a stopped run goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.datasets import Pyramid, Pyramids, kept_classes
from data.entries import Entries, Entry
from data.images import stored_size, to_stored_frame
from data.loaders import by_size, inference_loader
from data.registry import DATASETS, Dataset, open_dataset
from data.transforms import normalize
from network.resnet import ready
from network.sipe import SIPE, release_names
from tool import cam_file, checkpoint, outputs, stage

KINDS = ("is_cam", "cam")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS))
    parser.add_argument(
        "--list", help="pictures to localize: a name (train_aug) or a text file (default: the training list, which later stages need)"
    )
    parser.add_argument("--ckpt", type=Path, help="checkpoint, ours or the authors' (default RUN_DIR/ckpt/final.pth)")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0, 0.5, 1.5, 2.0],
        help="sizes relative to the original picture, each used with its mirror (default 1.0 0.5 1.5 2.0)",
    )
    parser.add_argument("--maps", nargs="+", choices=KINDS, default=list(KINDS), help="maps to keep (default both)")
    parser.add_argument(
        "--batch_size",
        type=int,
        help="pictures of one size that go through the network together, fewer where they are larger than 640x480; the maps are the "
        "same but for rounding (default 8 on a GPU, 1 on a CPU)",
    )
    outputs.add_flag(parser)
    args = stage.parse(parser, argv)
    args.ckpt = args.ckpt or args.run_dir / "ckpt/final.pth"
    stage.check_scales(parser, args.scales)
    if args.batch_size is not None and args.batch_size < 1:
        parser.error("--batch_size is at least 1")
    return args


def settings(args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """What tells maps from other maps of the same picture."""
    return {
        "checkpoint": checkpoint.fingerprint(args.ckpt),
        "scales": args.scales,
        "maps": sorted(args.maps),
        "amp": args.amp,
        "class_names": list(dataset.class_names),
    }


def localize(model: SIPE, items: Sequence[Pyramid], run: stage.Stage) -> list[tuple[np.ndarray, dict[str, list[np.ndarray]]]]:
    """Of pictures of one size: the kept class ids, background first, and each kind of map, (k, h, w) a scale in the stored frame."""
    keys = [kept_classes(item.label) for item in items]
    label = torch.stack([item.label for item in items]).to(run.device)
    kept = F.pad(label, (1, 0), value=1).nonzero(as_tuple=True)  # pictures and classes, in the order of keys
    found, scales = {}, range(len(items[0].images))
    for i in sorted(scales, key=lambda i: -items[0].images[i].numel()):  # the memory that the largest needs serves the others
        image = torch.stack([item.images[i].to(run.device, non_blocking=True) for item in items])
        with run.autocast():
            localized = model.localize(normalize(image), label)
        found[i] = {kind: getattr(localized, kind)[kept] for kind in KINDS}  # most classes are not worth copying
    counts = [len(one) for one in keys]
    maps = {kind: [found[i][kind].cpu().split(counts) for i in scales] for kind in KINDS}
    return [
        (keys[j], {kind: [to_stored_frame(grids[j].numpy(), item.orientation) for grids in maps[kind]] for kind in KINDS})
        for j, item in enumerate(items)
    ]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(args.list or dataset.spec.train_list)
    labels = dataset.labels(entries)
    model = SIPE(dataset.num_classes)
    checkpoint.load_model(model, args.ckpt, dataset.class_names, release_names)
    with stage.start(args) as run:
        outputs.claim(run.run_dir / "cam", "make_cam", settings(args, dataset), run, args.overwrite)
        mine = [i for i in run.shard(range(len(entries))) if not is_made(entries[i], labels[i], run)]
        run.say(f"{len(entries)} pictures, {sum(run.gather(len(mine)))} of them to do, on {run.device}")
        make_cams(ready(model, run.device), entries.select(mine), labels[mine], args, run)
        run.wait()
        run.say(f"wrote {run.run_dir / 'cam'}")


def is_made(entry: Entry, label: np.ndarray, run: stage.Stage) -> bool:
    """Whether the picture has a whole CAM file of the classes that it is tagged with."""
    return cam_file.is_complete(cam_file.path_of(run.run_dir, entry.name), kept_classes(label))


def make_cams(model: SIPE, entries: Entries, labels: np.ndarray, args: argparse.Namespace, run: stage.Stage) -> None:
    loader = inference_loader(Pyramids(entries, labels, args.scales), args.num_workers, pin_memory=run.on_gpu)
    batches = by_size(loader, args.batch_size or (8 if run.on_gpu else 1))
    with outputs.in_background(cam_file.save) as save, tqdm(total=len(entries), desc="CAM", unit="picture", disable=not run.is_main) as bar:
        for items in batches:
            for item, (keys, maps) in zip(items, localize(model, items, run)):
                path, size = cam_file.path_of(run.run_dir, entries[item.index].name), stored_size(item.size, item.orientation)
                save(path, keys, size, **{kind: maps[kind] for kind in args.maps})
            bar.update(len(items))


if __name__ == "__main__":
    sys.exit(stage.run(main))
