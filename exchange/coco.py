"""Instances in COCO's form: read from JSON, drawn into a mask, found in a mask, written to JSON."""

import collections
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from data.images import (
    IGNORE,
    image_size,
    orientation,
    read_mask,
    stored_size,
    to_stored_frame,
    to_upright_frame,
)
from data.registry import Sample
from errors import InputError
from tool import label_file

from .instances import AnnotatedImage, Annotations, Instance
from .summary import write_text

MAX_COORDINATE = 10_000  # pixels between a polygon's point and the corner of the image
MALFORMED = (  # what a file of another form raises
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def read_coco(path: Path, cure: str) -> Annotations:
    """The classes and the images of an annotation of instances.

    Class ids go from 1 up, in the order of the categories' ids; a category "background" has none.
    Raises InputError, which ends in `cure`, for any other file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = _category_names(content["categories"])
        class_names = [name for name in categories.values() if not _is_background(name)]
        class_ids = _class_ids(categories, class_names)
        instances = collections.defaultdict(list)
        for annotation in content["annotations"]:
            class_id = class_ids[annotation["category_id"]]
            if class_id != 0:
                instance = _read_instance(annotation, class_id)
                instances[annotation["image_id"]].append(instance)
        images = {image["id"]: _read_image(image, instances) for image in content["images"]}
    except MALFORMED as error:
        raise InputError(
            f"{path}: not a readable annotation of instances ({error!r}); {cure}"
        ) from None
    return Annotations(class_names, list(images.values()))


def _category_names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """The name of each category by its id, sorted by id."""
    return dict(sorted((category["id"], category["name"].strip()) for category in categories))


def _is_background(name: str) -> bool:
    return name.lower() == "background"


def _class_ids(categories: dict[int, str], class_names: list[str]) -> dict[int, int]:
    """The class id of each category by its id; 0 for a background."""
    class_ids = dict.fromkeys(categories, 0)
    for category_id, name in categories.items():
        if not _is_background(name):
            class_ids[category_id] = class_names.index(name) + 1
    return class_ids


def _read_instance(annotation: dict[str, Any], class_id: int) -> Instance:
    is_crowd = bool(annotation.get("iscrowd"))
    return Instance(class_id, is_crowd, annotation.get("segmentation"))


def _read_image(image: dict[str, Any], instances: dict[Any, list[Instance]]) -> AnnotatedImage:
    file = image["file_name"].strip()
    size = (int(image["height"]), int(image["width"]))
    return AnnotatedImage(file, size, instances[image["id"]])


def encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation of an image of (H, W) as pycocotools' compressed run-length code.

    segmentation: a list of polygons [x, y, x, y, ...], or {"size", "counts"} with run lengths as a
    list or packed. Raises ValueError for anything else, which pycocotools' C code would take.
    """
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, size)
    counts = None
    if isinstance(segmentation, dict) and segmentation.get("size") == list(size):
        counts = segmentation.get("counts")
    if isinstance(counts, str) and _is_packed_code(counts, size):
        return {"size": list(size), "counts": counts.encode()}
    if isinstance(counts, list) and _are_run_lengths(counts, size):
        return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    raise ValueError("a segmentation is neither polygons nor a run-length code of the image's size")


