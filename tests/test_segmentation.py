"""The chain's last part through main([...]) on drawn pictures: the segmentation network, its masks and their scores, and predict.py on
pictures of no dataset; stopped at will."""

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import (
    NAMES,
    VOC_CLASSES,
    assert_same_weights,
    bytes_below,
    call,
    data_flags,
    files_below,
    in_two_processes,
    kill_once_there,
    label_of,
    one_thread,
    probability_of,
    stop_after,
    times_below,
    turn,
    weights_of,
    write_lines,
)
from PIL import Image

import eval_seg
import infer_seg
import make_cam
import predict
import train_seg
from data.images import read_picture
from data.registry import COCO
from data.tables import read_classes
from errors import InputError
from network.deeplab import DeepLab
from tool import cam_file, checkpoint, crf, files, label_file, stage, visualize

STEPS = 6  # two epochs of three batches
INFER = ["--device", "cpu", "--scales", 1.0, 0.5]
PREDICT = ["--device", "cpu", "--num_workers", 0, "--scales", 1.0, "--ckpt"]
SIZE = (48, 64)


def training_flags(root: Path, weights: Path) -> list:
    """A short training on the masks of the drawn dataset; of random weights the activations grow, so that it learns slowly."""
    network = ["--network", "deeplabv2_resnet50", "--output_stride", 16, "--weights", weights]
    course = ["--crop_size", 64, "--batch_size", 2, "--max_epochs", 2, "--lr", 1e-6]
    return ["--device", "cpu", "--label_dir", root / "SegmentationClass", *network, *course]


