"""torch datasets over a list of pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from .entries import Entries
from .images import orientation, read_mask, read_picture, stored_size, to_upright_frame
from .transforms import augment, augment_pair, pyramid, shrink, to_tensor


class TrainingCrops(TorchDataset):
    """One augmented crop a picture: image (3, C, C) uint8, inside (C, C) bool, label (K-1,) float32.

    What is drawn depends on seed, epoch and index alone, so neither workers nor a resumed run change it. An item is asked for
    as (epoch, index). JPEGs at least four times as large as any crop needs are decoded at a reduced scale; the pictures of VOC and COCO
    are not, at the published sizes.
    """

    def __init__(self, entries: Entries, labels: np.ndarray, resize_long: tuple[int, int], crop_size: int, seed: int):
        self.entries, self.labels = entries, labels
        self.resize_long, self.crop_size, self.seed = resize_long, crop_size, seed

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = epoch_and_index
        rng = np.random.default_rng((self.seed, epoch, index))
        picture = read_picture(self.entries[index].picture, least_side=2 * self.resize_long[1])
        crop, inside = augment(picture, self.resize_long, self.crop_size, rng)
        return {"image": to_tensor(crop), "inside": torch.from_numpy(inside), "label": torch.from_numpy(self.labels[index])}


class LabelledCrops(TorchDataset):
    """One augmented crop of a picture and of its label: image (3, C, C) uint8, inside (C, C) bool, label (C, C) uint8.

    The label is 255 in the padding. max_side: larger pictures are shrunk to it before they are scaled; 0: none. What is drawn depends on
    seed, epoch and index alone. An item is asked for as (epoch, index).
    """

    def __init__(
        self,
        entries: Entries,
        label_path: Callable[[str], Path],
        num_classes: int,
        scales: tuple[float, float],
        crop_size: int,
        seed: int,
        max_side: int = 0,
    ):
        self.entries, self.label_path, self.num_classes = entries, label_path, num_classes
        self.scales, self.crop_size, self.seed, self.max_side = scales, crop_size, seed, max_side

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = epoch_and_index
        rng = np.random.default_rng((self.seed, epoch, index))
        name, path, _ = self.entries[index]
        picture, turn = read_picture(path), orientation(path)
        stored = read_mask(self.label_path(name), self.num_classes, stored_size(picture.shape[:2], turn))
        label = to_upright_frame(stored, turn)
        crop, inside, label = augment_pair(shrink(picture, self.max_side), label, self.scales, self.crop_size, rng)
        return {"image": to_tensor(crop), "inside": torch.from_numpy(inside), "label": torch.from_numpy(label)}


def kept_classes(label: np.ndarray | torch.Tensor) -> np.ndarray:
    """Label (K-1,) 0/1 -> (k,) int64, the class ids whose maps are kept: background and the labelled ones."""
    return np.flatnonzero([1, *label])


class Pyramid(NamedTuple):
    """A whole picture at every scale, upright."""

    index: int
    images: list[torch.Tensor]  # (3, H', W') uint8 each
    label: torch.Tensor  # (K-1,) float32 0/1
    size: tuple[int, int]  # (H, W) of the upright picture
    working_size: tuple[int, int]  # the same after shrinking, which the scales are relative to
    orientation: int  # EXIF orientation of the stored one


class Pyramids(TorchDataset):
    """Whole pictures at several scales, for inference.

    labels: (len(entries), K-1); None where there are none. max_side: larger pictures are shrunk to it before they are scaled; 0: none.
    """

    def __init__(self, entries: Entries, labels: np.ndarray | None, scales: Sequence[float], max_side: int = 0):
        self.entries, self.scales, self.max_side = entries, scales, max_side
        self.labels = np.zeros((len(entries), 0), np.float32) if labels is None else labels

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Pyramid:
        path = self.entries[index].picture
        picture = read_picture(path)
        small = shrink(picture, self.max_side)
        label = torch.from_numpy(self.labels[index])
        return Pyramid(index, pyramid(small, self.scales), label, picture.shape[:2], small.shape[:2], orientation(path))