def _encode_polygons(polygons: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    """The union of polygons; those with fewer than three points are not drawn."""
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not _are_coordinates(polygon):
            raise ValueError("a polygon is no list of x, y, x, y, ...")
    drawn = [polygon for polygon in polygons if len(polygon) >= 6]
    if not drawn:
        drawn = [[0, 0, 0, 0, 0, 0]]  # of no pixel: pycocotools refuses an empty list
    return coco_mask.merge(coco_mask.frPyObjects(drawn, *size))


def _are_coordinates(values: list[Any]) -> bool:
    return all(abs(value) <= MAX_COORDINATE for value in values)


def _is_packed_code(counts: str, size: tuple[int, int]) -> bool:
    """Whether run lengths are packed as pycocotools packs those of an image of this size."""
    if not re.fullmatch("[0-o]*[0-O]", counts):  # the last number must be complete
        return False
    packed = counts.encode()
    pixels = coco_mask.decode({"size": list(size), "counts": packed})
    return coco_mask.encode(pixels)["counts"] == packed


def _are_run_lengths(counts: list[Any], size: tuple[int, int]) -> bool:
    are_lengths = all(isinstance(count, int) and count >= 0 for count in counts)
    return are_lengths and sum(counts) == math.prod(size)


def write_mask(path: Path, image: Path, annotated: AnnotatedImage, cure: str) -> None:
    """Draw the mask of an image in its stored frame: crowds below, then from large to small.

    Raises InputError, which ends in `cure`, if an instance cannot be drawn, or if the image has
    another size, as stored and upright, than its annotation.
    """
    stored = image_size(image)
    turn = orientation(image)
    upright = stored_size(stored, turn)  # the same sides are swapped either way
    try:
        if annotated.size not in (stored, upright):
            raise ValueError(f"is for {_as_text(annotated.size)}, the image has {_as_text(stored)}")
        mask = _draw(annotated)
    except (ValueError, TypeError) as error:
        raise InputError(f"{image}: its annotation cannot be drawn ({error}); {cure}") from None
    if annotated.size == upright:
        mask = to_stored_frame(mask, turn)
    label_file.save(path, mask)


def _as_text(size: tuple[int, int]) -> str:
    height, width = size
    return f"{width}x{height}"


@dataclass(frozen=True)
class _Layer:
    """An instance, ready to be drawn."""

    class_id: int
    is_crowd: bool
    code: dict[str, Any]

    @property
    def order(self) -> tuple[bool, int]:
        """What layers are sorted by: crowds first, then from large to small."""
        area = int(coco_mask.area(self.code))
        return not self.is_crowd, -area


def _draw(annotated: AnnotatedImage) -> np.ndarray:
    """The instances as class ids (H, W) uint8; the smaller one of two lies on top."""
    layers = []
    for instance in annotated.instances:
        code = encode(instance.segmentation, annotated.size)
        layers.append(_Layer(instance.class_id, instance.is_crowd, code))
    mask = np.zeros(annotated.size, np.uint8)
    for layer in sorted(layers, key=lambda layer: layer.order):
        mask[coco_mask.decode(layer.code) == 1] = layer.class_id
    return mask


@dataclass(frozen=True, slots=True)
class Part:
    """A connected part of a class in an upright mask.

    Attributes:
        area: its pixels.
        box: x, y, width, height.
        segmentation: a list with one polygon, or a run-length code, as COCO writes them.
        score: the mean of its pixels' probability in [0, 1]; None without probabilities.
    """

    class_id: int
    area: int
    box: list[float]
    segmentation: list[list[float]] | dict[str, Any]
    score: float | None = None


@dataclass(frozen=True, slots=True)
class MaskParts:
    """The parts of a sample's mask; size: (H, W) of the upright image."""

    sample: Sample
    size: tuple[int, int]
    parts: list[Part]


def find_parts(sample: Sample, folder: Path, num_classes: int, as_polygons: bool) -> MaskParts:
    """The connected parts of each class in FOLDER/NAME.png but the background and IGNORE.

    Raises InputError for an unreadable mask, and for unreadable probabilities beside it.
    """
    turn = orientation(sample.image)
    size = image_size(sample.image)
    mask = read_mask(label_file.path_of(folder, sample.name), num_classes, size)
    mask = to_upright_frame(mask, turn)
    probabilities = label_file.read_probability(folder, sample.name, size)
    class_ids = set(np.unique(mask).tolist()) - {0, IGNORE}
    parts = []
    for class_id in sorted(class_ids):
        probability = None
        if class_id in probabilities:
            probability = to_upright_frame(probabilities[class_id], turn)
        count, numbers = cv2.connectedComponents((mask == class_id).astype(np.uint8))
        for number in range(1, count):
            pixels = (numbers == number).astype(np.uint8)
            parts.append(_describe_part(class_id, pixels, probability, as_polygons))
    return MaskParts(sample, mask.shape, parts)


def _describe_part(
    class_id: int, pixels: np.ndarray, probability: np.ndarray | None, as_polygons: bool
) -> Part:
    """pixels: (H, W) 0/1; probability of the class: (H, W) in [0, 1]."""
    code = coco_mask.encode(np.asfortranarray(pixels))
    segmentation = {"size": code["size"], "counts": code["counts"].decode()}
    if as_polygons:
        segmentation = [outline(pixels)]
    score = None
    if probability is not None:
        mean = probability[pixels == 1].mean(dtype=float)
        score = round(float(mean), 4)
    box = coco_mask.toBbox(code).tolist()
    return Part(class_id, int(pixels.sum()), box, segmentation, score)


def outline(part: np.ndarray) -> list[float]:
    """The polygon x, y, x, y, ... of a connected part (H, W) 0/1, drawn by COCO's rule as it is.

    It goes around the part, from its first point to each hole, around it and back. It lies a
    quarter of a pixel inside of the border, so that the rule takes these pixels and no others.
    """
    doubled = part.repeat(2, 0).repeat(2, 1)
    contours, (tree,) = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = tree[:, 3]  # -1 for the outer contour, which the holes have as theirs
    outer, *holes = (contours[index] for index in np.argsort(parents, kind="stable"))
    start = outer[:1]
    way = [outer]
    for hole in holes:
        way += [start, hole, hole[:1]]
    way.append(start)
    points = np.concatenate(way) / 2 + 0.25
    return points.ravel().tolist()


def write_coco(path: Path, masks: Sequence[MaskParts], class_names: Sequence[str]) -> None:
    """Write masks as a JSON of instances; class_names: by id, without the background."""
    images = []
    annotations = []
    for image_id, mask in enumerate(masks, 1):
        height, width = mask.size
        file_name = mask.sample.image.name
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for part in mask.parts:
            numbers = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(numbers | _to_annotation(part))
    categories = [{"id": class_id, "name": name} for class_id, name in enumerate(class_names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_text(path, json.dumps(content))


def _to_annotation(part: Part) -> dict[str, Any]:
    annotation = {
        "category_id": part.class_id,
        "iscrowd": 0,
        "area": part.area,
        "bbox": part.box,
        "segmentation": part.segmentation,
    }
    if part.score is not None:
        annotation["score"] = part.score
    return annotation
