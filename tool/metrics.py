"""Segmentation metrics from a streaming confusion matrix."""

import numpy as np

IGNORE = 255


def confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels: truth, prediction (any shape) uint8 class ids -> (K, K) int64, rows are the truth; truth 255 is ignored."""
    counted = truth != IGNORE
    pairs = truth[counted].astype(np.int64) * num_classes + prediction[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class in percent: (K, K) -> (K,) float64, NaN for a class that the truth never shows."""
    inter = np.diag(matrix).astype(np.float64)
    truth, predicted = matrix.sum(1), matrix.sum(0)
    union = truth + predicted - inter
    return np.where(truth > 0, 100 * inter / np.maximum(union, 1), np.nan)


def miou(matrix: np.ndarray) -> float | None:
    """Mean of `iou` over the classes that the truth shows, in percent; None where every pixel is ignored."""
    return float(np.nanmean(iou(matrix))) if matrix.any() else None


def summary(matrix: np.ndarray, class_names: tuple[str, ...]) -> dict:
    """What is reported of a confusion matrix, ready for JSON; all but the counts in percent."""
    return {
        "miou": miou(matrix),
        "pixel_accuracy": float(100 * np.trace(matrix) / matrix.sum()) if matrix.any() else None,
        "iou": {name: None if np.isnan(value) else float(value) for name, value in zip(class_names, iou(matrix))},
        "confusion": matrix.tolist(),
    }
