"""The chain's first half through main([...]) on drawn pictures: train, localize, evaluate; stopped and resumed at will."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import (
    NAMES,
    VOC_CLASSES,
    assert_same_weights,
    call,
    data_flags,
    files_below,
    kill_once_there,
    note_maps,
    stop_after,
    turn,
    weights_of,
    write_lines,
)
from PIL import Image

import eval_cam
import eval_seg
import infer_seg
import make_cam
import make_ir_labels
import make_seg_labels
import predict
import train_irn
import train_resnet50_SIPE as train
import train_seg
from data.datasets import Pyramids, kept_classes
from data.images import stored_size
from data.loaders import by_size
from data.registry import open_dataset
from errors import InputError
from network.sipe import SIPE
from tool import cam_file, checkpoint, stage

COMMANDS = [train, make_cam, eval_cam, make_ir_labels, train_irn, make_seg_labels, eval_seg, train_seg, infer_seg, predict]
STEPS = 6  # two epochs of three batches


def training_flags(weights) -> list:
    small = ["--batch_size", 2, "--crop_size", 64, "--resize_long", 48, 64]
    return ["--device", "cpu", "--weights", weights, "--max_epochs", 2, *small]


def mapping_flags() -> list:
    return ["--device", "cpu", "--scales", 1.0, 0.5]


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory that goes away with the test: checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture(scope="module")
def chain(fixed_voc: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The three stages, one after the other, with the authors' names for two flags: the run directory and what was printed."""
    run_dir = tmp_path_factory.mktemp("chain") / "run"
    common = ["--dataset_root", fixed_voc, "--session_name", run_dir, "--num_workers", 0]
    renamed = ["--max_epoches" if flag == "--max_epochs" else flag for flag in training_flags(tiny_backbone)]
    printed = {"train": call(train.main, *common, *renamed)}
    after_training = files_below(run_dir)
    printed["make_cam"] = call(make_cam.main, *common, *mapping_flags())
    printed["eval_cam"] = call(eval_cam.main, *common)
    yield SimpleNamespace(run_dir=run_dir, printed=printed, after_training=after_training, common=common)
    shutil.rmtree(run_dir)


class TestTraining:
    def test_leaves_the_final_checkpoint_and_no_other(self, chain):
        assert {name for name in chain.after_training if not name.startswith("tensorboard/")} == {"ckpt/final.pth"}
        assert f"{STEPS} steps" in chain.printed["train"]

    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain, tiny_backbone):
        content = torch.load(chain.run_dir / "ckpt/final.pth", weights_only=True)
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        assert content["arguments"]["weights"] == str(tiny_backbone)
        assert (content["arguments"]["max_epochs"], content["arguments"]["batch_size"]) == (2, 2)

    def test_a_pretrained_backbone_keeps_its_lower_layers_and_statistics(self, chain, tiny_backbone):
        before = torch.load(tiny_backbone, weights_only=True)
        after = weights_of(chain.run_dir / "ckpt/final.pth")
        for name, value in before.items():
            frozen = name.startswith(("conv1.", "bn1.", "layer1.", "layer2.")) or "running_" in name or "num_batches" in name
            assert torch.equal(value, after[f"resnet50.{name}"]) == frozen, name

    def test_from_scratch_every_layer_and_the_statistics_learn(self, fixed_voc, run_dir):
        one_step = ["--batch_size", 6, "--max_epochs", 1]
        call(train.main, *data_flags(fixed_voc, run_dir), *training_flags("none"), *one_step)
        stage.seed_everything(15)
        before = train.build_model("none", len(VOC_CLASSES)).state_dict()
        after = weights_of(run_dir / "ckpt/final.pth")
        for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.running_var", "layer1.0.bn1.running_mean", "layer4.2.bn3.bias"):
            assert not torch.equal(before[f"resnet50.{name}"], after[f"resnet50.{name}"]), name
        assert after["resnet50.bn1.num_batches_tracked"] == 1

    def test_a_complete_run_is_left_alone(self, chain, tiny_backbone):
        before = (chain.run_dir / "ckpt/final.pth").stat().st_mtime_ns
        assert "is complete" in call(train.main, *chain.common, *training_flags(tiny_backbone))
        assert (chain.run_dir / "ckpt/final.pth").stat().st_mtime_ns == before

    def test_validation_says_that_it_reads_pixel_labels_and_changes_nothing(self, chain, fixed_voc, tiny_backbone, run_dir):
        printed = call(train.main, *data_flags(fixed_voc, run_dir), *training_flags(tiny_backbone), "--val_list", "val")
        assert "reads the pixel labels of 6 pictures" in printed
        assert printed.count("IS-CAM mIoU") == 2
        assert "pixel labels" not in chain.printed["train"]
        assert_same_weights(run_dir / "ckpt/final.pth", chain.run_dir / "ckpt/final.pth")


