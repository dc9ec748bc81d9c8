"""The chain's second half through main([...]) on drawn maps: inter-pixel labels, IRN, pseudo labels and their scores; stopped at will."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import (
    NAMES,
    VOC_CLASSES,
    assert_same_weights,
    bytes_below,
    call,
    data_flags,
    files_below,
    in_two_processes,
    label_of,
    note_maps,
    probability_of,
    stop_after,
    times_below,
    turn,
    weights_of,
    write_lines,
)
from PIL import Image

import eval_seg
import make_ir_labels
import make_seg_labels
import train_irn
from data.images import read_picture
from data.transforms import normalize, to_tensor
from errors import InputError
from tool import cam_file, crf, label_file
from tool.files import write_json
from tool.random_walk import random_walk

STEPS = 4  # two epochs of two batches
CROP = 80
REFINEMENTS = {"none": [], "crf": [], "crf on maps": ["--crf_on", "maps"], "irn": ["--exp_times", 4]}
SCORED = ("crf", "irn")


def draw_soft_maps(root: Path, run_dir: Path, turned: tuple[str, ...] = ()) -> Path:
    """CAM files that know the masks, on a grid of 6x8 cells; those of turned pictures are turned clockwise."""
    for name in NAMES:
        mask = np.asarray(Image.open(root / f"SegmentationClass/{name}.png"))
        keys = np.unique(mask)
        foreground = (mask == keys[1:, None, None]).reshape(-1, 6, 8, 8, 8).mean((2, 4))
        grids = {kind: [np.stack([1 - part.max(0), *part])] for kind, part in (("is_cam", foreground * 0.9), ("cam", foreground * 0.6))}
        size = mask.shape
        if name in turned:
            size, grids = size[::-1], {kind: [np.rot90(maps[0], -1, (1, 2))] for kind, maps in grids.items()}
        cam_file.save(cam_file.path_of(run_dir, name), keys, size, **grids)
    note_maps(run_dir, ("is_cam", "cam"))
    return run_dir


def label_flags(refine: str) -> list:
    return ["--device", "cpu", "--refine", refine.split()[0], *REFINEMENTS[refine]]


def refine_flags(refine: str, chain) -> list:
    """label_flags, with the chain's IRN where it is used."""
    return [*label_flags(refine), *(["--irn_ckpt", chain.run_dir / "ckpt/irn.pth"] if refine == "irn" else [])]


def training_flags(weights: Path) -> list:
    return ["--device", "cpu", "--weights", weights, "--batch_size", 3, "--crop_size", CROP, "--max_epochs", 2]


def tags_of(i: int) -> set[int]:
    """The class ids of a drawn picture, background included."""
    return {0, 8, 12} if i % 2 == 0 else {0, 12}


