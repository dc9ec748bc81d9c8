"""The images of the page: which are shown, their layers on disk, and what the page says of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.images import orientation, read_image, read_mask, stored_size, to_upright_frame
from data.registry import Dataset, Sample, Samples
from data.transforms import shrink
from tool import cam_file, metrics, visualize

from .stages import Stage, baseline_of

IMAGE_SIDE = 480  # pixels, the longer side of images and masks on the page
HEAT_SIDE = 120  # of heat maps, which are smooth


@dataclass(frozen=True)
class GalleryItem:
    """An image of the page, and the stages that it is an image of."""

    number: int
    sample: Sample
    tags: list[int]  # class ids
    stages: list[int]  # indices


def select_items(stages: Sequence[Stage], max_images: int) -> list[GalleryItem]:
    """At most so many images of the stages, evenly from their lists.

    The same name in another dataset is another image.
    """
    samples: dict[tuple[Path, str], Sample] = {}  # by root of the dataset and name
    stages_of: dict[tuple[Path, str], list[int]] = {}
    for index, stage in enumerate(stages):
        for sample in stage.samples:
            key = (stage.dataset.root, sample.name)
            samples.setdefault(key, sample)
            stages_of.setdefault(key, []).append(index)

    every = -(-len(samples) // max_images)  # rounded up
    keys = list(samples)[::every]

    datasets = {stage.dataset.root: stage.dataset for stage in stages}
    tags: dict[tuple[Path, str], list[int]] = {}
    for root, dataset in datasets.items():
        own_samples = [samples[key] for key in keys if key[0] == root]
        for name, class_ids in _read_tags(dataset, own_samples).items():
            tags[root, name] = class_ids

    items = []
    for number, key in enumerate(keys):
        items.append(GalleryItem(number, samples[key], tags[key], stages_of[key]))
    return items


def _read_tags(dataset: Dataset, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Name of a sample -> the class ids of its tags; samples without a tag are welcome."""
    listed = Samples.of(tuple(map(str, sample)) for sample in samples)
    rows, _ = dataset.read_tags(listed)
    tags = {}
    for name, row in zip(listed.names(), rows):
        tags[name] = (np.flatnonzero(row) + 1).tolist()
    return tags


class ClassArea(NamedTuple):
    """A class in a mask; the name of the class stands at x, y."""

    class_id: int
    share: float  # of the image, in percent
    x: int  # percent of the width
    y: int  # percent of the height


@dataclass(frozen=True)
class StageView:
    """What the page shows of an image at a stage."""

    miou: float | None  # percent; None: the image has no mask
    classes: list[ClassArea]
    heat: list[int]  # the class ids that have a heat map
    changed: float | None  # percent of the pixels; None: there is no earlier run


@dataclass(frozen=True)
class ImageView:
    """What the page shows of an image. Its files are NUMBER.jpg and NUMBER_LAYER.png."""

    number: int
    name: str
    size: tuple[int, int]  # (W, H), upright
    tags: list[int]  # class ids
    stages: dict[int, StageView]  # by the index of the stage
    disagreement: float | None  # percent of the pixels on which the stages of a run disagree
    truth: list[ClassArea] | None  # None: the image has no mask


