"""torch datasets over the images of a list, and their loaders: resumable batches for training, whole images for inference."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from errors import UnreadableError

from .images import orientation, read_image, read_mask, stored_size, to_upright_frame
from .registry import Sample, Samples
from .transforms import augment, augment_pair, jitter, resize, shrink, to_tensor

USUAL_PIXELS = 640 * 480  # of an image; batches of larger ones are smaller


class TrainingCrops(Dataset):
    """One augmented crop of each image: image (3, C, C) uint8, inside (C, C) bool, label (K-1,) float32.

    Items are indexed by (epoch, index); random draws depend on seed, epoch and index alone, so neither workers nor resuming change them.
    JPEGs at least four times as large as any crop needs are decoded at a reduced size; VOC's and COCO's are not, at the published sizes.
    """

    def __init__(
        self,
        samples: Samples,
        labels: np.ndarray,
        resize_long: tuple[int, int],
        crop_size: int,
        seed: int,
    ):
        self.samples, self.labels = samples, labels
        self.resize_long, self.crop_size, self.seed = resize_long, crop_size, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = epoch_and_index
        rng = np.random.default_rng((self.seed, epoch, index))
        image = read_image(self.samples[index].image, least_side=2 * self.resize_long[1])
        crop, inside = augment(image, self.resize_long, self.crop_size, rng)
        return {
            "image": to_tensor(crop),
            "inside": torch.from_numpy(inside),
            "label": torch.from_numpy(self.labels[index]),
        }


class LabelledCrops(Dataset):
    """One augmented crop of each image and its mask: image (3, C, C) uint8, inside (C, C) bool, label (C, C) uint8, IGNORE where padded.

    max_side: larger images are shrunk to it before they are scaled; 0: never. jitter: largest shift of hue, saturation and value.
    Items and random draws as in TrainingCrops.
    """

    def __init__(
        self,
        samples: Samples,
        num_classes: int,
        scales: tuple[float, float],
        crop_size: int,
        seed: int,
        max_side=0,
        jitter=0,
    ):
        self.samples, self.num_classes, self.max_side, self.jitter = (
            samples,
            num_classes,
            max_side,
            jitter,
        )
        self.scales, self.crop_size, self.seed = scales, crop_size, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = epoch_and_index
        rng = np.random.default_rng((self.seed, epoch, index))
        sample = self.samples[index]
        image, turn = read_image(sample.image), orientation(sample.image)
        label = to_upright_frame(
            read_mask(sample.mask, self.num_classes, stored_size(image.shape[:2], turn)), turn
        )
        crop, inside, label = augment_pair(
            shrink(image, self.max_side), label, self.scales, self.crop_size, rng
        )
        crop = jitter(crop, self.jitter, rng) if self.jitter else crop
        return {
            "image": to_tensor(crop),
            "inside": torch.from_numpy(inside),
            "label": torch.from_numpy(label),
        }


def present_classes(label: np.ndarray | torch.Tensor) -> np.ndarray:
    """Label (K-1,) 0/1 -> (k,) int64, the class ids whose maps are kept: the background and the labelled ones."""
    return np.flatnonzero([1, *label])


class MultiscaleImage(NamedTuple):
    """A whole image at every scale, upright."""

    index: int
    images: list[torch.Tensor]  # (3, H', W') uint8 each
    label: torch.Tensor  # (K-1,) float32 0/1
    size: tuple[int, int]  # (H, W) of the upright image
    working_size: tuple[int, int]  # (H, W) after shrinking, which the scales are relative to
    orientation: int  # EXIF orientation of the stored image
    image: np.ndarray  # (H, W, 3) uint8, as read


class UnreadableSample(NamedTuple):
    """What there is in place of an image that cannot be read."""

    sample: Sample
    reason: str


def to_multiscale(
    image: np.ndarray,
    label: np.ndarray,
    scales: Sequence[float],
    max_side: int,
    index: int = 0,
    turn: int = 1,
) -> MultiscaleImage:
    """An image (H, W, 3) uint8, upright, at several scales; see MultiscaleImages."""
    small = shrink(image, max_side)
    images = [to_tensor(resize(small, scale)) for scale in scales]
    return MultiscaleImage(
        index, images, torch.from_numpy(label), image.shape[:2], small.shape[:2], turn, image
    )


class MultiscaleImages(Dataset):
    """Whole images at several scales, for inference.

    labels: (N, K-1), or None if there are none. max_side: larger images are shrunk to it before they are scaled; 0: never.
    skip: an UnreadableSample takes the place of an image that cannot be read, instead of an UnreadableError.
    """

    def __init__(
        self,
        samples: Samples,
        labels: np.ndarray | None,
        scales: Sequence[float],
        max_side: int = 0,
        skip: bool = False,
    ):
        self.samples, self.scales, self.max_side, self.skip = samples, scales, max_side, skip
        self.labels = np.zeros((len(samples), 0), np.float32) if labels is None else labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> MultiscaleImage | UnreadableSample:
        path = self.samples[index].image
        try:
            image = read_image(path)
        except UnreadableError as error:
            if not self.skip:
                raise
            return UnreadableSample(self.samples[index], str(error))
        return to_multiscale(
            image, self.labels[index], self.scales, self.max_side, index, orientation(path)
        )


class ResumableBatches(Sampler):
    """Shuffled batches of (epoch, index), all epochs in a row, from any step on, split over processes.

    Process r takes every world_size-th image of each batch, so batch_size is the total one. The last incomplete batch of an epoch is
    dropped.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        epochs: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.rank, self.world_size = rank, world_size
        self.steps = size // batch_size * epochs

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, order_epoch = None, -1
        for step in range(self.start, self.steps):
            epoch, position = divmod(step, self.size // self.batch_size)
            if epoch != order_epoch:
                order, order_epoch = (
                    np.random.default_rng((self.seed, epoch)).permutation(self.size),
                    epoch,
                )
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in batch[self.rank :: self.world_size]]


def training_loader(
    dataset: Dataset, batches: ResumableBatches, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Load batches of a dataset's items, such as image (B, 3, C, C) uint8; pin_memory if a GPU takes them.

    Workers are seeded by a generator of their own: seeding them from torch's would change the dropout of a resumed run.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def inference_loader(
    dataset: MultiscaleImages, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Load one item at a time, in order; pin_memory if a GPU takes them (this makes lists of its tuples)."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
    )


def _unchanged(item: MultiscaleImage) -> MultiscaleImage:
    return item


def batches_by_size(
    items: Iterable[MultiscaleImage], batch_size: int
) -> Iterator[list[MultiscaleImage]]:
    """Group images of one size: batch_size of them, fewer if they are larger than 640x480.

    Every image comes once, in another order. At most 4 * batch_size of them wait for others of their size; then the size that was
    met first comes as it is.
    """
    waiting: dict[
        tuple[int, ...], list[MultiscaleImage]
    ] = {}  # in the order in which the sizes were met
    for item in items:
        height, width = size = tuple(item.size)
        waiting.setdefault(size, []).append(item)
        if len(waiting[size]) >= min(
            batch_size, max(1, batch_size * USUAL_PIXELS // (height * width))
        ):
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