@pytest.fixture(scope="module")
def chain(fixed_voc: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The four stages, one after the other, with labels of every kind: the run directory and what was printed."""
    run_dir = draw_soft_maps(fixed_voc, tmp_path_factory.mktemp("chain") / "run")
    common, printed = data_flags(fixed_voc, run_dir), {}
    printed["make_ir_labels"] = call(make_ir_labels.main, *common)
    printed["train_irn"] = call(train_irn.main, *common, *training_flags(tiny_backbone))
    for refine in REFINEMENTS:
        call(make_seg_labels.main, *common, *label_flags(refine), "--label_dir", run_dir / refine, "--save_prob")
    for refine in SCORED:
        printed[refine] = call(eval_seg.main, *common, "--label_dir", run_dir / refine)
    yield SimpleNamespace(run_dir=run_dir, printed=printed, common=common)
    shutil.rmtree(run_dir)


@pytest.fixture
def run_dir(fixed_voc: Path, tmp_path: Path) -> Iterator[Path]:
    """A run directory with maps alone, which goes away with the test: checkpoints are large."""
    yield draw_soft_maps(fixed_voc, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")


class TestInterPixelLabels:
    def test_a_label_holds_the_tagged_classes_and_uncertainty_at_the_size_of_the_picture(self, chain):
        assert files_below(chain.run_dir / "ir_label") == {"settings.json", *(f"{name}.png" for name in NAMES)}
        for i, name in enumerate(NAMES):
            label = label_of(chain.run_dir / "ir_label", name)
            assert label.shape == (48, 64)
            assert tags_of(i) <= set(np.unique(label)) <= tags_of(i) | {255}

    def test_a_second_run_writes_nothing(self, chain):
        before = times_below(chain.run_dir / "ir_label")
        assert "6 pictures, 0 of them to do" in call(make_ir_labels.main, *chain.common)
        assert times_below(chain.run_dir / "ir_label") == before

    def test_a_stopped_run_goes_on_and_ends_with_the_same_labels(self, chain, fixed_voc, run_dir):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, label_file, "save", 2)
            call(make_ir_labels.main, *data_flags(fixed_voc, run_dir))
        done = times_below(run_dir / "ir_label")
        assert done.keys() == {"settings.json", *(f"{name}.png" for name in NAMES[:2])}
        assert "4 of them to do" in call(make_ir_labels.main, *data_flags(fixed_voc, run_dir))
        assert done.items() <= times_below(run_dir / "ir_label").items()
        assert bytes_below(run_dir / "ir_label") == bytes_below(chain.run_dir / "ir_label")

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_any_number_of_workers_makes_the_same_labels(self, chain, fixed_voc, run_dir, num_workers):
        call(make_ir_labels.main, *data_flags(fixed_voc, run_dir, num_workers))
        assert bytes_below(run_dir / "ir_label") == bytes_below(chain.run_dir / "ir_label")

    def test_a_damaged_label_is_made_again(self, chain, fixed_voc, run_dir):
        shutil.copytree(chain.run_dir / "ir_label", run_dir / "ir_label", copy_function=shutil.copy)  # newer than the maps
        path = label_file.path_of(run_dir / "ir_label", NAMES[3])
        path.write_bytes(path.read_bytes()[:-1])
        assert "1 of them to do" in call(make_ir_labels.main, *data_flags(fixed_voc, run_dir))
        assert bytes_below(run_dir / "ir_label") == bytes_below(chain.run_dir / "ir_label")

    def test_a_label_older_than_its_maps_is_made_again(self, chain, fixed_voc, run_dir):
        flags = data_flags(fixed_voc, run_dir)
        call(make_ir_labels.main, *flags)
        os.utime(cam_file.path_of(run_dir, NAMES[2]))
        assert "1 of them to do" in call(make_ir_labels.main, *flags)
        assert "0 of them to do" in call(make_ir_labels.main, *flags)

    def test_labels_from_another_map_do_not_mix_with_them(self, chain, fixed_voc, run_dir):
        shutil.copytree(chain.run_dir / "ir_label", run_dir / "ir_label")
        flags = [*data_flags(fixed_voc, run_dir), "--map", "cam"]
        with pytest.raises(InputError, match=r"ir_label/settings\.json: the files there are of another map; .*--overwrite"):
            call(make_ir_labels.main, *flags)
        assert bytes_below(run_dir / "ir_label") == bytes_below(chain.run_dir / "ir_label")
        assert "6 of them to do" in call(make_ir_labels.main, *flags, "--overwrite")
        assert "0 of them to do" in call(make_ir_labels.main, *flags)
        assert any((label_of(run_dir / "ir_label", name) != label_of(chain.run_dir / "ir_label", name)).any() for name in NAMES)

    def test_labels_from_maps_that_were_made_anew_do_not_mix_with_them(self, chain, fixed_voc, run_dir):
        shutil.copytree(chain.run_dir / "ir_label", run_dir / "ir_label")
        note_maps(run_dir, ("is_cam", "cam"), checkpoint="another")
        with pytest.raises(InputError, match="of another cam;"):
            call(make_ir_labels.main, *data_flags(fixed_voc, run_dir))


class TestTraining:
    def test_leaves_the_final_checkpoint_and_no_other(self, chain):
        assert f"{STEPS} steps" in chain.printed["train_irn"]
        assert files_below(chain.run_dir / "ckpt") == {"irn.pth"}
        assert files_below(chain.run_dir / "tensorboard/irn")

    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain, tiny_backbone):
        content = torch.load(chain.run_dir / "ckpt/irn.pth", weights_only=True)
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        assert content["arguments"]["weights"] == str(tiny_backbone)
        assert (content["arguments"]["crop_size"], content["arguments"]["scales"]) == (CROP, [0.5, 1.5])

    def test_the_backbone_keeps_its_weights_and_every_head_learns(self, chain, tiny_backbone):
        before, after = torch.load(tiny_backbone, weights_only=True), weights_of(chain.run_dir / "ckpt/irn.pth")
        assert all(torch.equal(value, after[f"resnet50.{name}"]) for name, value in before.items())
        torch.manual_seed(15)
        start = train_irn.IRN().state_dict()
        assert [name for name in after if name.startswith("fc_") and torch.equal(start[name], after[name])] == []

    def test_the_mean_displacement_over_the_pictures_is_taken_away(self, chain, fixed_voc):
        model, crop_size = make_seg_labels.load_irn(chain.run_dir / "ckpt/irn.pth")
        model.eval()
        assert crop_size == CROP
        means = []
        for name in NAMES:
            image = normalize(to_tensor(read_picture(fixed_voc / f"JPEGImages/{name}.jpg"))[None])
            padded = torch.zeros(1, 3, CROP, CROP)
            padded[:, :, :48, :64] = image
            with torch.no_grad():
                means.append(model(padded)[1].mean((0, 2, 3)))
        assert torch.stack(means).mean(0).abs().max() < 1e-4
        assert torch.stack(means).abs().max() > 1e-3

    def test_a_complete_run_is_left_alone(self, chain, tiny_backbone):
        before = times_below(chain.run_dir / "ckpt")
        assert "is complete" in call(train_irn.main, *chain.common, *training_flags(tiny_backbone))
        assert times_below(chain.run_dir / "ckpt") == before

    def test_another_recipe_is_refused(self, chain, tiny_backbone):
        before = times_below(chain.run_dir / "ckpt")
        with pytest.raises(InputError, match=r"irn\.pth: was trained with --lr 0\.1 \(now 0\.2\); "):
            call(train_irn.main, *chain.common, *training_flags(tiny_backbone), "--lr", 0.2)
        assert times_below(chain.run_dir / "ckpt") == before

    @pytest.mark.parametrize(
        ("function", "times", "num_workers", "save_every", "saved"),
        [("train_step", 1, 1, 1, 1), ("mean_displacement", 0, 0, 0, STEPS)],
    )
    def test_a_stopped_training_ends_with_the_same_weights(
        self, chain, fixed_voc, tiny_backbone, run_dir, function, times, num_workers, save_every, saved
    ):
        shutil.copytree(chain.run_dir / "ir_label", run_dir / "ir_label")
        flags = [*data_flags(fixed_voc, run_dir, num_workers), *training_flags(tiny_backbone), "--save_every", save_every]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train_irn, function, times)
            call(train_irn.main, *flags)
        assert files_below(run_dir / "ckpt") == {"irn_last.pth"}
        assert f"from step {saved}" in call(train_irn.main, *flags)
        assert_same_weights(run_dir / "ckpt/irn.pth", chain.run_dir / "ckpt/irn.pth")
        assert files_below(run_dir / "ckpt") == {"irn.pth"}


class TestPseudoLabels:
    @pytest.mark.parametrize("refine", REFINEMENTS)
    def test_a_label_holds_tagged_classes_at_the_size_of_the_picture(self, chain, refine):
        endings = (".png", ".npz")
        assert files_below(chain.run_dir / refine) == {"settings.json", *(f"{name}{ending}" for name in NAMES for ending in endings)}
        for i, name in enumerate(NAMES):
            label = label_of(chain.run_dir / refine, name)
            assert label.shape == (48, 64)
            assert {0, 12} <= set(np.unique(label)) <= tags_of(i)

    @pytest.mark.parametrize("refine", REFINEMENTS)
    def test_the_probabilities_are_those_of_the_label(self, chain, refine):
        for i, name in enumerate(NAMES):
            keys, probability = probability_of(chain.run_dir / refine, name)
            assert keys.tolist() == sorted(tags_of(i))
            assert probability.shape == (len(keys), 48, 64)

    def test_each_refinement_starts_from_the_maps(self, chain, fixed_voc):
        for name in NAMES[:2]:
            maps, picture = cam_file.load(cam_file.path_of(chain.run_dir, name)), read_picture(fixed_voc / f"JPEGImages/{name}.jpg")
            on_labels = crf.refine_label(picture, maps.is_cam.argmax(0), len(maps.keys))
            expected = {"none": maps.is_cam, "crf": on_labels, "crf on maps": crf.refine_maps(picture, maps.is_cam)}
            for refine, probability in expected.items():
                assert np.array_equal(label_of(chain.run_dir / refine, name), maps.keys[probability.argmax(0)]), refine

    def test_irn_lets_the_maps_walk_on_its_grid(self, chain, fixed_voc, run_dir, monkeypatch):
        """Brought to a quarter of the size, to the power 1.5, two steps of the walk, four times as large again, less than 1."""
        edge = torch.rand(1, 12, 16, generator=torch.Generator().manual_seed(0)) / 2
        monkeypatch.setattr(make_seg_labels.IRN, "find_edges", lambda model, image, crop_size: edge)
        flags = [*label_flags("irn"), "--irn_ckpt", chain.run_dir / "ckpt/irn.pth", "--beta", 3, "--exp_times", 1, "--save_prob"]
        call(make_seg_labels.main, *data_flags(fixed_voc, run_dir), *flags)
        for name in NAMES:
            maps = torch.from_numpy(cam_file.load(cam_file.path_of(run_dir, name)).is_cam)
            quarter = F.interpolate(maps[None], (12, 16), mode="bilinear", align_corners=False)[0]
            walked = F.interpolate(random_walk(quarter**1.5, edge[0], 5, 3, 1)[None], (48, 64), mode="bilinear", align_corners=False)[0]
            with np.load(run_dir / f"seg_label/{name}.npz") as arrays:
                np.testing.assert_allclose(arrays["probability"], walked / walked.max(), atol=1e-3)

    def test_the_general_cam_is_another_start(self, fixed_voc, run_dir):
        call(make_seg_labels.main, *data_flags(fixed_voc, run_dir), *label_flags("none"), "--map", "cam")
        maps = cam_file.load(cam_file.path_of(run_dir, NAMES[0]))
        assert np.array_equal(label_of(run_dir / "seg_label", NAMES[0]), maps.label("cam"))
        assert not np.array_equal(maps.label("cam"), maps.label("is_cam"))

    @pytest.mark.parametrize("refine", REFINEMENTS)
    def test_a_second_run_writes_nothing(self, chain, refine):
        before = times_below(chain.run_dir / refine)
        flags = [*chain.common, *label_flags(refine), "--label_dir", chain.run_dir / refine]
        for more in ([], ["--save_prob"]):
            assert "0 of them to do" in call(make_seg_labels.main, *flags, *more)
        assert times_below(chain.run_dir / refine) == before

    @pytest.mark.parametrize("refine", ["crf", "irn"])
    def test_a_stopped_run_goes_on_and_ends_with_the_same_labels(self, chain, fixed_voc, run_dir, refine):
        """It is stopped between the third picture's probabilities and its label."""
        flags = [*data_flags(fixed_voc, run_dir), *refine_flags(refine, chain), "--save_prob"]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, label_file, "save", 2)
            call(make_seg_labels.main, *flags)
        done = times_below(run_dir / "seg_label")
        assert {name for name in done if name.endswith(".png")} == {f"{name}.png" for name in NAMES[:2]}
        assert "4 of them to do" in call(make_seg_labels.main, *flags)
        del done[f"{NAMES[2]}.npz"]
        assert done.items() <= times_below(run_dir / "seg_label").items()
        assert_same_labels(run_dir / "seg_label", chain.run_dir / refine)

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
    @pytest.mark.parametrize(("refine", "num_workers"), [("none", 2), ("crf", 1), ("crf", 2), ("irn", 2)])
    def test_any_number_of_workers_makes_the_same_labels(self, chain, fixed_voc, run_dir, refine, num_workers):
        flags = refine_flags(refine, chain)
        call(make_seg_labels.main, *data_flags(fixed_voc, run_dir, num_workers), *flags)
        assert_same_labels(run_dir / "seg_label", chain.run_dir / refine)

    def test_probabilities_can_be_added_later(self, chain, fixed_voc, run_dir):
        flags = [*data_flags(fixed_voc, run_dir), *label_flags("none")]
        call(make_seg_labels.main, *flags)
        assert not [name for name in files_below(run_dir / "seg_label") if name.endswith(".npz")]
        assert "6 of them to do" in call(make_seg_labels.main, *flags, "--save_prob")
        assert files_below(run_dir / "seg_label") == files_below(chain.run_dir / "none")

    @pytest.mark.parametrize(
        ("refine", "more", "changed"),
        [
            ("none", [], "refine"),
            ("irn", ["--beta", 5], "beta"),
            ("irn", ["--map", "cam"], "map"),
            ("crf on maps", ["--crf_on", "labels"], "crf_on"),
        ],
    )
    def test_labels_made_in_another_way_do_not_mix(self, chain, refine, more, changed):
        folder = chain.run_dir / ("irn" if changed == "refine" else refine)
        before = times_below(folder)
        with pytest.raises(InputError, match=rf"settings\.json: the files there are of another {changed}; .*--overwrite"):
            call(make_seg_labels.main, *chain.common, *label_flags(refine), *more, "--label_dir", folder)
        assert times_below(folder) == before

    def test_labels_of_another_irn_do_not_mix(self, chain, tmp_path):
        shutil.copytree(chain.run_dir / "irn", tmp_path / "labels")
        content = torch.load(chain.run_dir / "ckpt/irn.pth", weights_only=True)
        torch.save({"model": content["model"]}, tmp_path / "irn.pth")
        flags = [*chain.common, *label_flags("irn"), "--irn_ckpt", tmp_path / "irn.pth", "--label_dir", tmp_path / "labels"]
        with pytest.raises(InputError, match="of another irn;"):
            call(make_seg_labels.main, *flags)
        (tmp_path / "irn.pth").unlink()

    def test_overwriting_makes_all_labels_again_with_the_new_settings(self, chain, fixed_voc, run_dir):
        shutil.copytree(chain.run_dir / "crf", run_dir / "seg_label")
        flags = [*data_flags(fixed_voc, run_dir), *label_flags("none")]
        assert "6 of them to do" in call(make_seg_labels.main, *flags, "--overwrite")
        assert files_below(run_dir / "seg_label") == {"settings.json", *(f"{name}.png" for name in NAMES)}
        assert_same_labels(run_dir / "seg_label", chain.run_dir / "none")
        assert "0 of them to do" in call(make_seg_labels.main, *flags)

    def test_the_authors_irn_loads_as_it_is(self, chain, fixed_voc, run_dir, monkeypatch):
        """A plain state dict with what else their program keeps in it; it was trained at 512, to which pictures are padded."""
        tensors = weights_of(chain.run_dir / "ckpt/irn.pth")
        theirs = tensors | {"path_indices0": torch.zeros(4, 2), "disp_target": torch.zeros(1, 2, 3, 1)}
        theirs |= {"stage1.0.weight": tensors["resnet50.conv1.weight"], "mean_shift.running_mean": tensors["fc_dp7.4.running_mean"]}
        torch.save(theirs, run_dir / "theirs.pth")

        def ready(model, device):
            assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())

        def find_edges(model, image, crop_size):
            assert crop_size == 512
            return torch.zeros(1, 12, 16)

        monkeypatch.setattr(make_seg_labels, "ready", ready)
        monkeypatch.setattr(make_seg_labels.IRN, "find_edges", find_edges)
        flags = [*label_flags("irn"), "--irn_ckpt", run_dir / "theirs.pth", "--list", write_lines(run_dir / "one.txt", NAMES[0])]
        call(make_seg_labels.main, *data_flags(fixed_voc, run_dir), *flags)
        assert label_of(run_dir / "seg_label", NAMES[0]).shape == (48, 64)


