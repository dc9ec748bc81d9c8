"""Segmentation metrics from confusion matrices, and the tables and charts of evaluations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from data.images import read_image
from data.registry import Sample, Samples

from . import visualize
from .context import Context
from .outputs import write_json
from .workers import parallel_map

MAX_COUNTED = 2**24  # pixels at a time: OpenCV's counts are float32
NUM_EXTREMES = 4  # best images on a contact sheet, and as many of the worst

ClassValues = dict[str, float | None]  # class name -> percent; None if the truth never shows it
Columns = visualize.Columns  # title -> the values of the classes


def confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each pair of true and predicted class.

    truth, prediction: uint8 class ids of the same shape; 255 in either is ignored.
    Returns (K, K) int64, a row for each true class.
    """
    truth = truth.ravel()
    prediction = prediction.ravel()
    bins = [num_classes, num_classes]
    ranges = [0, num_classes, 0, num_classes]
    matrix = np.zeros(bins, np.int64)
    for start in range(0, truth.size, MAX_COUNTED):
        part = slice(start, start + MAX_COUNTED)
        counts = cv2.calcHist([truth[part], prediction[part]], [0, 1], None, bins, ranges)
        matrix += counts.astype(np.int64)
    return matrix


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class in percent: (K, K) -> (K,) float64.

    NaN for a class that the truth never shows.
    """
    return _shares_of_union(matrix, np.diag(matrix))


def _shares_of_union(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Pixels (K,) as a percentage of each class's union; NaN for a class without truth."""
    truth = matrix.sum(1)
    predicted = matrix.sum(0)
    union = truth + predicted - np.diag(matrix)
    shares = 100 * pixels / np.maximum(union, 1)
    return np.where(truth > 0, shares, np.nan)


def miou(matrix: np.ndarray) -> float | None:
    """Mean of `iou` over the classes that the truth shows; None if every pixel is ignored."""
    if not matrix.any():
        return None
    return float(np.nanmean(iou(matrix)))


def pixel_accuracy(matrix: np.ndarray) -> float | None:
    """The share of pixels with the right class in percent; None if every pixel is ignored."""
    if not matrix.any():
        return None
    return float(100 * np.trace(matrix) / matrix.sum())


def summary(matrix: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What an evaluation reports of a confusion matrix (K, K), ready for JSON.

    All but the counts is in percent. A class's IoU, false positives and false negatives are shares
    of its union and add up to 100.
    """
    intersection = np.diag(matrix)
    false_positive = _shares_of_union(matrix, matrix.sum(0) - intersection)
    false_negative = _shares_of_union(matrix, matrix.sum(1) - intersection)
    return {
        "miou": miou(matrix),
        "pixel_accuracy": pixel_accuracy(matrix),
        "iou": _by_class(iou(matrix), class_names),
        "false_positive": _by_class(false_positive, class_names),
        "false_negative": _by_class(false_negative, class_names),
        "confusion": matrix.tolist(),
    }


def _by_class(values: np.ndarray, class_names: tuple[str, ...]) -> ClassValues:
    by_class: ClassValues = dict.fromkeys(class_names)
    for name, value in zip(class_names, values):
        if not np.isnan(value):
            by_class[name] = float(value)
    return by_class


class ImageCounts(NamedTuple):
    """The counts of one image."""

    name: str
    matrices: dict[str, np.ndarray]  # of each kind, such as confusion matrices (K, K) int64


class Evaluation(NamedTuple):
    """The counts of all images, and the score of each."""

    totals: dict[str, np.ndarray]  # the sum of each kind's matrices
    scores: dict[str, float]  # name of an image -> mIoU of its first kind


def evaluate(
    compare: Callable[[Any], ImageCounts],
    samples: Sequence[Any],
    context: Context,
    num_workers: int,
) -> Evaluation:
    """Compare every sample with its truth, and add up the counts over all processes.

    Images without a scored pixel have no mIoU.
    """
    totals: dict[str, np.ndarray] = {}
    scores: dict[str, float] = {}
    results = parallel_map(compare, context.shard(samples), num_workers)
    progress = tqdm(results, desc="evaluation", unit="image", disable=not context.is_main)
    for name, matrices in progress:
        _add_counts(totals, matrices)
        score = miou(next(iter(matrices.values())))
        if score is not None:
            scores[name] = score

    evaluation = Evaluation({}, {})
    for other_totals, other_scores in context.all_gather_object((totals, scores)):
        _add_counts(evaluation.totals, other_totals)
        evaluation.scores.update(other_scores)
    return evaluation


def _add_counts(totals: dict[str, np.ndarray], matrices: dict[str, np.ndarray]) -> None:
    for kind, matrix in matrices.items():
        totals[kind] = totals.get(kind, 0) + matrix


def print_table(heading: str, columns: Columns, footer: dict[str, Sequence[float | None]]) -> None:
    """Print a line for each class, in percent; footer: more lines, with a value for each column."""
    print(f"\n{heading}")
    _print_line("%", columns)
    for name in _class_names(columns):
        values = [column[name] for column in columns.values()]
        _print_line(name, map(_two_decimals, values))
    for name, values in footer.items():
        _print_line(name, map(_two_decimals, values))


def _print_line(name: str, cells: Iterable[str]) -> None:
    padded = [f"{cell:>18}" for cell in cells]
    print(f"{name:<18}" + "".join(padded))


def _two_decimals(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}"


def _class_names(columns: Columns) -> list[str]:
    first_column = next(iter(columns.values()))
    return list(first_column)


@dataclass(frozen=True)
class ExtremesSheet:
    """A contact sheet of the best and the worst images, each beside its masks."""

    samples: Samples
    scores: dict[str, float]  # name of an image -> mIoU; images without one are left out
    titles: Sequence[str]  # of the masks
    read_masks: Callable[[Sample], list[np.ndarray]]  # (H, W) uint8, one for each title

    def rows(self, class_names: Sequence[str]) -> list[visualize.SheetRow]:
        """The rows of the sheet; class_names are written into the masks."""
        samples = {sample.name: sample for sample in self.samples}
        rows = []
        for name in best_and_worst(self.scores):
            image = read_image(samples[name].image, upright=False)
            masks = self.read_masks(samples[name])
            overlays = [visualize.overlay(image, mask, class_names) for mask in masks]
            caption = f"{name}\nmIoU {self.scores[name]:.1f}"
            rows.append(visualize.SheetRow(caption, [image, *overlays]))
        return rows


def write_report(
    stem: Path, content: dict[str, Any], columns: Columns, sheet: ExtremesSheet
) -> None:
    """Write STEM.json with the content, STEM.png (a chart of the columns) and STEM_sheet.png."""
    heading = f"{content['pictures']} images of {Path(content['list']).stem}"
    visualize.bar_chart(columns, heading, Path(f"{stem}.png"))
    rows = sheet.rows(_class_names(columns))
    titles = ["image", *sheet.titles]
    visualize.contact_sheet(rows, titles, Path(f"{stem}_sheet.png"))
    write_json(Path(f"{stem}.json"), content)
    print(f"wrote {stem}.json, {stem.name}.png and {stem.name}_sheet.png")


def best_and_worst(scores: dict[str, float]) -> list[str]:
    """The names of the best and the worst images, from best to worst."""
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    if len(ranked) <= 2 * NUM_EXTREMES:
        return ranked
    return ranked[:NUM_EXTREMES] + ranked[-NUM_EXTREMES:]
