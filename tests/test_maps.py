"""Training SIPE, localization maps and their scores, on drawn images."""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from common import (
    NAMES,
    SIZE,
    VOC_CLASSES,
    assert_same_results,
    call,
    data_flags,
    files_below,
    label_of,
    rotate,
    run_stage,
    stop_after,
    times_below,
    weights_of,
    write_lines,
    write_map_settings,
)
from PIL import Image

import eval_cam
import make_cam
import train_resnet50_SIPE as train
from data.datasets import MultiscaleImages, batches_by_size, present_classes
from data.registry import open_dataset
from data.transforms import Scaling
from errors import InputError
from network import sipe
from network.recipe import RECIPES
from tool import cam_file, checkpoint, class_prototypes
from tool.context import Context
from tool.inference import load_network, multiscale_cams


@pytest.fixture(scope="module")
def report(chain, fixed_voc, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(chain / "maps/cam", run_dir / "cam")
    printed = call(eval_cam.main, *data_flags(fixed_voc, run_dir, num_workers=1))
    return run_dir, printed, json.loads((run_dir / "eval_cam.json").read_text())


class TestTraining:
    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain, tiny_backbone):
        content = checkpoint.read(chain / "ckpt/final.pth")
        assert content.keys() == {"arguments", "class_names", "kind", "model"}
        assert content["kind"] == "sipe"
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        recorded = {
            "weights": str(tiny_backbone),
            "max_epochs": 2,
            "batch_size": 2,
            "resize_long": [48, 64],
            "lr": 0.1,
        }
        assert recorded.items() <= content["arguments"].items()
        assert files_below(chain / "tensorboard")

    def test_a_pretrained_backbone_keeps_its_lower_layers_and_statistics(
        self, chain, tiny_backbone
    ):
        after = weights_of(chain / "ckpt/final.pth")
        for name, value in torch.load(tiny_backbone, weights_only=True).items():
            frozen = (
                name.startswith(("conv1.", "bn1.", "layer1.", "layer2."))
                or "running_" in name
                or "num_batches" in name
            )
            assert torch.equal(value, after[f"resnet50.{name}"]) == frozen, name

    def test_from_scratch_every_layer_and_the_statistics_learn(self, fixed_voc, run_dir):
        run_stage("train_sipe", fixed_voc, run_dir, "none", "--batch_size", 6, "--max_epochs", 1)
        torch.manual_seed(15)
        before, after = (
            train.build_model(
                argparse.Namespace(weights="none", backbone="resnet50"),
                len(VOC_CLASSES),
                Context(torch.device("cpu")),
            ).state_dict(),
            weights_of(run_dir / "ckpt/final.pth"),
        )
        for name in (
            "conv1.weight",
            "bn1.weight",
            "bn1.running_mean",
            "bn1.running_var",
            "layer1.0.bn1.running_mean",
            "layer4.2.bn3.bias",
        ):
            assert not torch.equal(before[f"resnet50.{name}"], after[f"resnet50.{name}"]), name
        assert after["resnet50.bn1.num_batches_tracked"] == 1

    def test_validation_changes_nothing(self, chain, fixed_voc, tiny_backbone, run_dir):
        printed = run_stage("train_sipe", fixed_voc, run_dir, tiny_backbone, "--val_list", "val")
        assert printed.count("IS-CAM mIoU") == 2
        ours, theirs = (weights_of(folder / "ckpt/final.pth") for folder in (run_dir, chain))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

    def test_every_mask_of_the_validation_is_there_before_the_first_step(
        self, tiny_voc, tiny_backbone, run_dir
    ):
        mask = tiny_voc / f"SegmentationClass/{NAMES[5]}.png"
        mask.unlink()
        with pytest.raises(InputError, match=str(mask)):
            run_stage("train_sipe", tiny_voc, run_dir, tiny_backbone, "--val_list", "val")
        assert not list((run_dir / "ckpt").glob("*.pth"))

    def test_the_checkpoint_names_a_recipe_but_the_published_one(
        self, chain, fixed_voc, tiny_backbone, run_dir, monkeypatch
    ):
        assert "recipe" not in checkpoint.read(chain / "ckpt/final.pth")["arguments"]
        path = run_dir / "ckpt/final.pth"
        path.parent.mkdir(parents=True)
        shutil.copy(chain / "ckpt/final.pth", path)
        monkeypatch.setattr(class_prototypes, "STRONG", -1.0)  # random weights have no CAM
        run_stage("train_sipe", fixed_voc, run_dir, tiny_backbone, "--recipe", "plus")
        assert path.read_bytes() == (chain / "ckpt/final.pth").read_bytes()
        assert files_below(path.parent) == {"final.pth", "class_prototypes.pth"}
        content = checkpoint.read(path.with_name("class_prototypes.pth"))
        assert content["recipe"] == load_network(path).network.recipe.name == "plus"
        dataset = open_dataset("voc", fixed_voc)
        prototypes, seen = (
            content["class_prototypes"],
            dataset.tags(dataset.samples("train_aug")).any(0),
        )
        assert prototypes[seen].any(1).all() and not prototypes[~seen].any()
        written = times_below(run_dir)
        with pytest.raises(InputError, match=f"^{path}: "):
            run_stage("train_sipe", fixed_voc, run_dir, tiny_backbone)
        run_stage("train_sipe", fixed_voc, run_dir, tiny_backbone, "--recipe", "plus")
        assert times_below(run_dir) == written
        run_stage("make_cam", fixed_voc, run_dir, tiny_backbone)
        assert json.loads((run_dir / "cam/settings.json").read_text())["recipe"] == "plus"

    def test_other_tags_are_another_training(self, chain, tiny_voc, tiny_backbone, run_dir):
        (run_dir / "ckpt").mkdir(parents=True)
        os.link(chain / "ckpt/final.pth", run_dir / "ckpt/final.pth")
        assert "is complete" in run_stage("train_sipe", tiny_voc, run_dir, tiny_backbone)
        annotation = tiny_voc / f"Annotations/{NAMES[1]}.xml"
        annotation.write_text(annotation.read_text().replace("dog", "cow"))
        with pytest.raises(InputError, match=r"final\.pth"):
            run_stage("train_sipe", tiny_voc, run_dir, tiny_backbone)