def assert_same_masks(folder: Path, other: Path, names: list[str] = NAMES) -> None:
    for name in names:
        assert np.array_equal(label_of(folder, name), label_of(other, name)), name


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory that goes away with the test: checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture(scope="module")
def chain(fixed_voc: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The three stages, one after the other: the run directory and what was printed."""
    run_dir = tmp_path_factory.mktemp("chain") / "run"
    common, printed = data_flags(fixed_voc, run_dir), {}
    printed["train_seg"] = call(train_seg.main, *common, *training_flags(fixed_voc, tiny_backbone))
    printed["infer_seg"] = call(infer_seg.main, *common, *INFER)
    printed["eval_seg"] = call(eval_seg.main, *common, "--list", "val", "--label_dir", run_dir / "seg_pred")
    yield SimpleNamespace(run_dir=run_dir, printed=printed, common=common)
    shutil.rmtree(run_dir)


@pytest.fixture(scope="module")
def third(fixed_voc: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two steps of DeepLab-v3, whose head has dropout and learns BatchNorm's statistics: the run directory and the training's flags."""
    run_dir = tmp_path_factory.mktemp("third") / "run"
    short = ["--network", "deeplabv3_resnet50", "--batch_size", 3, "--max_epochs", 1]
    flags = [*training_flags(fixed_voc, tiny_backbone), *short]
    call(train_seg.main, *data_flags(fixed_voc, run_dir), *flags)
    yield SimpleNamespace(run_dir=run_dir, flags=flags)
    shutil.rmtree(run_dir)


@pytest.fixture(scope="module")
def inferred(fixed_voc: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Masks by the untrained network, which finds several classes, and their probabilities: the run directory and the flags."""
    run_dir, flags = tmp_path_factory.mktemp("inferred") / "run", [*INFER, "--ckpt", checkpoints["segmentation"]]
    call(infer_seg.main, *data_flags(fixed_voc, run_dir), *flags, "--save_prob")
    return SimpleNamespace(run_dir=run_dir, masks=run_dir / "seg_pred", flags=flags, common=[*data_flags(fixed_voc, run_dir), *flags])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[tuple[int, int]], tuple[int, int]]]:
    """The sizes of the images that DeepLab.segment is given from now on, and the size that it is asked for."""
    sizes, segment = [], DeepLab.segment

    def spy(model, images, size):
        sizes.append(([tuple(image.shape[2:]) for image in images], tuple(size)))
        return segment(model, images, size)

    monkeypatch.setattr(DeepLab, "segment", spy)
    return sizes


class TestTraining:
    def test_leaves_the_final_checkpoint_and_no_other(self, chain):
        assert f"6 pictures, 20 classes, deeplabv2_resnet50, {STEPS} steps" in chain.printed["train_seg"]
        assert files_below(chain.run_dir / "ckpt") == {"seg.pth"}
        assert files_below(chain.run_dir / "tensorboard/seg")

    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain, tiny_backbone):
        content = checkpoint.read(chain.run_dir / "ckpt/seg.pth")
        assert content.keys() == {"arguments", "class_names", "model"}
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        noted = {"network": "deeplabv2_resnet50", "output_stride": 16, "weights": str(tiny_backbone), "scales": [0.5, 2.0], "max_epochs": 2}
        assert noted.items() <= content["arguments"].items()

    def test_every_weight_learns_and_the_backbone_keeps_its_statistics(self, chain, tiny_backbone):
        after = weights_of(chain.run_dir / "ckpt/seg.pth")
        for name, value in torch.load(tiny_backbone, weights_only=True).items():
            frozen = "running_" in name or "num_batches" in name
            assert torch.equal(value, after[f"backbone.{name}"]) == frozen, name
        stage.seed_everything(15)
        start = DeepLab("deeplabv2_resnet50", 21, 16).classifier.state_dict()
        assert [name for name, value in start.items() if torch.equal(value, after[f"classifier.{name}"])] == []

    def test_a_complete_run_is_left_alone(self, chain, fixed_voc, tiny_backbone):
        before = times_below(chain.run_dir / "ckpt")
        assert "seg.pth is complete" in call(train_seg.main, *chain.common, *training_flags(fixed_voc, tiny_backbone))
        assert times_below(chain.run_dir / "ckpt") == before

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            (["--lr", 0.2], r"--lr 1e-06 \(now 0\.2\)"),
            (["--network", "deeplabv2_resnet101"], r"--network deeplabv2_resnet50 \(now deeplabv2_resnet101\)"),
            (["--output_stride", 8], r"--output_stride 16 \(now 8\)"),
            (["--scales", 1, 2], r"--scales \[0\.5, 2\.0\] \(now \[1\.0, 2\.0\]\)"),
            (["--class_balance", 0.5], r"--class_balance 0\.0 \(now 0\.5\)"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_another_recipe_is_refused(self, chain, fixed_voc, tiny_backbone, more, told):
        before = times_below(chain.run_dir / "ckpt")
        with pytest.raises(InputError, match=rf"seg\.pth: was trained with {told}; "):
            call(train_seg.main, *chain.common, *training_flags(fixed_voc, tiny_backbone), *more)
        assert times_below(chain.run_dir / "ckpt") == before

    def test_changed_labels_are_refused_and_the_same_in_another_place_are_not(self, chain, fixed_voc, tiny_backbone, tmp_path):
        shutil.copytree(fixed_voc / "SegmentationClass", tmp_path / "labels")
        flags = [*chain.common, *training_flags(fixed_voc, tiny_backbone), "--label_dir", tmp_path / "labels"]
        assert "is complete" in call(train_seg.main, *flags)
        label = np.asarray(Image.open(tmp_path / f"labels/{NAMES[3]}.png")).copy()
        label[20, 40] = 255
        label_file.save(tmp_path / f"labels/{NAMES[3]}.png", label)
        with pytest.raises(InputError, match=r"seg\.pth: was trained with other pictures, tags, labels or classes"):
            call(train_seg.main, *flags)

    @pytest.mark.parametrize(("num_workers", "save_every", "steps_done", "saved"), [(0, 4, 5, 4), (1, 0, 4, 3)])
    def test_a_stopped_training_ends_with_the_same_weights(
        self, chain, fixed_voc, tiny_backbone, run_dir, num_workers, save_every, steps_done, saved
    ):
        flags = [*data_flags(fixed_voc, run_dir, num_workers), *training_flags(fixed_voc, tiny_backbone), "--save_every", save_every]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train_seg, "train_step", steps_done)
            call(train_seg.main, *flags)
        assert files_below(run_dir / "ckpt") == {"seg_last.pth"}
        assert f"from step {saved}" in call(train_seg.main, *flags)
        assert_same_weights(run_dir / "ckpt/seg.pth", chain.run_dir / "ckpt/seg.pth")
        assert files_below(run_dir / "ckpt") == {"seg.pth"}

    def test_a_killed_training_ends_with_the_same_weights(self, chain, fixed_voc, tiny_backbone, run_dir):
        flags = [*data_flags(fixed_voc, run_dir), *training_flags(fixed_voc, tiny_backbone)]
        kill_once_there(run_dir / "ckpt/seg_last.pth", train_seg, [*flags, "--save_every", 1])
        assert not (run_dir / "ckpt/seg.pth").exists()
        assert "from step" in call(train_seg.main, *flags)
        assert_same_weights(run_dir / "ckpt/seg.pth", chain.run_dir / "ckpt/seg.pth")
        assert files_below(run_dir / "ckpt") == {"seg.pth"}

    def test_a_stopped_training_with_dropout_ends_with_the_same_weights(self, third, fixed_voc, run_dir):
        """And with another number of workers, which take no number that is the dropout's."""
        flags = [*data_flags(fixed_voc, run_dir, num_workers=1), *third.flags, "--save_every", 1]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train_seg, "train_step", 1)
            call(train_seg.main, *flags)
        assert "from step 1" in call(train_seg.main, *flags)
        assert_same_weights(run_dir / "ckpt/seg.pth", third.run_dir / "ckpt/seg.pth")

    def test_the_head_of_deeplab_v3_learns_its_statistics(self, third, tiny_backbone):
        after = weights_of(third.run_dir / "ckpt/seg.pth")
        statistics = {name: value for name, value in after.items() if name.startswith("classifier.") and "running_" in name}
        untouched = [name for name, value in statistics.items() if value.unique().tolist() in ([0], [1])]
        assert statistics and untouched == []
        assert torch.equal(after["backbone.bn1.running_var"], torch.load(tiny_backbone, weights_only=True)["bn1.running_var"])

    def test_pictures_without_a_labelled_pixel_are_left_out_and_that_is_said(self, fixed_voc, tiny_backbone, run_dir, tmp_path):
        shutil.copytree(fixed_voc / "SegmentationClass", tmp_path / "labels")
        for name in NAMES[2:4]:
            label_file.save(tmp_path / f"labels/{name}.png", np.full(SIZE, 255, np.uint8))
        flags = [*training_flags(fixed_voc, tiny_backbone), "--label_dir", tmp_path / "labels", "--max_epochs", 1]
        for folder, names in (("some", NAMES[:4]), ("useful", NAMES[:2])):
            listed = write_lines(tmp_path / f"{folder}.txt", *names)
            printed = call(train_seg.main, *data_flags(fixed_voc, run_dir / folder), *flags, "--list", listed)
            assert ("2 pictures are left out" in printed) == (folder == "some")
            assert "2 pictures, 20 classes, deeplabv2_resnet50, 1 steps" in printed
        assert_same_weights(*(run_dir / folder / "ckpt/seg.pth" for folder in ("some", "useful")))

    @pytest.mark.parametrize(("flags", "lr"), [([], 2.5e-4), (["--network", "deeplabv3_resnet50"], 1e-3), (["--lr", "0.1"], 0.1)])
    def test_the_learning_rate_follows_the_head_where_it_is_not_given(self, flags, lr):
        assert train_seg.parse_args(flags).lr == lr

    def test_without_resume_a_run_starts_over(self, fixed_voc, tiny_backbone, run_dir):
        checkpoint.save(run_dir / "ckpt/seg_last.pth", {"arguments": {"lr": 0.1}, "step": 1})
        one_step = [*training_flags(fixed_voc, tiny_backbone), "--batch_size", 6, "--max_epochs", 1, "--no-resume"]
        assert "from step" not in call(train_seg.main, *data_flags(fixed_voc, run_dir), *one_step)
        assert files_below(run_dir / "ckpt") == {"seg.pth"}

    def test_a_turned_picture_teaches_the_same_as_its_upright_twin(self, tiny_voc, tiny_backbone, run_dir, tmp_path):
        """The third of the picture that is a dog tells one turn from another."""
        turn(*(tiny_voc / f"JPEGImages/{name}.jpg" for name in (NAMES[0], NAMES[2])))
        label = np.zeros(SIZE, np.uint8)
        label[:, :20] = 12
        for name, stored in ((NAMES[0], label), (NAMES[2], np.rot90(label, -1))):
            label_file.save(label_file.path_of(tmp_path / "labels", name), np.ascontiguousarray(stored))
            listed = ["--list", write_lines(tmp_path / "one.txt", name), "--label_dir", tmp_path / "labels"]
            one_step = [*training_flags(tiny_voc, tiny_backbone), "--batch_size", 1, "--max_epochs", 1]
            call(train_seg.main, *data_flags(tiny_voc, run_dir / name), *one_step, *listed)
        assert_same_weights(*(run_dir / name / "ckpt/seg.pth" for name in (NAMES[0], NAMES[2])))


class TestInference:
    def test_a_mask_is_a_palette_png_of_the_size_of_its_picture(self, chain, inferred):
        assert files_below(chain.run_dir / "seg_pred") == {"settings.json", *(f"{name}.png" for name in NAMES)}
        for name in NAMES:
            trained, untrained = label_of(chain.run_dir / "seg_pred", name), label_of(inferred.masks, name)
            assert trained.shape == untrained.shape == SIZE
            assert max(trained.max(), untrained.max()) < len(VOC_CLASSES)
            assert len(np.unique(untrained)) > 1

    def test_the_masks_are_scored_under_a_name_of_their_own(self, chain, fixed_voc):
        content = json.loads((chain.run_dir / "eval_seg_pred.json").read_text())
        assert (content["list"], content["pictures"], content["unlabelled"]) == ("val", 6, 0)
        expected = np.zeros((21, 21), int)
        for name in NAMES:
            truth = np.asarray(Image.open(fixed_voc / f"SegmentationClass/{name}.png"))
            np.add.at(expected, (truth, label_of(chain.run_dir / "seg_pred", name)), 1)
        assert np.array_equal(content["confusion"], expected)
        assert files_below(chain.run_dir) >= {"eval_seg_pred.png", "eval_seg_pred_sheet.png"}
        assert "6 pictures of val" in chain.printed["eval_seg"]

    def test_a_mask_is_the_most_probable_class_over_the_scales_and_their_mirrors(self, inferred, checkpoints, fixed_voc):
        model = infer_seg.load_network(checkpoints["segmentation"], VOC_CLASSES)
        item = infer_seg.Pyramids(infer_seg.open_dataset("voc", fixed_voc).entries("val"), None, [1.0, 0.5])[1]
        total = torch.zeros(21, *SIZE)
        for image in item.images:
            for mirror in (False, True):
                with torch.no_grad():
                    logits = model(infer_seg.normalize((image.flip(2) if mirror else image)[None]))
                one = torch.nn.functional.interpolate(logits, SIZE, mode="bilinear", align_corners=False)[0].softmax(0)
                total += one.flip(2) if mirror else one
        assert (label_of(inferred.masks, NAMES[1]) == total.argmax(0).numpy()).mean() > 0.999
        keys, probability = probability_of(inferred.masks, NAMES[1])
        np.testing.assert_allclose(probability, total[keys] / 4, atol=1e-3)

    def test_a_second_run_writes_nothing(self, inferred):
        before = times_below(inferred.run_dir)
        for more in ([], ["--save_prob"]):
            assert "6 pictures, 0 of them to do" in call(infer_seg.main, *inferred.common, *more)
        assert times_below(inferred.run_dir) == before

    def test_the_probabilities_are_those_of_the_mask(self, inferred):
        assert files_below(inferred.masks) == {"settings.json", *(f"{name}.{ending}" for name in NAMES for ending in ("png", "npz"))}
        for name in NAMES:
            keys, probability = probability_of(inferred.masks, name)
            assert {0, *np.unique(label_of(inferred.masks, name))} <= set(keys)
            assert probability.sum(0, dtype=np.float32).min() > 0.5
            assert all(probability[1:].reshape(len(keys) - 1, -1).max(1) > 0.01)

    def test_probabilities_older_than_their_picture_are_made_again(self, inferred, tiny_voc, tmp_path):
        flags = [*data_flags(tiny_voc, tmp_path / "run"), *inferred.flags]
        call(infer_seg.main, *flags, "--save_prob")
        os.utime(tiny_voc / f"JPEGImages/{NAMES[0]}.jpg")
        assert "1 of them to do" in call(infer_seg.main, *flags)
        assert "1 of them to do" in call(infer_seg.main, *flags, "--save_prob")

    def test_large_pictures_are_shrunk_for_the_network_alone(self, inferred, fixed_voc, tmp_path, seen):
        listed = ["--list", write_lines(tmp_path / "one.txt", NAMES[0])]
        flags = [*data_flags(fixed_voc, tmp_path / "run"), *inferred.flags, *listed, "--max_side", 32, "--save_prob"]
        for more in ([], ["--crf", "--overwrite"]):
            call(infer_seg.main, *flags, *more)
            assert seen.pop() == ([(24, 32), (12, 16)], (24, 32))
            assert label_of(tmp_path / "run/seg_pred", NAMES[0]).shape == SIZE
            assert probability_of(tmp_path / "run/seg_pred", NAMES[0])[1].shape[1:] == SIZE

    def test_probabilities_can_be_added_later(self, inferred, fixed_voc, tmp_path):
        shutil.copytree(inferred.masks, tmp_path / "run/seg_pred", ignore=shutil.ignore_patterns("*.npz"))
        flags = [*data_flags(fixed_voc, tmp_path / "run"), *inferred.flags]
        assert "6 of them to do" in call(infer_seg.main, *flags, "--save_prob")
        assert files_below(tmp_path / "run/seg_pred") == files_below(inferred.masks)
        assert_same_masks(tmp_path / "run/seg_pred", inferred.masks)

    def test_a_stopped_run_goes_on_and_ends_with_the_same_masks(self, inferred, fixed_voc, tmp_path):
        """It is stopped between the third picture's probabilities and its mask."""
        flags = [*data_flags(fixed_voc, tmp_path / "run"), *inferred.flags, "--save_prob"]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, label_file, "save", 2)
            call(infer_seg.main, *flags)
        done = times_below(tmp_path / "run/seg_pred")
        assert {name for name in done if name.endswith(".png")} == {f"{name}.png" for name in NAMES[:2]}
        assert "6 pictures, 4 of them to do" in call(infer_seg.main, *flags)
        del done[f"{NAMES[2]}.npz"]
        assert done.items() <= times_below(tmp_path / "run/seg_pred").items()
        assert files_below(tmp_path / "run/seg_pred") == files_below(inferred.masks)
        assert_same_masks(tmp_path / "run/seg_pred", inferred.masks)

    def test_a_worker_makes_the_same_masks(self, inferred, fixed_voc, tmp_path):
        call(infer_seg.main, *data_flags(fixed_voc, tmp_path / "run", num_workers=1), *inferred.flags)
        assert_same_masks(tmp_path / "run/seg_pred", inferred.masks)

    def test_a_damaged_mask_and_one_older_than_its_picture_are_made_again(self, inferred, tiny_voc, tmp_path):
        shutil.copytree(inferred.masks, tmp_path / "run/seg_pred", copy_function=shutil.copy)  # newer than the pictures
        damaged = label_file.path_of(tmp_path / "run/seg_pred", NAMES[3])
        damaged.write_bytes(damaged.read_bytes()[:-1])
        flags = [*data_flags(tiny_voc, tmp_path / "run"), *inferred.flags]
        assert "1 of them to do" in call(infer_seg.main, *flags)
        assert_same_masks(tmp_path / "run/seg_pred", inferred.masks)
        os.utime(tiny_voc / f"JPEGImages/{NAMES[1]}.jpg")
        assert "1 of them to do" in call(infer_seg.main, *flags)
        assert "0 of them to do" in call(infer_seg.main, *flags)

    def test_the_crf_moves_borders_as_deeplab_has_it_and_is_noted(self, inferred, fixed_voc, tmp_path):
        call(infer_seg.main, *data_flags(fixed_voc, tmp_path / "run"), *inferred.flags, "--crf", "--save_prob")
        noted, plain = (files.read_json(folder / "settings.json") for folder in (tmp_path / "run/seg_pred", inferred.masks))
        assert (plain["crf"], noted["crf"]) == (None, crf.SEGMENTATION)
        assert {name for name in noted if noted[name] != plain[name]} == {"crf"}
        for name in NAMES:
            keys, probability = probability_of(inferred.masks, name)
            picture = read_picture(fixed_voc / f"JPEGImages/{name}.jpg")
            expected = keys[crf.refine_maps(picture, probability.astype(np.float32), **crf.SEGMENTATION).argmax(0)]
            assert (label_of(tmp_path / "run/seg_pred", name) == expected).mean() > 0.99
            assert np.array_equal(probability_of(tmp_path / "run/seg_pred", name)[0], keys)

    @pytest.mark.parametrize(
        ("more", "changed"),
        [(["--crf"], "crf"), (["--scales", 1.0], "scales"), (["--amp", "bf16"], "amp")],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_masks_made_in_another_way_do_not_mix(self, inferred, more, changed):
        before = times_below(inferred.run_dir)
        with pytest.raises(InputError, match=rf"seg_pred/settings\.json: the files there are of another {changed}; .*--overwrite"):
            call(infer_seg.main, *inferred.common, *more)
        assert times_below(inferred.run_dir) == before

    def test_masks_of_another_checkpoint_do_not_mix_and_overwriting_makes_them_anew(self, chain, inferred, fixed_voc, tmp_path):
        shutil.copytree(inferred.masks, tmp_path / "run/seg_pred")
        flags = [*data_flags(fixed_voc, tmp_path / "run"), *INFER, "--ckpt", chain.run_dir / "ckpt/seg.pth"]
        with pytest.raises(InputError, match="of another checkpoint;"):
            call(infer_seg.main, *flags)
        assert bytes_below(tmp_path / "run/seg_pred") == bytes_below(inferred.masks)
        assert "6 of them to do" in call(infer_seg.main, *flags, "--overwrite")
        assert bytes_below(tmp_path / "run/seg_pred") == bytes_below(chain.run_dir / "seg_pred")

    def test_a_submission_holds_every_mask_where_the_server_looks_for_it(self, inferred, tmp_path):
        call(infer_seg.main, *inferred.common, "--submission", tmp_path / "packed/mine.tgz")
        assert files_below(tmp_path) == {"packed/mine.tgz"}
        with tarfile.open(tmp_path / "packed/mine.tgz", "r:gz") as archive:
            packed = {member.name: archive.extractfile(member).read() for member in archive}
        folder = "results/VOC2012/Segmentation/comp6_test_cls"
        assert packed == {f"{folder}/{name}.png": label_file.path_of(inferred.masks, name).read_bytes() for name in NAMES}

    def test_a_submission_is_made_of_the_pictures_on_the_list(self, inferred, tmp_path):
        listed = write_lines(tmp_path / "two.txt", *NAMES[4:])
        call(infer_seg.main, *inferred.common, "--list", listed, "--submission", tmp_path / "mine.tgz")
        with tarfile.open(tmp_path / "mine.tgz") as archive:
            assert [Path(name).stem for name in archive.getnames()] == NAMES[4:]

    def test_pictures_need_neither_tags_nor_masks(self, inferred, tiny_voc, tmp_path):
        for folder in ("Annotations", "SegmentationClass"):
            shutil.rmtree(tiny_voc / folder)
        call(infer_seg.main, *data_flags(tiny_voc, tmp_path / "run"), *inferred.flags)
        assert_same_masks(tmp_path / "run/seg_pred", inferred.masks)

    def test_a_turned_picture_gets_its_mask_in_the_stored_frame(self, inferred, tiny_voc, tmp_path):
        turn(*(tiny_voc / f"JPEGImages/{name}.jpg" for name in (NAMES[0], NAMES[2])))
        listed = ["--list", write_lines(tmp_path / "two.txt", NAMES[0], NAMES[2])]
        for more in ([], ["--crf", "--overwrite"]):
            call(infer_seg.main, *data_flags(tiny_voc, tmp_path / "run"), *inferred.flags, *listed, "--save_prob", *more)
            turned, twin = (label_of(tmp_path / "run/seg_pred", name) for name in (NAMES[0], NAMES[2]))
            assert twin.shape == SIZE[::-1]
            assert np.array_equal(turned, np.rot90(twin))
            assert (twin != np.rot90(twin, 2)).mean() > 0.01
            turned, twin = (probability_of(tmp_path / "run/seg_pred", name)[1] for name in (NAMES[0], NAMES[2]))
            assert np.array_equal(turned, np.rot90(twin, 1, (1, 2)))

    def test_deeplab_v3_makes_masks_too(self, third, fixed_voc, tmp_path):
        listed = ["--list", write_lines(tmp_path / "one.txt", NAMES[0])]
        call(infer_seg.main, *data_flags(fixed_voc, tmp_path / "run"), *INFER, *listed, "--ckpt", third.run_dir / "ckpt/seg.pth")
        assert label_of(tmp_path / "run/seg_pred", NAMES[0]).shape == SIZE


def test_two_processes_do_what_one_does(inferred, checkpoints, fixed_voc, tiny_backbone, run_dir):
    """Both halves of the batch differ in how many of their pixels have a label; the step is large enough to show in every weight."""
    together, alone = data_flags(fixed_voc, run_dir / "together"), data_flags(fixed_voc, run_dir / "alone")
    one_step = [*training_flags(fixed_voc, tiny_backbone), "--batch_size", 6, "--max_epochs", 1, "--lr", 1e-3, "--class_balance", 0.5]
    predicted = [fixed_voc / "JPEGImages", "--output_dir", run_dir / "together/predicted", *PREDICT, checkpoints["segmentation"], "--areas"]
    in_two_processes([[train_seg, *together, *one_step], [infer_seg, *together, *inferred.flags], [predict, *predicted]])
    with one_thread():
        call(train_seg.main, *alone, *one_step)
        call(infer_seg.main, *alone, *inferred.flags)
        call(predict.main, *predicted, "--output_dir", run_dir / "alone/predicted")
    for folder in ("seg_pred", "predicted"):
        assert bytes_below(run_dir / "together" / folder) == bytes_below(run_dir / "alone" / folder)
    ours, theirs = (weights_of(run_dir / place / "ckpt/seg.pth") for place in ("together", "alone"))
    for name, value in ours.items():  # a step over two halves of the batch is one over the whole
        assert (value - theirs[name]).abs().max() <= 1e-5 * theirs[name].abs().max(), name


class TestPrediction:
    @pytest.fixture
    def pictures(self, fixed_voc, tmp_path) -> Path:
        """Three pictures, one of which lies in a folder below."""
        folder = tmp_path / "pictures"
        (folder / "below").mkdir(parents=True)
        for name, place in zip(NAMES, (folder, folder, folder / "below")):
            shutil.copy(fixed_voc / f"JPEGImages/{name}.jpg", place)
        return folder

    @pytest.fixture
    def out(self, tmp_path) -> Path:
        return tmp_path / "out"

    @pytest.fixture
    def run(self, out, checkpoints) -> Callable[..., str]:
        """Call predict.py on pictures with the segmentation network, or another checkpoint."""

        def run(*flags, kind: str = "segmentation") -> str:
            return call(predict.main, "--output_dir", out, *PREDICT, checkpoints[kind], *flags)

        return run

    def test_a_picture_gets_a_mask_and_an_overlay(self, run, out, pictures):
        printed = run(pictures / f"{NAMES[0]}.jpg")
        assert files_below(out) == {f"{NAMES[0]}.png", f"{NAMES[0]}_overlay.jpg"}
        mask, picture = label_of(out, NAMES[0]), read_picture(pictures / f"{NAMES[0]}.jpg").astype(int)
        assert mask.shape == SIZE and len(np.unique(mask)) > 1
        with Image.open(out / f"{NAMES[0]}_overlay.jpg") as image:
            assert image.format == "JPEG"
            shown = np.asarray(image).astype(int)
        painted = visualize.overlay(picture.astype(np.uint8), mask).astype(int)
        assert np.abs(shown - painted).mean() < np.abs(picture - painted).mean() / 3
        shares = [f"{VOC_CLASSES[key]} {100 * (mask == key).mean():.1f} %" for key in np.unique(mask)]
        assert f"{NAMES[0]}.jpg: {', '.join(shares)}\n" in printed

    def test_its_masks_are_those_of_the_stage(self, inferred, checkpoints, fixed_voc, out):
        for more, folder in (([], out / "plain"), (["--crf"], out / "crf")):
            flags = [*inferred.flags, "--num_workers", 0, *more]
            call(predict.main, fixed_voc / "JPEGImages", "--output_dir", folder, *flags)
            call(infer_seg.main, *data_flags(fixed_voc, out), *flags, "--overwrite")
            assert_same_masks(folder, out / "seg_pred")

    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [
            (["."], NAMES[:2]),
            (["*.jpg"], NAMES[:2]),
            (["2007_00000[12].jpg"], NAMES[1:2]),
            (["*"], NAMES[:2]),
            (["**/*.jpg"], NAMES[:3]),
            (["*/*.jpg"], NAMES[2:3]),
            ([f"{NAMES[0]}.jpg", f"./{NAMES[0]}.jpg"], NAMES[:1]),
            ([".", f"{NAMES[1]}.jpg", "below", "**"], NAMES[:3]),
        ],
        ids=str,
    )
    def test_files_folders_and_patterns_are_found_by_name(self, pictures, monkeypatch, inputs, expected):
        (pictures / "notes.txt").write_text("no picture")
        (pictures / ".hidden.jpg").touch()
        monkeypatch.chdir(pictures)
        assert sorted(predict.find_pictures(inputs, Path("out")).names()) == expected

    def test_names_as_people_give_them_are_names_and_no_patterns(self, pictures, monkeypatch):
        odd = ["[x]*.jpg", "v1.5.JPG", "100%d.jpg", "a, b.jpg", "猫 と 犬.jpg"]
        for name in odd:
            shutil.copy(pictures / f"{NAMES[0]}.jpg", pictures / name)
        monkeypatch.chdir(pictures)
        assert list(predict.find_pictures(odd, Path("out")).names()) == [name[:-4] for name in odd]
        assert list(predict.find_pictures(["[[]x[]]*"], Path("out")).names()) == ["[x]*"]

    def test_a_folder_and_a_pattern_get_their_masks(self, run, out, pictures):
        assert "3 pictures, 3 of them to do" in run(pictures, pictures / "**/*.jpg")
        assert files_below(out) == {f"{name}{ending}" for name in NAMES[:3] for ending in (".png", "_overlay.jpg")}

    def test_areas_add_up_to_the_pixels(self, run, out, pictures):
        printed = run(pictures, "--areas")
        content = json.loads((out / "areas.json").read_text())
        assert f"wrote {out / 'areas.json'}" in printed and content.keys() == set(NAMES[:2])
        for name, areas in content.items():
            mask = label_of(out, name)
            assert (areas["picture"], areas["size"]) == (str(pictures / f"{name}.jpg"), list(SIZE))
            assert sum(areas["pixels"].values()) == mask.size
            assert areas["pixels"] == {VOC_CLASSES[key]: int((mask == key).sum()) for key in np.unique(mask)}

    def test_areas_can_be_added_later_to_masks_that_stay(self, run, out, pictures):
        run(pictures)
        before = times_below(out)
        assert "2 pictures, 0 of them to do" in run(pictures, "--areas")
        assert before.items() <= times_below(out).items() and (out / "areas.json").is_file()

    def test_a_second_run_writes_nothing(self, run, out, pictures):
        run(pictures)
        before = times_below(out)
        assert "2 pictures, 0 of them to do" in run(pictures)
        assert times_below(out) == before

    def test_masks_are_made_again_when_they_would_be_others(self, run, out, pictures):
        run(pictures)
        before = bytes_below(out)
        flags = []
        for more in (["--scales", 0.5], ["--max_side", 32], ["--amp", "bf16"], ["--crf"]):  # one after the other is added
            flags += more
            assert "2 pictures, 2 of them to do" in run(pictures, *flags), more
        assert "2 pictures, 2 of them to do" in run(pictures)
        assert bytes_below(out) == before

    def test_only_what_is_out_of_date_is_made_again(self, run, out, pictures):
        run(pictures)
        before = bytes_below(out)
        os.utime(pictures / f"{NAMES[0]}.jpg")
        assert "2 pictures, 1 of them to do" in run(pictures)
        (out / f"{NAMES[1]}_overlay.jpg").unlink()
        assert "2 pictures, 1 of them to do" in run(pictures)
        path = label_file.path_of(out, NAMES[0])
        path.write_bytes(path.read_bytes()[:-1])
        assert "2 pictures, 1 of them to do" in run(pictures)
        assert bytes_below(out) == before

    def test_what_an_earlier_run_left_is_no_picture(self, run, out, pictures):
        """Masks and overlays below the folder that a pattern goes through."""
        pattern = out.parent / "**/*.*g"
        for _ in range(2):
            assert run(pattern).startswith("3 pictures, ")
        assert files_below(out) == {f"{name}{ending}" for name in NAMES[:3] for ending in (".png", "_overlay.jpg")}

    def test_a_mask_that_is_gone_is_made_again(self, run, out, pictures):
        run(pictures)
        before = bytes_below(out)
        (out / f"{NAMES[0]}.png").unlink()
        assert "2 pictures, 1 of them to do" in run(pictures)
        assert bytes_below(out) == before

    def test_a_rerun_with_other_settings_that_is_stopped_leaves_no_old_overlay(self, run, out, pictures):
        run(pictures, "--scales", 0.5)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, visualize, "overlay", 1)
            run(pictures)
        run(pictures)
        stopped = bytes_below(out)
        shutil.rmtree(out)
        run(pictures)
        assert bytes_below(out) == stopped

    @pytest.mark.parametrize(("function", "to_do"), [("save", 1), ("overlay", 1)])
    def test_a_stopped_run_goes_on_and_ends_with_the_same_files(self, run, out, pictures, tmp_path, function, to_do):
        """Stopped before the second mask, and between it and its overlay."""
        run(pictures)
        whole = bytes_below(out)
        shutil.rmtree(out)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, visualize if function == "overlay" else label_file, function, 1)
            run(pictures)
        done = times_below(out)
        assert done.keys() == {f"{NAMES[0]}.png", f"{NAMES[0]}_overlay.jpg"} | ({f"{NAMES[1]}.png"} if function == "overlay" else set())
        assert f"2 pictures, {to_do} of them to do" in run(pictures)
        assert {name: done[name] for name in done if name.startswith(NAMES[0])}.items() <= times_below(out).items()
        assert bytes_below(out) == whole

    def test_large_pictures_are_shrunk_for_the_network_alone(self, run, out, pictures, seen):
        for side, expected in ((32, (24, 32)), (640, SIZE), (0, SIZE)):
            run(pictures / f"{NAMES[0]}.jpg", "--max_side", side)
            assert seen.pop() == ([expected], expected)
            assert label_of(out, NAMES[0]).shape == SIZE
            with Image.open(out / f"{NAMES[0]}_overlay.jpg") as image:
                assert image.size == SIZE[::-1]

    @pytest.mark.parametrize("kind", ["segmentation", "ours"])
    def test_of_a_turned_picture_the_mask_lies_as_stored_and_the_overlay_upright(self, run, out, pictures, kind):
        turn(*(pictures / f"{name}.jpg" for name in NAMES[:2]))
        run(pictures, "--crf", *([] if kind == "segmentation" else ["--tags", "cat", "dog"]), kind=kind)
        turned, twin = (label_of(out, name) for name in NAMES[:2])
        assert (turned.shape, twin.shape) == (SIZE, SIZE[::-1])
        assert np.array_equal(turned, np.rot90(twin))
        assert (twin != np.rot90(twin, 2)).mean() > 0.01
        overlays = [np.asarray(Image.open(out / f"{name}_overlay.jpg")) for name in NAMES[:2]]
        assert overlays[0].shape == (*SIZE[::-1], 3)
        assert np.array_equal(*overlays)


