"""Instances in COCO's form: read from JSON and drawn into a mask."""

import collections
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from data.images import image_size, orientation, stored_size, to_stored_frame
from errors import InputError
from tool import label_file

MAX_COORDINATE = 10_000  # pixels between a polygon's point and the corner of the image


class Outlined(NamedTuple):  # an image as an annotation has it
    file: str  # its path or name there
    size: tuple[int, int] | None  # (H, W) at which its instances are outlined
    instances: list[
        list[Any]
    ]  # [class id, crowd, segmentation], see `encode`; None or [] for one that is not outlined


def read_coco(path: Path, cure: str) -> tuple[list[str], list[Outlined]]:
    """The class names of an annotation file, by id, without the background, and its images. Raises InputError with `cure` otherwise."""
    instances = collections.defaultdict(list)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        every = dict(
            sorted((category["id"], category["name"].strip()) for category in content["categories"])
        )
        names = [name for name in every.values() if name.lower() != "background"]
        class_ids = {
            number: names.index(name) + 1 if name in names else 0 for number, name in every.items()
        }
        for one in content["annotations"]:
            if class_id := class_ids[one["category_id"]]:
                instances[one["image_id"]].append(
                    [class_id, bool(one.get("iscrowd")), one.get("segmentation")]
                )
        files = {
            one["id"]: (one["file_name"].strip(), (int(one["height"]), int(one["width"])))
            for one in content["images"]
        }
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{path}: not a readable annotation of instances ({error!r}); {cure}"
        ) from None
    return names, [Outlined(*about, instances[number]) for number, about in files.items()]


def encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation as pycocotools' compressed run-length code. Raises ValueError for another thing, which its C code would take."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if (
                not isinstance(polygon, list)
                or len(polygon) % 2
                or not all(abs(value) <= MAX_COORDINATE for value in polygon)
            ):
                raise ValueError("a polygon is no list of x, y, x, y, ...")
        return coco_mask.merge(
            coco_mask.frPyObjects(
                [polygon for polygon in segmentation if len(polygon) >= 6] or [[0] * 6], *size
            )
        )
    counts = (
        segmentation.get("counts")
        if isinstance(segmentation, dict) and segmentation.get("size") == list(size)
        else None
    )
    if isinstance(counts, str) and re.fullmatch(
        "[0-o]*[0-O]", counts
    ):  # packed, and its last number is complete
        code = {"size": list(size), "counts": counts.encode()}
        if coco_mask.encode(coco_mask.decode(code))["counts"] == code["counts"]:
            return code
    if (
        not isinstance(counts, list)
        or not all(isinstance(one, int) and one >= 0 for one in counts)
        or sum(counts) != math.prod(size)
    ):
        raise ValueError(
            "a segmentation is neither polygons nor a run-length code of the image's size"
        )
    return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)


def write_mask(path: Path, image: Path, outlined: Outlined, cure: str) -> None:
    """Draw a mask in its image's stored frame, crowds below, then from large to small. Raises InputError with `cure` where it cannot."""
    stored, turn, size = image_size(image), orientation(image), outlined.size
    try:
        if size not in (stored, stored_size(stored, turn)):  # stored, or upright
            raise ValueError(f"is for {size[1]}x{size[0]}, the image has {stored[1]}x{stored[0]}")
        turn = turn if size == stored_size(stored, turn) else 1
        codes = [
            (class_id, crowd, encode(segmentation, size))
            for class_id, crowd, segmentation in outlined.instances
        ]
        mask = np.zeros(size, np.uint8)
        for class_id, _, code in sorted(
            codes, key=lambda one: (not one[1], -int(coco_mask.area(one[2])))
        ):
            mask[coco_mask.decode(code) == 1] = class_id
        label_file.save(path, to_stored_frame(mask, turn))
    except (ValueError, TypeError) as error:
        raise InputError(f"{image}: its annotation cannot be drawn ({error}); {cure}") from None
