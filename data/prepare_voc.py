"""Prepare PASCAL VOC 2012 and SBD: pictures, lists, masks and tags as the other commands read them.

    python data/prepare_voc.py --root DIR [--download] [--archive FILE ...] [--sbd DIR|FILE]

Unpacks VOC's archive (given, lying in DIR, or downloaded) to DIR/VOCdevkit/VOC2012, and writes there

- SegmentationClassAug/NAME.png: VOC's own mask where there is one, else SBD's
- ImageSets/Segmentation/train_aug.txt: SBD's train and val lists and VOC's train, without VOC's val: 10,582 names
- tags.csv: the classes of every picture that has an annotation

and prints a table of what there should be and what there is. Run again, it does only what is missing. Without SBD, train_aug is made from
VOC's own lists instead; pictures, tags and the official lists are all that the published protocol needs besides.
"""

import argparse
import functools
import re
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

if not __package__:  # called as python data/prepare_voc.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT
from tqdm import tqdm

from data import images, tables
from data.entries import PackedStrings
from data.registry import TAGS, VOC, Dataset, find_root, open_dataset
from errors import InputError
from tool import archive, download, inventory, label_file, outputs, stage
from tool.ledger import Ledger, is_made, place

COUNTS = {"JPEGImages/{}.jpg": 17_125, "Annotations/{}.xml": 17_125, "SegmentationClass/{}.png": 2_913}  # files in the archive
TRAIN, VAL, TRAIN_AUG = 1_464, 1_449, 10_582  # names on a list
SBD_MASKS = 11_355
BELOW = "VOCdevkit/VOC2012"
MASKS, MAKER = "SegmentationClassAug", "prepare_voc.py"
TRAIN_AUG_LIST, *OFFICIAL_LISTS = (VOC.list_file.format(name) for name in ("train_aug", "train", "val"))
WITHOUT_SBD = """
without SBD, train_aug.txt holds {:,} pictures instead of {:,}. Unless it was there before, they are those of VOC's own lists
Segmentation/train and Main/trainval (pictures with boxes, so with tags) that are not on val. The published list has SBD's
pictures in place of Main's, so results will differ from the published ones. {:,} of the pictures have a mask"""


class Source(NamedTuple):
    """An official archive."""

    file: str
    url: str
    md5: str


VOC_SOURCE = Source(*(DATASET_YEAR_DICT["2012"][key] for key in ("filename", "url", "md5")))
SBD_SOURCE = Source(SBDataset.filename, SBDataset.url, SBDataset.md5)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds VOCdevkit/VOC2012, or will")
    parser.add_argument(
        "--download",
        action=argparse.BooleanOptionalAction,
        default=False,
        help=f"download what is missing: {VOC_SOURCE.file} (2 GB) and SBD's {SBD_SOURCE.file} (1.4 GB); "
        "goes on where it was stopped (default off)",
    )
    parser.add_argument(
        "--archive",
        type=Path,
        nargs="+",
        default=[],
        help=f"archives that are already here, VOC's and SBD's {SBD_SOURCE.file} (default DIR/{VOC_SOURCE.file} if it is there)",
    )
    parser.add_argument(
        "--sbd",
        type=Path,
        help=f"SBD, already here: its folder or archive (default DIR/{SBD_SOURCE.file} or DIR/benchmark_RELEASE if it is there)",
    )
    parser.add_argument(
        "--checksum",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse archives that are not the official ones to the byte; off for a part of VOC, or one packed anew (default on)",
    )
    stage.add_workers(parser)
    args = parser.parse_args(argv)
    of_sbd = [path for path in [args.sbd, *args.archive] if path and (path == args.sbd or path.name == SBD_SOURCE.file)]
    if len(of_sbd) > 1:
        parser.error(f"SBD is given {len(of_sbd)} times")
    args.sbd = next(iter(of_sbd), None)
    args.archive = [path for path in args.archive if path.name != SBD_SOURCE.file]
    return args


