"""Instances in COCO's form: read from JSON, drawn into a mask, and found in a mask."""

import collections
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from data.images import IGNORE, picture_size, stored_size, to_stored_frame
from errors import InputError

from . import label_file

MAX_COORDINATE = 10_000  # pixels between a polygon's point and the corner of the picture


class Outlined(NamedTuple):
    """A picture as an annotation has it."""

    file: str  # its path or name there
    size: tuple[int, int] | None  # (H, W) at which its instances are outlined
    instances: list[list[Any]]  # [class id, crowd, segmentation], see `encode`; None or [] for one that is not outlined


def read_coco(path: Path, cure: str) -> tuple[list[str], list[Outlined]]:
    """The class names of an annotation file in the order of their ids, without the background, and its pictures.

    Raises InputError, which ends in `cure`, for another file.
    """
    instances = collections.defaultdict(list)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        every = dict(sorted((category["id"], category["name"].strip()) for category in content["categories"]))
        names = [name for name in every.values() if name.lower() != "background"]
        class_ids = {number: names.index(name) + 1 if name in names else 0 for number, name in every.items()}
        for one in content["annotations"]:
            if class_id := class_ids[one["category_id"]]:
                instances[one["image_id"]].append([class_id, bool(one.get("iscrowd")), one.get("segmentation")])
        sizes = {picture["id"]: (int(picture["height"]), int(picture["width"])) for picture in content["images"]}
        files = {picture["id"]: picture["file_name"].strip() for picture in content["images"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: not a readable annotation of instances ({error!r}); {cure}") from None
    return names, [Outlined(file, sizes[number], instances[number]) for number, file in files.items()]


def encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation as pycocotools' compressed run-length code. Raises ValueError for another thing, which its C code would take."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not all(abs(value) <= MAX_COORDINATE for value in polygon):
                raise ValueError("a polygon is no list of x, y, x, y, ...")
        return coco_mask.merge(coco_mask.frPyObjects([polygon for polygon in segmentation if len(polygon) >= 6] or [[0] * 6], *size))
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    counts = _decompress(counts) if isinstance(counts, str) else counts
    is_code = isinstance(counts, list) and segmentation.get("size") == list(size)
    if not is_code or not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != math.prod(size):
        raise ValueError("a segmentation is neither polygons nor a run-length code of the picture's size")
    return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)


def _decompress(text: str) -> list[int]:
    """The run lengths of a compressed code: groups of five bits, lowest first; from the fourth on, each is added to the last but one."""
    counts, value, shift = [], 0, 0
    for group in (ord(letter) - 48 for letter in text):
        value, shift = value | (group & 31) << shift, shift + 5
        if not group & 32:  # the last of a number, and 16 is its sign
            value -= bool(group & 16) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts


def draw_mask(size: tuple[int, int], instances: list[list[Any]]) -> np.ndarray:
    """(H, W) uint8 class ids of instances [class id, crowd, segmentation for `encode`]: crowds below, then from large to small."""
    codes = [(class_id, crowd, encode(segmentation, size)) for class_id, crowd, segmentation in instances]
    mask = np.zeros(size, np.uint8)
    for class_id, _, code in sorted(codes, key=lambda one: (not one[1], -int(coco_mask.area(one[2])))):
        mask[coco_mask.decode(code) == 1] = class_id
    return mask


def write_mask(path: Path, picture: Path, outlined: Outlined, cure: str, turn: int = 1) -> None:
    """Draw a picture's mask in its stored frame.

    turn: its EXIF orientation, where the instances may be outlined in the upright frame. Raises InputError, which ends in `cure`, for a
    picture of another size and for segmentations that cannot be drawn.
    """
    stored, size = picture_size(picture), outlined.size
    turn = turn if size == stored_size(stored, turn) else 1
    try:
        if size != stored_size(stored, turn):
            raise ValueError(f"is for {size[1]}x{size[0]}, the picture has {stored[1]}x{stored[0]}")
        label_file.save(path, to_stored_frame(draw_mask(size, outlined.instances), turn))
    except (ValueError, TypeError) as error:
        raise InputError(f"{picture}: its annotation cannot be drawn ({error}); {cure}") from None


def find_parts(label: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The connected parts of each class in a mask (H, W): the class id and (H, W) uint8 0/1. The background and 255 are no classes."""
    for class_id in sorted({*np.unique(label).tolist()} - {0, IGNORE}):
        count, numbers = cv2.connectedComponents((label == class_id).astype(np.uint8))
        yield from ((class_id, (numbers == number).astype(np.uint8)) for number in range(1, count))


def run_lengths(part: np.ndarray) -> dict[str, list[int]]:
    """A part (H, W) 0/1 as COCO's run-length code, uncompressed: pixels that are off, on, off, ... column by column."""
    pixels = part.ravel(order="F")
    ends = np.flatnonzero(np.diff(pixels)) + 1
    return {"size": list(part.shape), "counts": [0] * int(pixels[0]) + np.diff([0, *ends, len(pixels)]).tolist()}


def outline(part: np.ndarray, tolerance: float) -> list[float]:
    """The polygon x, y, x, y, ... of a connected part (H, W) 0/1, at most `tolerance` pixels from its border.

    It runs a quarter of a pixel inside of the border, so that COCO's rule, which goes by the centres of pixels, draws the part itself.
    From its first point it goes to each hole, around it and back.
    """
    contours, (tree,) = cv2.findContours(part.repeat(2, 0).repeat(2, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    (outer, *holes) = (_simplify(contours[i], 2 * tolerance) for i in np.argsort(tree[:, 3], kind="stable"))  # only holes have a parent
    points = [outer, *(step for hole in holes for step in (outer[:1], hole, hole[:1])), *[outer[:1]] * bool(holes)]
    return (np.concatenate(points).ravel() / 2 + 0.25).tolist()


def _simplify(contour: np.ndarray, tolerance: float) -> np.ndarray:
    simple = cv2.approxPolyDP(contour, tolerance, closed=True)
    return simple if len(simple) > 2 else contour
