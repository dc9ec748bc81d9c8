"""Inter-pixel labels, IRN, pseudo labels and their scores, from drawn maps."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import (
    NAMES,
    SIZE,
    VOC_CLASSES,
    call,
    copy,
    data_flags,
    equal_tensors,
    files_below,
    label_of,
    probability_of,
    read_mask,
    refused,
    weights_of,
)
from PIL import Image

import eval_seg
import make_seg_labels
import train_irn
from data.images import read_image
from data.transforms import normalize, to_tensor
from network.irn import IRN
from network.random_walk import random_walk
from tool import cam_file, checkpoint, crf
from tool.inference import load_irn
from tool.outputs import read_json

CROP = 80  # of the table's training
CHECKPOINT = "ckpt/irn.pth"
LABELS = ("labels_none", "labels_crf", "labels_irn")
WITH_PROBABILITY = ("labels_crf", "labels_irn")
UNLABELLED = np.full(SIZE, 255, np.uint8)
GRID = (SIZE[0] // 4, SIZE[1] // 4)  # of IRN


def tags_of(i: int) -> set[int]:
    """The class ids of a drawn image, background included."""
    return {0, 12} if i % 2 else {0, 8, 12}


def save_label(folder: Path, name: str, label: np.ndarray) -> None:
    Image.fromarray(label).save(folder / f"{name}.png")


def replace_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_inter_pixel_labels_hold_the_tagged_classes_and_uncertainty(chain):
    folder = chain.results("make_ir_labels")
    files = {f"{name}.png" for name in NAMES}
    assert files_below(folder) == {"settings.json", *files}
    for i, name in enumerate(NAMES):
        label = label_of(folder, name)
        assert label.shape == SIZE
        assert tags_of(i) <= set(np.unique(label)) <= tags_of(i) | {255}


class TestTraining:
    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain):
        content = checkpoint.read(chain.folder / CHECKPOINT)
        assert content["kind"] == "irn"
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        expected = {
            "weights": str(chain.weights),
            "crop_size": CROP,
            "scales": [0.5, 1.5],
            "batch_size": 3,
        }
        assert expected.items() <= content["arguments"].items()
        assert files_below(chain.folder / "tensorboard/irn")

    def test_the_backbone_keeps_its_weights_and_every_head_learns(self, chain):
        after = weights_of(chain.folder / CHECKPOINT)
        for name, value in torch.load(chain.weights, weights_only=True).items():
            assert torch.equal(value, after[f"resnet50.{name}"]), name
        torch.manual_seed(15)  # the default of --seed
        before = train_irn.IRN().state_dict()
        unchanged = equal_tensors(before, after)
        assert not any(name.startswith("fc_") for name in unchanged)

    def test_the_mean_displacement_over_the_images_is_subtracted(self, chain):
        loaded = load_irn(chain.folder / CHECKPOINT)
        model = loaded.network.eval()
        assert loaded.crop_size == CROP
        means = []
        for name in NAMES:
            image = to_tensor(read_image(chain.voc / f"JPEGImages/{name}.jpg"))
            padded = torch.zeros(1, 3, CROP, CROP)
            padded[:, :, : SIZE[0], : SIZE[1]] = normalize(image[None])
            with torch.no_grad():
                _, displacement = model(padded)
            means.append(displacement.mean((0, 2, 3)))
        means = torch.stack(means)
        assert means.mean(0).abs().max() < 1e-4
        assert means.abs().max() > 1e-3

    def test_other_labels_are_another_training(self, chain, run):
        copy(chain.folder / "ir_label", run.folder / "ir_label")
        copy(chain.folder / CHECKPOINT, run.folder / CHECKPOINT)
        labels = run.folder / "ir_label"
        shutil.copy(labels / f"{NAMES[0]}.png", labels / f"{NAMES[2]}.png")
        with refused(run.folder / CHECKPOINT):
            run.stage("train_irn")


class TestPseudoLabels:
    @pytest.mark.parametrize("stage", LABELS)
    def test_a_label_holds_tagged_classes_at_the_size_of_the_image(self, stage, chain):
        folder = chain.results(stage)
        endings = (".png", ".npz") if stage in WITH_PROBABILITY else (".png",)
        files = {f"{name}{ending}" for name in NAMES for ending in endings}
        assert files_below(folder) == {"settings.json", *files}
        for i, name in enumerate(NAMES):
            label = label_of(folder, name)
            assert label.shape == SIZE
            assert {0, 12} <= set(np.unique(label)) <= tags_of(i)

    @pytest.mark.parametrize("stage", WITH_PROBABILITY)
    def test_the_probabilities_are_of_the_tagged_classes(self, stage, chain):
        for i, name in enumerate(NAMES):
            keys, probability = probability_of(chain.results(stage), name)
            assert keys.tolist() == sorted(tags_of(i))
            assert probability.shape == (len(keys), *SIZE)

    def test_each_refinement_starts_from_the_maps(self, chain, run):
        copy(chain.folder / "cam", run.folder / "cam")
        on_maps = run.folder / "on_maps"
        general = run.folder / "general"
        run.stage("labels_crf", "--crf_on", "maps", "--label_dir", on_maps)
        run.stage("labels_none", "--map", "cam", "--label_dir", general)
        for name in NAMES[:2]:
            maps = cam_file.load(cam_file.path_of(chain.folder, name))
            image = read_image(chain.voc / f"JPEGImages/{name}.jpg")
            label = maps.is_cam.argmax(0)
            expected = {
                chain.results("labels_none"): maps.is_cam,
                chain.results("labels_crf"): crf.refine_label(image, label, len(maps.keys)),
                on_maps: crf.refine_maps(image, maps.is_cam),
                general: maps.cam,
            }
            for folder, probability in expected.items():
                strongest = maps.keys[probability.argmax(0)]
                assert np.array_equal(label_of(folder, name), strongest), folder
            plain = label_of(chain.results("labels_none"), name)
            assert not np.array_equal(label_of(general, name), plain)

    def test_irn_walks_on_its_grid(self, chain, run, monkeypatch):
        """The maps are resized to a quarter, raised to the power 1.5, and walk two steps.

        Then they are resized to the image and divided by their maximum.
        """
        edge = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(0)) / 2
        monkeypatch.setattr(IRN, "find_edges", lambda model, image, crop_size: edge)
        chain.prepare("labels_irn", run)
        run.stage("labels_irn", "--beta", 3, "--exp_times", 1)
        for name in NAMES:
            maps = torch.from_numpy(cam_file.load(cam_file.path_of(run.folder, name)).is_cam)
            quarter = resize(maps, GRID)
            walked = resize(random_walk(quarter**1.5, edge[0], 5, 3, 1), SIZE)
            _, probability = probability_of(run.makes("labels_irn"), name)
            np.testing.assert_allclose(probability, walked / walked.max(), atol=1e-3)

    def test_the_authors_irn_loads_as_it_is(self, chain, tmp_path):
        """It is a plain state dict with what else their program keeps in it.

        It was trained at 512, to which images are padded.
        """
        tensors = weights_of(chain.folder / CHECKPOINT)
        others = {
            "path_indices0": torch.zeros(4, 2),
            "mean_shift.running_mean": torch.zeros(2),
        }
        torch.save(tensors | others, tmp_path / "theirs.pth")
        loaded = load_irn(tmp_path / "theirs.pth")
        assert loaded.crop_size == 512
        loaded_tensors = loaded.network.state_dict()
        assert equal_tensors(loaded_tensors, tensors) == loaded_tensors.keys()

    def test_labels_of_another_irn_do_not_mix(self, chain, run, tmp_path):
        chain.prepare("labels_irn", run)
        chain.copy_results("labels_irn", run)
        content = checkpoint.read(chain.folder / CHECKPOINT)
        torch.save({"model": content["model"]}, tmp_path / "irn.pth")
        with refused(run.makes("labels_irn") / "settings.json"):
            run.stage("labels_irn", "--irn_ckpt", tmp_path / "irn.pth")

    def test_maps_of_other_classes_are_refused(self, chain, run):
        copy(chain.folder / "cam", run.folder / "cam")
        path = run.folder / "cam/settings.json"
        replace_text(path, '"dog"', '"wolf"')
        with refused(path):
            run.stage("labels_none")

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")  # if there is one core
    @pytest.mark.parametrize(
        ("name", "num_workers"), [("labels_crf", 2), ("labels_irn", 2), ("make_ir_labels", 1)]
    )
    def test_any_number_of_workers_makes_the_same_labels(self, name, num_workers, chain, run):
        chain.prepare(name, run)
        run.stage(name, num_workers=num_workers)
        for image in NAMES:
            ours = label_of(run.makes(name), image)
            assert np.array_equal(ours, label_of(chain.results(name), image))


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(k, h, w) -> (k, *size), with pixel centres in place."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def test_images_of_unlike_sizes_walk_together_as_alone():
    rng = np.random.default_rng(0)
    edges = []
    maps = []
    for num_classes, size in ((2, (6, 9)), (4, (11, 4)), (3, (8, 8))):
        edges.append(torch.from_numpy(rng.random(size, dtype=np.float32)))
        maps.append(torch.from_numpy(rng.random((num_classes, *size), dtype=np.float32)))
    together = make_seg_labels.walk(edges, maps, beta=2, exp_times=4)
    for edge, image_maps, walked in zip(edges, maps, together):
        (alone,) = make_seg_labels.walk([edge], [image_maps], beta=2, exp_times=4)
        torch.testing.assert_close(walked, alone, atol=1e-6, rtol=1e-5)
        without_walk = image_maps * (1 - edge)
        assert (alone - without_walk).abs().max() > 0.1


LISTS = {  # on which the labels of a stage are scored
    "labels_crf": "train",
    "labels_irn": "train",
    "make_ir_labels": "train",
    "infer_seg": "val",
}


@dataclass(frozen=True)
class Report:
    """What eval_seg.py wrote and printed about the labels of a stage, and the labels.

    Attributes:
        stem: of the files, without their endings.
    """

    stem: Path
    printed: str
    masks: np.ndarray
    labels: np.ndarray

    @property
    def content(self) -> dict[str, Any]:
        return read_json(Path(f"{self.stem}.json"))


@pytest.fixture(scope="module")
def report_on(chain, tmp_path_factory) -> Callable[[str], Report]:
    """Make the report on the labels of a stage, once."""
    reports: dict[str, Report] = {}
    run_dir = tmp_path_factory.mktemp("evaluation")
    masks = np.stack([read_mask(chain.voc, name) for name in NAMES])

    def report_on(stage: str) -> Report:
        if stage not in reports:
            folder = chain.results(stage)
            flags = ["--list", LISTS[stage], "--label_dir", folder]
            printed = call(eval_seg.main, *data_flags(chain.voc, run_dir), *flags)
            labels = np.stack([label_of(folder, name) for name in NAMES])
            reports[stage] = Report(run_dir / f"eval_{folder.name}", printed, masks, labels)
        return reports[stage]

    return report_on


@pytest.mark.parametrize("stage", LISTS)
class TestReport:
    @pytest.fixture
    def report(self, stage, report_on) -> Report:
        return report_on(stage)

    def test_it_says_on_what_it_was_measured(self, stage, report):
        content = report.content
        assert content["list"] == LISTS[stage]
        assert content["pictures"] == 6

    def test_it_counts_labelled_pixels(self, stage, report):
        has_label = report.labels != 255
        expected = np.zeros((21, 21), int)
        np.add.at(expected, (report.masks[has_label], report.labels[has_label]), 1)
        content = report.content
        assert np.array_equal(content["confusion"], expected)
        assert content["unlabelled"] == pytest.approx(100 * (1 - has_label.mean()))
        assert (content["unlabelled"] > 0) == (stage == "make_ir_labels")

    def test_the_shares_of_a_class_that_is_there_add_up(self, report):
        content = report.content
        for name in VOC_CLASSES:
            shares = []
            for measure in ("iou", "false_positive", "false_negative"):
                shares.append(content[measure][name])
            if name in ("background", "cat", "dog"):
                assert sum(shares) == pytest.approx(100), name
            else:
                assert shares == [None] * 3, name

    def test_the_mean_is_over_the_classes_that_are_there(self, report):
        content = report.content
        scored = [value for value in content["iou"].values() if value is not None]
        assert content["miou"] == pytest.approx(np.mean(scored))
        assert f"{content['miou']:.2f}" in report.printed

    def test_it_is_drawn(self, report):
        for ending in (".png", "_sheet.png"):
            with Image.open(f"{report.stem}{ending}") as image:
                image.load()


class TestEvaluation:
    @pytest.fixture
    def labels(self, tiny_voc, tmp_path) -> Path:
        """The masks as labels."""
        return shutil.copytree(tiny_voc / "SegmentationClass", tmp_path / "labels")

    @pytest.fixture
    def evaluate(self, tiny_voc, labels, run_dir) -> Callable[[], dict[str, Any]]:
        def evaluate(num_workers: int = 0) -> dict[str, Any]:
            flags = data_flags(tiny_voc, run_dir, num_workers)
            call(eval_seg.main, *flags, "--label_dir", labels)
            return read_json(run_dir / "eval_labels.json")

        return evaluate

    def test_masks_score_a_hundred_as_labels(self, evaluate, tiny_voc):
        """And 255 in the mask counts neither as labelled nor as unlabelled."""
        mask = read_mask(tiny_voc, NAMES[0]).copy()
        mask[:10] = 255
        save_label(tiny_voc / "SegmentationClass", NAMES[0], mask)
        content = evaluate(num_workers=1)
        assert content["miou"] == 100
        assert content["pixel_accuracy"] == 100
        assert content["unlabelled"] == 0
        assert np.sum(content["confusion"]) == (6 * SIZE[0] - 10) * SIZE[1]

    @pytest.mark.parametrize(
        "label",
        [
            None,
            np.zeros((48, 63), np.uint8),
            np.full(SIZE, 21, np.uint8),
            np.zeros((*SIZE, 3), np.uint8),
        ],
        ids=["missing", "size", "class", "colour"],
    )
    def test_a_label_that_cannot_be_scored_is_named(self, label, evaluate, labels, run_dir):
        path = labels / f"{NAMES[3]}.png"
        path.unlink()
        if label is not None:
            save_label(labels, NAMES[3], label)
        with refused(path):
            evaluate()
        assert not files_below(run_dir)

    def test_a_missing_folder_is_named(self, evaluate, labels, run_dir):
        shutil.rmtree(labels)
        with refused(labels):
            evaluate()
        assert not files_below(run_dir)

    def test_without_a_labelled_pixel_there_is_nothing_to_score(self, evaluate, labels, run_dir):
        for name in NAMES:
            save_label(labels, name, UNLABELLED)
        with refused("--list train"):
            evaluate()
        assert not files_below(run_dir)

    def test_labels_of_other_classes_are_refused(self, chain, evaluate, labels):
        path = labels / "settings.json"
        shutil.copy(chain.results("labels_none") / "settings.json", path)
        replace_text(path, '"dog"', '"wolf"')
        with refused(path):
            evaluate()
