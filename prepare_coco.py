"""Prepare MS COCO 2014: masks, lists and tags from its instance annotations.

    python prepare_coco.py --root DIR

DIR holds train2014.zip, val2014.zip and annotations_trainval2014.zip, which are unpacked, or their
folders train2014/, val2014/ and annotations/. Without val2014 only the training half is prepared.
Writes

- masks/NAME.png: class ids 1 to 80 in the order of COCO's category ids, 0 for the background
- train.txt, val.txt: the images with at least one instance, 82,081 and 40,137
- tags.csv: the classes of each of these images

and prints a table of what there should be and what there is. Files that are there are kept, unless
you pass --overwrite.

If instances overlap, the smaller one lies on top, as small things mostly stand in front of large
ones. Crowd regions count as their class: they are tags too, and lie below all instances. Polygons
with fewer than three points are not drawn. No pixel is 255.
"""

import dataclasses
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data import annotations
from data.registry import COCO, TAGS
from errors import InputError
from exchange import archives
from exchange.coco import read_coco, write_mask
from exchange.instances import AnnotatedImage
from exchange.summary import Count, finish, print_counts, write_missing
from tool.context import cli_main
from tool.flags import prepare_parser
from tool.workers import parallel_map

ANNOTATIONS = "annotations/instances_{}2014.json"
ANNOTATIONS_ZIP = "annotations_trainval2014.zip"
ZIPS = {  # what each holds for us
    "train2014.zip": "train2014/",
    "val2014.zip": "val2014/",
    ANNOTATIONS_ZIP: "annotations/instances_",
}
CLASSES = annotations.read_classes(COCO.classes)
AGAIN = f"unpack {ANNOTATIONS_ZIP} again"


@dataclass(frozen=True)
class SplitSize:
    """The numbers of images in a split."""

    annotated: int
    tagged: int  # with an instance
    masked: int


SPLITS = {  # as published
    "train": SplitSize(82_783, 82_081, 82_081),
    "val": SplitSize(40_504, 40_137, 40_137),
}


@dataclass(frozen=True)
class AnnotatedSplit:
    """What the annotation of a split says of its images.

    Attributes:
        num_annotated: all images that it lists.
        tags: the class names, in order, of each image that has a file and an instance.
        jobs: for each of these images, by its name, what `make_mask` takes.
    """

    num_annotated: int
    tags: dict[str, list[str]]
    jobs: dict[str, str]
    problems: list[str]


def unpack_archives(root: Path) -> None:
    """Unpack the official archives that lie in the root; files that are there are kept."""
    for file, beginning in ZIPS.items():
        if (root / file).is_file():
            archives.unpack(
                root / file, root, lambda name, beginning=beginning: name.startswith(beginning)
            )


def find_splits(root: Path) -> list[str]:
    """The splits whose images are there. Raises InputError without the training images."""
    splits = [split for split in SPLITS if (root / f"{split}2014").is_dir()]
    if "train" not in splits:
        raise InputError(f"{root}: holds neither train2014/ nor train2014.zip; {COCO.advice}")
    return splits


def read_split(root: Path, split: str) -> AnnotatedSplit:
    """Read the annotation of a split. Raises InputError if it is not COCO's.

    Problems are images that are listed twice, and annotated images that are missing.
    """
    path = root / ANNOTATIONS.format(split)
    folder = f"{split}2014"
    source = read_coco(path, AGAIN)
    if tuple(source.class_names) != CLASSES[1:]:
        raise InputError(
            f"{path}: its categories are not COCO's 80;"
            f" python import_tags.py {path} DIR makes a --dataset folder of it"
        )
    files, problems = annotations.find_files(root, [f"{folder}/{{}}.jpg"])
    tags: dict[str, list[str]] = {}
    jobs: dict[str, str] = {}
    for image in sorted(source.images, key=lambda image: image.file):
        name = annotations.sample_name(image.file)
        if "/" in name or annotations.escapes_folder(name):
            raise InputError(f"{path}: image {name} would lie outside of {folder}; {AGAIN}")
        if name in tags:
            problems.append(f"{path}: image {name} occurs twice; {AGAIN}")
        elif not image.instances:
            continue
        elif name in files:
            tags[name] = [CLASSES[class_id] for class_id in sorted(image.class_ids)]
            jobs[name] = dataclasses.replace(image, file=files[name]).to_json()
        else:
            problems.append(
                f"{root / folder / name}.jpg: is annotated but missing; unpack {folder}.zip again"
            )
    return AnnotatedSplit(len(source.images), tags, jobs, problems)


def make_mask(job: str, root: Path) -> str | None:
    """Write the mask of an image; returns the problem, if any.

    job: JSON of the AnnotatedImage, whose file is the path of the image.
    """
    annotated = AnnotatedImage.from_json(job)
    image = Path(annotated.file)
    try:
        write_mask(mask_path(root, image.stem), image, annotated, AGAIN)
    except InputError as error:
        return str(error)
    return None


def mask_path(root: Path, name: str) -> Path:
    return root / COCO.masks[0].format(name)


@dataclass(frozen=True)
class PreparedSplit:
    """A split with its masks and its list.

    Attributes:
        tags: the class names, in order, of each image with a mask.
        counts: rows for the table.
    """

    tags: dict[str, list[str]]
    counts: list[Count]
    problems: list[str]


def prepare_split(root: Path, split: str, overwrite: bool, num_workers: int) -> PreparedSplit:
    """Write the masks and the list of a split."""
    print(f"reading {root / ANNOTATIONS.format(split)}", flush=True)
    annotated = read_split(root, split)
    todo = []
    for name, job in annotated.jobs.items():
        if overwrite or not mask_path(root, name).is_file():
            todo.append(job)
    results = parallel_map(functools.partial(make_mask, root=root), todo, num_workers)
    of_masks = [result for result in tqdm(results, f"{split} masks", unit="image") if result]
    tags = {}
    for name, class_names in annotated.tags.items():
        if mask_path(root, name).is_file():
            tags[name] = class_names
    text = "".join(f"{name}\n" for name in tags)
    of_list = write_missing(root / COCO.list_file.format(split), text, overwrite)
    expected = SPLITS[split]
    counts = [
        Count(f"{split}2014, annotated", expected.annotated, annotated.num_annotated),
        Count(f"{split}2014, with an instance", expected.tagged, len(annotated.tags)),
        Count(f"{split}.txt, with a mask", expected.masked, len(tags)),
    ]
    return PreparedSplit(tags, counts, annotated.problems + of_masks + of_list)


def main(argv: list[str] | None = None) -> None:
    args = prepare_parser(__doc__, max_workers=None).parse_args(argv)
    unpack_archives(args.root)
    splits = find_splits(args.root)
    tags = {}
    counts = []
    problems = []
    for split in splits:
        prepared = prepare_split(args.root, split, args.overwrite, args.num_workers)
        tags |= prepared.tags
        counts += prepared.counts
        problems += prepared.problems
    table = annotations.format_tags(tags.items())
    problems += write_missing(args.root / TAGS, table, args.overwrite)
    if "val" not in splits:
        print(f"{args.root / 'val2014'} is missing: val.txt is not written")
    print_counts(counts)
    is_whole = all(count.is_enough for count in counts)
    finish(args.root, "coco", "COCO 2014", is_whole, problems)


if __name__ == "__main__":
    sys.exit(cli_main(main))
