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
HALF = np.array([[2, 2], [0, 0]])  # mIoU 50
ALL = np.array([[3, 0], [0, 3]])  # mIoU 100
NOTHING = np.zeros((2, 2), np.int64)  # no mIoU
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        pytest.param(
            [[0, 1], [1, 2]],
            [[0, 0], [1, 1]],
            [[1, 0, 0], [1, 1, 0], [0, 1, 0]],
            id="two dimensions",
        ),
        pytest.param(
            [0, 255, 255, 1],
            [0, 0, 1, 1],
            [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
            id="pixels without a truth",
        ),
        pytest.param(
            [0, 0, 255, 1],
            [0, 255, 255, 1],
            [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
            id="pixels without a prediction",
        ),
        pytest.param(
            [255, 255],
            [0, 1],
            [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
            id="nothing to count",
        ),
    ],
)
def test_confusion_by_hand(truth, prediction, expected):
    truth = np.array(truth, np.uint8)
    prediction = np.array(prediction, np.uint8)
    matrix = confusion(truth, prediction, num_classes=3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == expected


def test_many_classes_do_not_overflow():
    truth = np.array([253], np.uint8)
    prediction = np.array([254], np.uint8)
    matrix = confusion(truth, prediction, num_classes=255)
    assert matrix[253, 254] == 1


def test_more_pixels_than_are_counted_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 255], (5, 7)).astype(np.uint8)
    prediction = rng.integers(0, 3, (5, 7), dtype=np.uint8)
    whole = confusion(truth, prediction, 3)
    monkeypatch.setattr(metrics, "MAX_COUNTED", 4)
    assert np.array_equal(confusion(truth, prediction, 3), whole)
    assert whole.sum() == (truth != 255).sum()


def test_iou_by_hand():
    background = 6 / (6 + 2 + 1)
    cat = 3 / (3 + 2 + 1)
    np.testing.assert_allclose(iou(MATRIX), [100 * background, 100 * cat])


def test_a_class_that_the_truth_never_shows_has_no_iou():
    matrix = np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])  # class 1 is predicted, class 2 is not
    np.testing.assert_allclose(iou(matrix), [75, np.nan, np.nan])


def test_summary_by_hand():
    scores = summary(np.pad(MATRIX, (0, 1)), ("background", "cat", "dog"))
    expected = {
        "miou": (200 / 3 + 50) / 2,  # a class that is not there is left out
        "pixel_accuracy": 75,
        "iou": {"background": 200 / 3, "cat": 50, "dog": None},
        # 1 of the 9 pixels in the background's union, 2 of the cat's 6
        "false_positive": {"background": 100 / 9, "cat": 100 / 3, "dog": None},
        # 2 of 9, 1 of 6
        "false_negative": {"background": 200 / 9, "cat": 100 / 6, "dog": None},
        "confusion": [[6, 2, 0], [1, 3, 0], [0, 0, 0]],
    }
    assert scores.keys() == expected.keys()
    assert scores.pop("confusion") == expected.pop("confusion")
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value)


def test_summary_without_a_scored_pixel():
    scores = summary(NOTHING, ("background", "cat"))
    assert scores["miou"] is None
    assert scores["pixel_accuracy"] is None
    assert scores["iou"]["cat"] is None


@pytest.mark.parametrize("matrix", [MATRIX, NOTHING])
def test_summary_is_plain_json(matrix):
    json.dumps(summary(matrix, ("background", "cat")), allow_nan=False)


class SecondOfThree(Context):
    """The second of three processes; the first has no image."""

    def all_gather_object(self, value: object) -> list:
        first = ({}, {})
        third = ({"is_cam": ALL, "cam": HALF}, {"c": 100})
        return [first, value, third]


IMAGES = [
    ("a", {"is_cam": HALF, "cam": ALL}),
    ("b", {"is_cam": ALL, "cam": ALL}),
    ("d", {"is_cam": NOTHING, "cam": NOTHING}),
]


def evaluate_counts(images: list, context: Context) -> tuple[dict[str, list], dict[str, float]]:
    """Totals and scores of images that are given by their counts."""
    evaluation = metrics.evaluate(lambda image: image, images, context, num_workers=0)
    totals = {kind: total.tolist() for kind, total in evaluation.totals.items()}
    return totals, evaluation.scores


def test_counts_add_up_and_images_are_scored_by_their_first_kind():
    totals, scores = evaluate_counts(IMAGES, Context(CPU))
    assert totals == {"is_cam": (HALF + ALL).tolist(), "cam": (ALL + ALL).tolist()}
    assert scores == {"a": 50, "b": 100}
    assert HALF.tolist() == [[2, 2], [0, 0]]  # as it was


def test_no_image_has_no_counts():
    assert evaluate_counts([], Context(CPU)) == ({}, {})


def test_counts_add_up_over_all_processes():
    context = SecondOfThree(CPU, rank=1, world_size=3)
    totals, scores = evaluate_counts([None, IMAGES[0], None], context)
    assert totals == {"is_cam": (HALF + ALL).tolist(), "cam": (ALL + HALF).tolist()}
    assert scores == {"a": 50, "c": 100}
    assert HALF.tolist() == [[2, 2], [0, 0]]


def test_table_has_a_line_a_class_and_a_column_a_title(capsys):
    columns = {
        "IS-CAM": {"background": 80.126, "cat": None},
        "general CAM": {"background": 70.0, "cat": 0.0},
    }
    metrics.print_table("2 images of train", columns, {"mIoU": [1, None]})
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split() for line in lines] == [
        ["%", "IS-CAM", "general", "CAM"],
        ["background", "80.13", "70.00"],
        ["cat", "-", "0.00"],
        ["mIoU", "1.00", "-"],
    ]
    assert {len(line) for line in lines} == {3 * 18}


def test_the_best_and_the_worst_in_order():
    scores = {f"image{i:02}": float(i * 7 % 11) for i in range(11)}
    names = metrics.best_and_worst(scores)
    assert [scores[name] for name in names] == [10, 9, 8, 7, 3, 2, 1, 0]


def test_images_with_equal_scores_go_by_name():
    assert metrics.best_and_worst({"b": 1.0, "c": 5.0, "a": 1.0}) == ["c", "a", "b"]


@pytest.mark.parametrize("count", range(5, 9))
def test_few_images_are_all_shown_once(count):
    names = [str(i) for i in range(count)]
    assert metrics.best_and_worst(dict.fromkeys(names, 0.0)) == names
