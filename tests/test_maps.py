"""Training SIPE, recipes, localization maps and their scores, on drawn images."""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import (
    NAMES,
    SIZE,
    VOC_CLASSES,
    Run,
    assert_same_results,
    bytes_below,
    call,
    copy,
    data_flags,
    equal_tensors,
    files_below,
    label_of,
    read_mask,
    refused,
    rotate,
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
from data.registry import Dataset, open_dataset
from data.transforms import Scaling
from errors import InputError
from network import sipe
from network.recipe import RECIPES
from tool import cam_file, checkpoint, class_prototypes
from tool.context import Context
from tool.inference import load_network, multiscale_cams
from tool.outputs import read_json, write_json

CPU = torch.device("cpu")
CHECKPOINT = "ckpt/final.pth"
PROTOTYPES = "ckpt/class_prototypes.pth"
FROZEN = ("conv1.", "bn1.", "layer1.", "layer2.")  # of a pretrained ResNet-50
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_maps(run_dir: Path, name: str) -> cam_file.CamFile:
    return cam_file.load(cam_file.path_of(run_dir, name))


def read_arrays(run_dir: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays in a CAM file."""
    with np.load(cam_file.path_of(run_dir, name), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


class TestTraining:
    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain):
        content = checkpoint.read(chain.folder / CHECKPOINT)
        assert content.keys() == {"arguments", "class_names", "kind", "model"}
        assert content["kind"] == "sipe"
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        expected = {
            "weights": str(chain.weights),
            "max_epochs": 2,
            "batch_size": 2,
            "resize_long": [48, 64],
            "lr": 0.1,
        }
        assert expected.items() <= content["arguments"].items()
        assert files_below(chain.folder / "tensorboard")

    def test_a_pretrained_backbone_keeps_its_lower_layers_and_statistics(self, chain):
        after = weights_of(chain.folder / CHECKPOINT)
        for name, value in torch.load(chain.weights, weights_only=True).items():
            is_frozen = name.startswith(FROZEN) or name.endswith(STATISTICS)
            assert torch.equal(value, after[f"resnet50.{name}"]) == is_frozen, name

    def test_from_scratch_every_layer_and_the_statistics_learn(self, run):
        from_scratch = replace(run, weights="none")
        from_scratch.stage("train_sipe", "--batch_size", 6, "--max_epochs", 1)
        after = weights_of(run.folder / CHECKPOINT)
        torch.manual_seed(15)  # the default of --seed
        args = argparse.Namespace(weights="none", backbone="resnet50")
        before = train.build_model(args, len(VOC_CLASSES), Context(CPU)).state_dict()
        unchanged = equal_tensors(before, after)
        for name in (
            "conv1.weight",
            "bn1.weight",
            "bn1.running_mean",
            "bn1.running_var",
            "layer1.0.bn1.running_mean",
            "layer4.0.bn3.bias",
        ):
            assert f"resnet50.{name}" not in unchanged, name
        assert after["resnet50.bn1.num_batches_tracked"] == 1

    def test_validation_changes_nothing(self, chain, run):
        printed = run.stage("train_sipe", "--val_list", "val")
        assert printed.count("IS-CAM mIoU") == 2
        assert_same_results(run.folder / CHECKPOINT, chain.folder / CHECKPOINT)

    def test_every_mask_of_the_validation_is_there_before_the_first_step(self, own_run):
        mask = own_run.voc / f"SegmentationClass/{NAMES[5]}.png"
        mask.unlink()
        with refused(mask):
            own_run.stage("train_sipe", "--val_list", "val")
        assert not list((own_run.folder / "ckpt").glob("*.pth"))

    def test_other_tags_are_another_training(self, chain, own_run):
        copy(chain.folder / CHECKPOINT, own_run.folder / CHECKPOINT)
        assert "is complete" in own_run.stage("train_sipe")
        annotation = own_run.voc / f"Annotations/{NAMES[1]}.xml"
        annotation.write_text(annotation.read_text().replace("dog", "cow"))
        with refused(own_run.folder / CHECKPOINT):
            own_run.stage("train_sipe")


TIMM_NETWORKS = ("test_resnet", "test_convnext", "test_vit")


class TestBackbones:
    FLAGS = ("--batch_size", 3, "--max_epochs", 1, "--lr", 0.01)

    @pytest.fixture
    def run(self, run) -> Run:
        return replace(run, weights="none")

    @pytest.mark.parametrize("name", TIMM_NETWORKS)
    def test_a_stopped_training_of_a_network_of_timm_ends_with_the_same_weights(self, name, run):
        pytest.importorskip("timm", reason="timm is not installed")
        flags = [*self.FLAGS, "--backbone", f"timm:{name}"]
        run.stage("train_sipe", *flags)
        stopped = replace(run, folder=run.folder / "stopped")
        stopped.stop_stage("train_sipe", *flags, calls=1)
        stopped.stage("train_sipe", *flags)
        assert_same_results(stopped.folder / CHECKPOINT, run.folder / CHECKPOINT)

    @pytest.mark.parametrize("name", TIMM_NETWORKS)
    def test_later_stages_read_the_name_of_the_backbone_from_the_checkpoint(self, name, run):
        pytest.importorskip("timm", reason="timm is not installed")
        run.stage("train_sipe", *self.FLAGS, "--backbone", f"timm:{name}")
        run.stage("make_cam")
        run.stage("labels_crf")
        run.stage("predict", "--ckpt", run.folder / CHECKPOINT, "--tags", "cat", "dog")
        assert load_maps(run.folder, NAMES[0]).is_cam.shape == (3, *SIZE)
        for stage in ("labels_crf", "predict"):
            assert label_of(run.makes(stage), NAMES[0]).shape == SIZE

    def test_another_backbone_takes_a_class_and_a_line(self, run, monkeypatch):
        """As docs/architecture.md says in "Where to add"."""
        monkeypatch.setitem(sipe.BACKBONES, "strided", lambda frozen: Strided(3, 4, 8, 8))
        run.stage("train_sipe", *self.FLAGS, "--backbone", "strided")
        run.stage("make_cam")
        assert type(load_network(run.folder / CHECKPOINT).network.backbone) is Strided
        grid = (SIZE[0] // 8, SIZE[1] // 8)
        assert read_arrays(run.folder, NAMES[0])["is_cam_0"].shape == (3, *grid)


class Strided(torch.nn.Conv2d):
    """A backbone of one convolution."""

    widths = (4, 4, 4, 4)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [super().forward(image)] * 4


@pytest.fixture(scope="module")
def plus(chain, tmp_path_factory) -> Iterator[Run]:
    """A run of stage 1 with the recipe plus; to read only."""
    run = replace(chain, folder=tmp_path_factory.mktemp("plus"))
    copy(chain.folder / CHECKPOINT, run.folder / CHECKPOINT)
    train_plus(run)
    yield run
    shutil.rmtree(run.folder)


def train_plus(run: Run, *more: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_prototypes, "STRONG", -1.0)  # random weights have no strong CAM
        run.stage("train_sipe", "--recipe", "plus", *more)


def read_prototypes(run: Run) -> torch.Tensor:
    return checkpoint.read(run.folder / PROTOTYPES)["class_prototypes"]


class TestRecipes:
    @pytest.fixture
    def run(self, plus, run) -> Run:
        """The test's own run, which begins with the checkpoint and prototypes of plus."""
        copy(plus.folder / "ckpt", run.folder / "ckpt")
        return run

    @pytest.fixture
    def run_of_old(self, plus, run_dir) -> Run:
        """A run whose checkpoint holds its class prototypes and names its recipe."""
        content = checkpoint.read(plus.folder / CHECKPOINT)
        del content["kind"]
        content["model"]["class_prototypes"] = read_prototypes(plus)
        content["arguments"]["recipe"] = "plus"
        checkpoint.save(run_dir / CHECKPOINT, content)
        return replace(plus, folder=run_dir)

    def test_the_class_prototypes_lie_beside_the_checkpoint_which_stays_as_it_is(self, plus, chain):
        path = plus.folder / CHECKPOINT
        assert files_below(path.parent) == {"final.pth", "class_prototypes.pth"}
        assert path.read_bytes() == (chain.folder / CHECKPOINT).read_bytes()
        assert checkpoint.read(plus.folder / PROTOTYPES)["recipe"] == "plus"

    def test_the_classes_on_training_images_have_prototypes(self, plus):
        dataset = open_dataset("voc", plus.voc)
        is_shown = dataset.tags(dataset.samples("train_aug")).any(0)
        has_prototype = read_prototypes(plus).any(1).numpy()
        assert np.array_equal(has_prototype, is_shown)

    def test_a_run_keeps_its_recipe(self, run):
        before = times_below(run.folder)
        with refused(run.folder / CHECKPOINT):
            run.stage("train_sipe")
        train_plus(run)
        assert times_below(run.folder) == before

    def test_maps_follow_the_recipe_of_the_run(self, plus, run):
        network = load_network(plus.folder / CHECKPOINT).network
        assert network.recipe.name == "plus"
        assert torch.equal(network.class_prototypes, read_prototypes(plus))
        run.stage("make_cam")
        assert read_json(run.folder / "cam/settings.json")["recipe"] == "plus"

    def test_a_checkpoint_without_class_prototypes_is_refused(self, chain, run):
        ckpt = chain.folder / CHECKPOINT
        with pytest.raises(InputError, match=f"^{ckpt}: .*prototypes"):
            run.stage("make_cam", "--ckpt", ckpt, "--recipe", "plus")

    def test_maps_of_another_recipe_do_not_mix(self, run):
        run.stage("make_cam", "--recipe", "sipe")
        settings = run.folder / "cam/settings.json"
        content = read_json(settings)
        assert content.pop("recipe") == "sipe"
        write_json(settings, content)  # as before there were recipes
        assert "6 images, 0 of them to do" in run.stage("make_cam", "--recipe", "sipe")
        with pytest.raises(InputError, match=f"^{settings}: .*recipe"):
            run.stage("make_cam")

    def test_the_same_checkpoint_makes_other_is_cams(self, run):
        run.stage("make_cam", "--recipe", "sipe")
        published = load_maps(run.folder, NAMES[0])
        run.stage("make_cam", "--overwrite")
        maps = load_maps(run.folder, NAMES[0])
        assert np.array_equal(maps.cam, published.cam)
        assert not np.array_equal(maps.is_cam, published.is_cam)

    @pytest.mark.parametrize(
        ("scales", "background"),
        [
            ([0.5, 1.5], RECIPES["plus"].enlarged_background),
            ([1.0, 0.5], RECIPES["plus"].background),
        ],
    )
    def test_the_background_is_the_recipes_in_maps_and_predictions(self, scales, background, run):
        run.stage("make_cam", "--scales", *scales)
        maps = load_maps(run.folder, NAMES[0])
        assert (maps.is_cam[0] == np.float32(background)).all()
        ckpt = ["--ckpt", run.folder / CHECKPOINT]
        run.stage("predict", *ckpt, "--tags", "cat", "dog", "--scales", *scales)
        mask = label_of(run.makes("predict"), NAMES[0])
        is_same = mask == maps.label("is_cam")
        assert is_same.mean() > 0.99  # the file holds float16

    def test_an_older_checkpoint_holds_its_class_prototypes(self, plus, run, run_of_old):
        path = run_of_old.folder / CHECKPOINT
        loaded = load_network(path)
        assert (loaded.kind, loaded.network.recipe.name) == ("sipe", "plus")
        assert torch.equal(loaded.network.class_prototypes, read_prototypes(plus))
        assert loaded.files == (path,)
        assert load_network(path, recipe="sipe").network.recipe.name == "sipe"

    def test_maps_of_an_older_checkpoint_are_those_of_one_with_prototypes_beside_it(
        self, plus, run_of_old, tmp_path
    ):
        run_of_old.stage("make_cam")
        new = replace(plus, folder=tmp_path / "new")
        new.stage("make_cam", "--ckpt", plus.folder / CHECKPOINT)
        ours = bytes_below(run_of_old.makes("make_cam"))
        theirs = bytes_below(new.makes("make_cam"))
        assert ours.pop("settings.json") != theirs.pop("settings.json")
        assert ours == theirs

    def test_an_older_checkpoint_keeps_its_recipe(self, run_of_old):
        before = times_below(run_of_old.folder)
        train_plus(run_of_old)
        with refused(run_of_old.folder / CHECKPOINT):
            run_of_old.stage("train_sipe")
        assert times_below(run_of_old.folder) == before

    def test_a_retrained_checkpoint_does_not_use_the_older_class_prototypes(self, plus, run):
        path = run.folder / CHECKPOINT
        retrain = ["--no-resume", "--seed", 3, "--max_epochs", 1]
        run.stage("train_sipe", *retrain)
        assert not (run.folder / PROTOTYPES).exists()
        assert load_network(path).network.recipe.name == "sipe"
        with pytest.raises(InputError, match=f"^{path}: .*prototypes"):
            load_network(path, recipe="plus")
        train_plus(run, "--seed", 3, "--max_epochs", 1)
        network = load_network(path).network
        assert network.recipe.name == "plus"
        assert torch.equal(network.class_prototypes, read_prototypes(run))
        assert not torch.equal(network.class_prototypes, read_prototypes(plus))


@dataclass(frozen=True)
class SizedImages:
    """Images of three sizes, one of them larger than the others by EXIF's turn alone."""

    dataset: Dataset
    scales: tuple[float, ...]

    def batches(self) -> list[list]:
        samples = self.dataset.samples("train")
        images = MultiscaleImages(samples, self.dataset.tags(samples), Scaling(self.scales))
        return list(batches_by_size(list(images), 4))


class TestLocalization:
    @pytest.fixture
    def sized_images(self, tiny_voc) -> SizedImages:
        for name, size in ((NAMES[1], (48, 64)), (NAMES[4], (80, 32))):
            path = tiny_voc / f"JPEGImages/{name}.jpg"
            Image.open(path).resize(size).save(path)
        rotate(tiny_voc / f"JPEGImages/{NAMES[0]}.jpg", tiny_voc / f"JPEGImages/{NAMES[2]}.jpg")
        return SizedImages(open_dataset("voc", tiny_voc), (0.5, 1.5, 1.0))

    def test_a_file_holds_the_tagged_classes_at_the_size_of_the_image(self, chain):
        files = {f"{name}.npz" for name in NAMES}
        assert files_below(chain.results("make_cam")) == {"settings.json", *files}
        for i, name in enumerate(NAMES):
            maps = load_maps(chain.made_maps, name)
            class_ids = [0, 12] if i % 2 else [0, 8, 12]
            assert maps.keys.tolist() == class_ids
            assert maps.size == SIZE
            for kind in cam_file.KINDS:
                values = maps.maps(kind)
                assert values.shape == (len(class_ids), *SIZE)
                assert values.min() >= 0
                assert values.max() <= 1

    def test_images_of_one_size_share_a_batch(self, sized_images):
        indices = []
        for batch in sized_images.batches():
            indices.append([item.index for item in batch])
        assert sorted(indices) == [[0, 1, 2], [3, 5], [4]]

    def test_images_in_a_batch_get_the_maps_that_each_gets_alone(self, checkpoints, sized_images):
        model = load_network(checkpoints["ours"], VOC_CLASSES).network.eval()
        for batch in sized_images.batches():
            together = multiscale_cams(model, batch, Context(CPU))
            for item, maps in zip(batch, together):
                assert np.array_equal(maps.class_ids, present_classes(item.tags))
                (alone,) = multiscale_cams(model, [item], Context(CPU))
                assert np.array_equal(maps.class_ids, alone.class_ids)
                for kind in cam_file.KINDS:
                    torch.testing.assert_close(
                        maps.by_kind[kind], alone.by_kind[kind], atol=1e-6, rtol=0
                    )

    def test_each_scale_has_its_grid(self, checkpoints, sized_images):
        model = load_network(checkpoints["ours"], VOC_CLASSES).network.eval()
        for item, *_ in sized_images.batches():
            (maps,) = multiscale_cams(model, [item], Context(CPU))
            expected = []
            for scale in sized_images.scales:
                height, width = (round(scale * side) for side in item.size)
                expected.append((len(maps.class_ids), -(-height // 16), -(-width // 16)))
            for kind in cam_file.KINDS:
                assert [tuple(grid.shape) for grid in maps.by_kind[kind]] == expected

    def test_batches_are_no_part_of_how_maps_are_made(self, checkpoints, run, tmp_path):
        ckpt = ["--ckpt", checkpoints["ours"]]
        in_batches = replace(run, folder=run.folder / "batches")
        alone = replace(run, folder=run.folder / "alone")
        in_batches.stage("make_cam", *ckpt, "--list", write_lines(tmp_path / "two.txt", *NAMES[:2]))
        printed = in_batches.stage("make_cam", *ckpt, "--batch_size", 4)
        assert "6 images, 4 of them to do" in printed
        alone.stage("make_cam", *ckpt)
        for name in NAMES:
            ours = read_arrays(in_batches.folder, name)
            theirs = read_arrays(alone.folder, name)
            assert ours.keys() == theirs.keys()
            for key, array in ours.items():
                np.testing.assert_allclose(array, theirs[key], atol=1e-3)  # float16

    def test_only_the_kinds_of_map_that_are_asked_for_are_kept(self, chain, run, tmp_path):
        one = ["--list", write_lines(tmp_path / "one.txt", NAMES[0])]
        run.stage("make_cam", "--ckpt", chain.folder / CHECKPOINT, *one, "--maps", "is_cam")
        arrays = read_arrays(run.folder, NAMES[0])
        assert arrays.keys() == {"is_cam_0", "is_cam_1", "keys", "size"}
        call(eval_cam.main, *data_flags(run.voc, run.folder), *one)
        content = read_json(run.folder / "eval_cam.json")
        assert "is_cam" in content
        assert "cam" not in content

    @pytest.mark.parametrize("kind", ["ours", "authors"])
    def test_a_checkpoint_for_other_classes_is_refused(
        self, kind, checkpoints, fixed_voc, tmp_path
    ):
        root = tmp_path / "folder"
        shutil.copytree(fixed_voc / "JPEGImages", root / "images")
        write_lines(root / "classes.txt", "cat", "dog")
        write_lines(root / "tags.csv", *(f"{name},dog" for name in NAMES))
        flags = ["--dataset", "folder", *data_flags(root, tmp_path / "run"), "--device", "cpu"]
        with refused(checkpoints[kind]):
            call(make_cam.main, *flags, "--ckpt", checkpoints[kind])
        assert not (tmp_path / "run").exists()

    def test_a_segmentation_network_is_refused(self, checkpoints, run):
        with refused(checkpoints["segmentation"]):
            run.stage("make_cam", "--ckpt", checkpoints["segmentation"])


@dataclass(frozen=True)
class Report:
    """What eval_cam.py printed about the maps of the finished run, and what it wrote."""

    printed: str
    content: dict[str, Any]


@pytest.fixture(scope="module")
def report(chain, tmp_path_factory) -> Report:
    run_dir = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(chain.results("make_cam"), run_dir / "cam")
    printed = call(eval_cam.main, *data_flags(chain.voc, run_dir, num_workers=1))
    return Report(printed, read_json(run_dir / "eval_cam.json"))


class TestEvaluation:
    def test_the_report_says_on_what_it_was_measured(self, report):
        assert report.content["list"] == "train"
        assert report.content["pictures"] == 6

    @pytest.mark.parametrize("kind", cam_file.KINDS)
    def test_the_confusion_matrix_counts_pixels(self, kind, report, chain):
        expected = np.zeros((21, 21), int)
        for name in NAMES:
            label = load_maps(chain.made_maps, name).label(kind)
            np.add.at(expected, (read_mask(chain.voc, name), label), 1)
        assert np.array_equal(report.content[kind]["confusion"], expected)

    @pytest.mark.parametrize("kind", cam_file.KINDS)
    def test_the_mean_is_over_the_classes_that_are_there(self, kind, report):
        scores = report.content[kind]
        assert list(scores["iou"]) == list(VOC_CLASSES)
        scored = {name: iou for name, iou in scores["iou"].items() if iou is not None}
        assert scored.keys() == {"background", "cat", "dog"}
        assert scores["miou"] == pytest.approx(sum(scored.values()) / 3)
        assert f"{scores['miou']:.2f}" in report.printed

    def test_the_threshold_sweep_scores_the_general_cam_over_fixed_backgrounds(self, report, chain):
        sweep = report.content["cam_background_threshold_percent_tuned_on_ground_truth"]
        assert [int(threshold) for threshold in sweep] == list(range(5, 65, 5))
        masks = np.stack([read_mask(chain.voc, name) for name in NAMES])
        labels = []
        for name in NAMES:
            maps = load_maps(chain.made_maps, name)
            foreground = maps.cam[1:]
            best_class = maps.keys[1:][foreground.argmax(0)]
            labels.append(np.where(foreground.max(0) > 0.4, best_class, 0))
        ious = [iou(masks == key, np.stack(labels) == key) for key in (0, 8, 12)]
        assert sweep["40"] == pytest.approx(100 * np.mean(ious))

    def test_perfect_maps_score_a_hundred(self, fixed_voc, tmp_path):
        for name in NAMES:
            mask = read_mask(fixed_voc, name)
            keys = np.unique(mask)
            maps = (mask == keys[:, None, None]).astype(np.float32)
            content = cam_file.CamGrids(keys, mask.shape, is_cam=[maps], cam=[maps])
            cam_file.save(cam_file.path_of(tmp_path, name), content)
        write_map_settings(tmp_path)
        call(eval_cam.main, *data_flags(fixed_voc, tmp_path))
        content = read_json(tmp_path / "eval_cam.json")
        assert content["is_cam"]["miou"] == 100
        assert content["cam"]["miou"] == 100

    def test_a_mask_of_nothing_but_255_counts_for_nothing(self, chain, own_run, tmp_path):
        copy(chain.folder / "cam", own_run.folder / "cam")
        unlabelled = Image.fromarray(np.full(SIZE, 255, np.uint8))
        unlabelled.save(own_run.voc / f"SegmentationClass/{NAMES[0]}.png")
        flags = data_flags(own_run.voc, own_run.folder)
        two = write_lines(tmp_path / "two.txt", *NAMES[:2])
        call(eval_cam.main, *flags, "--list", two)
        content = read_json(own_run.folder / "eval_cam.json")
        assert np.sum(content["is_cam"]["confusion"]) == SIZE[0] * SIZE[1]
        one = write_lines(tmp_path / "one.txt", NAMES[0])
        with pytest.raises(InputError, match=str(one)):
            call(eval_cam.main, *flags, "--list", one)

    @pytest.mark.parametrize(
        "missing", [f"{{run}}/cam/{NAMES[3]}.npz", f"{{voc}}/SegmentationClass/{NAMES[3]}.png"]
    )
    def test_a_missing_map_or_mask_is_named(self, missing, chain, own_run):
        copy(chain.folder / "cam", own_run.folder / "cam")
        path = own_run.path(missing)
        path.unlink()
        with refused(path):
            call(eval_cam.main, *data_flags(own_run.voc, own_run.folder))


def iou(mask: np.ndarray, label: np.ndarray) -> float:
    """The IoU of two boolean arrays."""
    return (mask & label).sum() / (mask | label).sum()