class TestResuming:
    @pytest.mark.parametrize(("num_workers", "save_every", "steps_done"), [(0, 1, 4), (1, 2, 5)])
    def test_a_stopped_training_ends_with_the_same_weights(
        self, chain, fixed_voc, tiny_backbone, run_dir, num_workers, save_every, steps_done
    ):
        flags = [*data_flags(fixed_voc, run_dir, num_workers), *training_flags(tiny_backbone), "--save_every", save_every]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train, "train_step", steps_done)
            call(train.main, *flags)
        assert not (run_dir / "ckpt/final.pth").exists()
        saved = steps_done // save_every * save_every
        assert f"from step {saved}" in call(train.main, *flags)
        assert_same_weights(run_dir / "ckpt/final.pth", chain.run_dir / "ckpt/final.pth")
        assert {path.name for path in (run_dir / "ckpt").iterdir()} == {"final.pth"}

    def test_a_killed_training_ends_with_the_same_weights(self, chain, fixed_voc, tiny_backbone, run_dir):
        flags = [*data_flags(fixed_voc, run_dir), *training_flags(tiny_backbone), "--save_every", 1]
        kill_once_there(run_dir / "ckpt/last.pth", train, flags)
        assert not (run_dir / "ckpt/final.pth").exists()
        assert "from step" in call(train.main, *flags)
        assert_same_weights(run_dir / "ckpt/final.pth", chain.run_dir / "ckpt/final.pth")
        assert {path.name for path in (run_dir / "ckpt").iterdir()} == {"final.pth"}

    @pytest.mark.slow
    def test_a_compiled_training_is_taken_up_by_one_that_is_not(self, fixed_voc, tiny_backbone, run_dir):
        """The rate is small: with random weights a large one lets roundings grow into other seeds."""
        small_rate = [*training_flags(tiny_backbone), "--lr", 0.001, "--save_every", 1]
        flags = [*data_flags(fixed_voc, run_dir / "compiled"), *small_rate]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train, "train_step", 3)
            call(train.main, *flags, "--compile")
        assert "from step 3" in call(train.main, *flags)
        call(train.main, *data_flags(fixed_voc, run_dir / "plain"), *small_rate)
        ours, theirs = (weights_of(run_dir / name / "ckpt/final.pth") for name in ("compiled", "plain"))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert (value - theirs[name]).abs().max() <= 1e-5 * theirs[name].abs().max() + 1e-7, name

    def test_without_resume_a_run_starts_over(self, fixed_voc, tiny_backbone, run_dir):
        checkpoint.save(run_dir / "ckpt/last.pth", {"arguments": {"lr": 0.1}, "step": 1})
        one_step = ["--batch_size", 6, "--max_epochs", 1, "--lr", 0.05, "--no-resume"]
        assert "from step" not in call(train.main, *data_flags(fixed_voc, run_dir), *training_flags(tiny_backbone), *one_step)
        assert torch.load(run_dir / "ckpt/final.pth", weights_only=True)["arguments"]["lr"] == 0.05
        assert not (run_dir / "ckpt/last.pth").exists()

    def test_stopped_localization_goes_on_and_ends_with_the_same_maps(self, chain, fixed_voc, run_dir):
        flags = [*data_flags(fixed_voc, run_dir), *mapping_flags(), "--ckpt", chain.run_dir / "ckpt/final.pth"]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, make_cam, "localize", 2)
            call(make_cam.main, *flags)
        done = {path: path.stat().st_mtime_ns for path in (run_dir / "cam").glob("*.npz")}
        assert sorted(path.stem for path in done) == NAMES[:2]
        call(make_cam.main, *flags)
        assert all(path.stat().st_mtime_ns == before for path, before in done.items())
        assert files_below(run_dir) == {"cam/settings.json", *(f"cam/{name}.npz" for name in NAMES)}
        for name in NAMES:
            ours, theirs = (np.load(cam_file.path_of(where, name), allow_pickle=False) for where in (run_dir, chain.run_dir))
            assert ours.files == theirs.files
            assert all(np.array_equal(ours[array], theirs[array]) for array in ours.files)

    def test_maps_that_cannot_be_written_end_localization_by_name(self, chain, fixed_voc, tmp_path):
        flags = [*data_flags(fixed_voc, tmp_path / "run"), *mapping_flags(), "--ckpt", chain.run_dir / "ckpt/final.pth"]
        call(make_cam.main, *flags, "--list", write_lines(tmp_path / "one.txt", NAMES[5]))
        path = cam_file.path_of(tmp_path / "run", NAMES[3])
        path.mkdir()
        with pytest.raises(InputError, match="cannot be written") as error:
            call(make_cam.main, *flags)
        assert str(error.value).startswith(f"{path}: ")
        path.rmdir()
        assert {*NAMES[:3], NAMES[5]} <= {path.stem for path in (tmp_path / "run/cam").glob("*.npz")}
        call(make_cam.main, *flags)
        assert files_below(tmp_path / "run") == {"cam/settings.json", *(f"cam/{name}.npz" for name in NAMES)}


