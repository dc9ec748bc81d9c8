"""torch datasets over the images of a list, and their loaders.

Training reads crops, in batches that a resumed run repeats. Inference reads whole images, at
several scales.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from errors import UnreadableError

from .images import orientation, read_image, read_mask, stored_size, to_upright_frame
from .registry import Sample, Samples
from .transforms import Scaling, augment, augment_pair, jitter, resize, shrink, to_tensor

USUAL_PIXELS = 640 * 480  # of an image; batches of larger ones are smaller
MAX_WAITING_BATCHES = 4  # of images that wait for others of their size


class TrainingCrops(Dataset):
    """One augmented crop of each image, and its tags.

    An item is indexed by (epoch, index) and holds "image" (3, C, C) uint8, "inside" (C, C) bool and
    "tags" (K-1,) float32 0/1. Random draws depend on seed, epoch and index alone, so neither
    workers nor resuming change them.

    JPEGs at least four times as large as any crop needs are decoded at a reduced size. VOC's and
    COCO's are not, at the published sizes.
    """

    def __init__(
        self,
        samples: Samples,
        tags: np.ndarray,
        resize_long: tuple[int, int],
        crop_size: int,
        seed: int,
    ):
        self.samples = samples
        self.tags = tags
        self.resize_long = resize_long
        self.crop_size = crop_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = epoch_and_index
        rng = np.random.default_rng((self.seed, epoch, index))
        largest_side = self.resize_long[1]
        image = read_image(self.samples[index].image, least_side=2 * largest_side)
        crop, inside = augment(image, self.resize_long, self.crop_size, rng)
        return {
            "image": to_tensor(crop),
            "inside": torch.from_numpy(inside),
            "tags": torch.from_numpy(self.tags[index]),
        }


@dataclass(frozen=True)
class CropOptions:
    """How LabelledCrops are drawn."""

    scales: tuple[float, float]  # smallest and largest factor
    crop_size: int  # pixels
    seed: int
    max_side: int = 0  # larger images are shrunk to it before they are scaled; 0: never
    color_jitter: int = 0  # largest shift of hue, saturation and value; 0: none


class LabelledCrops(Dataset):
    """One augmented crop of each image and its target, which is read from target_dir/NAME.png.

    An item is indexed by (epoch, index) and holds "image" (3, C, C) uint8, "inside" (C, C) bool and
    "target" (C, C) uint8, IGNORE in the padding. Random draws are as in TrainingCrops.
    """

    def __init__(self, samples: Samples, target_dir: Path, num_classes: int, options: CropOptions):
        self.samples = samples
        self.target_dir = target_dir
        self.num_classes = num_classes
        self.options = options

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = epoch_and_index
        options = self.options
        rng = np.random.default_rng((options.seed, epoch, index))
        image = read_image(self.samples[index].image)
        target = self._read_target(self.samples[index], image.shape[:2])
        image = shrink(image, options.max_side)
        crop, inside, target = augment_pair(image, target, options.scales, options.crop_size, rng)
        if options.color_jitter:
            crop = jitter(crop, options.color_jitter, rng)
        return {
            "image": to_tensor(crop),
            "inside": torch.from_numpy(inside),
            "target": torch.from_numpy(target),
        }

    def _read_target(self, sample: Sample, size: tuple[int, int]) -> np.ndarray:
        """The target of an image of this upright size, turned as the image is."""
        turn = orientation(sample.image)
        path = self.target_dir / f"{sample.name}.png"
        target = read_mask(path, self.num_classes, stored_size(size, turn))
        return to_upright_frame(target, turn)


def present_classes(tags: np.ndarray | torch.Tensor) -> np.ndarray:
    """Tags (K-1,) 0/1 -> the class ids (k,) int64 whose maps count: background and tagged ones."""
    return np.flatnonzero([1, *tags])


class MultiscaleImage(NamedTuple):
    """A whole image at every scale, upright."""

    index: int  # of the image's sample
    images: list[torch.Tensor]  # (3, H', W') uint8 each
    tags: torch.Tensor  # (K-1,) float32 0/1
    size: tuple[int, int]  # (H, W) of the upright image
    working_size: tuple[int, int]  # (H, W) after shrinking, which the scales are relative to
    orientation: int  # EXIF orientation of the stored image
    original: np.ndarray  # (H, W, 3) uint8, as read


class UnreadableSample(NamedTuple):
    """What takes the place of an image that cannot be read."""

    sample: Sample
    reason: str


def to_multiscale(image: np.ndarray, tags: np.ndarray, scaling: Scaling) -> MultiscaleImage:
    """An upright image (H, W, 3) uint8 with its tags (K-1,), at several scales."""
    small = shrink(image, scaling.max_side)
    return MultiscaleImage(
        index=0,
        images=[to_tensor(resize(small, scale)) for scale in scaling.scales],
        tags=torch.from_numpy(tags),
        size=image.shape[:2],
        working_size=small.shape[:2],
        orientation=1,
        original=image,
    )


class MultiscaleImages(Dataset):
    """Whole images at several scales, for inference.

    tags: (N, K-1) float32 0/1, or None if there are none.
    skip_unreadable: give an UnreadableSample in place of an image that cannot be read, instead of
    raising UnreadableError.
    """

    def __init__(
        self,
        samples: Samples,
        tags: np.ndarray | None,
        scaling: Scaling,
        skip_unreadable: bool = False,
    ):
        if tags is None:
            tags = np.zeros((len(samples), 0), np.float32)
        self.samples = samples
        self.tags = tags
        self.scaling = scaling
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> MultiscaleImage | UnreadableSample:
        sample = self.samples[index]
        try:
            image = read_image(sample.image)
        except UnreadableError as error:
            if not self.skip_unreadable:
                raise
            return UnreadableSample(sample, str(error))
        item = to_multiscale(image, self.tags[index], self.scaling)
        return item._replace(index=index, orientation=orientation(sample.image))


@dataclass(frozen=True)
class BatchPlan:
    """What a training's batches depend on, besides the process that takes them."""

    num_samples: int
    batch_size: int  # of all processes together
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The last incomplete batch of an epoch is dropped."""
        return self.num_samples // self.batch_size

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs


class ResumableBatches(Sampler):
    """Shuffled batches of (epoch, index), all epochs in a row, split over processes.

    start: the first step. Process `rank` takes every world_size-th image of each batch.
    """

    def __init__(self, plan: BatchPlan, start: int = 0, rank: int = 0, world_size: int = 1):
        self.plan = plan
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.plan.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self.plan
        order_epoch = None
        for step in range(self.start, plan.steps):
            epoch, position = divmod(step, plan.steps_per_epoch)
            if epoch != order_epoch:
                rng = np.random.default_rng((plan.seed, epoch))
                order = rng.permutation(plan.num_samples)
                order_epoch = epoch
            first = position * plan.batch_size
            batch = order[first : first + plan.batch_size]
            share = batch[self.rank :: self.world_size]
            yield [(epoch, int(index)) for index in share]


def training_loader(
    dataset: Dataset, batches: ResumableBatches, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Load batches of a dataset's items, such as image (B, 3, C, C) uint8.

    pin_memory: for a GPU. Workers are seeded by a generator of their own: seeding them from torch's
    would change the dropout of a resumed run.
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
    """Load one item at a time, in order.

    pin_memory: for a GPU; it turns the tuples inside an item into lists.
    """
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

    Every image comes once, in another order. At most 4 * batch_size of them wait for others of
    their size; then those of the size that was met first come as they are.
    """
    waiting: dict[tuple[int, ...], list[MultiscaleImage]] = {}  # sizes in the order they were met
    for item in items:
        size = tuple(item.size)  # a list if the item was pinned
        waiting.setdefault(size, []).append(item)
        num_waiting = sum(len(group) for group in waiting.values())
        if len(waiting[size]) >= _batch_size_of(size, batch_size):
            yield waiting.pop(size)
        elif num_waiting >= MAX_WAITING_BATCHES * batch_size:
            first_met = next(iter(waiting))
            yield waiting.pop(first_met)
    yield from waiting.values()


def _batch_size_of(size: tuple[int, ...], batch_size: int) -> int:
    """How many images of a size have the pixels of batch_size usual ones; 1 to batch_size."""
    height, width = size
    fitting = batch_size * USUAL_PIXELS // (height * width)
    return min(batch_size, max(1, fitting))
