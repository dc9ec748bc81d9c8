"""Maps and labels of real images against the authors' program, through the files they write."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import VOC_CLASSES, call, write_lines

import eval_cam
import eval_seg
import make_cam
import make_seg_labels
from tool import cam_file
from tool.outputs import read_json, write_json

PUBLISHED_SCALES = (1.0, 0.5, 1.5, 2.0)
SMALL_SCALES = (0.5, 0.25, 0.75, 1.0)
TUNED = "cam_background_threshold_percent_tuned_on_ground_truth"
TRUE_CLASSES = "miou_over_classes_in_ground_truth"


@dataclass(frozen=True)
class Images:
    """Real images, and a run directory for their maps."""

    names: Sequence[str]
    flags: list
    run_dir: Path

    def make_maps(self, checkpoint: Path, scales: Sequence[float], device: object) -> None:
        more = ["--ckpt", checkpoint, "--scales", *scales, "--device", device]
        call(make_cam.main, *self.flags, *more)

    def check_maps(self, golden: Any, scales: Sequence[float]) -> None:
        for name in self.names:
            check_grids(golden, self.run_dir, name, scales)
            check_full_size(golden, self.run_dir, name)

    def evaluate(self) -> dict[str, Any]:
        call(eval_cam.main, *self.flags)
        return read_json(self.run_dir / "eval_cam.json")


@pytest.fixture
def images(voc_subset, tmp_path) -> Callable[[Sequence[str]], Images]:
    def select(names: Sequence[str]) -> Images:
        run_dir = tmp_path / "run"
        listed = write_lines(tmp_path / "list.txt", *names)
        flags = ["--dataset_root", voc_subset, "--run_dir", run_dir, "--list", listed]
        return Images(names, flags, run_dir)

    return select


@pytest.fixture
def published(shared) -> Any:
    """The authors' maps of three images at the published scales."""
    return np.load(shared / "golden/cam_full3.npz", allow_pickle=False)


def names_of(golden: Any) -> list[str]:
    return sorted({key.partition("/")[0] for key in golden.files})


def check_grids(golden: Any, run_dir: Path, name: str, scales: Sequence[float]) -> None:
    """The maps on the network's own grids."""
    with np.load(cam_file.path_of(run_dir, name), allow_pickle=False) as stored:
        for i, scale in enumerate(scales):
            for kind in cam_file.KINDS:
                expected = golden[f"{name}/grid_{kind}@{scale}"]
                np.testing.assert_allclose(stored[f"{kind}_{i}"], expected, atol=1e-3)


def check_full_size(golden: Any, run_dir: Path, name: str) -> None:
    """The mean of the maps at the size of the image, and its label."""
    maps = cam_file.load(cam_file.path_of(run_dir, name))
    assert np.array_equal(maps.keys, golden[f"{name}/keys"])
    every_second = maps.is_cam[:, ::2, ::2]
    np.testing.assert_allclose(every_second, golden[f"{name}/is_cam"], atol=1.5e-3)
    is_same = maps.label("is_cam") == golden[f"{name}/label"]
    assert is_same.mean() >= 0.999


def check_scores(scores: dict[str, Any], golden_path: Path) -> None:
    golden = json.loads(golden_path.read_text())
    for kind in cam_file.KINDS:
        expected = golden[kind][TRUE_CLASSES]
        assert scores[kind]["miou"] == pytest.approx(expected, abs=0.05)


def test_an_image_at_small_scales(shared, images, release_checkpoint, device):
    golden = np.load(shared / "golden/cam_train100.npz", allow_pickle=False)
    image = images(["2010_005805"])
    image.make_maps(release_checkpoint, SMALL_SCALES, device)
    image.check_maps(golden, SMALL_SCALES)


def test_an_image_at_the_published_scales(published, images, release_checkpoint, device):
    image = images(["2007_009216"])
    image.make_maps(release_checkpoint, PUBLISHED_SCALES, device)
    image.check_maps(published, PUBLISHED_SCALES)


def test_the_authors_grids_become_their_maps_and_scores(shared, published, images):
    three = images(names_of(published))
    for name in three.names:
        write_authors_grids(published, three.run_dir, name)
    settings = {"made_by": "make_cam", "maps": ["cam", "is_cam"], "scales": PUBLISHED_SCALES}
    write_json(three.run_dir / "cam/settings.json", settings | {"class_names": list(VOC_CLASSES)})
    three.check_maps(published, PUBLISHED_SCALES)
    check_scores(three.evaluate(), shared / "golden/cam_full3.json")


def write_authors_grids(golden: Any, run_dir: Path, name: str) -> None:
    grids = {}
    for kind in cam_file.KINDS:
        grids[kind] = [golden[f"{name}/grid_{kind}@{scale}"] for scale in PUBLISHED_SCALES]
    size = golden[f"{name}/label"].shape
    content = cam_file.CamGrids(golden[f"{name}/keys"], size, **grids)
    cam_file.save(cam_file.path_of(run_dir, name), content)


@pytest.mark.slow
def test_three_images_at_the_published_scales(
    shared, published, images, release_checkpoint, device
):
    three = images(names_of(published))
    three.make_maps(release_checkpoint, PUBLISHED_SCALES, device)
    three.check_maps(published, PUBLISHED_SCALES)
    check_scores(three.evaluate(), shared / "golden/cam_full3.json")


@pytest.mark.slow
def test_miou_of_a_hundred_images(shared, images, release_checkpoint, device):
    names = (shared / "golden/cam_train100_names.txt").read_text().split()
    hundred = images(names)
    hundred.make_maps(release_checkpoint, SMALL_SCALES, device)
    scores = hundred.evaluate()
    check_scores(scores, shared / "golden/cam_train100.json")
    golden = json.loads((shared / "golden/cam_train100_crf.json").read_text())
    for threshold, miou in golden["cam_threshold_sweep"].items():
        assert scores[TUNED][threshold] == pytest.approx(miou, abs=0.05)

    call(make_seg_labels.main, *hundred.flags, "--refine", "crf", "--device", device)
    call(eval_seg.main, *hundred.flags)
    refined = read_json(hundred.run_dir / "eval_seg_label.json")
    expected = golden["crf_uncertain_is_background"][TRUE_CLASSES]
    assert refined["miou"] == pytest.approx(expected, abs=0.3)
