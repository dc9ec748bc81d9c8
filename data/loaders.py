"""DataLoaders: resumable batches for training, one picture at a time or a few of one size for inference."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from .datasets import LabelledCrops, Pyramid, Pyramids, TrainingCrops

USUAL_PIXELS = 640 * 480  # of a picture; a batch of larger ones is smaller


class ResumableBatches(Sampler):
    """Shuffled batches of (epoch, index) for all epochs on end, from any step on, split over processes.

    The published total batch is shared out: process r takes every world_size-th picture of each batch. The last incomplete batch of
    an epoch is dropped.
    """

    def __init__(self, size: int, batch_size: int, epochs: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.rank, self.world_size = rank, world_size
        self.steps = size // batch_size * epochs

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.size // self.batch_size
        order, order_epoch = None, -1
        for step in range(self.start, self.steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = np.random.default_rng((self.seed, epoch)).permutation(self.size), epoch
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in batch[self.rank :: self.world_size]]


def training_loader(
    dataset: TrainingCrops | LabelledCrops, batches: ResumableBatches, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Batches of the dataset's items, for example image (B, 3, C, C) uint8; pin_memory where a GPU takes them.

    All epochs are one pass over it, so its workers are started once. Each keeps two batches ready, PyTorch's own measure: at the
    published size a batch is 17 MB of shared memory. It seeds its workers from a generator of its own: torch's one belongs to the
    network's dropout, which a resumed run repeats.
    """
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=pin_memory, generator=torch.Generator())


def inference_loader(dataset: Pyramids, num_workers: int, pin_memory: bool = False) -> DataLoader:
    """One Pyramid at a time, in order; pin_memory where a GPU takes them."""
    return DataLoader(dataset, batch_size=None, num_workers=num_workers, pin_memory=pin_memory)


def by_size(items: Iterable[Pyramid], batch_size: int) -> Iterator[list[Pyramid]]:
    """Put pictures of one size together: batch_size of them, fewer where they are larger than 640x480.

    Every picture comes once, in another order. At most 4 * batch_size wait for others of their size; then the size that was met first
    goes on with those that there are.
    """
    waiting: dict[tuple[int, ...], list[Pyramid]] = {}  # in the order in which a size was met first
    for item in items:
        height, width = size = tuple(item.size)
        waiting.setdefault(size, []).append(item)
        if len(waiting[size]) >= min(batch_size, max(1, batch_size * USUAL_PIXELS // (height * width))):
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
