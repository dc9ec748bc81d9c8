"""YOLO's folders: images, a text file of boxes or outlines for each, and the class names."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.annotations import read_lines, read_text
from data.images import image_size, orientation, stored_size
from errors import InputError
from tool.outputs import atomic_write

from .coco import MaskParts, Part
from .instances import EXPORT_AGAIN, AnnotatedImage, Annotations, Instance
from .summary import write_text

NAMES_FILES = ("data.yaml", "classes.txt", "obj.names")  # the first that exists counts


def find_names_file(folder: Path) -> Path | None:
    """The file with the class names; None in a folder that is not YOLO's."""
    for name in NAMES_FILES:
        if (folder / name).is_file():
            return folder / name
    return None


def read_yolo(names_file: Path, folder: Path, images: Sequence[Path]) -> Annotations:
    """The classes, and the instances of `images`, which lie below `folder`.

    A box is an instance without an outline. An image without a text file has no instance.
    Raises InputError for a line that is no class with a box or an outline.
    """
    class_names = _read_names(names_file)
    annotated = []
    for path in images:
        file = path.relative_to(folder).as_posix()
        table = _table_of(file, names_file.parent)
        size = stored_size(image_size(path), orientation(path))  # upright
        instances = []
        if table.is_file():
            for number, line in read_lines(table, EXPORT_AGAIN):
                try:
                    instances.append(_parse_instance(line, len(class_names), size))
                except ValueError:
                    raise InputError(
                        f"{table}, line {number}: is no class of {names_file}"
                        " with a box or outline; correct it"
                    ) from None
        annotated.append(AnnotatedImage(file, size, instances))
    return Annotations(class_names, annotated)


def _read_names(path: Path) -> list[str]:
    """The class names of data.yaml, or of a file with one name a line."""
    text = read_text(path, "write the class names in it")
    text = re.sub(r"\s#.*", "", text)  # comments
    if path.suffix == ".yaml":
        text = _names_in_yaml(text)
    names = [line.strip().strip("'\"") for line in text.splitlines()]
    return [name for name in names if name]


def _names_in_yaml(text: str) -> str:
    """The names, one a line: [a, b] after "names:", or "- a" or "0: a" up to the next key."""
    after = f"{text}\nnames:".split("names:")[1]
    block = re.split(r"^\w", after, maxsplit=1, flags=re.MULTILINE)[0]
    names = re.findall(r"""\s*(?:(?:\d+\s*:|-)\s*)?("[^"]*"|'[^']*'|[^][{},\n]+)""", block)
    return "\n".join(names)


def _table_of(file: str, root: Path) -> Path:
    """The text file of an image, in labels/ if the image is in images/, as in ultralytics."""
    return (root / re.sub("^(.*/)?images/", r"\1labels/", file)).with_suffix(".txt")


def _parse_instance(line: str, num_classes: int, size: tuple[int, int]) -> Instance:
    """A class number from 0 up, then a box or the points of an outline, relative to (H, W).

    Raises ValueError for anything else.
    """
    number, *values = map(float, line.split())
    if number not in range(num_classes):
        raise ValueError("no such class")
    if len(values) < 4 or len(values) % 2:
        raise ValueError("neither a box nor an outline")
    class_id = int(number) + 1
    if len(values) == 4:
        return Instance(class_id)
    height, width = size
    sides = itertools.cycle((width, height))
    outline = [value * side for value, side in zip(values, sides)]
    return Instance(class_id, segmentation=[outline])


def write_yolo(folder: Path, masks: Sequence[MaskParts], class_names: Sequence[str]) -> None:
    """Write masks, whose parts are polygons, as a new folder with links to the images.

    class_names: by id, without the background. Raises InputError for a folder that is there.
    """
    with atomic_write(folder) as new:
        (new / "images").mkdir(parents=True)
        for mask in masks:
            sample = mask.sample
            link = new / f"images/{sample.name}{sample.image.suffix}"
            link.symlink_to(sample.image.absolute())
            lines = [_format_part(part, mask.size) for part in mask.parts]
            write_text(new / f"labels/{sample.name}.txt", "".join(lines))
        write_text(new / "data.yaml", _format_yaml(folder, class_names))


def _format_part(part: Part, size: tuple[int, int]) -> str:
    """A line: the class number from 0 up and the points of the polygon, relative to (H, W)."""
    height, width = size
    (polygon,) = part.segmentation
    points = np.reshape(polygon, (-1, 2)) / (width, height)
    coordinates = " ".join(f"{value:.6f}" for value in points.flat)
    return f"{part.class_id - 1} {coordinates}\n"


def _format_yaml(folder: Path, class_names: Sequence[str]) -> str:
    content = {
        "path": str(folder.resolve()),
        "train": "images",
        "val": "images",
        "names": list(class_names),
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in content.items()]
    return "".join(lines)
