"""What every evaluation shares: sums over pictures and processes, a table, and a choice of pictures."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tool import report
from tool.stage import Stage

HALF, ALL, NOTHING = np.array([[2, 2], [0, 0]]), np.array([[3, 0], [0, 3]]), np.zeros((2, 2), np.int64)  # mIoU 50, 100, none
COLUMNS = {
    "IS-CAM": {"background": 80.126, "cat": None, "mIoU": 80.126},
    "general CAM": {"background": 70.0, "cat": 0.0, "mIoU": 35.0},
}


@pytest.fixture
def alone(tmp_path) -> Stage:
    return Stage(torch.device("cpu"), 0, 1, tmp_path)


def test_stamp_changes_with_every_file_and_with_nothing_else(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths[:2]:
        path.write_text("same")
        os.utime(path, ns=(0, 0))
    before = report.stamp(iter(paths))
    assert report.stamp(paths) == before

    stamps = {before, report.stamp(paths[:2]), report.stamp([paths[1], paths[0], paths[2]])}
    paths[1].write_text("changed")
    os.utime(paths[1], ns=(0, 0))
    stamps.add(report.stamp(paths))
    os.utime(paths[1], ns=(0, 1))
    stamps.add(report.stamp(paths))
    paths[2].touch()
    stamps.add(report.stamp(paths))
    paths[0].unlink()
    stamps.add(report.stamp(paths))
    assert len(stamps) == 7


def test_pictures_add_up_by_kind(alone):
    results = [("a", {"is_cam": HALF, "cam": ALL}), ("b", {"is_cam": ALL, "cam": ALL})]
    totals, scores = report.add_up(iter(results), alone)
    assert {kind: total.tolist() for kind, total in totals.items()} == {"is_cam": [[5, 2], [0, 3]], "cam": [[6, 0], [0, 6]]}
    assert scores == {"a": 50, "b": 100}  # of the first kind
    assert HALF.tolist() == [[2, 2], [0, 0]]


def test_a_wholly_ignored_picture_has_no_score(alone):
    totals, scores = report.add_up([("a", {"label": NOTHING}), ("b", {"label": HALF})], alone)
    assert (totals["label"].tolist(), scores) == (HALF.tolist(), {"b": 50})


def test_no_pictures_are_no_sums(alone):
    assert report.add_up([], alone) == ({}, {})


def test_processes_add_up_even_where_one_has_no_picture():
    others = [({}, {}), ({"is_cam": ALL, "cam": HALF}, {"c": 100})]
    run = SimpleNamespace(gather=lambda value: [others[0], value, others[1]])
    totals, scores = report.add_up([("a", {"is_cam": HALF, "cam": ALL})], run)
    assert {kind: total.tolist() for kind, total in totals.items()} == {"is_cam": [[5, 2], [0, 3]], "cam": [[5, 2], [0, 3]]}
    assert scores == {"a": 50, "c": 100}


def test_table_has_a_line_a_class_and_a_column_a_title(capsys):
    report.print_table("2 pictures of train", COLUMNS, {"cat": [1, None]})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        [],
        ["2", "pictures", "of", "train"],
        ["%", "IS-CAM", "general", "CAM"],
        ["background", "80.13", "70.00"],
        ["cat", "-", "0.00"],
        ["mIoU", "80.13", "35.00"],
        ["cat", "1.00", "-"],
    ]
    assert {len(line) for line in lines[2:]} == {18 * 3}


def test_chart_is_drawn_also_with_absent_classes(tmp_path):
    report.draw_chart(COLUMNS, "2 pictures", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 2


def test_extremes_are_the_best_and_the_worst_in_order():
    scores = {f"picture{i:02}": float(i * 7 % 11) for i in range(11)}
    found = report.extremes(scores)
    assert [scores[name] for name in found] == [10, 9, 8, 7, 3, 2, 1, 0]


def test_few_pictures_are_all_shown_once_and_equals_go_by_name():
    assert report.extremes({"b": 1.0, "c": 5.0, "a": 1.0}) == ["c", "a", "b"]
    assert len(report.extremes({str(i): 0.0 for i in range(8)})) == 8
    assert report.extremes({}) == []
