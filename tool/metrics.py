"""Segmentation metrics from streaming confusion matrices, and the tables and charts that evaluations share."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from data.images import read_image
from data.registry import Sample

from . import visualize
from .context import Context
from .outputs import write_json
from .workers import parallel_map

MAX_COUNTED = 2**24  # pixels at a time: OpenCV's counts are float32
NUM_EXTREMES = 4  # best images on a contact sheet, and as many of the worst


def confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels: truth, prediction (any shape) uint8 class ids -> (K, K) int64, rows are the truth; 255 in either is ignored."""
    matrix, truth, prediction = (
        np.zeros((num_classes, num_classes), np.int64),
        truth.ravel(),
        prediction.ravel(),
    )
    for start in range(0, truth.size, MAX_COUNTED):
        pair = [values[start : start + MAX_COUNTED] for values in (truth, prediction)]
        counts = cv2.calcHist(pair, [0, 1], None, [num_classes, num_classes], [0, num_classes] * 2)
        matrix += counts.astype(np.int64)
    return matrix


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class in percent: (K, K) -> (K,) float64, NaN for a class that the truth never shows."""
    return _shares_of_union(matrix, np.diag(matrix))


def _shares_of_union(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    truth, predicted = matrix.sum(1), matrix.sum(0)
    return np.where(
        truth > 0, 100 * pixels / np.maximum(truth + predicted - np.diag(matrix), 1), np.nan
    )


def miou(matrix: np.ndarray) -> float | None:
    """Mean of `iou` over the classes that the truth shows, in percent; None where every pixel is ignored."""
    return float(np.nanmean(iou(matrix))) if matrix.any() else None


def summary(matrix: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """All that is reported of a confusion matrix, ready for JSON; everything but the counts in percent.

    A class's IoU, false positives and false negatives are shares of its union and add up to 100.
    """

    def by_class(values: np.ndarray) -> dict[str, float | None]:
        return {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(class_names, values)
        }

    inter = np.diag(matrix)
    return {
        "miou": miou(matrix),
        "pixel_accuracy": float(100 * np.trace(matrix) / matrix.sum()) if matrix.any() else None,
        "iou": by_class(iou(matrix)),
        "false_positive": by_class(_shares_of_union(matrix, matrix.sum(0) - inter)),
        "false_negative": by_class(_shares_of_union(matrix, matrix.sum(1) - inter)),
        "confusion": matrix.tolist(),
    }


def evaluate(
    compare: Callable[[Any], tuple[str, dict[str, np.ndarray]]],
    samples: Sequence[Any],
    context: Context,
    num_workers: int,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Compare every sample with its truth: compare(sample) -> (name, a matrix of counts of each kind).

    Returns the sum of each kind's matrices and each image's mIoU of its first kind, over all processes. Images without a scored
    pixel have no mIoU.
    """
    totals, scores = {}, {}
    results = parallel_map(compare, context.shard(samples), num_workers)
    for name, matrices in tqdm(
        results, desc="evaluation", unit="image", disable=not context.is_main
    ):
        totals = {kind: totals.get(kind, 0) + matrix for kind, matrix in matrices.items()}
        score = miou(next(iter(matrices.values())))
        if score is not None:
            scores[name] = score
    parts = context.all_gather_object((totals, scores))
    kinds = dict.fromkeys(kind for part, _ in parts for kind in part)
    totals = {kind: sum(part[kind] for part, _ in parts if part) for kind in kinds}
    return totals, {name: value for _, part in parts for name, value in part.items()}


def print_table(
    heading: str,
    columns: dict[str, dict[str, float | None]],
    more: dict[str, Sequence[float | None]],
) -> None:
    """Print one line a class (column title -> class name -> value in percent), and more lines with a value a column."""
    print(f"\n{heading}")
    print(f"{'%':<18}" + "".join(f"{title:>18}" for title in columns))
    lines = [
        (name, [column[name] for column in columns.values()])
        for name in next(iter(columns.values()))
    ]
    for line, values in [*lines, *more.items()]:
        print(
            f"{line:<18}"
            + "".join(f"{'-' if value is None else format(value, '.2f'):>18}" for value in values)
        )


def write_report(
    stem: Path,
    content: dict[str, Any],
    columns: dict[str, dict[str, float | None]],
    scores: dict[str, float],
    samples: Iterable[Sample],
    labels_of: Callable[[Sample], list[np.ndarray]],
    titles: Sequence[str],
) -> None:
    """Write STEM.json, a chart of the columns, and a sheet of the best and worst images with labels_of(sample) under these titles."""
    visualize.bar_chart(
        columns,
        f"{content['pictures']} images of {Path(content['list']).stem}",
        Path(f"{stem}.png"),
    )
    by_name, rows, names = (
        {sample.name: sample for sample in samples},
        [],
        list(next(iter(columns.values()))),
    )
    for name in best_and_worst(scores):
        image = read_image(by_name[name].image, upright=False)
        overlays = [visualize.overlay(image, label, names) for label in labels_of(by_name[name])]
        rows.append((f"{name}\nmIoU {scores[name]:.1f}", [image, *overlays]))
    visualize.contact_sheet(rows, ["image", *titles], Path(f"{stem}_sheet.png"))
    write_json(Path(f"{stem}.json"), content)
    print(f"wrote {stem}.json, {stem.name}.png and {stem.name}_sheet.png")


def best_and_worst(scores: dict[str, float]) -> list[str]:
    """The names of the best and the worst images, in order."""
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return (
        ranked
        if len(ranked) <= 2 * NUM_EXTREMES
        else ranked[:NUM_EXTREMES] + ranked[-NUM_EXTREMES:]
    )
