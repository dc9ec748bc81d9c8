"""The training loader alone: against normalising to float32 in its workers, and against a training step's need.

    python -m benchmarks.input [--dataset_root /data/VOC2012] [--pictures 128] [--num_workers 2] [--device auto]

Both loaders end with normalised crops on the device: ours brings bytes there and normalises them there, the plain one does it in its
workers. The step is that of benchmarks/training_step.py on the same device, of --batch pictures. Memory is without that of workers.
"""

import sys
from argparse import Namespace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data.datasets import TrainingCrops
from data.loaders import ResumableBatches, training_loader
from data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from tool import stage

from . import measure, pictures, training_step

LOADER_BATCH, RESIZE_LONG, SEED = 16, (320, 640), 15


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = measure.parser(__doc__, repeats=3)
    pictures.add_flags(parser, pictures=128)
    training_step.add_flags(parser)
    stage.add_workers(parser)
    return parser.parse_args(argv)


class FloatCrops(TorchDataset):
    """The crops of TrainingCrops as image (3, C, C) float32 normalised, inside (C, C) float32, label (K-1,) float32."""

    def __init__(self, entries, labels: np.ndarray, crop_size: int):
        self.entries, self.labels, self.crop_size = entries, labels, crop_size

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = epoch_and_index
        rng, size = np.random.default_rng((SEED, epoch, index)), self.crop_size
        picture = Image.open(self.entries[index].picture).convert("RGB")
        scale = rng.integers(RESIZE_LONG[0], RESIZE_LONG[1] + 1) / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
        pixels = ((np.asarray(picture, np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        offsets = [int(rng.integers(abs(side - size) + 1)) for side in pixels.shape[:2]]
        here = tuple(slice(at, at + size) if side > size else slice(None) for at, side in zip(offsets, pixels.shape))
        there = tuple(slice(None) if side > size else slice(at, at + side) for at, side in zip(offsets, pixels.shape))
        crop, inside = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
        crop[there], inside[there] = pixels[here], 1
        image = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
        return {"image": image, "inside": torch.from_numpy(inside), "label": torch.from_numpy(self.labels[index])}


def batches(pictures: int) -> ResumableBatches:
    return ResumableBatches(pictures, min(LOADER_BATCH, pictures), 1, SEED)


def facts(images: list[torch.Tensor], insides: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """What is compared of all crops: the mean of each channel, and the padding."""
    return {"image": torch.cat(images).cpu().numpy(), "inside": torch.cat(insides).cpu().numpy()}


def ours(args: Namespace) -> measure.Work:
    device, (_, entries, labels) = stage.choose_device(args.device), pictures.opened(args)
    crops = TrainingCrops(entries, labels, RESIZE_LONG, args.crop, SEED)

    def load() -> dict[str, np.ndarray]:
        images, insides = [], []
        for batch in training_loader(crops, batches(len(entries)), args.num_workers, pin_memory=device.type == "cuda"):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            images.append(normalize(batch["image"], batch["inside"]).mean((2, 3)))
            insides.append(batch["inside"].float().mean((1, 2)))
        return facts(images, insides)

    return load


def plain(args: Namespace) -> measure.Work:
    device, (_, entries, labels) = stage.choose_device(args.device), pictures.opened(args)
    crops = FloatCrops(entries, labels, args.crop)

    def load() -> dict[str, np.ndarray]:
        images, insides = [], []
        for batch in DataLoader(crops, batch_sampler=batches(len(entries)), num_workers=args.num_workers, pin_memory=device.type == "cuda"):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            images.append(batch["image"].mean((2, 3)))
            insides.append(batch["inside"].mean((1, 2)))
        return facts(images, insides)

    return load


VERSIONS = {"loader": ours, "plain": plain}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with pictures.lent(args):
        costs = measure.compare(VERSIONS | {"step": training_step.sipe}, args)
    loader, plain = costs["loader"], costs["plain"]
    print(measure.line("input", loader, plain))
    speed, needed = len(loader.result["image"]) / loader.seconds, args.batch / costs["step"].seconds
    print(f"  {speed:.1f} pictures/s; a training step takes {needed:.1f}, {speed / needed:.3g} times less")
    print(measure.told(measure.differences(loader.result, plain.result)))


if __name__ == "__main__":
    sys.exit(stage.run(main))