def unpack_voc(args: argparse.Namespace) -> None:
    """Unpack VOC from the archives that are given; else, where it is not complete, from the one in the root, downloaded if need be."""
    here = find_root(VOC, args.root) or args.root / BELOW
    archives, official = args.archive, args.root / VOC_SOURCE.file
    is_complete = all(count_files(here, pattern) >= count for pattern, count in COUNTS.items())
    if not archives and not (is_complete and all((here / name).is_file() for name in OFFICIAL_LISTS)):
        archives = [official] * (official.is_file() or args.download)
    if archives and here != args.root / BELOW:
        raise InputError(f"{here}: VOC is here already, but archives are unpacked to {BELOW} below --root; choose another --root")
    if official in archives and args.download:
        download.fetch(VOC_SOURCE.url, official, VOC_SOURCE.md5)
    for path in archives:
        if args.checksum:
            download.check_md5(path, VOC_SOURCE.md5)
        archive.unpack(path, args.root, lambda name: name.startswith(f"{BELOW}/") and "SegmentationObject" not in name)


def find_sbd(args: argparse.Namespace) -> Path | None:
    """SBD's folder with cls/, train.txt and val.txt, unpacked if need be; None where there is no SBD."""
    official, unpacked = args.root / SBD_SOURCE.file, args.root / "benchmark_RELEASE"
    is_complete = count_files(unpacked, "dataset/cls/{}.mat") >= SBD_MASKS
    is_complete &= all((unpacked / f"dataset/{name}.txt").is_file() for name in ("train", "val"))
    if args.download and not args.sbd and not is_complete:
        download.fetch(SBD_SOURCE.url, official, SBD_SOURCE.md5)
    candidates = [unpacked] if is_complete else [official, unpacked]
    given = args.sbd or next((path for path in candidates if path.exists()), None)
    if given is None:
        return None
    if not given.is_dir():
        if args.checksum:
            download.check_md5(given, SBD_SOURCE.md5)
        archive.unpack(given, args.root, re.compile(r"benchmark_RELEASE/dataset/(cls/.+\.mat|train\.txt|val\.txt)").fullmatch)
        given = unpacked
    below = [given, given / "dataset", given / "benchmark_RELEASE/dataset"]
    folder = next((one for one in below if all((one / name).exists() for name in ("cls", "train.txt", "val.txt"))), None)
    if folder is None:
        raise InputError(f"{given}: holds no cls/, train.txt and val.txt of SBD; give its folder or {SBD_SOURCE.file}")
    return folder


def count_files(root: Path, pattern: str) -> int:
    return len(tables.find_files(root, [pattern]))


def list_train_aug(dataset: Dataset, train: set[str], val: set[str], sbd: Path | None, ledger: Ledger, problems: list[str]) -> set[str]:
    """Write train_aug.txt, unless it holds these very names already; returns them. Without SBD, a whole list or somebody else's stays."""
    path, main = dataset.root / TRAIN_AUG_LIST, dataset.root / "ImageSets/Main/trainval.txt"
    found = []
    before = names_on(dataset, path, found) if path.is_file() and path.stat().st_size else set()
    if sbd is None and before and (len(before) >= TRAIN_AUG or not ledger.made(TRAIN_AUG_LIST)):
        problems += found
        return before
    others = [sbd / "train.txt", sbd / "val.txt"] if sbd else [main] * main.is_file()
    names = train.union(*(names_on(dataset, one, problems) for one in others)) - val
    if names != before:
        ledger.write(TRAIN_AUG_LIST, "".join(f"{name}\n" for name in sorted(names)))
    return names


def names_on(dataset: Dataset, path: Path, problems: list[str]) -> set[str]:
    return set(dataset.entries(str(path), problems.append).names())


def list_tags(dataset: Dataset, ledger: Ledger, problems: list[str]) -> set[str]:
    """Write the tag table from all annotations; returns the names that have a tag. Without annotations, a table that is there stays."""
    annotations = tables.find_files(dataset.root, [VOC.annotation])
    if not annotations and (dataset.root / TAGS).is_file():
        table = dataset.tag_table(problems.append)
        return {name for name, row in table.row.items() if table.labels[row].any()}
    rows = []
    for name, path in tqdm(annotations.items(), desc="tags", unit="picture"):
        try:
            label = tables.label_of(tables.read_annotation(Path(path)), dataset.class_names, path, problems.append)
            rows.append((name, [dataset.class_names[1:][i] for i in np.flatnonzero(label)]))
        except InputError as error:
            problems.append(str(error))
    ledger.write(TAGS, tables.format_tags(rows))
    return {name for name, tags in rows if tags}