def assert_same_labels(folder: Path, other: Path) -> None:
    ours, theirs = ({name: content for name, content in bytes_below(where).items() if name.endswith(".png")} for where in (folder, other))
    assert len(ours) == len(NAMES)
    assert ours == theirs


def test_pictures_of_unlike_sizes_walk_together_as_alone():
    rng = np.random.default_rng(0)
    edges = [torch.from_numpy(rng.random(size, dtype=np.float32)) for size in ((6, 9), (11, 4), (8, 8))]
    maps = [torch.from_numpy(rng.random((k, *edge.shape), dtype=np.float32)) for k, edge in zip((2, 4, 3), edges)]
    together = make_seg_labels.walk(edges, maps, beta=2, exp_times=4)
    for edge, one, walked in zip(edges, maps, together):
        (alone,) = make_seg_labels.walk([edge], [one], beta=2, exp_times=4)
        torch.testing.assert_close(walked, alone, atol=1e-6, rtol=1e-5)
        assert (alone - one * (1 - edge)).abs().max() > 0.1


class TestTurnedPictures:
    """Labels lie in the frame in which the picture is stored, whatever its EXIF orientation."""

    @pytest.fixture
    def flags(self, tiny_voc, tmp_path) -> list:
        """Maps of a picture that is stored lying on its side, and of its upright twin."""
        self.stored = turn(*(tiny_voc / f"JPEGImages/{name}.jpg" for name in (NAMES[0], NAMES[2])))
        draw_soft_maps(tiny_voc, tmp_path / "run", turned=(NAMES[2],))
        return [*data_flags(tiny_voc, tmp_path / "run"), "--list", write_lines(tmp_path / "two.txt", NAMES[0], NAMES[2])]

    @pytest.mark.parametrize("stage", [make_ir_labels, make_seg_labels], ids=lambda stage: stage.__name__)
    def test_labels_of_the_crf(self, flags, stage, tiny_voc, tmp_path):
        folder, more = ("ir_label", []) if stage is make_ir_labels else ("seg_label", label_flags("crf"))
        call(stage.main, *flags, *more)
        turned, twin = (label_of(tmp_path / "run" / folder, name) for name in (NAMES[0], NAMES[2]))
        self.stored.save(tiny_voc / f"JPEGImages/{NAMES[0]}.jpg", format="PNG")
        call(stage.main, *flags, *more, "--overwrite")
        assert np.array_equal(turned, label_of(tmp_path / "run" / folder, NAMES[0]))
        assert twin.shape == (64, 48)
        assert (turned == np.rot90(twin)).mean() > 0.95

    def test_labels_of_irn_and_their_probabilities(self, flags, chain, tmp_path):
        call(make_seg_labels.main, *flags, *label_flags("irn"), "--irn_ckpt", chain.run_dir / "ckpt/irn.pth", "--save_prob")
        turned, twin = (np.load(tmp_path / f"run/seg_label/{name}.npz")["probability"] for name in (NAMES[0], NAMES[2]))
        np.testing.assert_allclose(turned, np.rot90(twin, 1, (1, 2)), atol=1e-3)
        turned, twin = (label_of(tmp_path / "run/seg_label", name) for name in (NAMES[0], NAMES[2]))
        assert (turned == np.rot90(twin)).mean() > 0.999

    def test_irn_learns_the_same_from_them(self, flags, tiny_voc, tiny_backbone, tmp_path):
        """As from the upright twin; the third of the picture that is a dog tells one turn from another."""
        label = np.zeros((48, 64), np.uint8)
        label[:, :20] = 12
        for name, stored in ((NAMES[0], label), (NAMES[2], np.rot90(label, -1))):
            folder = tmp_path / name / "ir_label"
            label_file.save(label_file.path_of(folder, name), np.ascontiguousarray(stored))
            write_json(folder / "settings.json", {})
            listed = ["--list", write_lines(tmp_path / name / "one.txt", name)]
            one_step = [*training_flags(tiny_backbone), "--batch_size", 1, "--max_epochs", 1]
            call(train_irn.main, *data_flags(tiny_voc, tmp_path / name), *listed, *one_step)
        assert_same_weights(*(tmp_path / name / "ckpt/irn.pth" for name in (NAMES[0], NAMES[2])))
        for name in (NAMES[0], NAMES[2]):
            shutil.rmtree(tmp_path / name)


