"""Maps and labels of real images against the authors' program, through the files they write."""

import json
from pathlib import Path

import numpy as np
import pytest

import eval_cam
import eval_seg
import make_cam
import make_seg_labels
from tool import cam_file

SMALL_SCALES = [0.5, 0.25, 0.75, 1.0]
PUBLISHED_SCALES = [1.0, 0.5, 1.5, 2.0]
MIOU = "miou_over_classes_in_ground_truth"
SWEEP = "cam_background_threshold_percent_tuned_on_ground_truth"


@pytest.fixture
def make(tmp_path, voc_subset, release_checkpoint, device):
    """A function that makes the maps of some images; it returns the flags that stages share."""

    def make_maps(names: list[str], scales: list[float]) -> list[str]:
        listed = tmp_path / "list.txt"
        listed.write_text("\n".join(names) + "\n")
        shared_flags = ["--dataset_root", str(voc_subset)]
        shared_flags += ["--run_dir", str(tmp_path / "run"), "--list", str(listed)]
        flags = ["--ckpt", str(release_checkpoint), "--device", str(device)]
        flags += ["--scales", *map(str, scales)]
        make_cam.main([*shared_flags, *flags])
        return shared_flags

    return make_maps


def load_golden(path: Path) -> np.lib.npyio.NpzFile:
    return np.load(path, allow_pickle=False)


def check_image(golden, run_dir: Path, name: str, scales: list[float]) -> None:
    stored = np.load(cam_file.path_of(run_dir, name), allow_pickle=False)
    maps = cam_file.load(cam_file.path_of(run_dir, name))
    assert np.array_equal(maps.keys, golden[f"{name}/keys"])
    for i, scale in enumerate(scales):
        for kind in ("is_cam", "cam"):
            expected = golden[f"{name}/grid_{kind}@{scale}"]
            np.testing.assert_allclose(stored[f"{kind}_{i}"], expected, atol=1e-3)
    halved = maps.is_cam[:, ::2, ::2]
    np.testing.assert_allclose(halved, golden[f"{name}/is_cam"], atol=1.5e-3)
    label = maps.keys[maps.is_cam.argmax(0)]
    assert (label == golden[f"{name}/label"]).mean() >= 0.999


def read_report(path: Path) -> dict:
    return json.loads(path.read_text())


def check_report(golden_path: Path, path: Path) -> None:
    golden = read_report(golden_path)
    ours = read_report(path)
    for kind in ("is_cam", "cam"):
        assert ours[kind]["miou"] == pytest.approx(golden[kind][MIOU], abs=0.05)


def test_an_image_at_small_scales(shared, make, tmp_path):
    golden = load_golden(shared / "golden/cam_train100.npz")
    make(["2010_005805"], SMALL_SCALES)
    check_image(golden, tmp_path / "run", "2010_005805", SMALL_SCALES)


def test_three_images_at_the_published_scales(shared, make, tmp_path):
    golden = load_golden(shared / "golden/cam_full3.npz")
    names = sorted({key.split("/")[0] for key in golden.files})
    flags = make(names, PUBLISHED_SCALES)
    for name in names:
        check_image(golden, tmp_path / "run", name, PUBLISHED_SCALES)
    eval_cam.main(flags)
    check_report(shared / "golden/cam_full3.json", tmp_path / "run/eval_cam.json")


@pytest.mark.slow
def test_miou_of_a_hundred_images(shared, make, tmp_path, device):
    names = (shared / "golden/cam_train100_names.txt").read_text().split()
    flags = make(names, SMALL_SCALES)
    eval_cam.main(flags)
    check_report(shared / "golden/cam_train100.json", tmp_path / "run/eval_cam.json")
    golden = read_report(shared / "golden/cam_train100_crf.json")
    sweep = read_report(tmp_path / "run/eval_cam.json")[SWEEP]
    for threshold, miou in golden["cam_threshold_sweep"].items():
        assert sweep[threshold] == pytest.approx(miou, abs=0.05)

    make_seg_labels.main([*flags, "--refine", "crf", "--device", str(device)])
    eval_seg.main(flags)
    refined = read_report(tmp_path / "run/eval_seg_label.json")
    expected = golden["crf_uncertain_is_background"][MIOU]
    assert refined["miou"] == pytest.approx(expected, abs=0.3)
