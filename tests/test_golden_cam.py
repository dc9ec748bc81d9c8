"""Maps and labels of real images against the authors' program, through the files they write."""

import json

import numpy as np
import pytest

import eval_cam
import eval_seg
import make_cam
import make_seg_labels
from tool import cam_file


def write_list(path, names):
    path.write_text("\n".join(names) + "\n")
    return str(path)


def make(tmp_path, voc_subset, checkpoint, names, scales, device):
    listed = write_list(tmp_path / "list.txt", names)
    common = [
        "--dataset_root",
        str(voc_subset),
        "--run_dir",
        str(tmp_path / "run"),
        "--list",
        listed,
    ]
    make_cam.main(
        [*common, "--ckpt", str(checkpoint), "--device", str(device), "--scales", *map(str, scales)]
    )
    return common


def check_image(golden, run_dir, name, scales):
    stored = np.load(cam_file.path_of(run_dir, name), allow_pickle=False)
    maps = cam_file.load(cam_file.path_of(run_dir, name))
    assert np.array_equal(maps.keys, golden[f"{name}/keys"])
    for i, scale in enumerate(scales):
        for kind in ("is_cam", "cam"):
            np.testing.assert_allclose(
                stored[f"{kind}_{i}"], golden[f"{name}/grid_{kind}@{scale}"], atol=1e-3
            )
    np.testing.assert_allclose(maps.is_cam[:, ::2, ::2], golden[f"{name}/is_cam"], atol=1.5e-3)
    assert (maps.keys[maps.is_cam.argmax(0)] == golden[f"{name}/label"]).mean() >= 0.999


def test_an_image_at_small_scales(shared, voc_subset, release_checkpoint, tmp_path, device):
    golden, scales = (
        np.load(shared / "golden/cam_train100.npz", allow_pickle=False),
        [0.5, 0.25, 0.75, 1.0],
    )
    make(tmp_path, voc_subset, release_checkpoint, ["2010_005805"], scales, device)
    check_image(golden, tmp_path / "run", "2010_005805", scales)


def test_three_images_at_the_published_scales(
    shared, voc_subset, release_checkpoint, tmp_path, device
):
    golden, scales = (
        np.load(shared / "golden/cam_full3.npz", allow_pickle=False),
        [1.0, 0.5, 1.5, 2.0],
    )
    names = sorted({key.split("/")[0] for key in golden.files})
    common = make(tmp_path, voc_subset, release_checkpoint, names, scales, device)
    for name in names:
        check_image(golden, tmp_path / "run", name, scales)
    eval_cam.main(common)
    check_report(shared / "golden/cam_full3.json", tmp_path / "run/eval_cam.json")


@pytest.mark.slow
def test_miou_of_a_hundred_images(shared, voc_subset, release_checkpoint, tmp_path, device):
    names = (shared / "golden/cam_train100_names.txt").read_text().split()
    common = make(tmp_path, voc_subset, release_checkpoint, names, [0.5, 0.25, 0.75, 1.0], device)
    eval_cam.main(common)
    check_report(shared / "golden/cam_train100.json", tmp_path / "run/eval_cam.json")
    golden = json.loads((shared / "golden/cam_train100_crf.json").read_text())
    sweep = golden["cam_threshold_sweep"]
    ours = json.loads((tmp_path / "run/eval_cam.json").read_text())[
        "cam_background_threshold_percent_tuned_on_ground_truth"
    ]
    for threshold, miou in sweep.items():
        assert ours[threshold] == pytest.approx(miou, abs=0.05)

    make_seg_labels.main([*common, "--refine", "crf", "--device", str(device)])
    eval_seg.main(common)
    refined = json.loads((tmp_path / "run/eval_seg_label.json").read_text())
    assert refined["miou"] == pytest.approx(
        golden["crf_uncertain_is_background"]["miou_over_classes_in_ground_truth"], abs=0.3
    )


def check_report(golden, ours):
    golden, ours = json.loads(golden.read_text()), json.loads(ours.read_text())
    for kind in ("is_cam", "cam"):
        assert ours[kind]["miou"] == pytest.approx(
            golden[kind]["miou_over_classes_in_ground_truth"], abs=0.05
        )
