"""Results of a stage, image by image: what is still to do, and what cannot be read."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.datasets import UnreadableSample
from data.images import image_size
from data.registry import Sample, Samples
from errors import InputError, SkippedError, UnreadableError

from .context import Context
from .options import ResultPolicy
from .outputs import (
    SIZES,
    SKIPPED,
    check_space,
    delete_quietly,
    prepare_output_dir,
    read_json,
    write_json,
)
from .workers import parallel_map

UNKNOWN_SIZE = -1  # bytes of an image that is in no result


class Results:
    """A folder that a stage fills, image by image.

        results = Results(folder, "make_cam", settings, context, policy)
        todo = results.unfinished(samples, is_done, kilobytes=25)
        for item in results.readable(loader):
            ...
        results.finish()

    Raises InputError as `prepare_output_dir` does.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        settings: dict[str, Any],
        context: Context,
        policy: ResultPolicy,
    ):
        prepare_output_dir(folder, stage, settings, context, policy.overwrite)
        self.folder = folder
        self.context = context
        self.is_strict = policy.strict
        self.skipped: dict[str, str] = {}  # name of an image -> why it cannot be read
        self.sizes: dict[str, int] = {}  # name of an image -> its bytes
        self.replaced: set[str] = set()  # names of images whose size in bytes has changed

    def unfinished(
        self, samples: Samples, is_done: Callable[[Sample], bool], kilobytes: float
    ) -> list[int]:
        """The indices of this process's share of the samples that are still to do.

        Prints how many there are in all processes, and the disk space that they need. The result
        of an image that was replaced is made again, even if the times of the files do not show
        it: the size in bytes differs from the size that the last run noted.

        Args:
            is_done: whether a sample has an up-to-date result.
            kilobytes: of one result.
        """
        context = self.context
        self._note_sizes(samples)
        todo = []
        for index in context.shard(range(len(samples))):
            sample = samples[index]
            if sample.name in self.replaced or not is_done(sample):
                todo.append(index)
        count = sum(context.all_gather_object(len(todo)))
        context.print(f"{len(samples)} images, {count} of them to do, on {context.device}")
        check_space(self.folder, count * kilobytes * 1e3, context)
        return todo

    def _note_sizes(self, samples: Samples) -> None:
        """Compare the sizes of the images in bytes with those that the last run noted."""
        path = self.folder / SIZES
        before = read_json(path) if path.is_file() else {}
        now = {sample.name: _bytes_of(sample.image) for sample in samples}
        self.sizes = before | now
        self.context.barrier()  # every process has read the file before one writes it
        # the old sizes stay until the end: if this run is stopped, the next one sees the same
        self._write(path, now | before)
        self.replaced = {name for name, size in now.items() if before.get(name, size) != size}

    def readable(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items that could be read; the others are noted.

        Raises InputError for the first UnreadableSample with --strict.
        """
        for item in items:
            if not isinstance(item, UnreadableSample):
                yield item
            elif self.is_strict:
                raise InputError(item.reason)
            else:
                self.skipped[item.sample.name] = item.reason

    def map(
        self, function: Callable[[Sample], Any], samples: Samples, num_workers: int
    ) -> Iterator[Any]:
        """`parallel_map` without the samples for which the function raises UnreadableError."""
        work = functools.partial(_try, function)
        return self.readable(parallel_map(work, samples, num_workers))

    def finish(self) -> None:
        """Wait for the other processes and name the images that could not be read.

        Raises SkippedError if there are any, once they are named here and in skipped.json.
        """
        context = self.context
        path = self.folder / SKIPPED
        skipped: dict[str, str] = {}
        for part in context.all_gather_object(self.skipped):
            skipped |= dict(sorted(part.items()))
        # skipped images have no result of today: the next run has to make it
        sizes_in_results = self.sizes | dict.fromkeys(skipped, UNKNOWN_SIZE)
        self._write(self.folder / SIZES, sizes_in_results)
        if skipped:
            self._write(path, skipped)
        elif context.is_main:
            delete_quietly(path)
        for reason in skipped.values():
            context.print(f"left out: {reason}")
        context.print(f"wrote {self.folder}")
        context.barrier()  # torchrun ends all processes as soon as one ends with an error
        if skipped:
            example = next(iter(skipped.values()))
            raise SkippedError(
                f"{path}: lists what cannot be read and is left out ({len(skipped)});"
                f" the first: {example}"
            )

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        if not self.context.is_main:
            return
        is_same = path.is_file() and read_json(path) == content
        if not is_same:
            write_json(path, content)


def _bytes_of(path: Path) -> int:
    """The size of a file; UNKNOWN_SIZE if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return UNKNOWN_SIZE


def _try(function: Callable[[Sample], Any], sample: Sample) -> Any:
    """What a function of a sample returns; an UnreadableSample if it raises UnreadableError."""
    try:
        return function(sample)
    except UnreadableError as error:
        return UnreadableSample(sample, str(error))


def check_images(samples: Samples, num_workers: int, context: Context) -> None:
    """Read the header of every image.

    Raises InputError if some cannot be read, once all of them are named.
    """
    mine = samples.select(context.shard(range(len(samples))))
    checked = parallel_map(functools.partial(_try, _read_header), mine, num_workers)
    bar = tqdm(checked, "images", len(mine), unit="image", leave=False, disable=not context.is_main)
    unreadable = [result.reason for result in bar if isinstance(result, UnreadableSample)]
    problems: list[str] = []
    for part in context.all_gather_object(unreadable):
        problems += part
    if not problems:
        return
    first, *others = sorted(problems)
    for problem in others:
        context.print(problem)
    note = f" (and {len(others)} others, see above)" if others else ""
    raise InputError(f"{first}{note}")


def _read_header(sample: Sample) -> None:
    image_size(sample.image)
