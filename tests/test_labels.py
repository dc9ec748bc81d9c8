"""Inter-pixel labels, IRN, pseudo labels and their scores, from drawn maps."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import (
    NAMES,
    SIZE,
    VOC_CLASSES,
    call,
    data_flags,
    draw_maps,
    files_below,
    label_of,
    probability_of,
    run_stage,
    weights_of,
)
from PIL import Image

import eval_seg
import make_seg_labels
import train_irn
from data.images import read_image
from data.transforms import normalize, to_tensor
from errors import InputError
from network.irn import IRN
from network.random_walk import random_walk
from tool import cam_file, checkpoint, crf
from tool.inference import load_irn

CROP = 80
LABELS = ("none", "crf", "seg_label")


def tags_of(i: int) -> set[int]:
    """The class ids of a drawn image, background included."""
    return {0, 8, 12} if i % 2 == 0 else {0, 12}


def truth_of(voc, name: str) -> np.ndarray:
    return np.asarray(Image.open(voc / f"SegmentationClass/{name}.png"))


def test_inter_pixel_labels_hold_the_tagged_classes_and_uncertainty(chain):
    assert files_below(chain / "ir_label") == {"settings.json", *(f"{name}.png" for name in NAMES)}
    for i, name in enumerate(NAMES):
        label = label_of(chain / "ir_label", name)
        assert label.shape == SIZE
        assert tags_of(i) <= set(np.unique(label)) <= tags_of(i) | {255}


class TestTraining:
    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain, tiny_backbone):
        content = checkpoint.read(chain / "ckpt/irn.pth")
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        recorded = {
            "weights": str(tiny_backbone),
            "crop_size": CROP,
            "scales": [0.5, 1.5],
            "batch_size": 3,
        }
        assert recorded.items() <= content["arguments"].items()
        assert files_below(chain / "tensorboard/irn")

    def test_the_backbone_keeps_its_weights_and_every_head_learns(self, chain, tiny_backbone):
        after = weights_of(chain / "ckpt/irn.pth")
        assert all(
            torch.equal(value, after[f"resnet50.{name}"])
            for name, value in torch.load(tiny_backbone, weights_only=True).items()
        )
        torch.manual_seed(15)
        start = train_irn.IRN().state_dict()
        assert [
            name
            for name in after
            if name.startswith("fc_") and torch.equal(start[name], after[name])
        ] == []

    def test_the_mean_displacement_over_the_images_is_subtracted(self, chain, fixed_voc):
        loaded = load_irn(chain / "ckpt/irn.pth")
        model = loaded.network.eval()
        assert loaded.crop_size == CROP
        means = []
        for name in NAMES:
            padded = torch.zeros(1, 3, CROP, CROP)
            padded[:, :, :48, :64] = normalize(
                to_tensor(read_image(fixed_voc / f"JPEGImages/{name}.jpg"))[None]
            )
            with torch.no_grad():
                means.append(model(padded)[1].mean((0, 2, 3)))
        assert torch.stack(means).mean(0).abs().max() < 1e-4
        assert torch.stack(means).abs().max() > 1e-3

    def test_other_labels_are_another_training(self, chain, fixed_voc, tiny_backbone, run_dir):
        shutil.copytree(chain / "ir_label", run_dir / "ir_label")
        shutil.copytree(chain / "ckpt", run_dir / "ckpt")
        labels = run_dir / "ir_label"
        shutil.copy(labels / f"{NAMES[0]}.png", labels / f"{NAMES[2]}.png")
        with pytest.raises(InputError, match=r"irn\.pth"):
            run_stage("train_irn", fixed_voc, run_dir, tiny_backbone)


class TestPseudoLabels:
    @pytest.mark.parametrize("folder", LABELS)
    def test_a_label_holds_tagged_classes_at_the_size_of_the_image(self, chain, folder):
        endings = (".png", ".npz") if folder != "none" else (".png",)
        assert files_below(chain / folder) == {
            "settings.json",
            *(f"{name}{ending}" for name in NAMES for ending in endings),
        }
        for i, name in enumerate(NAMES):
            label = label_of(chain / folder, name)
            assert label.shape == SIZE and {0, 12} <= set(np.unique(label)) <= tags_of(i)
            if folder != "none":
                keys, probability = probability_of(chain / folder, name)
                assert keys.tolist() == sorted(tags_of(i)) and probability.shape == (
                    len(keys),
                    *SIZE,
                )

    def test_each_refinement_starts_from_the_maps(self, chain, fixed_voc, tiny_backbone, run_dir):
        shutil.copytree(chain / "cam", run_dir / "cam")
        run_stage(
            "labels_crf",
            fixed_voc,
            run_dir,
            tiny_backbone,
            "--crf_on",
            "maps",
            "--label_dir",
            run_dir / "on_maps",
        )
        run_stage(
            "labels_none",
            fixed_voc,
            run_dir,
            tiny_backbone,
            "--map",
            "cam",
            "--label_dir",
            run_dir / "general",
        )
        for name in NAMES[:2]:
            maps, image = (
                cam_file.load(cam_file.path_of(chain, name)),
                read_image(fixed_voc / f"JPEGImages/{name}.jpg"),
            )
            expected = {
                chain / "none": maps.is_cam,
                chain / "crf": crf.refine_label(image, maps.is_cam.argmax(0), len(maps.keys)),
                run_dir / "on_maps": crf.refine_maps(image, maps.is_cam),
                run_dir / "general": maps.cam,
            }
            for folder, probability in expected.items():
                assert np.array_equal(label_of(folder, name), maps.keys[probability.argmax(0)]), (
                    folder
                )
            assert not np.array_equal(
                label_of(run_dir / "general", name), label_of(chain / "none", name)
            )

    def test_irn_walks_on_its_grid(self, chain, fixed_voc, tiny_backbone, run_dir, monkeypatch):
        """Maps at a quarter of the size, to the power 1.5, walk two steps.

        Then they are four times as large again, and divided by their maximum.
        """
        edge = torch.rand(1, 12, 16, generator=torch.Generator().manual_seed(0)) / 2
        monkeypatch.setattr(IRN, "find_edges", lambda model, image, crop_size: edge)
        shutil.copytree(chain / "cam", run_dir / "cam")
        flags = ["--irn_ckpt", chain / "ckpt/irn.pth", "--beta", 3, "--exp_times", 1]
        run_stage("labels_irn", fixed_voc, run_dir, tiny_backbone, *flags)
        for name in NAMES:
            maps = torch.from_numpy(cam_file.load(cam_file.path_of(run_dir, name)).is_cam)
            quarter = F.interpolate(maps[None], (12, 16), mode="bilinear", align_corners=False)[0]
            walked = F.interpolate(
                random_walk(quarter**1.5, edge[0], 5, 3, 1)[None],
                SIZE,
                mode="bilinear",
                align_corners=False,
            )[0]
            with np.load(run_dir / f"seg_label/{name}.npz") as arrays:
                np.testing.assert_allclose(arrays["probability"], walked / walked.max(), atol=1e-3)

    def test_the_authors_irn_loads_as_it_is(
        self, chain, fixed_voc, tiny_backbone, run_dir, monkeypatch
    ):
        """A plain state dict with what else their program keeps in it.

        It was trained at 512, to which images are padded.
        """
        tensors = weights_of(chain / "ckpt/irn.pth")
        draw_maps(fixed_voc, run_dir)
        torch.save(
            tensors
            | {"path_indices0": torch.zeros(4, 2), "mean_shift.running_mean": torch.zeros(2)},
            run_dir / "theirs.pth",
        )
        loaded = load_irn(run_dir / "theirs.pth")
        assert loaded.crop_size == 512 and all(
            torch.equal(tensors[name], value) for name, value in loaded.network.state_dict().items()
        )

    def test_labels_of_another_irn_do_not_mix(self, chain, fixed_voc, tiny_backbone, tmp_path):
        content = torch.load(chain / "ckpt/irn.pth", weights_only=True)
        torch.save({"model": content["model"]}, tmp_path / "irn.pth")
        with pytest.raises(InputError, match=str(chain / "seg_label/settings.json")):
            run_stage(
                "labels_irn", fixed_voc, chain, tiny_backbone, "--irn_ckpt", tmp_path / "irn.pth"
            )
        (tmp_path / "irn.pth").unlink()

    def test_maps_of_other_classes_are_refused(self, chain, fixed_voc, tiny_backbone, run_dir):
        shutil.copytree(chain / "cam", run_dir / "cam")
        path = run_dir / "cam/settings.json"
        path.write_text(path.read_text().replace('"dog"', '"wolf"'))
        with pytest.raises(InputError, match=str(path)):
            run_stage("labels_none", fixed_voc, run_dir, tiny_backbone)

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
    @pytest.mark.parametrize(
        ("name", "num_workers"), [("labels_crf", 2), ("labels_irn", 2), ("make_ir_labels", 1)]
    )
    def test_any_number_of_workers_makes_the_same_labels(
        self, name, num_workers, chain, fixed_voc, tiny_backbone, run_dir
    ):
        shutil.copytree(chain / "cam", run_dir / "cam")
        irn = ["--irn_ckpt", chain / "ckpt/irn.pth"] if name == "labels_irn" else []
        run_stage(name, fixed_voc, run_dir, tiny_backbone, *irn, num_workers=num_workers)
        folder = {"labels_crf": "crf", "labels_irn": "seg_label"}.get(name, "ir_label")
        for image in NAMES:
            assert np.array_equal(
                label_of(run_dir / folder, image), label_of(chain / folder, image)
            )


def test_images_of_unlike_sizes_walk_together_as_alone():
    rng = np.random.default_rng(0)
    edges = [
        torch.from_numpy(rng.random(size, dtype=np.float32)) for size in ((6, 9), (11, 4), (8, 8))
    ]
    maps = [
        torch.from_numpy(rng.random((k, *edge.shape), dtype=np.float32))
        for k, edge in zip((2, 4, 3), edges)
    ]
    together = make_seg_labels.walk(edges, maps, beta=2, exp_times=4)
    for edge, one, walked in zip(edges, maps, together):
        (alone,) = make_seg_labels.walk([edge], [one], beta=2, exp_times=4)
        torch.testing.assert_close(walked, alone, atol=1e-6, rtol=1e-5)
        assert (alone - one * (1 - edge)).abs().max() > 0.1


class TestEvaluation:
    @pytest.mark.parametrize(
        ("folder", "list_name"),
        [("crf", "train"), ("seg_label", "train"), ("ir_label", "train"), ("seg_pred", "val")],
    )
    def test_the_report_says_what_was_measured_on_what(
        self, folder, list_name, chain, fixed_voc, tmp_path
    ):
        flags = ["--list", list_name, "--label_dir", chain / folder]
        printed = call(eval_seg.main, *data_flags(fixed_voc, tmp_path), *flags)
        content, expected, unlabelled = (
            json.loads((tmp_path / f"eval_{folder}.json").read_text()),
            np.zeros((21, 21), int),
            0,
        )
        for name in NAMES:
            truth, label = truth_of(fixed_voc, name), label_of(chain / folder, name)
            unlabelled += int((label == 255).sum())
            np.add.at(expected, (truth[label != 255], label[label != 255]), 1)
        assert (content["list"], content["pictures"]) == (list_name, 6)
        assert np.array_equal(content["confusion"], expected)
        assert content["unlabelled"] == pytest.approx(100 * unlabelled / (6 * SIZE[0] * SIZE[1]))
        assert (unlabelled > 0) == (folder == "ir_label")
        for name in VOC_CLASSES:
            shares = [
                content[measure][name] for measure in ("iou", "false_positive", "false_negative")
            ]
            assert (
                (shares == [None] * 3)
                if name not in ("background", "cat", "dog")
                else sum(shares) == pytest.approx(100)
            ), name
        assert content["miou"] == pytest.approx(
            np.mean([value for value in content["iou"].values() if value is not None])
        )
        assert f"{content['miou']:.2f}" in printed
        for ending in (".png", "_sheet.png"):
            with Image.open(tmp_path / f"eval_{folder}{ending}") as image:
                image.load()

    def test_masks_score_a_hundred_as_labels(self, tiny_voc, tmp_path):
        """And 255 in the mask counts neither as labelled nor as unlabelled."""
        mask = truth_of(tiny_voc, NAMES[0]).copy()
        shutil.copytree(tiny_voc / "SegmentationClass", tmp_path / "labels")
        mask[:10] = 255
        Image.fromarray(mask).save(tiny_voc / f"SegmentationClass/{NAMES[0]}.png")
        call(
            eval_seg.main,
            *data_flags(tiny_voc, tmp_path / "run", num_workers=1),
            "--label_dir",
            tmp_path / "labels",
        )
        content = json.loads((tmp_path / "run/eval_labels.json").read_text())
        assert (content["miou"], content["pixel_accuracy"], content["unlabelled"]) == (100, 100, 0)
        height, width = SIZE
        known_pixels = 6 * height * width - 10 * width
        assert np.sum(content["confusion"]) == known_pixels

    @pytest.mark.parametrize("spoil", ["gone", "size", "class", "colour", "folder", "all 255"])
    def test_labels_that_cannot_be_scored_are_named(self, spoil, fixed_voc, tmp_path):
        shutil.copytree(fixed_voc / "SegmentationClass", tmp_path / "labels")
        path = tmp_path / f"labels/{NAMES[3]}.png"
        spoilt = {
            "size": np.zeros((48, 63), np.uint8),
            "class": np.full(SIZE, 21, np.uint8),
            "colour": np.zeros((*SIZE, 3), np.uint8),
        }
        if spoil in spoilt:
            Image.fromarray(spoilt[spoil]).save(path)
        elif spoil == "gone":
            path.unlink()
        elif spoil == "folder":
            shutil.rmtree(tmp_path / "labels")
        else:
            for name in NAMES:
                Image.fromarray(np.full(SIZE, 255, np.uint8)).save(tmp_path / f"labels/{name}.png")
        with pytest.raises(InputError) as error:
            call(
                eval_seg.main,
                *data_flags(fixed_voc, tmp_path / "run"),
                "--label_dir",
                tmp_path / "labels",
            )
        named = {"folder": str(tmp_path / "labels"), "all 255": "--list train"}.get(
            spoil, str(path)
        )
        assert str(error.value).startswith(named)
        assert not files_below(tmp_path / "run")

    def test_labels_of_other_classes_are_refused(self, chain, fixed_voc, tmp_path):
        shutil.copytree(chain / "none", tmp_path / "labels")
        path = tmp_path / "labels/settings.json"
        path.write_text(path.read_text().replace('"dog"', '"wolf"'))
        with pytest.raises(InputError, match=str(path)):
            call(
                eval_seg.main,
                *data_flags(fixed_voc, tmp_path / "run"),
                "--label_dir",
                tmp_path / "labels",
            )