class TestLocalization:
    def test_every_picture_has_one_file(self, chain):
        assert {path.stem for path in (chain.run_dir / "cam").glob("*.npz")} == set(NAMES)

    def test_a_file_holds_the_tagged_classes_at_the_size_of_the_picture(self, chain):
        for i, name in enumerate(NAMES):
            maps = cam_file.load(cam_file.path_of(chain.run_dir, name))
            assert maps.keys.tolist() == ([0, 8, 12] if i % 2 == 0 else [0, 12])
            assert maps.size == (48, 64)
            assert maps.is_cam.shape == maps.cam.shape == (len(maps.keys), 48, 64)
            assert 0 <= min(maps.is_cam.min(), maps.cam.min()) <= max(maps.is_cam.max(), maps.cam.max()) <= 1

    def test_pictures_of_one_size_in_a_batch_get_the_maps_that_each_gets_alone(self, chain, tiny_voc):
        """Three sizes, one of them larger than the others by EXIF's turn alone."""
        for name, size in ((NAMES[1], (48, 64)), (NAMES[4], (80, 32))):
            Image.open(tiny_voc / f"JPEGImages/{name}.jpg").resize(size).save(tiny_voc / f"JPEGImages/{name}.jpg")
        turn(*(tiny_voc / f"JPEGImages/{name}.jpg" for name in (NAMES[0], NAMES[2])))
        dataset = open_dataset("voc", tiny_voc)
        entries = dataset.entries("train")
        model = SIPE(dataset.num_classes).eval()
        checkpoint.fill(model, checkpoint.read(chain.run_dir / "ckpt/final.pth")["model"], "final.pth")
        items = list(Pyramids(entries, dataset.labels(entries), [0.5, 1.5, 1.0]))
        run = stage.Stage(torch.device("cpu"), 0, 1, chain.run_dir)
        batches = list(by_size(items, 4))
        assert sorted([item.index for item in batch] for batch in batches) == [[0, 1, 2], [3, 5], [4]]
        for batch in batches:
            for item, (keys, maps) in zip(batch, make_cam.localize(model, batch, run)):
                ((own_keys, own_maps),) = make_cam.localize(model, [item], run)
                assert np.array_equal(keys, own_keys) and keys.tolist() == kept_classes(item.label).tolist()
                for kind in ("is_cam", "cam"):
                    stored = stored_size(item.size, item.orientation)
                    sizes = [tuple(-(-round(scale * side) // 16) for side in stored) for scale in (0.5, 1.5, 1.0)]
                    assert [grid.shape for grid in maps[kind]] == [(len(keys), *size) for size in sizes]
                    for grid, own_grid in zip(maps[kind], own_maps[kind]):
                        np.testing.assert_allclose(grid, own_grid, atol=1e-6, rtol=0)

    def test_batches_are_no_part_of_how_maps_are_made(self, chain, fixed_voc, tmp_path):
        flags = [*data_flags(fixed_voc, tmp_path / "run"), *mapping_flags(), "--ckpt", chain.run_dir / "ckpt/final.pth"]
        call(make_cam.main, *flags, "--list", write_lines(tmp_path / "two.txt", *NAMES[:2]))
        assert "6 pictures, 4 of them to do" in call(make_cam.main, *flags, "--batch_size", 4)
        assert files_below(tmp_path / "run") == {"cam/settings.json", *(f"cam/{name}.npz" for name in NAMES)}
        for name in NAMES:
            ours, theirs = (np.load(cam_file.path_of(where, name), allow_pickle=False) for where in (tmp_path / "run", chain.run_dir))
            assert ours.files == theirs.files
            for array in ours.files:
                np.testing.assert_allclose(ours[array], theirs[array], atol=1e-3)  # float16

    def test_a_second_run_writes_nothing(self, chain):
        before = {path: path.stat().st_mtime_ns for path in (chain.run_dir / "cam").iterdir()}
        call(make_cam.main, *chain.common, *mapping_flags())
        assert {path: path.stat().st_mtime_ns for path in (chain.run_dir / "cam").iterdir()} == before

    def test_overwriting_makes_all_maps_again_with_the_new_settings(self, chain, fixed_voc, tmp_path):
        flags = [*data_flags(fixed_voc, tmp_path / "run"), "--device", "cpu", "--ckpt", chain.run_dir / "ckpt/final.pth"]
        listed = tmp_path / "two.txt"
        listed.write_text("\n".join(NAMES[:2]))
        call(make_cam.main, *flags, "--list", listed, "--scales", 1.0, 0.5)
        call(make_cam.main, *flags, "--list", listed, "--scales", 0.5, "--maps", "is_cam", "--overwrite")
        for name in NAMES[:2]:
            with np.load(cam_file.path_of(tmp_path / "run", name), allow_pickle=False) as arrays:
                assert sorted(arrays.files) == ["is_cam_0", "keys", "size"]
        call(eval_cam.main, *data_flags(fixed_voc, tmp_path / "run"), "--list", listed)
        assert "cam" not in json.loads((tmp_path / "run/eval_cam.json").read_text())

    def test_a_checkpoint_for_other_classes_is_refused(self, chain, fixed_voc, tmp_path):
        root = tmp_path / "folder"
        shutil.copytree(fixed_voc / "JPEGImages", root / "images")
        (root / "classes.txt").write_text("cat\ndog\n")
        (root / "tags.csv").write_text("".join(f"{name},dog\n" for name in NAMES))
        (root / "train.txt").write_text("\n".join(NAMES))
        flags = ["--dataset", "folder", *data_flags(root, tmp_path / "run"), *mapping_flags()]
        with pytest.raises(InputError, match=r"final\.pth: was trained on 20 classes .* the dataset has 2 \(cat, dog\)"):
            call(make_cam.main, *flags, "--ckpt", chain.run_dir / "ckpt/final.pth")
        assert not (tmp_path / "run").exists()

    def test_a_picture_turned_by_exif_gets_the_maps_of_its_upright_twin_in_the_stored_frame(self, chain, tiny_voc, tmp_path):
        turn(*(tiny_voc / f"JPEGImages/{name}.jpg" for name in (NAMES[0], NAMES[2])))
        (tmp_path / "two.txt").write_text(f"{NAMES[0]}\n{NAMES[2]}\n")
        flags = [*data_flags(tiny_voc, tmp_path / "run"), "--list", tmp_path / "two.txt"]
        call(make_cam.main, *flags, *mapping_flags(), "--ckpt", chain.run_dir / "ckpt/final.pth")

        with np.load(cam_file.path_of(tmp_path / "run", NAMES[0])) as ours, np.load(cam_file.path_of(tmp_path / "run", NAMES[2])) as twin:
            assert (ours["size"].tolist(), twin["size"].tolist()) == ([48, 64], [64, 48])
            for kind in ("is_cam_0", "is_cam_1", "cam_0", "cam_1"):
                np.testing.assert_array_equal(ours[kind], np.rot90(twin[kind], 1, (1, 2)))

        mask = Image.open(tiny_voc / f"SegmentationClass/{NAMES[2]}.png")
        mask.transpose(Image.Transpose.ROTATE_270).save(tiny_voc / f"SegmentationClass/{NAMES[2]}.png")
        call(eval_cam.main, *flags)
        confusion = np.array(json.loads((tmp_path / "run/eval_cam.json").read_text())["is_cam"]["confusion"])
        assert confusion.sum() == 2 * 48 * 64


class TestEvaluation:
    def test_the_report_says_what_was_measured_on_what(self, chain):
        content = json.loads((chain.run_dir / "eval_cam.json").read_text())
        assert (content["list"], content["pictures"]) == ("train", 6)
        for kind in ("is_cam", "cam"):
            matrix = np.array(content[kind]["confusion"])
            assert matrix.shape == (21, 21)
            assert matrix.sum() == 6 * 48 * 64
            assert list(content[kind]["iou"]) == list(VOC_CLASSES)
            measured = {name: iou for name, iou in content[kind]["iou"].items() if iou is not None}
            assert measured.keys() == {"background", "cat", "dog"}
            for name, iou in measured.items():
                k = VOC_CLASSES.index(name)
                assert iou == pytest.approx(100 * matrix[k, k] / (matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]))
            assert content[kind]["miou"] == pytest.approx(sum(measured.values()) / 3)
            assert content[kind]["pixel_accuracy"] == pytest.approx(100 * matrix.trace() / matrix.sum())

    def test_the_same_maps_are_scored_once_and_anything_else_anew(self, chain, tiny_voc, tmp_path):
        shutil.copytree(chain.run_dir / "cam", tmp_path / "run/cam")
        flags, output = data_flags(tiny_voc, tmp_path / "run"), tmp_path / "run/eval_cam.json"
        assert "is complete" not in call(eval_cam.main, *flags)
        before = output.stat().st_mtime_ns
        assert "is complete" in call(eval_cam.main, *flags)
        assert output.stat().st_mtime_ns == before
        Image.fromarray(np.full((48, 64), 8, np.uint8)).save(tiny_voc / f"SegmentationClass/{NAMES[0]}.png")
        assert "is complete" not in call(eval_cam.main, *flags)
        (tmp_path / "one.txt").write_text(NAMES[0])
        call(eval_cam.main, *flags, "--list", tmp_path / "one.txt")
        assert json.loads(output.read_text())["pictures"] == 1

    def test_the_threshold_sweep_is_marked_as_tuned(self, chain):
        content = json.loads((chain.run_dir / "eval_cam.json").read_text())
        sweep = content["cam_background_threshold_percent_tuned_on_ground_truth"]
        assert [int(threshold) for threshold in sweep] == list(range(5, 65, 5))
        assert "tuned on ground truth" in chain.printed["eval_cam"]

    def test_the_table_names_the_classes(self, chain):
        assert all(name in chain.printed["eval_cam"] for name in (*VOC_CLASSES, "mIoU", "IS-CAM", "general CAM"))

    @pytest.mark.parametrize("name", ["eval_cam.png", "eval_cam_sheet.png"])
    def test_the_pictures_open(self, chain, name):
        with Image.open(chain.run_dir / name) as image:
            image.load()
            assert min(image.size) > 100

    def test_perfect_maps_score_a_hundred(self, fixed_voc, tmp_path):
        for name in NAMES:
            mask = np.asarray(Image.open(fixed_voc / f"SegmentationClass/{name}.png"))
            keys = np.unique(mask)
            maps = (mask == keys[:, None, None]).astype(np.float32)
            cam_file.save(cam_file.path_of(tmp_path / "run", name), keys, mask.shape, is_cam=[maps], cam=[maps])
        note_maps(tmp_path / "run", ("is_cam", "cam"))
        call(eval_cam.main, *data_flags(fixed_voc, tmp_path / "run", num_workers=1))
        content = json.loads((tmp_path / "run/eval_cam.json").read_text())
        assert content["is_cam"]["miou"] == content["cam"]["miou"] == 100

    def test_a_mask_without_a_counted_pixel_counts_for_nothing(self, tiny_voc, tmp_path):
        listed = tmp_path / "two.txt"
        listed.write_text("\n".join(NAMES[:2]))
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(tiny_voc / f"SegmentationClass/{NAMES[0]}.png")
        for name in NAMES[:2]:
            maps = np.eye(2, dtype=np.float32)[:, None, :].repeat(2, 1)
            cam_file.save(cam_file.path_of(tmp_path / "run", name), [0, 12], (48, 64), is_cam=[maps])
        note_maps(tmp_path / "run")
        call(eval_cam.main, *data_flags(tiny_voc, tmp_path / "run"), "--list", listed)
        assert np.sum(json.loads((tmp_path / "run/eval_cam.json").read_text())["is_cam"]["confusion"]) == 48 * 64


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.__name__)
def test_help_explains_every_flag(script, monkeypatch, capsys):
    parsers, parse = [], argparse.ArgumentParser.parse_args

    def keep(parser, *args, **kwargs):
        parsers.append(parser)
        return parse(parser, *args, **kwargs)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for action in parsers[0]._actions:
        assert all(flag in printed for flag in action.option_strings)
        assert action.help and action.help != argparse.SUPPRESS, action.option_strings


def test_the_authors_names_of_flags_mean_the_same():
    theirs = train.parse_args(["--session_name", "here", "--max_epoches", "7"])
    assert theirs == train.parse_args(["--run_dir", "here", "--max_epochs", "7"])
    assert make_cam.parse_args(["--session_name", "here"]).ckpt == Path("here/ckpt/final.pth")
    assert eval_cam.parse_args(["--session_name", "here"]).run_dir == Path("here")
    assert train_irn.parse_args(["--max_epoches", "7", "--print_freq", "9"]) == train_irn.parse_args(
        ["--max_epochs", "7", "--log_every", "9"]
    )
    labels = make_seg_labels.parse_args(["--session_name", "here"])
    assert (labels.irn_ckpt, labels.label_dir) == (Path("here/ckpt/irn.pth"), Path("here/seg_label"))
    assert eval_seg.parse_args(["--session_name", "here"]).label_dir == Path("here/seg_label")
    segmentation = train_seg.parse_args(["--session_name", "here", "--max_epoches", "7", "--print_freq", "9", "--train_list", "val"])
    assert segmentation == train_seg.parse_args(["--run_dir", "here", "--max_epochs", "7", "--log_every", "9", "--list", "val"])
    assert segmentation.label_dir == Path("here/seg_label")
    masks = infer_seg.parse_args(["--session_name", "here"])
    assert (masks.ckpt, masks.label_dir) == (Path("here/ckpt/seg.pth"), Path("here/seg_pred"))


def test_a_checkpoint_of_ours_reads_back_as_it_was_written(chain):
    content = checkpoint.read(chain.run_dir / "ckpt/final.pth")
    assert content.keys() == {"arguments", "class_names", "model"}
