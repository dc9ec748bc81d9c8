"""Prepare MS COCO 2014: turn its instance annotations into the masks, lists and tags that the other commands read.

    python prepare_coco.py --root DIR

DIR holds train2014.zip, val2014.zip and annotations_trainval2014.zip, which are unpacked, or their folders train2014/, val2014/ and
annotations/. Without val2014 only the training half is prepared. Writes

- masks/NAME.png: class ids 1 to 80 in the order of COCO's category ids, 0 for the background
- train.txt, val.txt: the pictures with at least one instance, 82,081 and 40,137
- tags.csv: the classes of each of these pictures

and prints a table of what there should be and what there is. Files that are there are kept, unless you pass --overwrite.

Where instances overlap, the smaller one lies on top, as small things mostly stand in front of large ones. Crowd regions count as their
class: they are tags too, and lie below all instances. Polygons with fewer than three points are not drawn. No pixel is 255.
"""

import collections
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from data import annotations, images
from data.registry import COCO, TAGS
from errors import InputError
from tool import label_file, prepare
from tool.context import cli_main
from tool.outputs import parallel_map

SPLITS = {"train": (82_783, 82_081, 82_081), "val": (40_504, 40_137, 40_137)}  # expected: pictures, those with an instance, and masks
ANNOTATIONS, ANNOTATIONS_ZIP = "annotations/instances_{}2014.json", "annotations_trainval2014.zip"
ZIPS = {"train2014.zip": "train2014/", "val2014.zip": "val2014/", ANNOTATIONS_ZIP: "annotations/instances_"}  # what each holds for us
CLASSES = annotations.read_classes(COCO.classes)
MAX_COORDINATE = 10_000  # pixels between a polygon's point and the corner of the picture


