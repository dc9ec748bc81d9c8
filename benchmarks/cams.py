"""Maps of whole pictures at several scales: make_cam.py against one picture and one scale at a time.

    python -m benchmarks.cams [--pictures 8] [--dataset_root /data/VOC2012] [--scales 1.0 0.5 1.5 2.0] [--ckpt RUN_DIR/ckpt/final.pth]

The plain version is the authors' way: every BatchNorm after its convolution, side branches on all cells, PyTorch's default memory format,
the default allocator, and the maps of all classes brought to the picture's size on the CPU, of which those of its tags are kept in float32.
A second one has network and allocator of make_cam.py. Maps are compared on a few pictures, without the CAM file's rounding to float16.
Memory is without that of loaders' workers.
"""

import functools
import sys
from argparse import Namespace
from collections.abc import Callable
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
from network.resnet import ready
from network.sipe import SIPE, add_mirror, general_cam, label_mask, release_names
from tool import cam_file, checkpoint, stage

from . import measure, pictures, release

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
    return model.eval().to(device)


def prepare(args: Namespace, make: Callable, folder: str, as_stage: bool = True) -> measure.Work:
    """make(model, entries, labels, args, run) fills cam/ in its folder; as_stage: with the network and the allocator of make_cam.py."""
    dataset, entries, labels = pictures.opened(args)
    run_dir = args.folder / folder
    (run_dir / "cam").mkdir(parents=True, exist_ok=True)
    run = stage.Stage(stage.choose_device(args.device), 0, 1, run_dir, stage.AMP[args.amp])
    model = build_model(args, dataset.class_names, run.device)
    if as_stage:
        ready(model, run.device)
        if not run.on_gpu:
            stage.keep_freed_memory()
    flags = ["--dataset", args.dataset, "--dataset_root", str(args.dataset_root), "--num_workers", str(args.num_workers)]
    flags = make_cam.parse_args([*flags, "--scales", *map(str, args.scales)])
    model.localize(torch.zeros(1, 3, 32, 32, device=run.device), torch.from_numpy(labels[:1]).to(run.device))  # loads libraries
    if run.on_gpu:
        make(model, entries, labels, flags, run)  # chooses the kernels of every size
    return lambda: make(model, entries, labels, flags, run)


@torch.no_grad()
def localize_plainly(describe: Callable, model: SIPE, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IS-CAM and general CAM (K, h, w) of a normalised image (1, 3, H, W), which goes through the network with its mirror."""
    logits, _, features = describe(model, torch.cat([image, image.flip(3)]))
    features, cam = add_mirror(features), general_cam(add_mirror(logits.float()))
    seeds = locate_seeds(cam, features, label_mask(label))
    return activate(pool_prototypes(seeds, features), features)[0], cam[0]


def make_plainly(
    model: SIPE,
    entries,
    labels: np.ndarray,
    args: Namespace,
    run: stage.Stage,
    describe: Callable = release.describe,
    layout: torch.memory_format = torch.contiguous_format,
) -> None:
    for item in inference_loader(Pyramids(entries, labels, args.scales), args.num_workers, pin_memory=run.on_gpu):
        maps = {"is_cam": [], "cam": []}
        for image in item.images:
            with run.autocast():
                normalized = normalize(image[None].to(run.device)).to(memory_format=layout)
                found = localize_plainly(describe, model, normalized, item.label[None].to(run.device))
            for kind, grid in zip(maps, found):
                maps[kind].append(F.interpolate(grid[None].cpu(), item.size, mode="bilinear", align_corners=False)[0])
        fused = {"is_cam": peak_normalize(sum(maps["is_cam"])), "cam": sum(maps["cam"]) / len(args.scales)}
        keys = kept_classes(item.label)
        kept = {kind: grid[keys].numpy() for kind, grid in fused.items()}
        np.savez(cam_file.path_of(run.run_dir, entries[item.index].name), keys=keys, **kept)


VERSIONS = {
    "make_cam": functools.partial(prepare, make=make_cam.make_cams, folder="ours"),
    "plain": functools.partial(prepare, make=make_plainly, folder="plain", as_stage=False),
    "network": functools.partial(
        prepare, make=functools.partial(make_plainly, describe=SIPE.describe, layout=torch.channels_last), folder="network"
    ),
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
        ours, plain, network = measure.compare(VERSIONS, args, anew=True).values()
        print(measure.line("cams", ours, plain))
        print(measure.line("cams, same network", ours, network))
        print(measure.told(agreement(args)))


if __name__ == "__main__":
    sys.exit(stage.run(main))
