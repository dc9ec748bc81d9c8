"""Maps of whole pictures at several scales: make_cam.py against one picture, one scale and one mirror at a time.

    python -m benchmarks.cams [--pictures 8] [--dataset_root /data/VOC2012] [--scales 1.0 0.5 1.5 2.0] [--ckpt RUN_DIR/ckpt/final.pth]

The plain version brings the maps of all classes to the picture's size on the CPU and keeps those of its tags in float32, as the authors'
program does. Maps are compared on a few pictures, without the CAM file's rounding to float16. Memory is without that of loaders' workers.
"""

import functools
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

import make_cam
from data.datasets import Pyramids, kept_classes
from data.loaders import inference_loader
from data.transforms import normalize
from network.prototypes import activate, locate_seeds, peak_normalize, pool_prototypes
from network.sipe import SIPE, general_cam, label_mask, release_names
from tool import cam_file, checkpoint, stage

from . import measure, pictures

COMPARED = 3  # pictures


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = measure.parser(__doc__, repeats=3)
    pictures.add_flags(parser, pictures=8)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.5, 1.5, 2.0], help="as of make_cam.py (default 1.0 0.5 1.5 2.0)")
    parser.add_argument("--ckpt", type=Path, help="checkpoint of SIPE, with the classes of --dataset_root (default: random weights)")
    stage.add_device(parser)
    stage.add_workers(parser)
    return parser.parse_args(argv)


def build_model(args: Namespace, class_names: tuple[str, ...], device: torch.device) -> SIPE:
    stage.seed_everything(0)
    model = SIPE(len(class_names))
    if args.ckpt:
        checkpoint.load_model(model, args.ckpt, class_names, release_names)
    return model.eval().to(device, memory_format=torch.channels_last)


def prepare(args: Namespace, make, folder: str) -> measure.Work:
    """make(model, entries, labels, args, run) fills cam/ in its folder."""
    dataset, entries, labels = pictures.opened(args)
    run_dir = args.folder / folder
    (run_dir / "cam").mkdir(parents=True, exist_ok=True)
    run = stage.Stage(stage.choose_device(args.device), 0, 1, run_dir, stage.AMP[args.amp])
    model = build_model(args, dataset.class_names, run.device)
    flags = ["--dataset", args.dataset, "--dataset_root", str(args.dataset_root), "--num_workers", str(args.num_workers)]
    flags = make_cam.parse_args([*flags, "--scales", *map(str, args.scales)])
    model.localize(torch.zeros(1, 3, 32, 32, device=run.device), torch.from_numpy(labels[:1]).to(run.device))  # loads libraries
    return lambda: make(model, entries, labels, flags, run)


@torch.no_grad()
def localize_plainly(model: SIPE, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IS-CAM and general CAM (K, h, w) of a normalised image (1, 3, H, W), which goes through the network twice."""
    logits, _, features = model.describe(image)
    mirrored_logits, _, mirrored_features = model.describe(image.flip(3))
    features, cam = features + mirrored_features.flip(3), general_cam(logits + mirrored_logits.flip(3))
    seeds = locate_seeds(cam, features, label_mask(label))
    return activate(pool_prototypes(seeds, features), features)[0], cam[0]


def make_plainly(model: SIPE, entries, labels: np.ndarray, args: Namespace, run: stage.Stage) -> None:
    for item in inference_loader(Pyramids(entries, labels, args.scales), args.num_workers, pin_memory=run.on_gpu):
        maps = {"is_cam": [], "cam": []}
        for image in item.images:
            with run.autocast():
                found = localize_plainly(model, normalize(image[None].to(run.device)), item.label[None].to(run.device))
            for kind, grid in zip(maps, found):
                maps[kind].append(F.interpolate(grid[None].cpu(), item.size, mode="bilinear", align_corners=False)[0])
        fused = {"is_cam": peak_normalize(sum(maps["is_cam"])), "cam": sum(maps["cam"]) / len(args.scales)}
        keys = kept_classes(item.label)
        kept = {kind: grid[keys].numpy() for kind, grid in fused.items()}
        np.savez(cam_file.path_of(run.run_dir, entries[item.index].name), keys=keys, **kept)


VERSIONS = {
    "make_cam": functools.partial(prepare, make=make_cam.make_cams, folder="ours"),
    "plain": functools.partial(prepare, make=make_plainly, folder="plain"),
}


def agreement(args: Namespace) -> dict[str, float]:
    """How far the maps of both versions lie apart on a few pictures."""
    args = Namespace(**vars(args) | {"pictures": min(args.pictures, COMPARED)})
    with mock.patch.object(cam_file, "save", functools.partial(cam_file.save, dtype=np.float32)):
        for prepare in VERSIONS.values():
            measure.Timed(prepare, args)()
    found = []
    for entry in pictures.opened(args)[1]:
        ours = cam_file.load(cam_file.path_of(args.folder / "ours", entry.name))
        with np.load(cam_file.path_of(args.folder / "plain", entry.name), allow_pickle=False) as plain:
            found.append(measure.differences({"IS-CAM": ours.is_cam, "CAM": ours.cam}, {"IS-CAM": plain["is_cam"], "CAM": plain["cam"]}))
    return {kind: max(one[kind] for one in found) for kind in found[0]}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with pictures.lent(args):
        ours, plain = measure.compare(VERSIONS, args).values()
        print(measure.line("cams", ours, plain))
        print(measure.told(agreement(args)))


if __name__ == "__main__":
    sys.exit(stage.run(main))