@dataclass(frozen=True)
class LayerWriter:
    """Writes the layers of an image, upright and small, from pixels in its stored frame."""

    folder: Path
    number: int  # of the image
    orientation: int  # EXIF orientation of the stored image
    size: tuple[int, int]  # (H, W) on the page

    def write_mask(self, layer: str, mask: np.ndarray) -> list[ClassArea]:
        """Write a mask (H, W) uint8; returns the classes in it."""
        height, width = self.size
        upright = to_upright_frame(mask, self.orientation)
        small = cv2.resize(upright, (width, height), interpolation=cv2.INTER_NEAREST)
        self._save(layer, visualize.mask_layer(small))
        areas = []
        for class_id, (x, y) in visualize.name_places(small).items():
            share = _percent(small == class_id)
            areas.append(ClassArea(class_id, share, 100 * x // width, 100 * y // height))
        return areas

    def write_heat(self, layer: str, activation: np.ndarray) -> None:
        """Write a map (H, W) in [0, 1] as a heat map."""
        upright = to_upright_frame(activation, self.orientation)
        small = shrink((255 * upright).astype(np.uint8), HEAT_SIDE)
        self._save(layer, visualize.heat_layer(small / 255))

    def _save(self, layer: str, pixels: np.ndarray) -> None:
        visualize.save(self.folder / f"{self.number}_{layer}.png", pixels)


@dataclass(frozen=True)
class StageResult:
    """The mask (H, W) uint8 of an image at a stage, and the maps (H, W) in [0, 1] it is made of."""

    stage: int  # index
    mask: np.ndarray
    heat: dict[int, np.ndarray]  # by class id; empty for label images


def write_image(item: GalleryItem, stages: Sequence[Stage], folder: Path) -> ImageView:
    """Write an image, its masks and its heat maps; returns what the page shows of it."""
    sample = item.sample
    image = read_image(sample.image)
    turn = orientation(sample.image)
    size = stored_size(image.shape[:2], turn)
    small = shrink(image, IMAGE_SIDE)
    visualize.save(folder / f"{item.number}.jpg", small)
    writer = LayerWriter(folder, item.number, turn, small.shape[:2])

    truth = None
    truth_areas = None
    if sample.mask.is_file():
        truth = read_mask(sample.mask, stages[0].dataset.num_classes, size)
        truth_areas = writer.write_mask("t", truth)

    masks: dict[int, np.ndarray] = {}
    views: dict[int, StageView] = {}
    for result in read_results(item, stages, size):
        masks[result.stage] = result.mask
        for class_id, activation in result.heat.items():
            writer.write_heat(f"{result.stage}_{class_id}", activation)
        views[result.stage] = StageView(
            miou=miou_of(truth, result.mask, stages[0].dataset.num_classes),
            classes=writer.write_mask(str(result.stage), result.mask),
            heat=list(result.heat),
            changed=changed_of(result, masks, stages),
        )
    return ImageView(
        number=item.number,
        name=sample.name,
        size=image.shape[1::-1],
        tags=item.tags,
        stages=views,
        disagreement=disagreement_of(masks, stages),
        truth=truth_areas,
    )


def read_results(
    item: GalleryItem, stages: Sequence[Stage], size: tuple[int, int]
) -> Iterator[StageResult]:
    """Read the maps and labels of an image of (H, W); what was not made is left out."""
    num_classes = stages[0].dataset.num_classes
    maps = None  # of the CAM file that was read last; both kinds of map are in one file
    for index in item.stages:
        stage = stages[index]
        path = stage.result_path(item.sample.name)
        if not path.is_file():
            continue
        if not stage.is_map:
            yield StageResult(index, read_mask(path, num_classes, size), {})
            continue
        if maps is None or maps.path != path:
            maps = cam_file.load(path, num_classes, size)
        foreground = maps.maps(stage.name)[1:]
        heat = dict(zip(maps.keys[1:].tolist(), foreground))
        yield StageResult(index, maps.label(stage.name), heat)


def miou_of(truth: np.ndarray | None, mask: np.ndarray, num_classes: int) -> float | None:
    """The mIoU of an image in percent; None if it has no truth or no scored pixel."""
    if truth is None:
        return None
    miou = metrics.miou(metrics.confusion(truth, mask, num_classes))
    if miou is None:
        return None
    return round(miou, 1)


def changed_of(
    result: StageResult, masks: dict[int, np.ndarray], stages: Sequence[Stage]
) -> float | None:
    """How many percent of a mask differ from the same stage's of an earlier run, if there is one.

    masks: of the stages so far.
    """
    baseline = baseline_of(stages, result.stage)
    if baseline not in masks:
        return None
    return _percent(result.mask != masks[baseline])


def disagreement_of(masks: dict[int, np.ndarray], stages: Sequence[Stage]) -> float | None:
    """On how many percent of an image's pixels the stages of the first run disagree.

    The general CAM is left out. None if there are fewer than two stages to compare.
    """
    compared = []
    for index, mask in masks.items():
        is_first_run = baseline_of(stages, index) is None
        if is_first_run and stages[index].name != "cam":
            compared.append(mask)
    if len(compared) < 2:
        return None
    differs = [mask != compared[0] for mask in compared]
    return _percent(np.any(differs, 0))


def _percent(is_counted: np.ndarray) -> float:
    return round(100 * is_counted.mean(), 1)
