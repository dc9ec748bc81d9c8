"""Check every tag, training image and mask of a dataset before you start a long run.

    python check_dataset.py DIR [--dataset folder|voc|coco]

Prints one report: what is there, how often each class occurs, what you must fix (then the exit status is 2), and what is merely worth
knowing. Writes nothing.
"""

import argparse
import collections
import functools
import hashlib
import shlex
import sys
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
FEW = 250  # images, for which 5 epochs of SIPE are few steps: 12 were measured with 60 and 200 (docs/results.md)


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
        mask = read_mask(sample.mask, num_classes, size) if sample.mask.is_file() else None
    except InputError as error:
        return ImageCheck(sample.name, str(error))
    return ImageCheck(
        sample.name,
        None,
        size,
        content,
        None if mask is None else {*np.unique(mask).tolist()} - {0, IGNORE},
    )


def read_training(dataset: Dataset) -> tuple[Samples, np.ndarray, list[str]]:
    """The images that training would read, their labels (N, K-1), and the problems."""
    try:
        samples, problems = dataset.read_samples(dataset.spec.train_list)
        labels, of_labels = dataset.read_tags(samples)
        return samples, labels, problems + of_labels
    except InputError as error:
        return Samples.of([]), np.zeros((0, dataset.num_classes - 1), np.float32), [str(error)]


def notes_on(
    dataset: Dataset, labels: dict[str, np.ndarray], checks: list[ImageCheck]
) -> list[str]:
    """What is worth knowing, but need not be fixed."""
    spec, same = dataset.spec, collections.defaultdict(list)
    images, masks = (
        annotations.find_files(dataset.root, patterns)[0].keys()
        for patterns in (spec.images, spec.masks)
    )
    for check in sorted(checks, key=lambda check: check.name):
        same[check.content or check.name].append(check.name)
    tagged = {name: set(np.flatnonzero(label) + 1) for name, label in labels.items()}
    masked = sorted((check.name, check.classes) for check in checks if check.classes is not None)
    unused = set(range(1, dataset.num_classes)).difference(*tagged.values())
    names_of = {
        f"images not among the {spec.train_list} ones, and left out": sorted(
            images - labels.keys()
        ),
        f"masks of none of the {spec.train_list} images": sorted(masks - labels.keys()),
        "files of a type that is not read": annotations.find_others(
            dataset.root, spec.images + spec.masks
        ),
        "the same image under several names": [
            " = ".join(names) for names in same.values() if names[1:]
        ],
        "images with a tag that their mask does not show": [
            name for name, shown in masked if tagged[name] - shown
        ],
        "images with a class in their mask that is not among their tags": [
            name for name, shown in masked if shown - tagged[name]
        ],
        "classes without an image, which cannot be learned": [
            dataset.class_names[i] for i in sorted(unused)
        ],
    }
    notes = [
        f"{what} ({len(names):,}): {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
        for what, names in names_of.items()
        if names
    ]
    too_few = f"fewer images than the default batch of {BATCH_SIZE}; train with --batch_size {len(labels)} or less"
    return notes + [too_few] * (0 < len(labels) < BATCH_SIZE)


def print_report(dataset: Dataset, labels: np.ndarray, checks: list[ImageCheck]) -> None:
    """Print how many images, tags and masks there are, and how often each class occurs."""
    sizes = sorted(
        {check.size for check in checks if check.size}, key=lambda size: size[0] * size[1]
    )
    in_masks = collections.Counter(i for check in checks for i in check.classes or [])
    print(f"\n{dataset.root}: '{dataset.spec.name}' dataset, {dataset.num_classes - 1} classes")
    print(
        f"images to train on: {len(labels):,}; tags an image: {labels.sum() / max(len(labels), 1):.2f}"
    )
    if sizes:
        print(f"sizes: from {sizes[0][1]}x{sizes[0][0]} to {sizes[-1][1]}x{sizes[-1][0]}")
    print(
        f"masks: {sum(check.classes is not None for check in checks):,} (needed for evaluation only)"
    )
    print(f"\n{'class':<24}{'tagged':>10}{'in masks':>10}")
    for i, (name, count) in enumerate(zip(dataset.class_names[1:], labels.sum(0)), 1):
        print(f"{name:<24}{int(count):>10,}{in_masks[i]:>10,}")


def fitting_flags(kind: str, images: int) -> str:
    """The flags of a chain that fit the number of images; for one's own, the recipe with the better maps (docs/own_data.md)."""
    batch = [f"--batch_size {images}"] * (images < BATCH_SIZE)
    flags = {
        "train_resnet50_SIPE": [*["--max_epochs 12"] * (kind == "folder" and images < FEW), *batch],
        "train_seg": batch,
    }
    recipe = " --recipe plus" if kind == "folder" else ""
    return recipe + "".join(
        f' --with {stage} "{" ".join(more)}"' for stage, more in flags.items() if more
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.root)
    samples, labels, problems = read_training(dataset)
    work = functools.partial(check_image, num_classes=dataset.num_classes)
    checks = list(tqdm(parallel_map(work, samples, args.num_workers), desc="images", unit="image"))
    problems = list(
        dict.fromkeys(problems + sorted(check.problem for check in checks if check.problem))
    )  # tags are read twice
    print_report(dataset, labels, checks)
    print_problems("worth knowing", notes_on(dataset, dict(zip(samples.names(), labels)), checks))
    print_problems("to fix", problems)
    if problems:
        raise InputError(
            f"{args.root}: cannot be used yet ({len(problems)} to fix, see above); fix them and check again"
        )
    root = shlex.quote(str(args.root))
    print(
        f"\nall is well: bash run_{args.dataset}.sh --dataset_root {root}{fitting_flags(args.dataset, len(samples))}"
    )


if __name__ == "__main__":
    sys.exit(cli_main(main))
