"""Check every tag, training image and mask of a dataset before you start a long run.

    python check_dataset.py DIR [--dataset folder|voc|coco]

Prints one report: what is there, how often each class occurs, what is worth knowing, and what you
must fix; then the exit status is 2. Writes nothing.
"""

import argparse
import collections
import functools
import hashlib
import itertools
import math
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data import annotations
from data.images import IGNORE, read_image, read_mask
from data.registry import DATASETS, Dataset, Sample, Samples, open_dataset
from errors import InputError
from exchange.summary import print_problems
from tool.context import cli_main
from tool.flags import add_workers, command_parser
from tool.workers import parallel_map

BATCH_SIZE = 16  # default of the training
NAMES_SHOWN = 5  # of a note

# with fewer images, 5 epochs of SIPE are few steps: 12 were measured with 60 and 200 images
# (docs/results.md)
FEW = 250
FEW_EPOCHS = 12


class ImageCheck(NamedTuple):
    """What one image and its mask hold."""

    name: str
    problem: str | None
    size: tuple[int, int] | None = None  # (H, W) as stored
    content: str = ""  # equal for equal files
    classes: set[int] | None = None  # class ids in the mask; None without a mask


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("root", metavar="DIR", type=Path, help="folder of the dataset")
    parser.add_argument(
        "--dataset",
        choices=list(DATASETS),
        default="folder",
        help="kind of dataset (default folder: your own)",
    )
    add_workers(parser, max_workers=None)
    return parser.parse_args(argv)


def check_image(sample: Sample, num_classes: int) -> ImageCheck:
    """Read an image and its mask if it has one."""
    try:
        size = read_image(sample.image, upright=False).shape[:2]
        content = hashlib.sha256(sample.image.read_bytes()).hexdigest()
        classes = None
        if sample.mask.is_file():
            mask = read_mask(sample.mask, num_classes, size)
            classes = {*np.unique(mask).tolist()} - {0, IGNORE}
    except InputError as error:
        return ImageCheck(sample.name, str(error))
    return ImageCheck(sample.name, None, size, content, classes)


def read_training(dataset: Dataset) -> tuple[Samples, np.ndarray, list[str]]:
    """The images that training would read, their tags (N, K-1), and the problems."""
    try:
        samples, problems = dataset.read_samples(dataset.spec.train_list)
        tags, of_tags = dataset.read_tags(samples)
        return samples, tags, problems + of_tags
    except InputError as error:
        no_tags = np.zeros((0, dataset.num_classes - 1), np.float32)
        return Samples.of([]), no_tags, [str(error)]


def find_notes(
    dataset: Dataset, tags: dict[str, np.ndarray], checks: list[ImageCheck]
) -> list[str]:
    """What is worth knowing, but need not be fixed; tags: (K-1,) of each name."""
    checks = sorted(checks, key=lambda check: check.name)
    tagged = {name: set(np.flatnonzero(row) + 1) for name, row in tags.items()}
    notes = [
        *notes_on_files(dataset, tags.keys()),
        *note("the same image under several names", equal_images(checks)),
        *notes_on_classes(dataset, tagged, checks),
    ]
    if 0 < len(tags) < BATCH_SIZE:
        notes.append(
            f"fewer images than the default batch of {BATCH_SIZE}; "
            f"train with --batch_size {len(tags)} or less"
        )
    return notes


def note(what: str, names: list[str]) -> list[str]:
    """A note with the first names that it is about; no note without any."""
    if not names:
        return []
    shown = names[:NAMES_SHOWN]
    if len(names) > NAMES_SHOWN:
        shown.append("...")
    return [f"{what} ({len(names):,}): {', '.join(shown)}"]


def notes_on_files(dataset: Dataset, listed: Collection[str]) -> list[str]:
    """Notes on the files that training does not read; listed: the names of those that it does."""
    spec = dataset.spec
    images, _ = annotations.find_files(dataset.root, spec.images)
    masks, _ = annotations.find_files(dataset.root, spec.masks)
    others = annotations.find_others(dataset.root, spec.images + spec.masks)
    unlisted = f"images not among the {spec.train_list} ones, and left out"
    return [
        *note(unlisted, sorted(images.keys() - listed)),
        *note(f"masks of none of the {spec.train_list} images", sorted(masks.keys() - listed)),
        *note("files of a type that is not read", others),
    ]