class TestBackbones:
    FLAGS = ("--weights", "none", "--batch_size", 3, "--max_epochs", 1, "--lr", 0.01)

    @pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
    def test_a_network_of_timm_goes_from_tags_to_masks(self, name, fixed_voc, run_dir):
        """A stopped run ends with the same weights; later stages read the backbone's name."""
        pytest.importorskip("timm", reason="timm is not installed")
        flags = [*self.FLAGS, "--backbone", f"timm:{name}"]
        run_stage("train_sipe", fixed_voc, run_dir, Path(), *flags)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train, "train_step", 1)
            run_stage("train_sipe", fixed_voc, run_dir / "stopped", Path(), *flags)
        run_stage("train_sipe", fixed_voc, run_dir / "stopped", Path(), *flags)
        assert_same_results(run_dir / "stopped/ckpt/final.pth", run_dir / "ckpt/final.pth")
        for stage in ("make_cam", "labels_crf"):
            run_stage(stage, fixed_voc, run_dir, Path())
        run_stage(
            "predict",
            fixed_voc,
            run_dir,
            Path(),
            "--ckpt",
            run_dir / "ckpt/final.pth",
            "--tags",
            "cat",
            "dog",
        )
        assert cam_file.load(cam_file.path_of(run_dir, NAMES[0])).is_cam.shape == (3, *SIZE)
        assert all(
            label_of(run_dir / folder, NAMES[0]).shape == SIZE for folder in ("crf", "predictions")
        )

    def test_another_backbone_takes_a_class_and_a_line(self, fixed_voc, run_dir, monkeypatch):
        """docs/architecture.md, "Where to add"."""

        class Strided(torch.nn.Conv2d):
            widths = (4, 4, 4, 4)

            def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
                return [super(Strided, self).forward(image)] * 4

        monkeypatch.setitem(sipe.BACKBONES, "strided", lambda frozen: Strided(3, 4, 8, 8))
        run_stage("train_sipe", fixed_voc, run_dir, Path(), *self.FLAGS, "--backbone", "strided")
        run_stage("make_cam", fixed_voc, run_dir, Path())
        assert type(load_network(run_dir / "ckpt/final.pth").network.backbone) is Strided
        with np.load(cam_file.path_of(run_dir, NAMES[0])) as arrays:
            assert arrays["is_cam_0"].shape == (3, SIZE[0] // 8, SIZE[1] // 8)


class TestLocalization:
    def test_a_file_holds_the_tagged_classes_at_the_size_of_the_image(self, chain):
        assert files_below(chain / "maps/cam") == {
            "settings.json",
            *(f"{name}.npz" for name in NAMES),
        }
        for i, name in enumerate(NAMES):
            maps = cam_file.load(cam_file.path_of(chain / "maps", name))
            assert maps.keys.tolist() == ([0, 8, 12] if i % 2 == 0 else [0, 12])
            assert maps.size == SIZE
            assert maps.is_cam.shape == maps.cam.shape == (len(maps.keys), *SIZE)
            assert (
                0
                <= min(maps.is_cam.min(), maps.cam.min())
                <= max(maps.is_cam.max(), maps.cam.max())
                <= 1
            )

    def test_images_of_one_size_in_a_batch_get_the_maps_that_each_gets_alone(
        self, checkpoints, tiny_voc
    ):
        """Three sizes, one of them larger than the others by EXIF's turn alone."""
        for name, size in ((NAMES[1], (48, 64)), (NAMES[4], (80, 32))):
            Image.open(tiny_voc / f"JPEGImages/{name}.jpg").resize(size).save(
                tiny_voc / f"JPEGImages/{name}.jpg"
            )
        rotate(*(tiny_voc / f"JPEGImages/{name}.jpg" for name in (NAMES[0], NAMES[2])))
        dataset, scales = open_dataset("voc", tiny_voc), (0.5, 1.5, 1.0)
        samples = dataset.samples("train")
        model, context = (
            load_network(checkpoints["ours"], dataset.class_names).network.eval(),
            Context(torch.device("cpu")),
        )
        items = list(MultiscaleImages(samples, dataset.tags(samples), Scaling(scales)))
        batches = list(batches_by_size(items, 4))
        indices = []
        for batch in batches:
            indices.append([item.index for item in batch])
        assert sorted(indices) == [[0, 1, 2], [3, 5], [4]]
        for batch in batches:
            for item, found in zip(batch, multiscale_cams(model, batch, context)):
                keys, maps = found.class_ids, found.by_kind
                (own,) = multiscale_cams(model, [item], context)
                own_keys, own_maps = own.class_ids, own.by_kind
                assert (
                    np.array_equal(keys, own_keys)
                    and keys.tolist() == present_classes(item.tags).tolist()
                )
                for kind in cam_file.KINDS:
                    for scale, grid in zip(scales, maps[kind], strict=True):
                        height, width = (-(-round(scale * side) // 16) for side in item.size)
                        assert grid.shape == (len(keys), height, width)
                    for grid, own_grid in zip(maps[kind], own_maps[kind]):
                        torch.testing.assert_close(grid, own_grid, atol=1e-6, rtol=0)

    def test_batches_are_no_part_of_how_maps_are_made(
        self, checkpoints, fixed_voc, tiny_backbone, tmp_path
    ):
        two = ["--list", write_lines(tmp_path / "two.txt", *NAMES[:2])]
        ckpt = ["--ckpt", checkpoints["ours"]]
        run_stage("make_cam", fixed_voc, tmp_path / "batches", tiny_backbone, *ckpt, *two)
        assert "6 images, 4 of them to do" in run_stage(
            "make_cam", fixed_voc, tmp_path / "batches", tiny_backbone, *ckpt, "--batch_size", 4
        )
        run_stage("make_cam", fixed_voc, tmp_path / "alone", tiny_backbone, *ckpt)
        for name in NAMES:
            ours, theirs = (
                np.load(cam_file.path_of(tmp_path / where, name), allow_pickle=False)
                for where in ("batches", "alone")
            )
            assert ours.files == theirs.files
            for array in ours.files:
                np.testing.assert_allclose(ours[array], theirs[array], atol=1e-3)  # float16

    def test_a_recipe_makes_other_is_cams_of_the_same_checkpoint(
        self, chain, fixed_voc, tiny_backbone, run_dir
    ):
        path, plus = run_dir / "ckpt/final.pth", ["--recipe", "plus"]
        with pytest.raises(InputError, match=f"^{chain / 'ckpt/final.pth'}: .*prototypes"):
            run_stage(
                "make_cam",
                fixed_voc,
                run_dir,
                tiny_backbone,
                "--ckpt",
                chain / "ckpt/final.pth",
                *plus,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(chain / "ckpt/final.pth", path)
        run_stage("train_sipe", fixed_voc, run_dir, tiny_backbone, *plus)
        published_way = ["--recipe", "sipe"]
        run_stage("make_cam", fixed_voc, run_dir, tiny_backbone, *published_way)
        settings = run_dir / "cam/settings.json"
        content = json.loads(settings.read_text())
        assert content.pop("recipe") == "sipe"
        settings.write_text(json.dumps(content))  # as before there were recipes
        assert "6 images, 0 of them to do" in run_stage(
            "make_cam", fixed_voc, run_dir, tiny_backbone, *published_way
        )
        published = cam_file.load(cam_file.path_of(run_dir, NAMES[0]))
        with pytest.raises(InputError, match=f"^{settings}: .*recipe"):
            run_stage("make_cam", fixed_voc, run_dir, tiny_backbone)
        for scales, background in (
            ([0.5, 1.5], RECIPES["plus"].enlarged_background),
            ([1.0, 0.5], RECIPES["plus"].background),
        ):
            run_stage(
                "make_cam", fixed_voc, run_dir, tiny_backbone, "--overwrite", "--scales", *scales
            )
            found = cam_file.load(cam_file.path_of(run_dir, NAMES[0]))
            assert (found.is_cam[0] == np.float32(background)).all()
            predict = ["--ckpt", path, "--tags", "cat", "dog", "--scales", *scales, "--overwrite"]
            run_stage("predict", fixed_voc, run_dir, tiny_backbone, *predict)
            assert np.array_equal(
                label_of(run_dir / "predictions", NAMES[0]), found.label("is_cam")
            )
        assert np.array_equal(found.cam, published.cam) and not np.array_equal(
            found.is_cam, published.is_cam
        )

    def test_only_the_wanted_maps_are_kept(self, chain, fixed_voc, tiny_backbone, tmp_path):
        flags = [
            "--ckpt",
            chain / "ckpt/final.pth",
            "--list",
            write_lines(tmp_path / "one.txt", NAMES[0]),
            "--maps",
            "is_cam",
        ]
        run_stage("make_cam", fixed_voc, tmp_path / "run", tiny_backbone, *flags)
        with np.load(cam_file.path_of(tmp_path / "run", NAMES[0]), allow_pickle=False) as arrays:
            assert sorted(arrays.files) == ["is_cam_0", "is_cam_1", "keys", "size"]
        call(
            eval_cam.main, *data_flags(fixed_voc, tmp_path / "run"), "--list", tmp_path / "one.txt"
        )
        assert "cam" not in json.loads((tmp_path / "run/eval_cam.json").read_text())

    @pytest.mark.parametrize("kind", ["ours", "authors"])
    def test_a_checkpoint_for_other_classes_is_refused(
        self, kind, checkpoints, fixed_voc, tmp_path
    ):
        shutil.copytree(fixed_voc / "JPEGImages", tmp_path / "folder/images")
        write_lines(tmp_path / "folder/classes.txt", "cat", "dog")
        write_lines(tmp_path / "folder/tags.csv", *(f"{name},dog" for name in NAMES))
        flags = [
            "--dataset",
            "folder",
            *data_flags(tmp_path / "folder", tmp_path / "run"),
            "--device",
            "cpu",
        ]
        with pytest.raises(InputError, match=str(checkpoints[kind])):
            call(make_cam.main, *flags, "--ckpt", checkpoints[kind])
        assert not (tmp_path / "run").exists()

    def test_a_segmentation_network_is_refused(
        self, checkpoints, fixed_voc, tiny_backbone, tmp_path
    ):
        with pytest.raises(InputError, match=str(checkpoints["segmentation"])):
            run_stage(
                "make_cam",
                fixed_voc,
                tmp_path / "run",
                tiny_backbone,
                "--ckpt",
                checkpoints["segmentation"],
            )


class TestEvaluation:
    def test_the_report_says_what_was_measured_on_what(self, report, chain, fixed_voc):
        _, printed, content = report
        assert (content["list"], content["pictures"]) == ("train", 6)
        for kind in cam_file.KINDS:
            matrix, expected = np.array(content[kind]["confusion"]), np.zeros((21, 21), int)
            for name in NAMES:
                label = cam_file.load(cam_file.path_of(chain / "maps", name)).label(kind)
                np.add.at(
                    expected,
                    (np.asarray(Image.open(fixed_voc / f"SegmentationClass/{name}.png")), label),
                    1,
                )
            assert np.array_equal(matrix, expected)
            scored = {name: iou for name, iou in content[kind]["iou"].items() if iou is not None}
            assert list(content[kind]["iou"]) == list(VOC_CLASSES) and scored.keys() == {
                "background",
                "cat",
                "dog",
            }
            assert content[kind]["miou"] == pytest.approx(sum(scored.values()) / 3)
            assert f"{content[kind]['miou']:.2f}" in printed

    def test_the_threshold_sweep_scores_the_general_cam_over_fixed_backgrounds(
        self, report, chain, fixed_voc
    ):
        sweep = report[2]["cam_background_threshold_percent_tuned_on_ground_truth"]
        assert [int(threshold) for threshold in sweep] == list(range(5, 65, 5))
        hits = []
        for name in NAMES:
            maps = cam_file.load(cam_file.path_of(chain / "maps", name))
            truth = Image.open(fixed_voc / f"SegmentationClass/{name}.png")
            classes = maps.cam[1:]
            strongest = maps.keys[1:][classes.argmax(0)]
            label = np.where(classes.max(0) > 0.4, strongest, 0)
            hits.append((np.asarray(truth), label))
        truth, label = (np.stack(parts) for parts in zip(*hits))
        ious = [
            (truth == label)[truth == k].sum() / ((truth == k) | (label == k)).sum()
            for k in (0, 8, 12)
        ]
        assert sweep["40"] == pytest.approx(100 * np.mean(ious))

    def test_perfect_maps_score_a_hundred(self, fixed_voc, tmp_path):
        for name in NAMES:
            mask = np.asarray(Image.open(fixed_voc / f"SegmentationClass/{name}.png"))
            maps = (mask == np.unique(mask)[:, None, None]).astype(np.float32)
            cam_file.save(
                cam_file.path_of(tmp_path / "run", name),
                cam_file.CamGrids(np.unique(mask), mask.shape, is_cam=[maps], cam=[maps]),
            )
        write_map_settings(tmp_path / "run")
        call(eval_cam.main, *data_flags(fixed_voc, tmp_path / "run"))
        content = json.loads((tmp_path / "run/eval_cam.json").read_text())
        assert content["is_cam"]["miou"] == content["cam"]["miou"] == 100

    def test_a_mask_of_nothing_but_255_counts_for_nothing(self, chain, tiny_voc, tmp_path):
        shutil.copytree(chain / "cam", tmp_path / "run/cam")
        flags = [
            *data_flags(tiny_voc, tmp_path / "run"),
            "--list",
            write_lines(tmp_path / "list.txt", *NAMES[:2]),
        ]
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(
            tiny_voc / f"SegmentationClass/{NAMES[0]}.png"
        )
        call(eval_cam.main, *flags)
        assert (
            np.sum(json.loads((tmp_path / "run/eval_cam.json").read_text())["is_cam"]["confusion"])
            == SIZE[0] * SIZE[1]
        )
        write_lines(tmp_path / "list.txt", NAMES[0])
        with pytest.raises(InputError, match=r"list\.txt"):
            call(eval_cam.main, *flags)

    @pytest.mark.parametrize("spoilt", ["cam/{}.npz", "SegmentationClass/{}.png"])
    def test_a_missing_map_or_mask_is_named(self, spoilt, chain, tiny_voc, tmp_path):
        shutil.copytree(chain / "cam", tmp_path / "run/cam")
        path = (tmp_path / "run" if spoilt.startswith("cam") else tiny_voc) / spoilt.format(
            NAMES[3]
        )
        path.unlink()
        with pytest.raises(InputError, match=str(path)):
            call(eval_cam.main, *data_flags(tiny_voc, tmp_path / "run"))
