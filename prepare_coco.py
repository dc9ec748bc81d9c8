"""Prepare MS COCO 2014: turn its instance annotations into the masks, lists and tags that the other commands read.

    python prepare_coco.py --root DIR

DIR holds train2014.zip, val2014.zip and annotations_trainval2014.zip, which are unpacked, or their folders train2014/, val2014/ and
annotations/. Without val2014 only the training half is prepared. Writes

- masks/NAME.png: class ids 1 to 80 in the order of COCO's category ids, 0 for the background
- train.txt, val.txt: the images with at least one instance, 82,081 and 40,137
- tags.csv: the classes of each of these images

and prints a table of what there should be and what there is. Files that are there are kept, unless you pass --overwrite.

Where instances overlap, the smaller one lies on top, as small things mostly stand in front of large ones. Crowd regions count as their
class: they are tags too, and lie below all instances. Polygons with fewer than three points are not drawn. No pixel is 255.
"""

import functools
import json
import sys
from pathlib import Path

from tqdm import tqdm

from data import annotations
from data.registry import COCO, TAGS
from errors import InputError
from exchange import archives
from exchange.coco import Outlined, read_coco, write_mask
from tool.context import cli_main
from tool.workers import parallel_map

SPLITS = {
    "train": (82_783, 82_081, 82_081),
    "val": (40_504, 40_137, 40_137),
}  # expected: images, those with an instance, and masks
ANNOTATIONS, ANNOTATIONS_ZIP = "annotations/instances_{}2014.json", "annotations_trainval2014.zip"
ZIPS = {
    "train2014.zip": "train2014/",
    "val2014.zip": "val2014/",
    ANNOTATIONS_ZIP: "annotations/instances_",
}  # what each holds for us
CLASSES = annotations.read_classes(COCO.classes)
AGAIN = f"unpack {ANNOTATIONS_ZIP} again"


def read_images(
    root: Path, split: str
) -> tuple[int, dict[str, set[str]], dict[str, str], list[str]]:
    """The number of annotated images; tags and jobs (see `make_mask`) by name of those with a file and an instance; the problems."""
    path, folder = root / ANNOTATIONS.format(split), f"{split}2014"
    names, images = read_coco(path, AGAIN)
    if tuple(names) != CLASSES[1:]:
        raise InputError(
            f"{path}: its categories are not COCO's 80; python import_tags.py {path} DIR makes a --dataset folder of it"
        )
    files, problems = annotations.find_files(root, [f"{folder}/{{}}.jpg"])
    tags, jobs = {}, {}
    for image in sorted(images, key=lambda image: image.file):
        name = annotations.sample_name(image.file)
        if "/" in name or annotations.escapes_folder(name):
            raise InputError(f"{path}: image {name} would lie outside of {folder}; {AGAIN}")
        if name in tags:
            problems.append(f"{path}: image {name} occurs twice; {AGAIN}")
        elif image.instances and name in files:
            tags[name] = {CLASSES[one[0]] for one in image.instances}
            jobs[name] = json.dumps([files[name], *image[1:]])  # smaller than the objects
        elif image.instances:
            problems.append(
                f"{root / folder / name}.jpg: is annotated but missing; unpack {folder}.zip again"
            )
    return len(images), tags, jobs, problems


def make_mask(job: str, root: Path) -> str | None:
    """Write an image's mask; returns the problem, or None. job: JSON [path, [height, width], instances]."""
    path, size, instances = json.loads(job)
    try:
        write_mask(
            root / COCO.masks[0].format(Path(path).stem),
            Path(path),
            Outlined(path, tuple(size), instances),
            AGAIN,
        )
    except InputError as error:
        return str(error)


def prepare_split(
    root: Path, split: str, overwrite: bool, num_workers: int
) -> tuple[dict[str, set[str]], list[tuple], list[str]]:
    """Write the masks and the list of one half; returns the tags of its images with a mask, rows for the table, and the problems."""
    print(f"reading {root / ANNOTATIONS.format(split)}", flush=True)
    num_annotated, tags, jobs, problems = read_images(root, split)
    masks = {name: root / COCO.masks[0].format(name) for name in tags}
    todo = [job for name, job in jobs.items() if overwrite or not masks[name].is_file()]
    made = parallel_map(functools.partial(make_mask, root=root), todo, num_workers)
    problems += filter(None, tqdm(made, desc=f"{split} masks", unit="image"))
    masked = {name: names for name, names in tags.items() if masks[name].is_file()}
    problems += archives.write_missing(
        root / COCO.list_file.format(split), "".join(f"{name}\n" for name in masked), overwrite
    )
    what = (
        f"{split}2014, annotated",
        f"{split}2014, with an instance",
        f"{split}.txt, with a mask",
    )
    return masked, [*zip(what, SPLITS[split], (num_annotated, len(tags), len(masked)))], problems


def main(argv: list[str] | None = None) -> None:
    args = archives.prepare_parser(__doc__, max_workers=None).parse_args(argv)
    root, tags, rows, problems = args.root, {}, [], []
    for file, wanted in ZIPS.items():
        if (root / file).is_file():
            archives.unpack(root / file, root, lambda name, wanted=wanted: name.startswith(wanted))
    splits = [split for split in SPLITS if (root / f"{split}2014").is_dir()]
    if "train" not in splits:
        raise InputError(f"{root}: holds neither train2014/ nor train2014.zip; {COCO.advice}")
    for split in splits:
        more_tags, more_rows, more_problems = prepare_split(
            root, split, args.overwrite, args.num_workers
        )
        tags, rows, problems = tags | more_tags, rows + more_rows, problems + more_problems
    text = annotations.format_tags(
        (name, sorted(names, key=CLASSES.index)) for name, names in tags.items()
    )
    problems += archives.write_missing(root / TAGS, text, args.overwrite)
    if "val" not in splits:
        print(f"{root / 'val2014'} is missing: val.txt is not written")
    archives.finish(root, "coco", "COCO 2014", archives.print_counts(rows), problems)


if __name__ == "__main__":
    sys.exit(cli_main(main))
