"""Look at every tag, training picture and mask of a dataset before a long run trips over one.

    python data/check_dataset.py DIR [--dataset folder|voc|coco]

Prints one report: what is there, how often each class occurs, what must be mended (then the exit status is 2) and what is merely worth
knowing. Writes nothing.
"""

import argparse
import collections
import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

if not __package__:  # called as python data/check_dataset.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from data import images, tables
from data.entries import Entries, Entry
from data.registry import DATASETS, Dataset, open_dataset
from errors import InputError
from tool import inventory, outputs, stage

NAMED = 5  # pictures that a note names
BATCH = 16  # of the training, unless another is asked for


class Look(NamedTuple):
    """What one picture and its mask look like."""

    name: str
    problem: str | None
    size: tuple[int, int] | None = None  # (H, W) as stored
    content: str = ""  # equal for equal pictures
    shown: list[int] | None = None  # class ids in the mask; None without a mask


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR", type=Path, help="folder of the dataset")
    parser.add_argument("--dataset", choices=list(DATASETS), default="folder", help="kind of dataset (default folder: your own)")
    stage.add_workers(parser, most_workers=None)
    return parser.parse_args(argv)


def look_at(entry: Entry, num_classes: int) -> Look:
    """Read a picture and, where it has one, its mask."""
    try:
        size = images.read_picture(entry.picture, upright=False).shape[:2]
        content = hashlib.sha256(entry.picture.read_bytes()).hexdigest()
        mask = images.read_mask(entry.mask, num_classes, size) if os.path.isfile(entry.mask) else None
    except InputError as error:
        return Look(entry.name, str(error))
    return Look(entry.name, None, size, content, None if mask is None else [int(i) for i in np.unique(mask) if 0 < i < 255])


def gather(dataset: Dataset, complain: tables.Complain) -> tuple[Entries, np.ndarray]:
    """The pictures that training would see, and their labels; what is wrong with either is complained of."""
    try:
        entries = dataset.entries(dataset.spec.train_list, complain)
        return entries, dataset.labels(entries, complain)
    except InputError as error:
        complain(str(error))
        return Entries.of([]), np.zeros((0, dataset.num_classes - 1), np.float32)


def some(what: str, names: Iterable[str]) -> Iterator[str]:
    """A note that counts some pictures and names the first; none where there are none."""
    names = list(names)
    if names:
        yield f"{what} ({len(names):,}): {', '.join(names[:NAMED])}{', ...' * (len(names) > NAMED)}"


def notes_on(dataset: Dataset, labels: dict[str, np.ndarray], looks: list[Look]) -> Iterator[str]:
    """What is worth knowing, and need not be mended."""
    pictures, masks = (tables.find_files(dataset.root, files, lambda _: None) for files in (dataset.spec.pictures, dataset.spec.masks))
    training = dataset.spec.train_list
    yield from some(f"pictures not among the {training} ones, and left out", sorted(pictures.keys() - labels.keys()))
    yield from some(f"masks of none of the {training} pictures", sorted(masks.keys() - labels.keys()))
    yield from some("files of a type that is not read", tables.find_others(dataset.root, dataset.spec.pictures + dataset.spec.masks))
    same = collections.defaultdict(list)
    for look in sorted(looks):
        same[look.content].append(look.name)
    yield from some("the same picture under several names", (" = ".join(names) for content, names in same.items() if content and names[1:]))
    tagged = {look.name: set(np.flatnonzero(labels[look.name]) + 1) for look in looks if look.shown is not None}
    shown = {look.name: set(look.shown) for look in looks if look.shown is not None}
    yield from some("pictures with a tag that their mask does not show", sorted(name for name in tagged if tagged[name] - shown[name]))
    yield from some(
        "pictures with a class in their mask that is not among their tags", sorted(name for name in tagged if shown[name] - tagged[name])
    )
    unused = ~np.array([*labels.values()]).reshape(-1, dataset.num_classes - 1).any(0)
    yield from some(
        "classes without a picture, which cannot be learned",
        (name for name, is_unused in zip(dataset.class_names[1:], unused) if is_unused),
    )
    if 0 < len(labels) < BATCH:
        yield f"fewer pictures than the usual batch of {BATCH}; train with --batch_size {len(labels)} or less"


def print_report(dataset: Dataset, labels: dict[str, np.ndarray], looks: list[Look]) -> None:
    """Print how many pictures, tags and masks there are, and how often each class occurs."""
    sizes = sorted({look.size for look in looks if look.size}, key=lambda size: size[0] * size[1])
    of_masks = collections.Counter(i for look in looks for i in look.shown or [])
    counts = np.sum([*labels.values()], axis=0) if labels else np.zeros(dataset.num_classes - 1)
    print(f"\n{dataset.root}: '{dataset.spec.name}' dataset, {dataset.num_classes - 1} classes")
    print(f"pictures to train on: {len(labels):,}; tags a picture: {counts.sum() / max(len(labels), 1):.2f}")
    if sizes:
        print(f"sizes: from {sizes[0][1]}x{sizes[0][0]} to {sizes[-1][1]}x{sizes[-1][0]}")
    print(f"masks: {sum(look.shown is not None for look in looks):,} (needed for evaluation only)")
    print(f"\n{'class':<24}{'tagged':>10}{'in masks':>10}")
    for i, (name, count) in enumerate(zip(dataset.class_names[1:], counts), 1):
        print(f"{name:<24}{int(count):>10,}{of_masks[i]:>10,}")


def check(root: Path, kind: str, num_workers: int) -> None:
    dataset, problems = open_dataset(kind, root), []
    entries, labels = gather(dataset, problems.append)
    work = functools.partial(look_at, num_classes=dataset.num_classes)
    looks = list(tqdm(outputs.in_parallel(work, entries, num_workers), total=len(entries), desc="pictures", unit="picture"))
    problems += sorted(look.problem for look in looks if look.problem)
    problems = list(dict.fromkeys(problems))  # lists and tags are read more than once
    by_name = dict(zip(entries.names(), labels))
    print_report(dataset, by_name, looks)
    inventory.print_list("worth knowing", list(notes_on(dataset, by_name, looks)))
    inventory.print_list("to be mended", problems)
    if problems:
        raise InputError(f"{root}: cannot be used yet ({len(problems)} to be mended, see above); mend and check again")
    smaller = f' --with train_resnet50_SIPE "--batch_size {len(entries)}"' if len(entries) < BATCH else ""
    print(f"\nall is well: bash run_{kind}.sh --dataset_root {root}{smaller}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check(args.root, args.dataset, args.num_workers)


if __name__ == "__main__":
    sys.exit(stage.run(main))
