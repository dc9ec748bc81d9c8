"""Prepare PASCAL VOC 2012 and SBD: images, lists, masks and tags.

    python prepare_voc.py --root DIR [--download] [--archive FILE ...] [--sbd DIR|FILE]

Unpacks VOC's archive (given, in DIR, or downloaded) to DIR/VOCdevkit/VOC2012 and writes there

- SegmentationClassAug/NAME.png: VOC's own mask if there is one, else SBD's
- ImageSets/Segmentation/train_aug.txt: SBD's train and val lists and VOC's train, without VOC's
  val: 10,582 names
- tags.csv: the classes of every image with an annotation

and prints a table of what is expected and what there is. Files that are there are kept, unless you
pass --overwrite. Without SBD, train_aug.txt is made from VOC's own lists, unless there is one; the
published protocol needs no more than images, tags and its list.
"""

import argparse
import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT
from tqdm import tqdm

from data import annotations, images
from data.registry import TAGS, VOC, Dataset, find_root, open_dataset
from errors import InputError
from exchange import archives, downloads
from exchange.summary import Count, finish, print_counts, write_missing
from tool import label_file
from tool.context import cli_main
from tool.flags import add_switch, prepare_parser
from tool.workers import parallel_map


@dataclass(frozen=True)
class OfficialArchive:
    file: str
    url: str
    md5: str


VOC_2012 = DATASET_YEAR_DICT["2012"]
VOC_ARCHIVE = OfficialArchive(VOC_2012["filename"], VOC_2012["url"], VOC_2012["md5"])
SBD_ARCHIVE = OfficialArchive(SBDataset.filename, SBDataset.url, SBDataset.md5)

FILES = {  # in VOC's archive
    "JPEGImages/{}.jpg": 17_125,
    "Annotations/{}.xml": 17_125,
    "SegmentationClass/{}.png": 2_913,
}
TRAIN = 1_464  # names on a list
VAL = 1_449
TRAIN_AUG = 10_582
SBD_MASKS = 11_355
BELOW = "VOCdevkit/VOC2012"
MASKS = "SegmentationClassAug"
TRAIN_LIST = VOC.list_file.format("train")
VAL_LIST = VOC.list_file.format("val")
TRAIN_AUG_LIST = VOC.list_file.format("train_aug")
MAIN_LIST = "ImageSets/Main/trainval.txt"  # of the images with boxes
SBD_FOLDER = "benchmark_RELEASE"  # in its archive
SBD_LISTS = ("train.txt", "val.txt")
SBD_MEMBERS = re.compile(r"benchmark_RELEASE/dataset/(cls/.+\.mat|train\.txt|val\.txt)")
WITHOUT_SBD = """
Without SBD, train_aug.txt holds {:,} images instead of {:,}, and {:,} of train_aug and val
have a mask. Unless it was there before, it lists VOC's train and Main/trainval without val, which
have boxes and so tags; results will differ from the published ones."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = prepare_parser(__doc__, max_workers=8)
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
    parser.add_argument(
        "--checksum",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse archives other than the official ones; off for a part of VOC, or for one that"
        " was packed anew (default on)",
    )
    args = parser.parse_args(argv)
    voc = [path for path in args.archive if path.name != SBD_ARCHIVE.file]
    sbd = [path for path in args.archive if path.name == SBD_ARCHIVE.file]
    if args.sbd is not None:
        sbd.append(args.sbd)
    if len(sbd) > 1:
        parser.error("pass SBD only once")
    args.archive = voc
    args.sbd = next(iter(sbd), None)
    return args


def unpack_voc(args: argparse.Namespace) -> None:
    """Unpack the given archives of VOC.

    Without any, and unless VOC is complete, unpack the one in the root, which may be downloaded
    first.
    """
    voc = find_root(VOC, args.root) or args.root / BELOW
    official = args.root / VOC_ARCHIVE.file
    has_official = args.download or official.is_file()
    paths = args.archive
    if not paths and has_official and not is_complete(voc, FILES, [TRAIN_LIST, VAL_LIST]):
        paths = [official]
    if not paths:
        return
    if voc != args.root / BELOW:
        raise InputError(
            f"{voc}: VOC is here already, but archives are unpacked to {BELOW} below --root;"
            " choose another --root"
        )
    if args.download and not args.archive:
        downloads.download(VOC_ARCHIVE.url, official, VOC_ARCHIVE.md5)
    for path in paths:
        if args.checksum:
            downloads.check_md5(path, VOC_ARCHIVE.md5)
        archives.unpack(path, args.root, is_member_of_voc)


def is_member_of_voc(name: str) -> bool:
    """Whether a member of VOC's archive is needed."""
    return name.startswith(f"{BELOW}/") and "SegmentationObject" not in name


