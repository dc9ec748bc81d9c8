"""Segmentation metrics from a streaming confusion matrix."""

import cv2
import numpy as np

IGNORE = 255
MOST_COUNTED = 2**24  # pixels at a time: OpenCV's counts are float32


def confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels: truth, prediction (any shape) uint8 class ids -> (K, K) int64, rows are the truth; 255 in either is ignored."""
    matrix, truth, prediction = np.zeros((num_classes, num_classes), np.int64), truth.ravel(), prediction.ravel()
    for start in range(0, truth.size, MOST_COUNTED):
        pair = [values[start : start + MOST_COUNTED] for values in (truth, prediction)]
        # three times as fast as numpy's bincount
        counts = cv2.calcHist(pair, [0, 1], None, [num_classes, num_classes], [0, num_classes] * 2)
        matrix += counts.astype(np.int64)
    return matrix


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class in percent: (K, K) -> (K,) float64, NaN for a class that the truth never shows."""
    return _shares_of_union(matrix, np.diag(matrix))


def _shares_of_union(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    truth, predicted = matrix.sum(1), matrix.sum(0)
    return np.where(truth > 0, 100 * pixels / np.maximum(truth + predicted - np.diag(matrix), 1), np.nan)


def miou(matrix: np.ndarray) -> float | None:
    """Mean of `iou` over the classes that the truth shows, in percent; None where every pixel is ignored."""
    return float(np.nanmean(iou(matrix))) if matrix.any() else None


def summary(matrix: np.ndarray, class_names: tuple[str, ...]) -> dict:
    """What is reported of a confusion matrix, ready for JSON; all but the counts in percent.

    A class's IoU, false positive and false negative pixels are shares of its union, and add up to 100.
    """

    def by_class(values: np.ndarray) -> dict[str, float | None]:
        return {name: None if np.isnan(value) else float(value) for name, value in zip(class_names, values)}

    inter = np.diag(matrix)
    return {
        "miou": miou(matrix),
        "pixel_accuracy": float(100 * np.trace(matrix) / matrix.sum()) if matrix.any() else None,
        "iou": by_class(iou(matrix)),
        "false_positive": by_class(_shares_of_union(matrix, matrix.sum(0) - inter)),
        "false_negative": by_class(_shares_of_union(matrix, matrix.sum(1) - inter)),
        "confusion": matrix.tolist(),
    }