def read_instances(path: Path) -> tuple[list[dict], dict[int, list[dict]], dict[int, int]]:
    """The pictures of an annotation file, the instances by picture id, the class ids by category id. Raises InputError for another file."""
    instances = collections.defaultdict(list)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pictures = {picture["id"]: picture for picture in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        for instance in content["annotations"]:
            instances[instance["image_id"]].append(instance)
        class_ids = {number: i for i, number in enumerate(sorted(names), 1)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable instance annotation ({error!r}); unpack {ANNOTATIONS_ZIP} again") from None
    if tuple(names[number] for number in class_ids) != CLASSES[1:]:
        raise InputError(f"{path}: its categories are not COCO's 80; bring other data into the form of --dataset folder")
    return list(pictures.values()), instances, class_ids


def read_pictures(root: Path, split: str) -> tuple[int, dict[str, set[str]], dict[str, str], list[str]]:
    """The number of annotated pictures; tags and jobs (see `make_mask`) by name of those with a file and an instance; the problems."""
    path, folder = root / ANNOTATIONS.format(split), f"{split}2014"
    pictures, instances_of, class_ids = read_instances(path)
    files, problems = annotations.find_files(root, [f"{folder}/{{}}.jpg"])
    tags, jobs = {}, {}
    for picture in sorted(pictures, key=lambda picture: str(picture.get("file_name"))):
        try:
            name, size = annotations.plain_name(picture["file_name"]), [int(picture["height"]), int(picture["width"])]
            instances = [[class_ids[one["category_id"]], one["iscrowd"], one["segmentation"]] for one in instances_of[picture["id"]]]
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            reason = f"picture {picture['id']} is not annotated as COCO does it ({error!r})"
            raise InputError(f"{path}: {reason}; unpack {ANNOTATIONS_ZIP} again") from None
        if "/" in name or annotations.escapes_folder(name):
            raise InputError(f"{path}: picture {name} would lie outside of {folder}; unpack {ANNOTATIONS_ZIP} again")
        if name in tags:
            problems.append(f"{path}: picture {name} occurs twice; unpack {ANNOTATIONS_ZIP} again")
        elif instances and name in files:
            tags[name] = {CLASSES[one[0]] for one in instances}
            jobs[name] = json.dumps([files[name], size, instances])  # smaller than the objects
        elif instances:
            problems.append(f"{root / folder / name}.jpg: is annotated but missing; unpack {folder}.zip again")
    return len(pictures), tags, jobs, problems


def encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation as pycocotools' compressed run-length code. Raises ValueError for another thing, which its C code would take."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not all(abs(value) <= MAX_COORDINATE for value in polygon):
                raise ValueError("a polygon is no list of x, y, x, y, ...")
        return coco_mask.merge(coco_mask.frPyObjects([polygon for polygon in segmentation if len(polygon) >= 6] or [[0] * 6], *size))
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    is_code = isinstance(counts, list) and segmentation.get("size") == list(size)
    if not is_code or not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != math.prod(size):
        raise ValueError("a segmentation is neither polygons nor a run-length code of the picture's size")
    return coco_mask.frPyObjects(segmentation, *size)


def draw_mask(size: tuple[int, int], instances: list[list[Any]]) -> np.ndarray:
    """(H, W) uint8 class ids of instances [class id, crowd, segmentation for `encode`]: crowds below, then from large to small."""
    codes = [(class_id, crowd, encode(segmentation, size)) for class_id, crowd, segmentation in instances]
    mask = np.zeros(size, np.uint8)
    for class_id, _, code in sorted(codes, key=lambda one: (not one[1], -int(coco_mask.area(one[2])))):
        mask[coco_mask.decode(code) == 1] = class_id
    return mask


def make_mask(job: str, root: Path) -> str | None:
    """Write a picture's mask; returns the problem, or None. job: JSON [path, [height, width], instances]."""
    path, size, instances = json.loads(job)
    try:
        if images.picture_size(Path(path)) != tuple(size):
            return f"{path}: is not {size[1]}x{size[0]} as its annotation says; get the picture again"
        label_file.save(root / COCO.masks[0].format(Path(path).stem), draw_mask(tuple(size), instances))
    except (ValueError, TypeError) as error:
        return f"{path}: its annotation cannot be drawn ({error}); unpack {ANNOTATIONS_ZIP} again"
    except InputError as error:
        return str(error)


def prepare_split(root: Path, split: str, overwrite: bool, num_workers: int) -> tuple[dict[str, set[str]], list[tuple], list[str]]:
    """Write the masks and the list of one half; returns the tags of its pictures with a mask, rows for the table, and the problems."""
    print(f"reading {root / ANNOTATIONS.format(split)}", flush=True)
    num_annotated, tags, jobs, problems = read_pictures(root, split)
    masks = {name: root / COCO.masks[0].format(name) for name in tags}
    todo = [job for name, job in jobs.items() if overwrite or not masks[name].is_file()]
    made = parallel_map(functools.partial(make_mask, root=root), todo, num_workers)
    problems += filter(None, tqdm(made, desc=f"{split} masks", unit="picture"))
    masked = {name: names for name, names in tags.items() if masks[name].is_file()}
    problems += prepare.write_missing(root / COCO.list_file.format(split), "".join(f"{name}\n" for name in masked), overwrite)
    what = (f"{split}2014, annotated", f"{split}2014, with an instance", f"{split}.txt, with a mask")
    return masked, [*zip(what, SPLITS[split], (num_annotated, len(tags), len(masked)))], problems


def main(argv: list[str] | None = None) -> None:
    args = prepare.prepare_parser(__doc__, max_workers=None).parse_args(argv)
    root, tags, rows, problems = args.root, {}, [], []
    for file, wanted in ZIPS.items():
        if (root / file).is_file():
            prepare.unpack(root / file, root, lambda name, wanted=wanted: name.startswith(wanted))
    splits = [split for split in SPLITS if (root / f"{split}2014").is_dir()]
    if "train" not in splits:
        raise InputError(f"{root}: holds neither train2014/ nor train2014.zip; {COCO.advice}")
    for split in splits:
        more_tags, more_rows, more_problems = prepare_split(root, split, args.overwrite, args.num_workers)
        tags, rows, problems = tags | more_tags, rows + more_rows, problems + more_problems
    text = annotations.format_tags((name, sorted(names, key=CLASSES.index)) for name, names in tags.items())
    problems += prepare.write_missing(root / TAGS, text, args.overwrite)
    if "val" not in splits:
        print(f"{root / 'val2014'} is missing: val.txt is not written")
    prepare.finish(root, "coco", "COCO 2014", prepare.print_counts(rows), problems)


if __name__ == "__main__":
    sys.exit(cli_main(main))
