"""Confusion matrices, what is read off them, and their sums over images and processes."""

import json

import numpy as np
import pytest
import torch

from tool import metrics
from tool.context import Context
from tool.metrics import confusion, iou, summary

# background 6 of 8 pixels right, 2 taken for a cat; cat 3 of 4 right, 1 missed
MATRIX = np.array([[6, 2], [1, 3]])
HALF, ALL, NOTHING = (
    np.array([[2, 2], [0, 0]]),
    np.array([[3, 0], [0, 3]]),
    np.zeros((2, 2), np.int64),
)  # mIoU 50, 100, none


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        ([[0, 1], [1, 2]], [[0, 0], [1, 1]], [[1, 0, 0], [1, 1, 0], [0, 1, 0]]),
        (
            [0, 255, 255, 1],
            [0, 0, 1, 1],
            [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
        ),  # pixels without a truth do not count
        (
            [0, 0, 255, 1],
            [0, 255, 255, 1],
            [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
        ),  # nor do those without a prediction
        ([255, 255], [0, 1], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_confusion_by_hand(truth, prediction, expected):
    found = confusion(np.array(truth, np.uint8), np.array(prediction, np.uint8), 3)
    assert (found.dtype, found.tolist()) == (np.int64, expected)
    assert (
        confusion(np.array([253], np.uint8), np.array([254], np.uint8), 255)[253, 254] == 1
    )  # many classes do not overflow


def test_more_pixels_than_are_counted_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    truth, prediction = (
        rng.choice([0, 1, 2, 255], (5, 7)).astype(np.uint8),
        rng.integers(0, 3, (5, 7), dtype=np.uint8),
    )
    whole = confusion(truth, prediction, 3)
    monkeypatch.setattr(metrics, "MAX_COUNTED", 4)
    assert np.array_equal(confusion(truth, prediction, 3), whole)
    assert whole.sum() == (truth != 255).sum()


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (MATRIX, [200 / 3, 50]),  # 6 / (6 + 2 + 1) and 3 / (3 + 2 + 1)
        (
            np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]]),
            [75, np.nan, np.nan],
        ),  # class 1 is predicted but never there, class 2 neither
    ],
)
def test_iou_by_hand(matrix, expected):
    np.testing.assert_allclose(iou(matrix), expected)


def test_summary_by_hand():
    found = summary(np.pad(MATRIX, (0, 1)), ("background", "cat", "dog"))
    assert found.keys() == {
        "miou",
        "pixel_accuracy",
        "iou",
        "false_positive",
        "false_negative",
        "confusion",
    }
    assert found["miou"] == pytest.approx(
        (200 / 3 + 50) / 2
    )  # a class that is not there is left out
    assert found["pixel_accuracy"] == pytest.approx(75)
    assert found["iou"] == pytest.approx({"background": 200 / 3, "cat": 50, "dog": None})
    assert found["false_positive"] == pytest.approx(
        {"background": 100 / 9, "cat": 100 / 3, "dog": None}
    )  # 1 of 9 pixels, 2 of 6
    assert found["false_negative"] == pytest.approx(
        {"background": 200 / 9, "cat": 100 / 6, "dog": None}
    )  # 2 of 9 pixels, 1 of 6
    assert found["confusion"] == [[6, 2, 0], [1, 3, 0], [0, 0, 0]]
    empty = summary(NOTHING, ("background", "cat"))
    assert empty["miou"] is empty["pixel_accuracy"] is empty["iou"]["cat"] is None
    json.dumps([found, empty], allow_nan=False)


class OneOfThree(Context):
    """The second of three processes; the first has no image."""

    def all_gather_object(self, value: object) -> list:
        return [({}, {}), value, ({"is_cam": ALL, "cam": HALF}, {"c": 100})]


IMAGES = [
    ("a", {"is_cam": HALF, "cam": ALL}),
    ("b", {"is_cam": ALL, "cam": ALL}),
    ("d", {"is_cam": NOTHING, "cam": NOTHING}),
]


@pytest.mark.parametrize(
    ("kind", "rank", "size", "images", "totals", "scores"),
    [
        (
            Context,
            0,
            1,
            IMAGES,
            {"is_cam": [[5, 2], [0, 3]], "cam": [[6, 0], [0, 6]]},
            {"a": 50, "b": 100},
        ),  # of the first kind
        (Context, 0, 1, [], {}, {}),
        (
            OneOfThree,
            1,
            3,
            [None, IMAGES[0], None],
            {"is_cam": [[5, 2], [0, 3]], "cam": [[5, 2], [0, 3]]},
            {"a": 50, "c": 100},
        ),
    ],
)
def test_images_add_up_over_all_processes(kind, rank, size, images, totals, scores):
    found = metrics.evaluate(lambda image: image, images, kind(torch.device("cpu"), rank, size), 0)
    assert ({name: total.tolist() for name, total in found[0].items()}, found[1]) == (
        totals,
        scores,
    )
    assert HALF.tolist() == [[2, 2], [0, 0]]


COLUMNS = {
    "IS-CAM": {"background": 80.126, "cat": None},
    "general CAM": {"background": 70.0, "cat": 0.0},
}


def test_table_has_a_line_a_class_and_a_column_a_title(capsys):
    metrics.print_table("2 images of train", COLUMNS, {"mIoU": [1, None]})
    lines = capsys.readouterr().out.splitlines()
    cells = [
        ["%", "IS-CAM", "general", "CAM"],
        ["background", "80.13", "70.00"],
        ["cat", "-", "0.00"],
        ["mIoU", "1.00", "-"],
    ]
    assert [line.split() for line in lines[2:]] == cells
    assert {len(line) for line in lines[2:]} == {18 * 3}


def test_the_best_and_the_worst_in_order():
    scores = {f"image{i:02}": float(i * 7 % 11) for i in range(11)}
    assert [scores[name] for name in metrics.best_and_worst(scores)] == [10, 9, 8, 7, 3, 2, 1, 0]
    assert metrics.best_and_worst({"b": 1.0, "c": 5.0, "a": 1.0}) == [
        "c",
        "a",
        "b",
    ]  # few are all shown once, equals go by name
    for count in range(5, 9):
        assert metrics.best_and_worst({str(i): 0.0 for i in range(count)}) == [
            str(i) for i in range(count)
        ]