def make_mask(name: str, dataset: Dataset, sbd: Path | None) -> str | None:
    """Write a picture's mask from VOC's own or from SBD's; returns what is wrong with it, or None."""
    root = dataset.root
    own, theirs = root / f"SegmentationClass/{name}.png", sbd and sbd / f"cls/{name}.mat"
    try:
        size = images.picture_size(root / VOC.pictures[0].format(name))
        if own.is_file():
            return place(mask_path(root, name), images.read_mask(own, dataset.num_classes, size), MAKER)
        if theirs and theirs.is_file():
            return place(mask_path(root, name), read_sbd_mask(theirs, dataset.num_classes, size), MAKER)
    except InputError as error:
        return str(error)
    return None


def mask_path(root: Path, name: str) -> Path:
    return label_file.path_of(root / MASKS, name)


def read_sbd_mask(path: Path, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 class ids of an SBD .mat file. Raises InputError for a damaged file, other classes or another size."""
    try:
        mask = np.asarray(scipy.io.loadmat(path, variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"])
        if mask.ndim != 2 or mask.dtype.kind not in "ui":
            raise ValueError(f"Segmentation is {mask.dtype} of shape {mask.shape}")
    except (MatReadError, ValueError, LookupError, TypeError, ArithmeticError, NotImplementedError, OSError, zlib.error) as error:
        raise InputError(f"{path}: not a readable SBD mask ({error}); get SBD again") from None
    if mask.shape != size or mask.max(initial=0) >= num_classes:
        raise InputError(
            f"{path}: is {mask.shape[1]}x{mask.shape[0]} with classes up to {mask.max(initial=0)}, not for its picture; get SBD again"
        )
    return mask.astype(np.uint8)


def write_masks(dataset: Dataset, names: list[str], sbd: Path | None, num_workers: int, problems: list[str]) -> int:
    """Write the masks that are missing; returns how many pictures have one."""
    paths = {name: mask_path(dataset.root, name) for name in names}
    todo = PackedStrings(name for name, path in paths.items() if not is_made(path, MAKER))
    work = functools.partial(make_mask, dataset=dataset, sbd=sbd)
    problems += filter(None, tqdm(outputs.in_parallel(work, todo, num_workers), desc="masks", unit="picture"))
    return sum(label_file.is_whole(path) for path in paths.values())


def prepare(args: argparse.Namespace) -> None:
    for path in args.archive:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; correct the path")
    if args.sbd and not args.sbd.exists():
        raise InputError(f"{args.sbd}: there is no such file or folder; correct the path")
    unpack_voc(args)
    sbd, dataset, problems = find_sbd(args), open_dataset("voc", args.root), []
    for path in (dataset.root / name for name in OFFICIAL_LISTS):
        if not path.is_file():
            raise InputError(f"{path}: is missing; give --archive the one that holds it, {VOC_SOURCE.file}")
    train, val = (names_on(dataset, dataset.root / name, problems) for name in OFFICIAL_LISTS)
    ledger = Ledger(dataset.root)
    train_aug = list_train_aug(dataset, train, val, sbd, ledger, problems)
    tagged = list_tags(dataset, ledger, problems)
    masks = write_masks(dataset, sorted(train_aug | val), sbd, args.num_workers, problems)

    rows = [(pattern.format("*"), expected, count_files(dataset.root, pattern)) for pattern, expected in COUNTS.items()]
    rows += [("train.txt, pictures", TRAIN, len(train)), ("val.txt, pictures", VAL, len(val))]
    of_sbd = [
        ("train_aug.txt, pictures", TRAIN_AUG, len(train_aug)),
        ("train_aug and val, with a mask", TRAIN_AUG + VAL, masks),
        ("train_aug and val, with tags", TRAIN_AUG + VAL, len(tagged & (train_aug | val))),
    ]
    is_whole = inventory.print_counts([*rows, *of_sbd])
    if sbd is None:
        is_whole = all(expected <= found for _, expected, found in rows)
        if len(train_aug) != TRAIN_AUG:
            print(WITHOUT_SBD.format(len(train_aug), TRAIN_AUG, masks))
    inventory.conclude(dataset.root, "voc", "VOC 2012", is_whole, problems)


def main(argv: list[str] | None = None) -> None:
    prepare(parse_args(argv))


if __name__ == "__main__":
    sys.exit(stage.run(main))
