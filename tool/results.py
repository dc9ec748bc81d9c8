"""Results of a stage, image by image: what is to do, and what cannot be read."""

import argparse
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data.datasets import UnreadableSample
from data.images import image_size
from data.registry import Sample, Samples
from errors import InputError, SkippedError, UnreadableError

from .outputs import SIZES, SKIPPED, _delete, check_space, prepare_output_dir, read_json, write_json
from .workers import parallel_map

if TYPE_CHECKING:
    from .context import Context


class Results:
    """A folder that a stage fills, image by image: what is to do, and which images cannot be read.

        results = Results(folder, "make_cam", settings, context, args)
        todo = results.unfinished(samples, is_done, kilobytes=25)
        for item in results.readable(loader):
            ...
        results.finish()

    args: overwrite, strict. Raises InputError as `prepare_output_dir` does.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        settings: dict[str, Any],
        context: "Context",
        args: argparse.Namespace,
    ):
        prepare_output_dir(folder, stage, settings, context, args.overwrite)
        self.folder, self.context, self.is_strict = folder, context, args.strict
        self.skipped: dict[str, str] = {}  # name of an image -> why
        self.sizes: dict[str, int] = {}  # name of an image -> its bytes
        self.replaced: set[str] = set()  # names of images that had other sizes

    def unfinished(
        self, samples: Samples, is_done: Callable[[Sample], bool], kilobytes: float
    ) -> list[int]:
        """The indices of this process's share of the images that are to do; prints how many there are and the disk space that they need.

        An image that is replaced is to do, too, also if times do not tell: if it has another size in bytes than at the end of the run
        that made its result. kilobytes: of the result of one.
        """
        context, path = self.context, self.folder / SIZES
        before = read_json(path) if path.is_file() else {}
        now = {sample.name: _bytes(sample.image) for sample in samples}
        self.sizes = before | now
        context.barrier()  # all have read it
        self._write(
            path, now | before
        )  # if this run is stopped, the next one sees again what was replaced
        self.replaced = {name for name, size in now.items() if before.get(name, size) != size}
        mine = [(i, samples[i]) for i in context.shard(range(len(samples)))]
        todo = [i for i, sample in mine if sample.name in self.replaced or not is_done(sample)]
        count = sum(context.all_gather_object(len(todo)))
        context.print(f"{len(samples)} images, {count} of them to do, on {context.device}")
        check_space(self.folder, count * kilobytes * 1e3, context)
        return todo

    def readable(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items but those in whose place there is an UnreadableSample, which are noted. Raises its InputError with --strict."""
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
        """`parallel_map`, but images for which the function raises UnreadableError are noted and left out."""
        return self.readable(
            parallel_map(functools.partial(_attempt, function), samples, num_workers)
        )

    def finish(self) -> None:
        """Wait for the other processes. Raises SkippedError, once all images that could not be read are named, also in skipped.json."""
        context, path = self.context, self.folder / SKIPPED
        skipped = {
            name: reason
            for part in context.all_gather_object(self.skipped)
            for name, reason in sorted(part.items())
        }
        self._write(
            self.folder / SIZES, self.sizes | dict.fromkeys(skipped, -1)
        )  # what they show now is in no result
        if skipped:
            self._write(path, skipped)
        elif context.is_main:
            _delete(path)
        context.print(
            "".join(f"left out: {reason}\n" for reason in skipped.values()) + f"wrote {self.folder}"
        )
        if skipped:
            example = next(iter(skipped.values()))
            raise SkippedError(
                f"{path}: lists what cannot be read and is left out ({len(skipped)}); the first: {example}"
            )

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        if self.context.is_main and not (path.is_file() and read_json(path) == content):
            write_json(path, content)


def _bytes(path: Path) -> int:
    """The size of a file; -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _attempt(function: Callable[[Sample], Any], sample: Sample) -> Any:
    """What a function of an image returns; an UnreadableSample where it raises UnreadableError."""
    try:
        return function(sample)
    except UnreadableError as error:
        return UnreadableSample(sample, str(error))


def check_images(samples: Samples, num_workers: int, context: "Context") -> None:
    """Look at the header of every image. Raises InputError where some cannot be read, once all of them are named."""
    mine = samples.select(context.shard(range(len(samples))))
    found = parallel_map(functools.partial(_attempt, _check_header), mine, num_workers)
    looks = list(
        tqdm(found, "images", len(mine), unit="image", leave=False, disable=not context.is_main)
    )
    problems = sorted(
        look.reason
        for part in context.all_gather_object([look for look in looks if look])
        for look in part
    )
    for problem in problems[1:]:
        context.print(problem)
    if problems:
        raise InputError(
            problems[0] + f" (and {len(problems) - 1} others, see above)" * (len(problems) > 1)
        )


def _check_header(sample: Sample) -> None:
    image_size(sample.image)
