"""Prepare PASCAL VOC 2012 and SBD: images, lists, masks and tags.

    python prepare_voc.py --root DIR [--download] [--archive FILE ...] [--sbd DIR|FILE]

Unpacks VOC's archive (given, in DIR, or downloaded) to DIR/VOCdevkit/VOC2012 and writes there

- SegmentationClassAug/NAME.png: VOC's own mask if there is one, else SBD's
- ImageSets/Segmentation/train_aug.txt: SBD's train and val lists and VOC's train, without VOC's val: 10,582 names
- tags.csv: the classes of every image with an annotation

and prints a table of what is expected and what there is. Files that are there are kept, unless you pass --overwrite. Without SBD,
train_aug.txt is made from VOC's own lists, unless there is one; the published protocol needs no more than images, tags and its list.
"""

import argparse
import functools
import re
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import scipy.io
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT
from tqdm import tqdm

from data import annotations, images
from data.registry import TAGS, VOC, Dataset, find_root, open_dataset
from errors import InputError
from exchange import archives
from tool import label_file
from tool.context import cli_main
from tool.flags import add_switch
from tool.workers import parallel_map

COUNTS = {
    "JPEGImages/{}.jpg": 17_125,
    "Annotations/{}.xml": 17_125,
    "SegmentationClass/{}.png": 2_913,
}  # files in the archive
TRAIN, VAL, TRAIN_AUG = 1_464, 1_449, 10_582  # names on a list
SBD_MASKS = 11_355
BELOW, MASKS = "VOCdevkit/VOC2012", "SegmentationClassAug"
TRAIN_AUG_LIST, *OFFICIAL_LISTS = (
    VOC.list_file.format(name) for name in ("train_aug", "train", "val")
)
Source = namedtuple("Source", "file url md5")
VOC_SOURCE = Source(*(DATASET_YEAR_DICT["2012"][key] for key in ("filename", "url", "md5")))
SBD_SOURCE = Source(SBDataset.filename, SBDataset.url, SBDataset.md5)
WITHOUT_SBD = """
Without SBD, train_aug.txt holds {:,} images instead of {:,}, and {:,} of train_aug and val have a mask. Unless it was there before, it
lists VOC's train and Main/trainval without val, which have boxes and so tags; results will differ from the published ones."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = archives.prepare_parser(__doc__, max_workers=8)
    add_switch(parser, "--download", "download missing archives, 2 GB and 1.4 GB")
    parser.add_argument(
        "--archive",
        type=Path,
        nargs="+",
        default=[],
        help="archives of VOC and SBD (default: the official ones in DIR)",
    )
    parser.add_argument(
        "--sbd",
        type=Path,
        help="folder or archive of SBD (default: benchmark.tgz or benchmark_RELEASE in DIR)",
    )
    checksum = "refuse archives other than the official ones; off for a part of VOC, or for one that was packed anew (default on)"
    parser.add_argument(
        "--checksum", action=argparse.BooleanOptionalAction, default=True, help=checksum
    )
    args = parser.parse_args(argv)
    sbd = [path for path in args.archive if path.name == SBD_SOURCE.file]
    if len(sbd) + (args.sbd is not None) > 1:
        parser.error("pass SBD only once")
    args.sbd = next(iter(sbd), args.sbd)
    args.archive = [path for path in args.archive if path not in sbd]
    return args


def unpack_voc(args: argparse.Namespace) -> None:
    """Unpack the given archives of VOC; without any, and unless VOC is complete, the one in the root, which may be downloaded first."""
    here, official = find_root(VOC, args.root) or args.root / BELOW, args.root / VOC_SOURCE.file
    is_needed = (
        not args.archive
        and (args.download or official.is_file())
        and not is_complete(here, COUNTS, OFFICIAL_LISTS)
    )
    archives = args.archive or [official] * is_needed
    if archives and here != args.root / BELOW:
        raise InputError(
            f"{here}: VOC is here already, but archives are unpacked to {BELOW} below --root; choose another --root"
        )
    if is_needed and args.download:
        archives.download(VOC_SOURCE.url, official, VOC_SOURCE.md5)
    for path in archives:
        if args.checksum:
            archives.check_md5(path, VOC_SOURCE.md5)
        archives.unpack(
            path,
            args.root,
            lambda name: name.startswith(f"{BELOW}/") and "SegmentationObject" not in name,
        )


def find_sbd(args: argparse.Namespace) -> Path | None:
    """The folder with SBD's cls/, train.txt and val.txt, which may be downloaded and unpacked first; None if there is no SBD."""
    official, unpacked = args.root / SBD_SOURCE.file, args.root / "benchmark_RELEASE"
    is_whole = is_complete(
        unpacked / "dataset", {"cls/{}.mat": SBD_MASKS}, ["train.txt", "val.txt"]
    )
    if args.download and not args.sbd and not is_whole:
        archives.download(SBD_SOURCE.url, official, SBD_SOURCE.md5)
    path = args.sbd or next(
        (path for path in [official, unpacked][is_whole:] if path.exists()), None
    )
    if path is None:
        return None
    if path.is_file():
        if args.checksum:
            archives.check_md5(path, SBD_SOURCE.md5)
        archives.unpack(
            path,
            args.root,
            re.compile(r"benchmark_RELEASE/dataset/(cls/.+\.mat|train\.txt|val\.txt)").fullmatch,
        )
        path = unpacked
    for folder in (path, path / "dataset", path / "benchmark_RELEASE/dataset"):
        if all((folder / name).exists() for name in ("cls", "train.txt", "val.txt")):
            return folder
    raise InputError(
        f"{path}: holds no cls/, train.txt and val.txt of SBD; pass its folder or {SBD_SOURCE.file}"
    )