def test_two_processes_do_what_one_does(chain, fixed_voc, tiny_backbone, run_dir, tmp_path):
    shared, alone = data_flags(fixed_voc, run_dir), data_flags(fixed_voc, tmp_path / "alone")
    one_step = [*training_flags(tiny_backbone), "--batch_size", 6, "--max_epochs", 1]
    in_two_processes([[make_ir_labels, *shared], [train_irn, *shared, *one_step], [make_seg_labels, *shared, *label_flags("crf")]])
    assert bytes_below(run_dir / "ir_label") == bytes_below(chain.run_dir / "ir_label")
    assert_same_labels(run_dir / "seg_label", chain.run_dir / "crf")
    shutil.copytree(chain.run_dir / "ir_label", tmp_path / "alone/ir_label")
    call(train_irn.main, *alone, *one_step)
    theirs = weights_of(tmp_path / "alone/ckpt/irn.pth")
    for name, value in weights_of(run_dir / "ckpt/irn.pth").items():  # a step over two halves of the batch is one over the whole
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    shutil.rmtree(tmp_path / "alone")


class TestEvaluation:
    @pytest.mark.parametrize("refine", SCORED)
    def test_the_report_says_what_was_measured_on_what(self, chain, fixed_voc, refine):
        content = json.loads((chain.run_dir / f"eval_{refine}.json").read_text())
        assert (content["list"], content["pictures"], content["unlabelled"]) == ("train", 6, 0)
        matrix = np.array(content["confusion"])
        expected = np.zeros((21, 21), int)
        for name in NAMES:
            truth = np.asarray(Image.open(fixed_voc / f"SegmentationClass/{name}.png"))
            np.add.at(expected, (truth, label_of(chain.run_dir / refine, name)), 1)
        assert np.array_equal(matrix, expected)
        assert list(content["iou"]) == list(VOC_CLASSES)
        for name in VOC_CLASSES:
            shares = [content[measure][name] for measure in ("iou", "false_positive", "false_negative")]
            assert (shares == [None] * 3) if name not in ("background", "cat", "dog") else sum(shares) == pytest.approx(100), name
        assert content["miou"] == pytest.approx(np.mean([value for value in content["iou"].values() if value is not None]))
        assert content["miou"] > 50

    def test_the_table_names_the_classes_and_the_measures(self, chain):
        assert all(name in chain.printed["crf"] for name in (*VOC_CLASSES, "mean", "IoU", "false positive", "false negative"))

    @pytest.mark.parametrize("name", ["eval_irn.png", "eval_irn_sheet.png"])
    def test_the_pictures_open(self, chain, name):
        with Image.open(chain.run_dir / name) as image:
            image.load()
            assert min(image.size) > 100

    def test_uncertain_pixels_are_left_out_and_their_share_is_told(self, chain):
        printed = call(eval_seg.main, *chain.common, "--label_dir", chain.run_dir / "ir_label")
        content = json.loads((chain.run_dir / "eval_ir_label.json").read_text())
        uncertain = sum(int((label_of(chain.run_dir / "ir_label", name) == 255).sum()) for name in NAMES)
        assert 0 < uncertain < 6 * 48 * 64
        assert content["unlabelled"] == pytest.approx(100 * uncertain / (6 * 48 * 64))
        assert np.sum(content["confusion"]) == 6 * 48 * 64 - uncertain
        assert f"{content['unlabelled']:.2f} of the pixels have no label" in printed

    def test_masks_score_a_hundred_as_labels(self, tiny_voc, tmp_path):
        """And 255 in the mask counts neither as labelled nor as unlabelled."""
        mask = np.asarray(Image.open(tiny_voc / f"SegmentationClass/{NAMES[0]}.png")).copy()
        shutil.copytree(tiny_voc / "SegmentationClass", tmp_path / "labels")
        mask[:10] = 255
        Image.fromarray(mask).save(tiny_voc / f"SegmentationClass/{NAMES[0]}.png")
        call(eval_seg.main, *data_flags(tiny_voc, tmp_path / "run", num_workers=1), "--label_dir", tmp_path / "labels")
        content = json.loads((tmp_path / "run/eval_labels.json").read_text())
        assert (content["miou"], content["pixel_accuracy"], content["unlabelled"]) == (100, 100, 0)
        assert np.sum(content["confusion"]) == 6 * 48 * 64 - 10 * 64

    def test_the_same_labels_are_scored_once_and_anything_else_anew(self, chain, tiny_voc, tmp_path):
        shutil.copytree(chain.run_dir / "none", tmp_path / "run/seg_label")
        flags, output = data_flags(tiny_voc, tmp_path / "run"), tmp_path / "run/eval_seg_label.json"
        first = call(eval_seg.main, *flags)
        assert "is complete" not in first
        before = times_below(tmp_path / "run")
        again = call(eval_seg.main, *flags)
        assert "is complete" in again and again.splitlines()[:-1] == first.splitlines()[:-1]
        assert times_below(tmp_path / "run") == before
        miou = json.loads(output.read_text())["miou"]
        label_file.save(label_file.path_of(tmp_path / "run/seg_label", NAMES[0]), np.full((48, 64), 8, np.uint8))
        assert "is complete" not in call(eval_seg.main, *flags)
        assert json.loads(output.read_text())["miou"] < miou
        Image.fromarray(np.full((48, 64), 8, np.uint8)).save(tiny_voc / f"SegmentationClass/{NAMES[1]}.png")
        assert "is complete" not in call(eval_seg.main, *flags, "--list", write_lines(tmp_path / "one.txt", NAMES[1]))
        assert json.loads(output.read_text())["pictures"] == 1
