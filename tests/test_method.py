"""The comparison of recipes: what it counts, and a small run."""

import json
from pathlib import Path

import numpy as np
import pytest
from common import NAMES, write_lines

from benchmarks import method

SMALL = ["--batch_size", "2", "--crop_size", "64", "--resize_long", "48", "64"], ["--scales", "1.0"]


def test_recipes_are_trained_once_a_seed_and_compared(
    fixed_voc: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(method, "HALF", SMALL)
    flags = [
        "--dataset_root",
        str(fixed_voc),
        "--out",
        str(tmp_path / "out"),
        "--weights",
        str(tiny_backbone),
        "--num_workers",
        "0",
    ]
    flags += [
        "--device",
        "cpu",
        "--max_epochs",
        "1",
        "--seeds",
        "1",
        "2",
        "--list",
        str(write_lines(tmp_path / "two.txt", *NAMES[:2])),
    ]
    method.main(flags)
    content, printed = (
        json.loads((tmp_path / "out/method.json").read_text()),
        capsys.readouterr().out,
    )
    assert (content["pictures"], content["seeds"]) == (2, [1, 2])
    for kind in method.KINDS:
        sipe, plus = content[kind].values()
        assert plus["difference"] == pytest.approx(plus["mIoU"]["mean"] - sipe["mIoU"]["mean"])
        assert plus["interval"][0] <= plus["difference"] <= plus["interval"][1]
        assert f"{plus['mIoU']['mean']:.2f}" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"method.json"} | {
        f"{name}_{seed}" for name in ("training", "sipe", "plus") for seed in (1, 2)
    }
    method.main(flags)
    assert (
        capsys.readouterr().out.count("is complete") == 4
        and json.loads((tmp_path / "out/method.json").read_text()) == content
    )


def test_an_interval_is_over_images_and_a_gain_everywhere_is_certain():
    right, wrong = np.array([[9, 0], [0, 9]]), np.array([[8, 1], [1, 8]])
    counts = np.array([[[wrong] * 5] * 2, [[right] * 5] * 2])  # recipes, seeds, images
    gain, interval = method.difference(counts, np.random.default_rng(0))
    assert [gain, *interval] == pytest.approx([20, 20, 20])
    counts[1, :, :2] = [[0, 9], [9, 0]]
    gain, (low, high) = method.difference(counts, np.random.default_rng(0))
    assert low < gain < high and low < -20 and high == pytest.approx(20)


def test_the_second_mean_is_over_frequent_classes():
    counts = np.array([[[8, 2, 0], [0, 5, 5], [0, 0, 10]], [[10, 0, 0], [0, 10, 0], [0, 0, 10]]])[
        :, None
    ]  # two seeds, one image
    found = method.summarize(counts, np.array([True, False, True]))
    first = [80, 100 * 5 / 12, 100 * 10 / 15]
    assert found["mIoU"]["of_seeds"] == pytest.approx([np.mean(first), 100])
    assert found["frequent"]["of_seeds"] == pytest.approx([(first[0] + first[2]) / 2, 100])
    assert found["frequent"]["deviation"] == pytest.approx(np.std(found["frequent"]["of_seeds"]))
