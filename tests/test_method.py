"""The comparison of recipes: what it counts, and a small run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from common import NAMES, write_lines

from benchmarks import method
from network import resnet
from network.sipe import SIPE

SMALL_TRAINING = ("--batch_size", "2", "--crop_size", "64", "--resize_long", "48", "64")
SMALL_INFERENCE = ("--scales", "1.0")


@pytest.fixture
def shallow_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of a ResNet with one block a layer, which the stages then build."""
    monkeypatch.setitem(resnet.BLOCKS, "resnet50", (1, 1, 1, 1))
    torch.manual_seed(0)
    path = tmp_path / "shallow.pth"
    torch.save(SIPE(2).resnet50.state_dict(), path)
    return path


@pytest.fixture
def small_run(
    fixed_voc: Path, shallow_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The flags of a comparison on two images, in tmp_path/out."""
    monkeypatch.setattr(method, "HALF_TRAINING", SMALL_TRAINING)
    monkeypatch.setattr(method, "HALF_INFERENCE", SMALL_INFERENCE)
    monkeypatch.setattr(method, "RESAMPLES", 100)
    images = write_lines(tmp_path / "two.txt", *NAMES[:2])
    flags = f"--dataset_root {fixed_voc} --list {images} --out {tmp_path / 'out'}"
    flags += f" --weights {shallow_weights} --max_epochs 1 --seeds 1 2"
    return f"{flags} --num_workers 0 --device cpu".split()


def test_recipes_are_trained_once_a_seed_and_compared(
    small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    method.main(small_run)
    out = tmp_path / "out"
    content = json.loads((out / "method.json").read_text())
    printed = capsys.readouterr().out
    assert content["pictures"] == 2
    assert content["seeds"] == [1, 2]
    for kind in method.KINDS:
        sipe, plus = content[kind].values()
        gain = plus["mIoU"]["mean"] - sipe["mIoU"]["mean"]
        assert plus["difference"] == pytest.approx(gain)
        low, high = plus["interval"]
        assert low <= plus["difference"] <= high
        assert f"{plus['mIoU']['mean']:.2f}" in printed
    folders = {f"{name}_{seed}" for name in ("training", "sipe", "plus") for seed in (1, 2)}
    assert {path.name for path in out.iterdir()} == {"method.json", *folders}

    method.main(small_run)  # a training serves every recipe, so each seed's is asked for twice
    assert capsys.readouterr().out.count("is complete") == 4
    assert json.loads((out / "method.json").read_text()) == content


def two_classes(hits: int, misses: int) -> np.ndarray:
    """A confusion matrix with so many pixels of either class that are right, and wrong."""
    return np.array([[hits, misses], [misses, hits]])


def test_an_interval_is_over_images_and_a_gain_everywhere_is_certain(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(method, "RESAMPLES", 300)
    right = two_classes(9, 0)
    wrong = two_classes(8, 1)
    bad = two_classes(0, 9)
    first = [[wrong] * 5] * 2  # seeds, images
    second = [[right] * 5] * 2
    counts = np.array([first, second])
    gain, interval = method.difference(counts, np.random.default_rng(0))
    assert [gain, *interval] == pytest.approx([20, 20, 20])

    counts[1, :, :2] = bad  # the second recipe fails on two images
    gain, (low, high) = method.difference(counts, np.random.default_rng(0))
    assert low < gain < high
    assert low < -20
    assert high == pytest.approx(20)


def test_the_second_mean_is_over_frequent_classes():
    first_seed = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 10]])
    second_seed = np.diag([10, 10, 10])
    counts = np.stack([first_seed, second_seed])[:, None]  # one image
    summary = method.summarize(counts, np.array([True, False, True]))
    ious = [80, 100 * 5 / 12, 100 * 10 / 15]  # of the first seed
    of_frequent = [(ious[0] + ious[2]) / 2, 100]
    assert summary["mIoU"]["of_seeds"] == pytest.approx([np.mean(ious), 100])
    assert summary["frequent"]["of_seeds"] == pytest.approx(of_frequent)
    assert summary["frequent"]["deviation"] == pytest.approx(np.std(of_frequent))