class TestPredictionBySipe:
    """A network that must be told which classes are in a picture."""

    @pytest.fixture
    def out(self, tmp_path) -> Path:
        return tmp_path / "out"

    @pytest.fixture
    def run(self, out, checkpoints, fixed_voc) -> Callable[..., str]:
        """Call predict.py on the first three drawn pictures."""

        def run(*flags, kind: str = "ours") -> str:
            pictures = [fixed_voc / f"JPEGImages/{name}.jpg" for name in NAMES[:3]]
            return call(predict.main, *pictures, "--output_dir", out, *PREDICT, checkpoints[kind], *flags)

        return run

    def test_ours_and_the_authors_find_the_tagged_classes(self, run, out):
        masks = {}
        for kind in ("ours", "authors"):
            assert "3 of them to do" in run("--tags", "cat", "dog", kind=kind)
            masks[kind] = [label_of(out, name) for name in NAMES[:3]]
        assert all(mask.shape == SIZE and len(np.unique(mask)) > 1 and set(np.unique(mask)) <= {0, 8, 12} for mask in masks["ours"])
        assert np.array_equal(masks["ours"], masks["authors"])

    def test_the_authors_classes_are_told_by_their_number(self, tmp_path):
        for count, names in ((20, VOC_CLASSES), (80, read_classes(COCO.classes))):
            content = {"net": {"classifier.weight": torch.zeros(count, 2048, 1, 1)}}
            assert predict.release_class_names(content, tmp_path / "theirs.pth") == names

    def test_a_tag_table_tells_each_picture_its_classes(self, run, out, tmp_path):
        rows = (f"{NAMES[0]},cat", f"{NAMES[1]}.jpg,dog", f"{NAMES[2]},cat;dog", "another,cow")
        run("--tag_table", write_lines(tmp_path / "tags.csv", "name,classes", *rows), "--areas")
        for name, tagged in zip(NAMES, ({8}, {12}, {8, 12})):
            assert tagged & set(np.unique(label_of(out, name))) and set(np.unique(label_of(out, name))) <= {0} | tagged
        areas = json.loads((out / "areas.json").read_text())[NAMES[0]]["pixels"]
        assert areas.keys() <= {"background", "cat"} and sum(areas.values()) == SIZE[0] * SIZE[1]

    def test_its_masks_are_those_of_its_localization_maps(self, run, out, checkpoints, fixed_voc, tmp_path):
        listed = write_lines(tmp_path / "three.txt", *NAMES[:3])
        flags = [*data_flags(fixed_voc, tmp_path / "run"), "--list", listed, "--device", "cpu", "--scales", 1.0, 0.5]
        call(make_cam.main, *flags, "--ckpt", checkpoints["ours"])
        table = write_lines(tmp_path / "tags.csv", f"{NAMES[0]},cat;dog", f"{NAMES[1]},dog", f"{NAMES[2]},cat;dog")
        run("--tag_table", table, "--scales", 1.0, 0.5)
        for name in NAMES[:3]:
            assert (label_of(out, name) == cam_file.load(cam_file.path_of(tmp_path / "run", name)).label("is_cam")).mean() > 0.99

    def test_the_crf_refines_its_labels_as_the_stage_does(self, run, out, fixed_voc):
        run("--tags", "cat", "dog")
        plain = [label_of(out, name) for name in NAMES[:3]]
        run("--tags", "cat", "dog", "--crf")
        keys = np.array([0, 8, 12])
        for name, label in zip(NAMES, plain):
            refined = crf.refine_label(read_picture(fixed_voc / f"JPEGImages/{name}.jpg"), np.searchsorted(keys, label), 3)
            assert np.array_equal(label_of(out, name), keys[refined.argmax(0)])

    def test_masks_of_other_tags_are_made_again_and_the_others_stay(self, run, out, tmp_path):
        assert "3 of them to do" in run("--tags", "dog")
        assert "0 of them to do" in run("--tags", "dog")
        done = times_below(out)
        table = write_lines(tmp_path / "tags.csv", f"{NAMES[0]},dog", f"{NAMES[1]},dog", f"{NAMES[2]},cat;dog")
        assert "1 of them to do" in run("--tag_table", table)
        assert {name for name, time in times_below(out).items() if done[name] != time} == {f"{NAMES[2]}.png", f"{NAMES[2]}_overlay.jpg"}
