"""Prepare MS COCO 2014: instance annotations become masks, lists and tags as the other commands read them.

    python data/prepare_coco.py --root DIR

DIR holds train2014.zip, val2014.zip and annotations_trainval2014.zip, or what is in them: train2014/, val2014/, annotations/. Zips
are unpacked; without val2014 only the training half is prepared. Writes

- masks/NAME.png: class ids in the order of COCO's category ids, 1 to 80, and 0 for the background
- train.txt, val.txt: the pictures with at least one instance, 82,081 and 40,137
- tags.csv: the classes of each of these pictures

and prints a table of what there should be and what there is. Run again, it does only what is missing.

Where instances overlap, the smaller one lies on top, as small things mostly stand before large ones. Crowd regions count as their class:
they are tags too, and lie below all instances. Polygons of less than three points show nothing. No pixel is 255.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # called as python data/prepare_coco.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as CocoApi
from tqdm import tqdm

from data import images, tables
from data.entries import PackedStrings
from data.registry import COCO, TAGS
from errors import InputError
from tool import archive, inventory, label_file, outputs, stage
from tool.ledger import Ledger, place


class Split(NamedTuple):
    """One half of the dataset."""

    list_name: str
    folder: str
    pictures: int  # as published
    with_instance: int


SPLITS = (Split("train", "train2014", 82_783, 82_081), Split("val", "val2014", 40_504, 40_137))
ANNOTATIONS = "annotations/instances_{}.json"
ANNOTATIONS_ZIP = "annotations_trainval2014.zip"
MASKS, MAKER = "masks", "prepare_coco.py"
CLASSES = tables.read_classes(COCO.classes)
FARTHEST = 10_000  # pixels that a polygon's point may lie from the corner


class Picture(NamedTuple):
    """A picture with an instance."""

    name: str
    tags: set[str]
    job: str  # JSON: its path, its size [height, width], its instances [class id, crowd, segmentation]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of COCO 2014, or of its zips")
    stage.add_workers(parser, most_workers=None)
    return parser.parse_args(argv)


def unpack(root: Path) -> None:
    """Unpack the zips that lie in the root."""
    for file, wanted in [(f"{split.folder}.zip", f"{split.folder}/") for split in SPLITS] + [(ANNOTATIONS_ZIP, "annotations/instances_")]:
        if (root / file).is_file():
            archive.unpack(root / file, root, lambda name, wanted=wanted: name.startswith(wanted))


def read_instances(path: Path) -> CocoApi:
    """An instance annotation file. Raises InputError where it is none, or where its categories are not COCO's."""
    api = CocoApi()
    try:
        with open(path, encoding="utf-8") as file, contextlib.redirect_stdout(io.StringIO()):
            api.dataset = json.load(file)
            api.createIndex()
        categories = tuple(api.cats[number]["name"] for number in sorted(api.cats))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable instance annotation ({error!r}); unpack {ANNOTATIONS_ZIP} again") from None
    if categories != CLASSES[1:]:
        raise InputError(f"{path}: its categories are not COCO's 80; bring other data into the form of --dataset folder")
    return api


def pictures_of(api: CocoApi, root: Path, split: Split, problems: list[str]) -> Iterator[Picture]:
    """The pictures that are there and have an instance, in the order of their names."""
    path = root / ANNOTATIONS.format(split.folder)
    there = tables.find_files(root, [f"{split.folder}/{{}}.jpg"])
    seen, class_id = set(), {number: i for i, number in enumerate(sorted(api.cats), 1)}
    for image in sorted(api.imgs.values(), key=lambda image: str(image.get("file_name"))):
        try:
            name, size = tables.plain_name(image["file_name"]), [int(image["height"]), int(image["width"])]
            if "/" in name or tables.leaves_folder(name):
                raise InputError(f"{path}: picture {name} would lie outside of {split.folder}; unpack {ANNOTATIONS_ZIP} again")
            instances = [[class_id[one["category_id"]], one["iscrowd"], one["segmentation"]] for one in api.imgToAnns[image["id"]]]
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path}: picture {image.get('id')} is not annotated as COCO does it ({error!r}); unpack {ANNOTATIONS_ZIP} again"
            ) from None
        if name in seen:
            problems.append(f"{path}: picture {name} stands twice; unpack {ANNOTATIONS_ZIP} again")
        elif instances and name in there:
            seen.add(name)
            yield Picture(name, {CLASSES[one[0]] for one in instances}, json.dumps([there[name], size, instances]))
        elif instances:
            problems.append(f"{root / split.folder / name}.jpg: is annotated but not there")