def equal_images(checks: list[ImageCheck]) -> list[str]:
    """The names of images with equal files, joined by =."""
    names_of = collections.defaultdict(list)
    for check in checks:
        if check.content:  # unreadable images have none
            names_of[check.content].append(check.name)
    return [" = ".join(names) for names in names_of.values() if len(names) > 1]


def notes_on_classes(
    dataset: Dataset, tagged: dict[str, set[int]], checks: list[ImageCheck]
) -> list[str]:
    """Notes on tags that do not agree with the masks, and on classes that no image has."""
    not_shown = []
    not_tagged = []
    for check in checks:
        if check.classes is None:
            continue
        if tagged[check.name] - check.classes:
            not_shown.append(check.name)
        if check.classes - tagged[check.name]:
            not_tagged.append(check.name)
    class_ids = range(1, dataset.num_classes)
    unused = sorted(set(class_ids).difference(*tagged.values()))
    unused_names = [dataset.class_names[class_id] for class_id in unused]
    return [
        *note("images with a tag that their mask does not show", not_shown),
        *note("images with a class in their mask that is not among their tags", not_tagged),
        *note("classes without an image, which cannot be learned", unused_names),
    ]


def print_report(dataset: Dataset, tags: np.ndarray, checks: list[ImageCheck]) -> None:
    """Print how many images, tags and masks there are, and how often each class occurs."""
    num_images = len(tags)
    print(f"\n{dataset.root}: '{dataset.spec.name}' dataset, {dataset.num_classes - 1} classes")
    tags_per_image = tags.sum() / max(num_images, 1)
    print(f"images to train on: {num_images:,}; tags an image: {tags_per_image:.2f}")
    print_sizes({check.size for check in checks if check.size})
    classes_of_masks = [check.classes for check in checks if check.classes is not None]
    print(f"masks: {len(classes_of_masks):,} (needed for evaluation only)")
    in_masks = collections.Counter(itertools.chain(*classes_of_masks))
    print(f"\n{'class':<24}{'tagged':>10}{'in masks':>10}")
    for class_id, num_tagged in enumerate(tags.sum(0), 1):
        name = dataset.class_names[class_id]
        print(f"{name:<24}{int(num_tagged):>10,}{in_masks[class_id]:>10,}")


def print_sizes(sizes: set[tuple[int, int]]) -> None:
    """Print the smallest and the largest (H, W); nothing if there is none."""
    if sizes:
        by_area = sorted(sizes, key=math.prod)
        first_height, first_width = by_area[0]
        last_height, last_width = by_area[-1]
        print(f"sizes: from {first_width}x{first_height} to {last_width}x{last_height}")


def fitting_flags(kind: str, num_images: int) -> str:
    """The flags of a chain that fit the number of images.

    A folder of one's own gets the recipe with the better maps (docs/own_data.md).
    """
    sipe_flags = []
    seg_flags = []
    if kind == "folder" and num_images < FEW:
        sipe_flags.append(f"--max_epochs {FEW_EPOCHS}")
    if num_images < BATCH_SIZE:
        sipe_flags.append(f"--batch_size {num_images}")
        seg_flags.append(f"--batch_size {num_images}")
    flags = ""
    if kind == "folder":
        flags += " --recipe plus"
    if sipe_flags:
        flags += f' --with train_resnet50_SIPE "{" ".join(sipe_flags)}"'
    if seg_flags:
        flags += f' --with train_seg "{" ".join(seg_flags)}"'
    return flags


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.root)
    samples, tags, problems = read_training(dataset)
    work = functools.partial(check_image, num_classes=dataset.num_classes)
    checks = list(tqdm(parallel_map(work, samples, args.num_workers), desc="images", unit="image"))
    problems += sorted(check.problem for check in checks if check.problem)
    problems = list(dict.fromkeys(problems))  # once each: tags are read twice
    print_report(dataset, tags, checks)
    tags_of = dict(zip(samples.names(), tags))
    print_problems("worth knowing", find_notes(dataset, tags_of, checks))
    print_problems("to fix", problems)
    if problems:
        raise InputError(
            f"{args.root}: cannot be used yet ({len(problems)} to fix, see above); "
            "fix them and check again"
        )
    root = shlex.quote(str(args.root))
    flags = fitting_flags(args.dataset, len(samples))
    print(f"\nall is well: bash run_{args.dataset}.sh --dataset_root {root}{flags}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