def find_sbd(args: argparse.Namespace) -> Path | None:
    """The folder with SBD's cls/, train.txt and val.txt; None if there is no SBD.

    It may be downloaded and unpacked first.
    """
    path = args.sbd or find_sbd_in_root(args)
    if path is None:
        return None
    if path.is_file():
        if args.checksum:
            downloads.check_md5(path, SBD_ARCHIVE.md5)
        archives.unpack(path, args.root, SBD_MEMBERS.fullmatch)
        path = args.root / SBD_FOLDER
    for folder in (path, path / "dataset", path / SBD_FOLDER / "dataset"):
        if all((folder / name).exists() for name in ("cls", *SBD_LISTS)):
            return folder
    raise InputError(
        f"{path}: holds no cls/, train.txt and val.txt of SBD;"
        f" pass its folder or {SBD_ARCHIVE.file}"
    )


def find_sbd_in_root(args: argparse.Namespace) -> Path | None:
    """SBD's folder if it is complete, or else its archive, which may be downloaded first."""
    official = args.root / SBD_ARCHIVE.file
    unpacked = args.root / SBD_FOLDER
    if is_complete(unpacked / "dataset", {"cls/{}.mat": SBD_MASKS}, SBD_LISTS):
        return unpacked
    if args.download:
        downloads.download(SBD_ARCHIVE.url, official, SBD_ARCHIVE.md5)
    for path in (official, unpacked):
        if path.exists():
            return path
    return None


def is_complete(root: Path, counts: dict[str, int], lists: Sequence[str]) -> bool:
    """Whether a folder holds at least so many files of each pattern, and some lists."""
    has_lists = all((root / name).is_file() for name in lists)
    return has_lists and all(
        count_files(root, pattern) >= count for pattern, count in counts.items()
    )


def count_files(root: Path, pattern: str) -> int:
    files, _ = annotations.find_files(root, [pattern])
    return len(files)


def check_lists(root: Path) -> None:
    """Raise InputError if one of VOC's own lists is missing."""
    for path in (root / TRAIN_LIST, root / VAL_LIST):
        if not path.is_file():
            raise InputError(
                f"{path}: missing; give --archive the one that holds it, {VOC_ARCHIVE.file}"
            )


def read_names(dataset: Dataset, *paths: Path) -> tuple[set[str], list[str]]:
    """The names on some lists, and the problems."""
    names: set[str] = set()
    problems: list[str] = []
    for path in paths:
        samples, of_list = dataset.read_samples(str(path))
        names.update(samples.names())
        problems += of_list
    return names, problems


def write_train_aug(
    dataset: Dataset, val: set[str], sbd: Path | None, overwrite: bool
) -> tuple[set[str], list[str]]:
    """Write train_aug.txt; returns its names, and the problems.

    Without SBD, a list that is there stays, a complete one even with overwrite.
    """
    path = dataset.root / TRAIN_AUG_LIST
    before: set[str] = set()
    if path.is_file():
        before, problems = read_names(dataset, path)
        if sbd is None and before and (len(before) >= TRAIN_AUG or not overwrite):
            return before, problems
    sources = [dataset.root / TRAIN_LIST]
    main_list = dataset.root / MAIN_LIST
    if sbd is not None:
        sources += [sbd / name for name in SBD_LISTS]
    elif main_list.is_file():
        sources.append(main_list)
    names, problems = read_names(dataset, *sources)
    names -= val
    if names != before:
        text = "".join(f"{name}\n" for name in sorted(names))
        problems += write_missing(path, text, overwrite)
    return names, problems


