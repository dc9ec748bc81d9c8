"""Confusion matrices and what is read off them."""

import json

import numpy as np
import pytest

from tool import metrics
from tool.metrics import confusion, iou, summary

# background 6 of 8 pixels right, 2 taken for a cat; cat 3 of 4 right, 1 missed
MATRIX = np.array([[6, 2], [1, 3]])


def test_confusion_of_four_pixels_by_hand():
    truth, prediction = np.array([[0, 1], [1, 2]], np.uint8), np.array([[0, 0], [1, 1]], np.uint8)
    assert confusion(truth, prediction, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_ignored_pixels_do_not_count():
    truth, prediction = np.array([0, 255, 255, 1], np.uint8), np.array([0, 0, 1, 1], np.uint8)
    assert confusion(truth, prediction, 2).tolist() == [[1, 0], [0, 1]]


def test_pixels_without_a_prediction_do_not_count():
    truth, prediction = np.array([0, 0, 255, 1], np.uint8), np.array([0, 255, 255, 1], np.uint8)
    assert confusion(truth, prediction, 2).tolist() == [[1, 0], [0, 1]]


def test_a_wholly_ignored_picture_counts_nothing():
    matrix = confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 3)
    assert (matrix.shape, matrix.dtype) == ((3, 3), np.int64)
    assert not matrix.any()


def test_many_classes_do_not_overflow_the_ids():
    assert confusion(np.array([253], np.uint8), np.array([254], np.uint8), 255)[253, 254] == 1


def test_pictures_add_up_to_all_at_once():
    rng = np.random.default_rng(0)
    truth, prediction = rng.choice([0, 1, 2, 3, 255], (5, 6, 7)).astype(np.uint8), rng.integers(0, 4, (5, 6, 7), dtype=np.uint8)
    total = sum(confusion(t, p, 4) for t, p in zip(truth, prediction))
    assert np.array_equal(total, confusion(truth, prediction, 4))
    assert total.sum() == (truth != 255).sum()


def test_more_pixels_than_are_counted_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    truth, prediction = rng.choice([0, 1, 2, 255], (5, 7)).astype(np.uint8), rng.integers(0, 3, (5, 7), dtype=np.uint8)
    whole = confusion(truth, prediction, 3)
    monkeypatch.setattr(metrics, "MOST_COUNTED", 4)
    assert np.array_equal(confusion(truth, prediction, 3), whole)
    assert whole.sum() == (truth != 255).sum()


def test_iou_by_hand():
    # 6 / (6 + 2 + 1) and 3 / (3 + 2 + 1)
    np.testing.assert_allclose(iou(MATRIX), [66.6666667, 50])


def test_iou_is_between_none_and_all():
    assert iou(np.diag([5, 7])).tolist() == [100, 100]
    assert iou(np.array([[0, 4], [4, 0]])).tolist() == [0, 0]


def test_iou_of_a_class_that_the_truth_never_shows_is_nan():
    # class 1 is predicted twice but never there, class 2 is neither
    found = iou(np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(found, [75, np.nan, np.nan])


def test_summary_by_hand():
    found = summary(MATRIX, ("background", "cat"))
    assert found.keys() == {"miou", "pixel_accuracy", "iou", "false_positive", "false_negative", "confusion"}
    assert found["miou"] == pytest.approx((200 / 3 + 50) / 2)
    assert found["pixel_accuracy"] == pytest.approx(75)
    assert found["iou"] == pytest.approx({"background": 200 / 3, "cat": 50})
    assert found["false_positive"] == pytest.approx({"background": 100 / 9, "cat": 100 / 3})  # 1 of 9 pixels, 2 of 6
    assert found["false_negative"] == pytest.approx({"background": 200 / 9, "cat": 100 / 6})  # 2 of 9 pixels, 1 of 6
    assert found["confusion"] == [[6, 2], [1, 3]]


def test_the_shares_of_a_classs_union_add_up_to_all_of_it():
    found = summary(np.random.default_rng(0).integers(0, 9, (4, 4)), tuple("abcd"))
    for name in "abcd":
        assert found["iou"][name] + found["false_positive"][name] + found["false_negative"][name] == pytest.approx(100)


def test_summary_leaves_absent_classes_out_of_the_mean():
    found = summary(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), ("background", "cat", "dog"))
    assert found["miou"] == pytest.approx((200 / 3 + 50) / 2)
    assert found["iou"]["dog"] is found["false_positive"]["dog"] is found["false_negative"]["dog"] is None


def test_summary_of_nothing_is_none_and_everything_is_json():
    found = summary(np.zeros((2, 2), np.int64), ("background", "cat"))
    assert found["miou"] is None and found["pixel_accuracy"] is None
    assert found["iou"] == found["false_positive"] == found["false_negative"] == {"background": None, "cat": None}
    for matrix in (MATRIX, np.zeros((2, 2), np.int64)):
        json.dumps(summary(matrix, ("background", "cat")), allow_nan=False)