def is_complete(root: Path, counts: dict[str, int], lists: list[str]) -> bool:
    """Whether a folder holds so many files of each pattern, and some lists."""
    return all((root / name).is_file() for name in lists) and all(
        count_files(root, one) >= count for one, count in counts.items()
    )


def count_files(root: Path, pattern: str) -> int:
    return len(annotations.find_files(root, [pattern])[0])


def read_names(dataset: Dataset, *paths: Path) -> tuple[set[str], list[str]]:
    """The names on some lists, and the problems."""
    lists = [dataset.read_samples(str(path)) for path in paths]
    return {name for samples, _ in lists for name in samples.names()}, [
        line for _, problems in lists for line in problems
    ]


def write_train_aug(
    dataset: Dataset, val: set[str], sbd: Path | None, overwrite: bool
) -> tuple[set[str], list[str]]:
    """Write train_aug.txt; returns its names, and problems. Without SBD, one that is there is kept, a whole one even with overwrite."""
    path, main = dataset.root / TRAIN_AUG_LIST, dataset.root / "ImageSets/Main/trainval.txt"
    before, problems = read_names(dataset, path) if path.is_file() else (set(), [])
    if sbd is None and before and (len(before) >= TRAIN_AUG or not overwrite):
        return before, problems
    others = [sbd / "train.txt", sbd / "val.txt"] if sbd else [main] * main.is_file()
    names, problems = read_names(dataset, dataset.root / OFFICIAL_LISTS[0], *others)
    names -= val
    if names != before:
        problems += archives.write_missing(
            path, "".join(f"{name}\n" for name in sorted(names)), overwrite
        )
    return names, problems


def write_tags(dataset: Dataset, overwrite: bool) -> tuple[set[str], list[str]]:
    """Write the tag table from all annotations, if there are any; returns the names that have a tag in it, and the problems."""
    rows, (files, problems) = {}, annotations.find_files(dataset.root, [VOC.annotation])
    for name, path in tqdm(files.items(), desc="tags", unit="image"):
        try:
            label, unknown = annotations.encode_tags(
                annotations.read_annotation(Path(path)), dataset.class_names, path
            )
            rows[name] = [dataset.class_names[1:][i] for i in np.flatnonzero(label)]
            problems += unknown
        except InputError as error:
            problems.append(str(error))
    if rows or not (dataset.root / TAGS).is_file():
        problems += archives.write_missing(
            dataset.root / TAGS, annotations.format_tags(rows.items()), overwrite
        )
    table, of_table = dataset.tag_table()
    return {name for name, row in table.row.items() if table.tags[row].any()}, problems + of_table