def write_tags(dataset: Dataset, overwrite: bool) -> tuple[set[str], list[str]]:
    """Write the tag table from all annotations, if there are any.

    Returns the names that have a tag in it, and the problems.
    """
    files, problems = annotations.find_files(dataset.root, [VOC.annotation])
    rows = {}
    for name, path in tqdm(files.items(), desc="tags", unit="image"):
        try:
            tags = annotations.read_annotation(Path(path))
        except InputError as error:
            problems.append(str(error))
            continue
        encoded, unknown = annotations.encode_tags(tags, dataset.class_names, path)
        rows[name] = [dataset.class_names[i + 1] for i in np.flatnonzero(encoded)]
        problems += unknown
    table_path = dataset.root / TAGS
    if rows or not table_path.is_file():
        text = annotations.format_tags(rows.items())
        problems += write_missing(table_path, text, overwrite)
    table, of_table = dataset.tag_table()
    tagged = {name for name, row in table.row.items() if table.tags[row].any()}
    return tagged, problems + of_table


def write_masks(
    paths: Sequence[Path], dataset: Dataset, sbd: Path | None, num_workers: int
) -> list[str]:
    """Write the masks at these paths; returns the problems."""
    make = functools.partial(make_mask, dataset=dataset, sbd=sbd)
    results = parallel_map(make, paths, num_workers)
    return [result for result in tqdm(results, desc="masks", unit="image") if result]


def make_mask(path: Path, dataset: Dataset, sbd: Path | None) -> str | None:
    """Write the mask at `path` from VOC's own of that name, or else from SBD's, if any.

    Returns the problem, if any.
    """
    own = dataset.root / f"SegmentationClass/{path.name}"
    try:
        size = images.image_size(dataset.root / VOC.images[0].format(path.stem))
        if own.is_file():
            label_file.save(path, images.read_mask(own, dataset.num_classes, size))
            return None
        if sbd is not None:
            of_sbd = sbd / f"cls/{path.stem}.mat"
            if of_sbd.is_file():
                label_file.save(path, read_sbd_mask(of_sbd, dataset.num_classes, size))
    except InputError as error:
        return str(error)
    return None


def read_sbd_mask(path: Path, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 class ids of an SBD .mat file.

    Raises InputError for a damaged file, other classes or another size.
    """
    try:
        variables = scipy.io.loadmat(path, variable_names=["GTcls"])
        mask = np.asarray(variables["GTcls"][0, 0]["Segmentation"])
        is_integer = mask.dtype.kind in "ui"
        if mask.shape != size or not is_integer or mask.max(initial=0) >= num_classes:
            raise ValueError(
                f"it holds {mask.dtype} of shape {mask.shape},"
                f" not classes below {num_classes} of shape {size}"
            )
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise InputError(f"{path}: not the mask of its image ({error}); get SBD again") from None
    return mask.astype(np.uint8)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    unpack_voc(args)
    sbd = find_sbd(args)
    dataset = open_dataset("voc", args.root)
    root = dataset.root
    check_lists(root)

    train, of_train = read_names(dataset, root / TRAIN_LIST)
    val, of_val = read_names(dataset, root / VAL_LIST)
    train_aug, of_train_aug = write_train_aug(dataset, val, sbd, args.overwrite)
    tagged, of_tags = write_tags(dataset, args.overwrite)
    problems = of_train + of_val + of_train_aug + of_tags
    problems = list(dict.fromkeys(problems))  # train.txt is read twice

    needed = train_aug | val
    masks = [label_file.path_of(root / MASKS, name) for name in sorted(needed)]
    todo = [path for path in masks if args.overwrite or not path.is_file()]
    problems += write_masks(todo, dataset, sbd, args.num_workers)
    num_masks = sum(path.is_file() for path in masks)

    counts = []
    for pattern, expected in FILES.items():
        counts.append(Count(pattern.format("*"), expected, count_files(root, pattern)))
    counts += [
        Count("train.txt, images", TRAIN, len(train)),
        Count("val.txt, images", VAL, len(val)),
    ]
    of_sbd = [
        Count("train_aug.txt, images", TRAIN_AUG, len(train_aug)),
        Count("train_aug and val, with a mask", TRAIN_AUG + VAL, num_masks),
        Count("train_aug and val, with tags", TRAIN_AUG + VAL, len(tagged & needed)),
    ]
    print_counts(counts + of_sbd)
    if sbd is not None:
        counts += of_sbd  # without SBD, VOC alone can be whole
    elif len(train_aug) != TRAIN_AUG:
        print(WITHOUT_SBD.format(len(train_aug), TRAIN_AUG, num_masks))
    is_whole = all(count.is_enough for count in counts)
    finish(root, "voc", "VOC 2012", is_whole, problems)


if __name__ == "__main__":
    sys.exit(cli_main(main))