def draw_mask(size: tuple[int, int], instances: list[list[Any]]) -> np.ndarray:
    """(H, W) uint8 class ids: crowds below, then instances from large to small.

    instances: [class id, crowd, segmentation], the latter polygons or a run-length code, as in COCO. Raises ValueError for a segmentation
    that is neither.
    """
    codes = [(class_id, crowd, encode(segmentation, size)) for class_id, crowd, segmentation in instances]
    mask = np.zeros(size, np.uint8)
    for class_id, _, code in sorted(codes, key=lambda one: (not one[1], -int(coco_mask.area(one[2])))):
        mask[coco_mask.decode(code) == 1] = class_id
    return mask


def encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation as pycocotools' compressed run-length code; its C code takes anything, so that it is checked here."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not all(abs(value) <= FARTHEST for value in polygon):
                raise ValueError("a polygon is no list of x, y, x, y, ...")
        return coco_mask.merge(coco_mask.frPyObjects([polygon for polygon in segmentation if len(polygon) >= 6] or [[0] * 6], *size))
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    is_code = isinstance(counts, list) and segmentation.get("size") == list(size)
    if not is_code or not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != math.prod(size):
        raise ValueError("a segmentation is neither polygons nor a run-length code of the picture's size")
    return coco_mask.frPyObjects(segmentation, *size)


def make_mask(job: str, root: Path) -> str | None:
    """Write the mask of one picture (see Picture.job); returns what is wrong with it, or None."""
    path, size, instances = json.loads(job)
    try:
        if images.picture_size(Path(path)) != tuple(size):
            return f"{path}: is not as large as its annotation says, {size[1]}x{size[0]}; get the picture again"
        return place(mask_path(root, Path(path).stem), draw_mask(tuple(size), instances), MAKER)
    except (ValueError, TypeError) as error:
        return f"{path}: its annotation cannot be drawn ({error})"
    except InputError as error:
        return str(error)


def mask_path(root: Path, name: str) -> Path:
    return label_file.path_of(root / MASKS, name)


def prepare_split(
    root: Path, split: Split, num_workers: int, ledger: Ledger, problems: list[str]
) -> tuple[dict[str, set[str]], list[tuple[str, int, int]]]:
    """Write the masks of one half and the list of its pictures that have one; returns these with their tags, and the table's rows."""
    source = root / ANNOTATIONS.format(split.folder)
    print(f"reading {source}", flush=True)
    api = read_instances(source)
    annotated, tags, jobs = len(api.imgs), {}, []
    for picture in pictures_of(api, root, split, problems):
        tags[picture.name] = picture.tags
        path = mask_path(root, picture.name)
        if label_file.maker_of(path) != MAKER or not label_file.is_made(path, source):
            jobs.append(picture.job)
    del api  # gigabytes, which the worker processes need not see
    jobs, work = PackedStrings(jobs), functools.partial(make_mask, root=root)
    problems += filter(None, tqdm(outputs.in_parallel(work, jobs, num_workers), desc=f"{split.list_name} masks", unit="picture"))
    listed = {name: found for name, found in tags.items() if label_file.is_whole(mask_path(root, name))}
    ledger.write(COCO.list_file.format(split.list_name), "".join(f"{name}\n" for name in listed))
    rows = [
        (f"{split.folder}, annotated", split.pictures, annotated),
        (f"{split.folder}, with an instance", split.with_instance, len(tags)),
        (f"{split.list_name}.txt, with a mask", split.with_instance, len(listed)),
    ]
    return listed, rows


def prepare(root: Path, num_workers: int) -> None:
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; {COCO.advice}")
    unpack(root)
    if not (root / SPLITS[0].folder).is_dir():
        raise InputError(f"{root}: holds neither train2014/ nor train2014.zip; {COCO.advice}")
    splits = [split for split in SPLITS if (root / split.folder).is_dir()]
    missing = next((path for path in (root / ANNOTATIONS.format(split.folder) for split in splits) if not path.is_file()), None)
    if missing:
        raise InputError(f"{missing}: there is no such file; unpack {ANNOTATIONS_ZIP} into the root")
    ledger, tags, rows, problems = Ledger(root), {}, [], []
    for split in splits:
        more_tags, more_rows = prepare_split(root, split, num_workers, ledger, problems)
        tags, rows = tags | more_tags, rows + more_rows
    ledger.write(TAGS, tables.format_tags((name, sorted(found, key=CLASSES.index)) for name, found in tags.items()))
    for split in set(SPLITS).difference(splits):
        print(f"{root / split.folder} is not there: {split.list_name}.txt is not made")
    inventory.conclude(root, "coco", "COCO 2014", inventory.print_counts(rows), problems)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    prepare(args.root, args.num_workers)


if __name__ == "__main__":
    sys.exit(stage.run(main))