def make_mask(path: Path, dataset: Dataset, sbd: Path | None) -> str | None:
    """Write the mask at `path` from VOC's own of that name, or else from SBD's; returns the problem, if any."""
    own, theirs = (
        dataset.root / f"SegmentationClass/{path.name}",
        sbd and sbd / f"cls/{path.stem}.mat",
    )
    try:
        size = images.image_size(dataset.root / VOC.images[0].format(path.stem))
        if own.is_file():
            label_file.save(path, images.read_mask(own, dataset.num_classes, size))
        elif theirs and theirs.is_file():
            label_file.save(path, read_sbd_mask(theirs, dataset.num_classes, size))
    except InputError as error:
        return str(error)
    return None


def read_sbd_mask(path: Path, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 class ids of an SBD .mat file. Raises InputError for a damaged file, other classes or another size."""
    try:
        mask = np.asarray(
            scipy.io.loadmat(path, variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"]
        )
        if mask.shape != size or mask.dtype.kind not in "ui" or mask.max(initial=0) >= num_classes:
            raise ValueError(
                f"it holds {mask.dtype} of shape {mask.shape}, not classes below {num_classes} of shape {size}"
            )
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise InputError(f"{path}: not the mask of its image ({error}); get SBD again") from None
    return mask.astype(np.uint8)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    unpack_voc(args)
    sbd, dataset = find_sbd(args), open_dataset("voc", args.root)
    for path in (dataset.root / name for name in OFFICIAL_LISTS):
        if not path.is_file():
            raise InputError(
                f"{path}: missing; give --archive the one that holds it, {VOC_SOURCE.file}"
            )
    (train, problems), (val, of_val) = (
        read_names(dataset, dataset.root / name) for name in OFFICIAL_LISTS
    )
    train_aug, of_train_aug = write_train_aug(dataset, val, sbd, args.overwrite)
    tagged, of_tags = write_tags(dataset, args.overwrite)
    problems = list(
        dict.fromkeys(problems + of_val + of_train_aug + of_tags)
    )  # train.txt is read twice
    paths = [label_file.path_of(dataset.root / MASKS, name) for name in sorted(train_aug | val)]
    todo = [path for path in paths if args.overwrite or not path.is_file()]
    results = parallel_map(
        functools.partial(make_mask, dataset=dataset, sbd=sbd), todo, args.num_workers
    )
    problems += filter(None, tqdm(results, desc="masks", unit="image"))

    masks = sum(path.is_file() for path in paths)
    rows = [
        (pattern.format("*"), expected, count_files(dataset.root, pattern))
        for pattern, expected in COUNTS.items()
    ]
    rows += [("train.txt, images", TRAIN, len(train)), ("val.txt, images", VAL, len(val))]
    of_sbd, both = [("train_aug.txt, images", TRAIN_AUG, len(train_aug))], TRAIN_AUG + VAL
    of_sbd += [
        ("train_aug and val, with a mask", both, masks),
        ("train_aug and val, with tags", both, len(tagged & (train_aug | val))),
    ]
    is_whole = archives.print_counts([*rows, *of_sbd])
    if sbd is None:
        is_whole = all(expected <= found for _, expected, found in rows)
        if len(train_aug) != TRAIN_AUG:
            print(WITHOUT_SBD.format(len(train_aug), TRAIN_AUG, masks))
    archives.finish(dataset.root, "voc", "VOC 2012", is_whole, problems)


if __name__ == "__main__":
    sys.exit(cli_main(main))
