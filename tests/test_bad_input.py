"""What a user can get wrong ends in one clear line: which file, what to do; nothing is executed, nothing is left half-written."""

import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from common import FIRST, NAMES, VOC_CLASSES, cut_in_half, data_flags, draw_maps, note_maps, times_below, write_lines
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
from data.registry import open_dataset
from errors import InputError
from network.irn import IRN
from tool import cam_file, checkpoint, files, label_file, stage, training

ROOT = Path(__file__).resolve().parents[1]
STAGES = [train, make_cam, eval_cam, make_ir_labels, train_irn, make_seg_labels, eval_seg, train_seg, infer_seg]
TRAIN = ["--device", "cpu", "--batch_size", 2, "--crop_size", 32, "--resize_long", 32, 48, "--weights", "none"]
MAP = ["--device", "cpu", "--scales", 0.5]
IRN_TRAIN = ["--device", "cpu", "--batch_size", 2, "--crop_size", 80]
LABEL = ["--device", "cpu", "--refine", "none"]
LABEL_BY_IRN = ["--device", "cpu", "--irn_ckpt"]
SEG_TRAIN = ["--device", "cpu", "--batch_size", 2, "--crop_size", 32, "--network", "deeplabv2_resnet50", "--output_stride", 16]
SEGMENT = ["--device", "cpu", "--scales", 0.5]
MAP_READERS = [eval_cam, make_ir_labels, make_seg_labels]
LABELS_NOTE = r"run/(ir|seg)_label/settings\.json"  # what a stage that makes labels writes first


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def raw_pickle(path: Path, content: dict) -> None:
    path.write_bytes(pickle.dumps(content))


def torch_zip(path: Path, content: dict) -> None:
    torch.save(content, path)


def torch_legacy(path: Path, content: dict) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def draw_labels(folder: Path, names: list[str] = NAMES) -> None:
    """Label images that need no maps: background above, dog in the middle, unknown below."""
    label = np.repeat(np.array([0, 12, 255], np.uint8), 16)[:, None].repeat(64, 1)
    for name in names:
        label_file.save(label_file.path_of(folder, name), label)
    files.write_json(folder / "settings.json", {"made_by": "make_ir_labels", "map": "is_cam"})


def flags_of(script, ckpt: Path) -> list:
    by_a_network = {make_cam: [*MAP, "--ckpt", ckpt], infer_seg: [*SEGMENT, "--ckpt", ckpt]}
    return {train: TRAIN, train_irn: IRN_TRAIN, make_seg_labels: LABEL, train_seg: SEG_TRAIN, **by_a_network}.get(script, [])


def write_list(root: Path, *lines: str) -> Path:
    return write_lines(root.parent / "list.txt", *lines)


@pytest.fixture
def refused(tiny_voc: Path, tmp_path: Path) -> Callable[..., str]:
    """Call a script that must refuse: one line that holds all of `names` and a cure; no file comes or goes but those of `begins`."""

    def refused(script, *flags, names: str | list[str], run_dir: Path | None = None, begins: str | None = None) -> str:
        run_dir = run_dir or tmp_path / "run"
        existed, before = run_dir.exists(), times_below(tmp_path)
        place = ["--output_dir", run_dir] if script is predict else ["--dataset_root", tiny_voc, "--run_dir", run_dir]
        with pytest.raises(InputError) as caught:
            script.main([str(flag) for flag in (*place, "--num_workers", 0, *flags)])
        message = str(caught.value)
        assert "\n" not in message
        assert "; " in message
        for name in [names] if isinstance(names, str) else names:
            assert name in message
        after = times_below(tmp_path)
        assert all(re.fullmatch(begins or "", path) for path in after.keys() - before.keys())
        assert before.items() <= after.items()
        assert existed or begins is not None or not run_dir.exists()
        return message

    return refused


class TestDataset:
    @pytest.mark.parametrize("script", STAGES, ids=lambda script: script.__name__)
    def test_missing_root(self, refused, script, tmp_path):
        nowhere = tmp_path / "nowhere"
        refused(script, "--dataset_root", nowhere, *flags_of(script, nowhere), names=[str(nowhere), "JPEGImages", "unpack"])

    @pytest.mark.parametrize("script", STAGES, ids=lambda script: script.__name__)
    def test_list_that_is_not_there(self, refused, script, tmp_path):
        refused(script, *flags_of(script, tmp_path), "--list", "trian", names=["ImageSets/Segmentation/trian.txt", "--list"])

    @pytest.mark.parametrize("script", STAGES, ids=lambda script: script.__name__)
    @pytest.mark.parametrize("content", ["", "\n  \n\n"])
    def test_empty_list(self, refused, tiny_voc, script, content, tmp_path):
        listed = write_list(tiny_voc)
        listed.write_text(content)
        refused(script, *flags_of(script, tmp_path), "--list", listed, names=["list.txt", "empty"])

    def test_picture_in_place_of_a_list(self, refused, tiny_voc):
        refused(eval_cam, "--list", tiny_voc / f"JPEGImages/{FIRST}.jpg", names=f"{FIRST}.jpg")

    @pytest.mark.parametrize("script", STAGES, ids=lambda script: script.__name__)
    def test_listed_picture_that_is_not_there(self, refused, tiny_voc, script, tmp_path):
        listed = write_list(tiny_voc, *NAMES, "2007_999999")
        refused(script, *flags_of(script, tmp_path), "--list", listed, names=["list.txt, line 7", "JPEGImages/2007_999999.jpg"])

    def test_name_twice(self, refused, tiny_voc):
        refused(eval_cam, "--list", write_list(tiny_voc, *NAMES, FIRST), names=["line 7", FIRST, "twice"])

    @pytest.mark.parametrize(
        "line",
        [
            "../secret",
            "../../VOC2012/JPEGImages/2007_000000",
            f"/JPEGImages/{FIRST}.jpg /../secret.png",
            "/JPEGImages/../../secret.jpg y",
            r"..\secret",
            r"JPEGImages\2007_000000",
        ],
    )
    def test_name_that_leaves_the_dataset(self, refused, tiny_voc, line):
        for secret in ("secret.jpg", "secret.png"):
            Image.new("RGB", (8, 8)).save(tiny_voc.parent / secret)
        culprit = next(part for part in line.split() if ".." in part or "\\" in part)
        refused(eval_cam, "--list", write_list(tiny_voc, FIRST, line), names=["list.txt, line 2", culprit, "plain picture names"])

    @pytest.mark.parametrize("line", ["JPEGImages/2007_000000", "a b c"])
    def test_line_of_another_form(self, refused, tiny_voc, line):
        refused(eval_cam, "--list", write_list(tiny_voc, line), names=["list.txt, line 1", line])

    def test_batch_larger_than_the_list(self, refused):
        refused(train, *TRAIN, "--batch_size", 7, names=["train_aug", "6 pictures", "--batch_size 6"])


@pytest.mark.parametrize("script", [train, make_cam], ids=lambda script: script.__name__)
class TestTags:
    def test_no_annotation(self, refused, tiny_voc, script, tmp_path):
        (tiny_voc / f"Annotations/{FIRST}.xml").unlink()
        refused(script, *flags_of(script, tmp_path), names=f"Annotations/{FIRST}.xml")

    def test_annotation_without_objects(self, refused, tiny_voc, script, tmp_path):
        (tiny_voc / f"Annotations/{FIRST}.xml").write_text("<annotation></annotation>")
        refused(script, *flags_of(script, tmp_path), names=[FIRST, "no tag"])

    def test_damaged_annotation(self, refused, tiny_voc, script, tmp_path):
        cut_in_half(tiny_voc / f"Annotations/{FIRST}.xml")
        refused(script, *flags_of(script, tmp_path), names=f"Annotations/{FIRST}.xml")

    def test_unknown_tag(self, refused, tiny_voc, script, tmp_path):
        (tiny_voc / f"Annotations/{FIRST}.xml").write_text("<annotation><object><name>unicorn</name></object></annotation>")
        refused(script, *flags_of(script, tmp_path), names=[FIRST, "unicorn"])


class TestPictures:
    @pytest.fixture(params=["cut", "empty", "not a picture"])
    def broken(self, request, tiny_voc) -> str:
        path = tiny_voc / f"JPEGImages/{FIRST}.jpg"
        if request.param == "cut":
            cut_in_half(path)
        else:
            path.write_bytes(b"" if request.param == "empty" else b"<html>404 Not Found</html>")
        return f"JPEGImages/{FIRST}.jpg"

    def test_training_names_it(self, refused, broken):
        refused(train, *TRAIN, "--batch_size", 6, names=broken, begins="run/tensorboard/.*")

    def test_localization_names_it_and_keeps_the_whole_ones(self, refused, broken, tiny_voc, checkpoints):
        listed = write_list(tiny_voc, NAMES[1], FIRST, NAMES[2])
        begins = rf"run/cam/(settings\.json|{NAMES[1]}\.npz)"
        refused(make_cam, *MAP, "--ckpt", checkpoints["ours"], "--list", listed, names=broken, begins=begins)


class TestMasks:
    @pytest.fixture
    def mask(self, tiny_voc, tmp_path) -> Path:
        draw_maps(tmp_path / "run")
        return tiny_voc / f"SegmentationClass/{FIRST}.png"

    def test_another_size(self, refused, mask):
        Image.new("L", (48, 64)).save(mask)
        refused(eval_cam, names=[f"{FIRST}.png", "48x64", "64x48"])

    def test_unknown_class(self, refused, mask):
        Image.new("L", (64, 48), 37).save(mask)
        refused(eval_cam, names=[f"{FIRST}.png", "class 37", "0..20"])

    def test_colours(self, refused, mask):
        Image.new("RGB", (64, 48)).save(mask)
        refused(eval_cam, names=[f"{FIRST}.png", "RGB"])

    def test_missing(self, refused, mask):
        mask.unlink()
        refused(eval_cam, names=[f"SegmentationClass/{FIRST}.png"])

    def test_cut(self, refused, mask):
        cut_in_half(mask)
        refused(eval_cam, names=f"{FIRST}.png")

    def test_nothing_but_255(self, refused, mask, tiny_voc):
        Image.new("L", (64, 48), 255).save(mask)
        refused(eval_cam, "--list", write_list(tiny_voc, FIRST), names=["list.txt", "255"])


class TestPlace:
    @pytest.mark.parametrize("script", [train, make_cam, *MAP_READERS, train_seg, infer_seg], ids=lambda script: script.__name__)
    def test_run_dir_below_a_file(self, refused, script, tmp_path, tiny_voc, checkpoints):
        (tmp_path / "file").write_text("in the way")
        run_dir = tmp_path / "file/run"
        cure = "correct --run_dir" if script in MAP_READERS else "choose another folder"
        labels = ["--label_dir", tiny_voc / "SegmentationClass"] if script is train_seg else []
        ckpt = checkpoints["segmentation" if script is infer_seg else "ours"]
        refused(script, *flags_of(script, ckpt), *labels, run_dir=run_dir, names=[str(run_dir), cure])

    def test_predictions_below_a_file(self, refused, tiny_voc, tmp_path, checkpoints):
        (tmp_path / "file").write_text("in the way")
        flags = [tiny_voc / "JPEGImages", *SEGMENT, "--ckpt", checkpoints["segmentation"]]
        refused(predict, *flags, run_dir=tmp_path / "file/out", names=[str(tmp_path / "file/out"), "choose another folder"])

    def test_scores_below_a_file(self, refused, tmp_path):
        (tmp_path / "file").write_text("in the way")
        draw_labels(tmp_path / "labels")
        names = [str(tmp_path / "file/run"), "choose another folder"]
        refused(eval_seg, "--label_dir", tmp_path / "labels", run_dir=tmp_path / "file/run", names=names)

    def test_labels_below_a_file(self, refused, tmp_path):
        draw_maps(tmp_path / "run")
        (tmp_path / "file").write_text("in the way")
        refused(
            make_seg_labels, *LABEL, "--label_dir", tmp_path / "file/labels", names=[str(tmp_path / "file/labels"), "cannot be written"]
        )

    @pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=str)
    def test_labels_among_the_masks(self, refused, tiny_voc, more, tmp_path):
        draw_maps(tmp_path / "run")
        folder = tiny_voc / "SegmentationClass"
        refused(make_seg_labels, *LABEL, "--label_dir", folder, *more, names=["SegmentationClass/settings.json", "use another folder"])

    @pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=str)
    @pytest.mark.parametrize("others", [["--label_dir", "SegmentationClass"], []], ids=["masks", "pseudo labels"])
    def test_masks_among_others(self, refused, tiny_voc, more, others, tmp_path, checkpoints):
        """Neither the dataset's masks nor the labels that a network learned from are touched."""
        draw_labels(tmp_path / "run/seg_label")
        folder = tiny_voc / "SegmentationClass" if others else tmp_path / "run/seg_label"
        flags = [*SEGMENT, "--ckpt", checkpoints["segmentation"], "--label_dir", folder, *more]
        refused(infer_seg, *flags, names=[f"{folder}/settings.json", "infer_seg.py", "use another folder"])

    def test_submission_below_a_file(self, refused, tiny_voc, tmp_path, checkpoints):
        (tmp_path / "file").write_text("in the way")
        listed = write_list(tiny_voc, FIRST)
        flags = [*SEGMENT, "--ckpt", checkpoints["segmentation"], "--list", listed, "--submission", tmp_path / "file/mine.tgz"]
        refused(infer_seg, *flags, names=["file/mine.tgz", "choose another folder"], begins=rf"run/seg_pred/(settings\.json|{FIRST}\.png)")

    @pytest.mark.parametrize("device", ["cuda:99", "cuda:1000", "gpu", "mps", "meta"])
    def test_device_that_is_not_there(self, refused, device, checkpoints):
        refused(train, *TRAIN, "--device", device, names=[f"--device {device}", "use"])


class TestHostileFiles:
    """A file from elsewhere may hold code; it must never run."""

    @pytest.fixture
    def payload(self, tmp_path) -> Iterator[Payload]:
        yield Payload(tmp_path / "the payload ran")
        assert not (tmp_path / "the payload ran").exists()

    def test_the_payload_would_run(self, tmp_path):
        raw_pickle(tmp_path / "file", {"model": Payload(tmp_path / "marker")})
        pickle.loads((tmp_path / "file").read_bytes())
        assert (tmp_path / "marker").exists()

    @pytest.mark.parametrize("write", [raw_pickle, torch_zip, torch_legacy])
    class TestCheckpoint:
        def test_for_localization(self, refused, payload, write, tmp_path):
            write(tmp_path / "hostile.pth", {"net": payload})
            refused(make_cam, *MAP, "--ckpt", tmp_path / "hostile.pth", names=["hostile.pth", "trust"])

        def test_for_the_backbone(self, refused, payload, write, tmp_path):
            write(tmp_path / "hostile.pth", {"conv1.weight": payload})
            refused(train, *TRAIN, "--weights", tmp_path / "hostile.pth", names=["hostile.pth", "trust"], begins="")

        def test_for_the_backbone_of_a_segmentation_network(self, refused, payload, write, tmp_path):
            draw_labels(tmp_path / "run/seg_label")
            write(tmp_path / "hostile.pth", {"conv1.weight": payload})
            refused(train_seg, *SEG_TRAIN, "--weights", tmp_path / "hostile.pth", names=["hostile.pth", "trust"])

        @pytest.mark.parametrize("name", ["seg_last.pth", "seg.pth"])
        def test_for_resuming_a_segmentation_network(self, refused, payload, write, name, tmp_path):
            draw_labels(tmp_path / "run/seg_label")
            (tmp_path / "run/ckpt").mkdir()
            write(tmp_path / "run/ckpt" / name, {"model": payload, "arguments": payload})
            refused(train_seg, *SEG_TRAIN, names=[f"run/ckpt/{name}", "trust"])

        def test_for_masks(self, refused, payload, write, tmp_path):
            write(tmp_path / "hostile.pth", {"model": payload, "class_names": list(VOC_CLASSES)})
            refused(infer_seg, *SEGMENT, "--ckpt", tmp_path / "hostile.pth", names=["hostile.pth", "trust"])

        def test_for_predictions(self, refused, payload, write, tiny_voc, tmp_path):
            write(tmp_path / "hostile.pth", {"net": payload})
            refused(predict, tiny_voc / "JPEGImages", "--ckpt", tmp_path / "hostile.pth", names=["hostile.pth", "trust"])

        def test_of_irn(self, refused, payload, write, tmp_path):
            draw_maps(tmp_path / "run")
            write(tmp_path / "hostile.pth", {"fc_edge6.bias": payload})
            refused(make_seg_labels, *LABEL_BY_IRN, tmp_path / "hostile.pth", names=["hostile.pth", "trust"])

        @pytest.mark.parametrize("name", ["irn_last.pth", "irn.pth"])
        def test_for_resuming_irn(self, refused, payload, write, name, tmp_path):
            draw_labels(tmp_path / "run/ir_label")
            (tmp_path / "run/ckpt").mkdir()
            write(tmp_path / "run/ckpt" / name, {"model": payload, "arguments": payload})
            refused(train_irn, *IRN_TRAIN, names=[f"run/ckpt/{name}", "trust"])

        @pytest.mark.parametrize("name", ["last.pth", "final.pth"])
        def test_for_resuming(self, refused, payload, write, name, tmp_path):
            (tmp_path / "run/ckpt").mkdir(parents=True)
            write(tmp_path / "run/ckpt" / name, {"model": payload, "arguments": payload})
            refused(train, *TRAIN, names=[f"run/ckpt/{name}", "trust"])

    @pytest.mark.parametrize("script", MAP_READERS, ids=lambda script: script.__name__)
    class TestMaps:
        def test_object_array_in_a_cam_file(self, refused, payload, script, tmp_path):
            draw_maps(tmp_path / "run")
            np.savez(tmp_path / f"run/cam/{FIRST}.npz", keys=np.array([0, payload]), size=np.array([48, 64]))
            refused(script, *flags_of(script, None), names=[f"run/cam/{FIRST}.npz", "make_cam.py"], begins=LABELS_NOTE)

        def test_pickle_in_place_of_a_cam_file(self, refused, payload, script, tmp_path):
            draw_maps(tmp_path / "run")
            raw_pickle(tmp_path / f"run/cam/{FIRST}.npz", {"keys": payload})
            refused(script, *flags_of(script, None), names=[f"run/cam/{FIRST}.npz", "make_cam.py"], begins=LABELS_NOTE)

    def test_pickle_in_place_of_a_label(self, refused, payload, tmp_path):
        draw_labels(tmp_path / "run/seg_label")
        raw_pickle(tmp_path / f"run/seg_label/{FIRST}.png", {"label": payload})
        refused(eval_seg, names=[f"run/seg_label/{FIRST}.png", "replace it"])


class TestCheckpoints:
    @pytest.fixture
    def release(self, checkpoints, tmp_path) -> Iterator[Callable[..., Path]]:
        """Write the authors' checkpoint with one tensor changed; it is large and goes away with the test."""
        path = tmp_path / "release.pth"

        def write(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Path:
            tensors = torch.load(checkpoints["authors"], weights_only=True)["net"]
            value = tensors.pop(name)
            if change:
                tensors[name] = change(value)
            torch.save({"net": tensors}, path)
            return path

        yield write
        path.unlink(missing_ok=True)

    @pytest.mark.parametrize("name", ["resnet50.layer3.0.conv1.weight", "backbone.0.0.weight", "newly_added.0.weight"])
    def test_lacks_a_tensor(self, refused, release, name):
        refused(make_cam, *MAP, "--ckpt", release(name, None), names=["release.pth", f"tensor {name} is missing"])

    def test_holds_half_a_tensor_under_another_name(self, refused, release):
        path = release("backbone.0.0.weight", lambda value: value[:32])
        refused(make_cam, *MAP, "--ckpt", path, names=["release.pth", "tensor backbone.0.0.weight is (32, 3, 7, 7)", "(64, 3, 7, 7)"])

    def test_holds_two_backbones(self, refused, release):
        path = release("backbone.0.0.weight", lambda value: value + 1)
        refused(make_cam, *MAP, "--ckpt", path, names=["release.pth", "backbone.0.0.weight differs"])

    def test_ours_for_other_classes(self, refused, tmp_path):
        checkpoint.save(tmp_path / "two.pth", {"model": {}, "class_names": ["background", "cat", "dog"]})
        refused(make_cam, *MAP, "--ckpt", tmp_path / "two.pth", names=["two.pth", "2 classes (cat, dog)", "20"])

    def test_authors_for_other_classes(self, refused, release):
        path = release("classifier.weight", lambda value: value.repeat(4, 1, 1, 1))
        refused(make_cam, *MAP, "--ckpt", path, names=["classifier.weight is (80, 2048, 1, 1)", "(20, 2048, 1, 1)"])

    def test_missing(self, refused, tmp_path):
        refused(make_cam, *MAP, "--ckpt", tmp_path / "none.pth", names=["none.pth", "train first"])

    def test_not_trained_yet(self, refused):
        refused(make_cam, *MAP, names="run/ckpt/final.pth")

    def test_cut(self, refused, tmp_path):
        torch.save({"model": {"conv1.weight": torch.zeros(1000)}}, tmp_path / "cut.pth")
        cut_in_half(tmp_path / "cut.pth")
        refused(make_cam, *MAP, "--ckpt", tmp_path / "cut.pth", names="cut.pth")

    @pytest.mark.parametrize("content", [{"weights": 1}, [1, 2], {"model": [1]}, {"net": {}}], ids=str)
    def test_of_something_else(self, refused, content, tmp_path):
        torch.save(content, tmp_path / "other.pth")
        refused(make_cam, *MAP, "--ckpt", tmp_path / "other.pth", names="other.pth")

    def test_backbone_that_lacks_a_tensor(self, refused, tiny_backbone, tmp_path):
        tensors = torch.load(tiny_backbone, weights_only=True)
        del tensors["layer4.2.bn3.running_mean"]
        torch.save(tensors, tmp_path / "backbone.pth")
        refused(train, *TRAIN, "--weights", tmp_path / "backbone.pth", names=["backbone.pth", "layer4.2.bn3.running_mean"], begins="")
        (tmp_path / "backbone.pth").unlink()


def recipe_of(root):
    """What a training with TRAIN's flags keeps to its end."""
    dataset = open_dataset("voc", root)
    entries = dataset.entries("train_aug")
    args = train.parse_args([*map(str, TRAIN), "--list", "train_aug"])
    return training.recipe(args, train.RECIPE, dataset.digest(entries, dataset.labels(entries).tobytes()))


def seg_recipe_of(root, label_dir):
    """What a training of a segmentation network with SEG_TRAIN's flags on these labels keeps to its end."""
    dataset, args = open_dataset("voc", root), train_seg.parse_args([*map(str, SEG_TRAIN)])
    digests = [hashlib.sha256(np.asarray(Image.open(label_file.path_of(label_dir, name)))).digest() for name in NAMES]
    return training.recipe(args, train_seg.RECIPE, dataset.digest(dataset.entries("train_aug"), b"".join(digests)))


def irn_recipe_of(root, label_dir):
    """What a training of IRN with IRN_TRAIN's flags on these labels keeps to its end."""
    dataset = open_dataset("voc", root)
    args = train_irn.parse_args([*map(str, IRN_TRAIN)])
    content = hashlib.sha256(b"".join(label_file.path_of(label_dir, name).read_bytes() for name in NAMES))
    return training.recipe(args, train_irn.RECIPE, dataset.digest(dataset.entries("train_aug"), content.digest()))


class TestResuming:
    @pytest.mark.parametrize("name", ["last.pth", "final.pth"])
    def test_with_another_learning_rate(self, refused, name, tiny_voc, tmp_path):
        checkpoint.save(tmp_path / "run/ckpt" / name, {"arguments": recipe_of(tiny_voc), "model": {}})
        message = refused(train, *TRAIN, "--lr", 0.2, names=[f"run/ckpt/{name}", "--lr 0.1 (now 0.2)", "--no-resume"])
        assert "--batch_size" not in message

    @pytest.mark.parametrize("name", ["last.pth", "final.pth"])
    def test_with_other_tags(self, refused, name, tiny_voc, tmp_path):
        checkpoint.save(tmp_path / "run/ckpt" / name, {"arguments": recipe_of(tiny_voc), "model": {}})
        (tiny_voc / f"Annotations/{FIRST}.xml").write_text("<annotation><object><name>cow</name></object></annotation>")
        refused(train, *TRAIN, names=[f"run/ckpt/{name}", "other pictures, tags, labels or classes", "--run_dir"])

    def test_from_a_checkpoint_that_lacks_a_part(self, refused, tiny_voc, tmp_path):
        checkpoint.save(tmp_path / "run/ckpt/last.pth", {"arguments": recipe_of(tiny_voc)})
        refused(train, *TRAIN, names=["run/ckpt/last.pth", "--no-resume"])

    @pytest.mark.parametrize("name", ["irn_last.pth", "irn.pth"])
    def test_irn_with_other_scales(self, refused, name, tiny_voc, tmp_path):
        draw_labels(tmp_path / "run/ir_label")
        checkpoint.save(tmp_path / "run/ckpt" / name, {"arguments": irn_recipe_of(tiny_voc, tmp_path / "run/ir_label"), "model": {}})
        names = [f"run/ckpt/{name}", "--scales [0.5, 1.5] (now [1.0, 1.5])", "--no-resume"]
        message = refused(train_irn, *IRN_TRAIN, "--scales", 1, 1.5, names=names)
        assert "--lr" not in message

    @pytest.mark.parametrize("name", ["irn_last.pth", "irn.pth"])
    def test_irn_with_other_labels(self, refused, name, tiny_voc, tmp_path):
        draw_labels(tmp_path / "run/ir_label")
        checkpoint.save(tmp_path / "run/ckpt" / name, {"arguments": irn_recipe_of(tiny_voc, tmp_path / "run/ir_label"), "model": {}})
        label_file.save(label_file.path_of(tmp_path / "run/ir_label", FIRST), np.full((48, 64), 12, np.uint8))
        refused(train_irn, *IRN_TRAIN, names=[f"run/ckpt/{name}", "labels", "--run_dir"])

    def test_irn_from_a_checkpoint_that_lacks_a_part(self, refused, tiny_voc, tiny_backbone, tmp_path):
        draw_labels(tmp_path / "run/ir_label")
        recipe = irn_recipe_of(tiny_voc, tmp_path / "run/ir_label") | {"weights": str(tiny_backbone)}
        checkpoint.save(tmp_path / "run/ckpt/irn_last.pth", {"arguments": recipe, "rng": 0})
        refused(train_irn, *IRN_TRAIN, "--weights", tiny_backbone, names=["run/ckpt/irn_last.pth: cannot be resumed", "--no-resume"])

    @pytest.mark.parametrize("name", ["seg_last.pth", "seg.pth"])
    @pytest.mark.parametrize(
        ("more", "told"),
        [
            (["--scales", 1, 2], "--scales [0.5, 2.0] (now [1.0, 2.0])"),
            (["--output_stride", 8], "--output_stride 16 (now 8)"),
            (["--label_dir"], "labels"),
        ],
        ids=str,
    )
    def test_a_segmentation_network_with_another_recipe(self, refused, name, more, told, tiny_voc, tmp_path):
        draw_labels(tmp_path / "run/seg_label")
        more = [*more, tiny_voc / "SegmentationClass"] if more == ["--label_dir"] else more
        checkpoint.save(tmp_path / "run/ckpt" / name, {"arguments": seg_recipe_of(tiny_voc, tmp_path / "run/seg_label"), "model": {}})
        assert "--lr" not in refused(train_seg, *SEG_TRAIN, *more, names=[f"run/ckpt/{name}", told, "--no-resume"])

    def test_a_segmentation_network_from_a_checkpoint_that_lacks_a_part(self, refused, tiny_voc, tiny_backbone, tmp_path):
        draw_labels(tmp_path / "run/seg_label")
        recipe = seg_recipe_of(tiny_voc, tmp_path / "run/seg_label") | {"weights": str(tiny_backbone)}
        checkpoint.save(tmp_path / "run/ckpt/seg_last.pth", {"arguments": recipe, "rng": 0})
        names = ["run/ckpt/seg_last.pth: cannot be resumed", "--no-resume"]
        refused(train_seg, *SEG_TRAIN, "--weights", tiny_backbone, names=names)


@pytest.mark.parametrize("script", MAP_READERS, ids=lambda script: script.__name__)
class TestReadingMaps:
    """What every stage that starts from maps says of them; a stage that makes labels has noted how, and has made none."""

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        draw_maps(tmp_path / "run")
        return cam_file.path_of(tmp_path / "run", FIRST)

    @pytest.fixture
    def refused_by(self, refused) -> Callable[..., str]:
        return lambda script, *names: refused(script, *flags_of(script, None), names=names, begins=LABELS_NOTE)

    def test_not_made_yet(self, refused, script):
        refused(script, *flags_of(script, None), names=["run/cam", "run make_cam.py first"])

    def test_missing(self, refused_by, script, path):
        path.unlink()
        refused_by(script, f"run/cam/{FIRST}.npz", "run make_cam.py on this list first")

    def test_cut(self, refused_by, script, path):
        cut_in_half(path)
        refused_by(script, f"run/cam/{FIRST}.npz", "run make_cam.py again")

    def test_a_label_by_the_name_of_a_cam_file(self, refused_by, script, path):
        label_file.save(path, np.zeros((48, 64), np.uint8))
        refused_by(script, f"run/cam/{FIRST}.npz", "run make_cam.py again")

    def test_of_a_dataset_with_more_classes(self, refused_by, script, path):
        cam_file.save(path, [0, 40], (48, 64), is_cam=[np.zeros((2, 3, 4))])
        refused_by(script, f"{FIRST}.npz", "class 40", "--dataset")

    def test_of_a_picture_of_another_size(self, refused_by, script, path):
        cam_file.save(path, [0, 12], (64, 48), is_cam=[np.zeros((2, 3, 4))])
        refused_by(script, FIRST, "64x48", "48x64")

    def test_without_maps(self, refused_by, script, path):
        cam_file.save(path, [0, 12], (48, 64))
        refused_by(script, f"{FIRST}.npz", "make_cam.py")

    @pytest.mark.parametrize("keys", [np.array([0]), np.array([[0, 12]]), np.array([])], ids=str)
    def test_with_other_keys(self, refused_by, script, path, keys):
        maps = np.zeros((len(keys), 3, 4), np.float16)
        with open(path, "wb") as file:
            np.savez(file, keys=keys, size=np.array([48, 64]), is_cam_0=maps)
        refused_by(script, f"{FIRST}.npz", "make_cam.py")

    def test_of_other_classes(self, refused, script, path, tmp_path):
        note_maps(tmp_path / "run", class_names=["background", "fish"])
        refused(script, *flags_of(script, None), names=["run/cam/settings.json", "other classes"])

    def test_without_a_note_of_how_they_were_made(self, refused, script, path, tmp_path):
        (tmp_path / "run/cam/settings.json").unlink()
        refused(script, *flags_of(script, None), names=["run/cam/settings.json", "make_cam.py"])

    def test_with_a_damaged_note(self, refused, script, path, tmp_path):
        cut_in_half(tmp_path / "run/cam/settings.json")
        refused(script, *flags_of(script, None), names=["run/cam/settings.json", "delete it"])


class TestCamFiles:
    @pytest.mark.parametrize("script", [make_ir_labels, make_seg_labels], ids=lambda script: script.__name__)
    def test_without_the_kind_that_is_asked_for(self, refused, script, tmp_path):
        draw_maps(tmp_path / "run")
        refused(script, *flags_of(script, None), "--map", "cam", names=["run/cam", "no cam maps", "--overwrite --maps is_cam cam"])

    def test_without_the_kind_that_its_note_tells_of(self, refused, tmp_path):
        draw_maps(tmp_path / "run")
        note_maps(tmp_path / "run", ("cam", "is_cam"))
        refused(eval_cam, names=[f"{FIRST}.npz", "no cam maps", "make_cam.py"])

    def test_cut_in_half_is_refused_by_evaluation_and_made_again_by_localization(self, refused, tiny_voc, tmp_path, checkpoints):
        listed, path = write_list(tiny_voc, *NAMES[:2]), cam_file.path_of(tmp_path / "run", FIRST)
        common = ["--dataset_root", tiny_voc, "--run_dir", tmp_path / "run", "--num_workers", 0, "--list", listed]
        make = [str(flag) for flag in (*common, *MAP, "--ckpt", checkpoints["ours"])]
        make_cam.main(make)
        whole = cam_file.load(path)
        cut_in_half(path)
        refused(eval_cam, "--list", listed, names=[f"run/cam/{FIRST}.npz", "run make_cam.py again"])
        make_cam.main(make)
        assert np.array_equal(cam_file.load(path).is_cam, whole.is_cam)
        eval_cam.main([str(flag) for flag in common])

    def test_of_other_tags_are_made_again(self, tiny_voc, tmp_path, checkpoints):
        listed, path = write_list(tiny_voc, FIRST), cam_file.path_of(tmp_path / "run", FIRST)
        common = ["--dataset_root", tiny_voc, "--run_dir", tmp_path / "run", "--num_workers", 0, "--list", listed, *MAP]
        for tag, class_id in (("cat", 8), ("cow", 10)):
            (tiny_voc / f"Annotations/{FIRST}.xml").write_text(f"<annotation><object><name>{tag}</name></object></annotation>")
            make_cam.main([str(flag) for flag in (*common, "--ckpt", checkpoints["ours"])])
            assert cam_file.load(path).keys.tolist() == [0, class_id]

    def test_without_settings_nothing_is_added_to_them(self, refused, tiny_voc, tmp_path, checkpoints):
        draw_maps(tmp_path / "run")
        (tmp_path / "run/cam/settings.json").unlink()
        for more in ([], ["--overwrite"]):
            refused(make_cam, *MAP, "--ckpt", checkpoints["ours"], *more, names=["run/cam/settings.json", "move them away"])

    def test_of_another_checkpoint_or_other_scales_are_not_mixed(self, refused, tiny_voc, tmp_path, checkpoints):
        listed = write_list(tiny_voc, FIRST)
        common = ["--dataset_root", tiny_voc, "--run_dir", tmp_path / "run", "--num_workers", 0, "--list", listed, *MAP]
        make_cam.main([str(flag) for flag in (*common, "--ckpt", checkpoints["ours"])])
        changed = {"checkpoint": ["--ckpt", checkpoints["authors"]], "scales": ["--scales", 1.0]}
        for name, flags in changed.items():
            names = ["run/cam/settings.json", f"another {name};", "--overwrite"]
            refused(make_cam, "--list", listed, *MAP, "--ckpt", checkpoints["ours"], *flags, names=names)


class TestWithoutPydensecrf:
    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch, tmp_path):
        draw_maps(tmp_path / "run")
        for name in ("pydensecrf", "pydensecrf.densecrf"):
            monkeypatch.setitem(sys.modules, name, None)

    @pytest.mark.parametrize(("script", "flags"), [(make_ir_labels, []), (make_seg_labels, ["--device", "cpu", "--refine", "crf"])])
    def test_a_stage_that_needs_it_says_what_to_install(self, refused, script, flags):
        refused(script, *flags, names=["pydensecrf", "pip install pydensecrf2"])

    @pytest.mark.parametrize("script", [infer_seg, predict])
    def test_a_segmentation_network_needs_it_for_borders_only(self, refused, tiny_voc, script, checkpoints, tmp_path):
        flags = [*SEGMENT, "--ckpt", checkpoints["segmentation"]]
        pictures = [tiny_voc / "JPEGImages"] if script is predict else ["--list", write_list(tiny_voc, *NAMES)]
        refused(script, *pictures, *flags, "--crf", run_dir=tmp_path / "out", names=["pydensecrf", "pip install pydensecrf2"])
        place = ["--output_dir", tmp_path / "out"] if script is predict else data_flags(tiny_voc, tmp_path / "out")
        script.main([str(flag) for flag in (*place, *pictures, *flags, "--num_workers", 0)])

    def test_labels_without_it_are_made_and_scored(self, tiny_voc, tmp_path):
        common = [str(flag) for flag in ("--dataset_root", tiny_voc, "--run_dir", tmp_path / "run", "--num_workers", 0)]
        make_seg_labels.main([*common, *LABEL])
        eval_seg.main(common)
        eval_cam.main(common)
        assert {f"seg_label/{FIRST}.png", "eval_seg_label.json", "eval_cam.json"} <= times_below(tmp_path / "run").keys()


class TestIrnCheckpoint:
    @pytest.fixture(autouse=True)
    def maps(self, tmp_path):
        draw_maps(tmp_path / "run")

    @pytest.fixture
    def changed(self, tmp_path) -> Iterator[Callable[..., Path]]:
        """Write IRN's tensors with one changed or, by None, left out; the file is large and goes away with the test."""

        def write(name: str, value: torch.Tensor | None) -> Path:
            content = {**IRN().state_dict(), name: value}
            torch.save({name: tensor for name, tensor in content.items() if tensor is not None}, tmp_path / "theirs.pth")
            return tmp_path / "theirs.pth"

        yield write
        (tmp_path / "theirs.pth").unlink()

    def test_not_trained_yet(self, refused):
        refused(make_seg_labels, "--device", "cpu", names=["run/ckpt/irn.pth", "train first"])

    def test_missing(self, refused, tmp_path):
        refused(make_seg_labels, *LABEL_BY_IRN, tmp_path / "none.pth", names=["none.pth", "correct the path"])

    def test_a_folder(self, refused, tmp_path):
        refused(make_seg_labels, *LABEL_BY_IRN, tmp_path / "run", names=f"{tmp_path / 'run'}: ")

    def test_cut(self, refused, tmp_path):
        torch.save({"model": {"fc_edge6.bias": torch.zeros(1000)}}, tmp_path / "cut.pth")
        cut_in_half(tmp_path / "cut.pth")
        refused(make_seg_labels, *LABEL_BY_IRN, tmp_path / "cut.pth", names="cut.pth")

    @pytest.mark.parametrize("content", [{"weights": 1}, [1, 2], {"model": [1]}, {}, {"arguments": {"crop_size": 512}}], ids=str)
    def test_of_something_else(self, refused, content, tmp_path):
        torch.save(content, tmp_path / "other.pth")
        refused(make_seg_labels, *LABEL_BY_IRN, tmp_path / "other.pth", names="other.pth")

    def test_of_the_first_stage(self, refused, checkpoints):
        refused(make_seg_labels, *LABEL_BY_IRN, checkpoints["ours"], names=["ours.pth", "tensor fc_edge1.0.weight is missing"])

    def test_lacks_a_tensor(self, refused, changed):
        refused(make_seg_labels, *LABEL_BY_IRN, changed("fc_dp7.4.running_mean", None), names="tensor fc_dp7.4.running_mean is missing")

    def test_holds_half_a_tensor(self, refused, changed):
        path = changed("fc_edge6.weight", torch.zeros(1, 80, 1, 1))
        refused(make_seg_labels, *LABEL_BY_IRN, path, names=["tensor fc_edge6.weight is (1, 80, 1, 1)", "(1, 160, 1, 1)"])


class TestInterPixelLabels:
    """What IRN's training says of the labels that it learns from."""

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        draw_labels(tmp_path / "run/ir_label")
        return label_file.path_of(tmp_path / "run/ir_label", FIRST)

    def test_not_made_yet(self, refused):
        refused(train_irn, *IRN_TRAIN, names=[f"run/ir_label/{FIRST}.png", "run make_ir_labels.py"])

    def test_one_is_missing(self, refused, path):
        path.unlink()
        refused(train_irn, *IRN_TRAIN, names=[f"run/ir_label/{FIRST}.png", "run make_ir_labels.py"])

    def test_cut(self, refused, path):
        cut_in_half(path)
        refused(train_irn, *IRN_TRAIN, names=[f"run/ir_label/{FIRST}.png", "run make_ir_labels.py"])

    @pytest.mark.parametrize(
        ("image", "names"),
        [
            (Image.new("L", (48, 64)), ["is 48x64, its picture 64x48"]),
            (Image.new("L", (64, 48), 37), ["class 37", "0..20"]),
            (Image.new("RGB", (64, 48)), ["RGB"]),
        ],
    )
    def test_foreign(self, refused, path, tiny_backbone, image, names):
        image.save(path)
        flags = [*IRN_TRAIN, "--weights", tiny_backbone, "--batch_size", 6]
        refused(train_irn, *flags, names=[f"run/ir_label/{FIRST}.png", *names], begins=r"run/tensorboard/irn/.*")

    def test_batch_larger_than_the_list(self, refused, path):
        refused(train_irn, *IRN_TRAIN, "--batch_size", 7, names=["train_aug", "6 pictures", "--batch_size 6"])

    def test_backbone_that_is_not_there(self, refused, path):
        refused(train_irn, *IRN_TRAIN, "--weights", "none.pth", names=["none.pth", "correct the path"])


class TestScoredLabels:
    """What their evaluation says of labels."""

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        draw_labels(tmp_path / "run/seg_label")
        return label_file.path_of(tmp_path / "run/seg_label", FIRST)

    def test_not_made_yet(self, refused):
        refused(eval_seg, names=["run/seg_label", "correct --label_dir", "make them first"])

    def test_folder_that_is_not_there(self, refused, tmp_path):
        refused(eval_seg, "--label_dir", tmp_path / "nowhere", names=[str(tmp_path / "nowhere"), "--label_dir"])

    def test_one_is_missing(self, refused, path):
        path.unlink()
        refused(eval_seg, names=[f"run/seg_label/{FIRST}.png", "make it first"])

    def test_cut(self, refused, path):
        cut_in_half(path)
        refused(eval_seg, names=[f"run/seg_label/{FIRST}.png", "replace it"])

    def test_a_cam_file_by_the_name_of_a_label(self, refused, path):
        cam_file.save(path, [0, 12], (48, 64), is_cam=[np.zeros((2, 3, 4))])
        refused(eval_seg, names=[f"run/seg_label/{FIRST}.png", "replace it"])

    @pytest.mark.parametrize(
        ("image", "names"),
        [
            (Image.new("L", (48, 64)), ["48x64", "64x48"]),
            (Image.new("L", (64, 48), 37), ["class 37", "0..20"]),
            (Image.new("RGB", (64, 48)), ["RGB", "convert it"]),
            (Image.new("1", (64, 48)), ["convert it"]),
        ],
    )
    def test_foreign(self, refused, path, image, names):
        image.save(path)
        refused(eval_seg, names=[f"run/seg_label/{FIRST}.png", *names])

    def test_no_mask(self, refused, path, tiny_voc):
        (tiny_voc / f"SegmentationClass/{FIRST}.png").unlink()
        refused(eval_seg, names=f"SegmentationClass/{FIRST}.png")

    def test_nothing_but_255(self, refused, path, tiny_voc):
        label_file.save(path, np.full((48, 64), 255, np.uint8))
        refused(eval_seg, "--list", write_list(tiny_voc, FIRST), names=["list.txt", "no pixel"])


class TestPseudoLabels:
    """What the segmentation network's training says of the labels that it learns from, before its first step."""

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        draw_labels(tmp_path / "run/seg_label")
        return label_file.path_of(tmp_path / "run/seg_label", FIRST)

    def test_not_made_yet(self, refused):
        refused(train_seg, *SEG_TRAIN, names=["run/seg_label", "--label_dir", "make them first"])

    def test_folder_that_is_not_there(self, refused, tmp_path):
        flags = [*SEG_TRAIN, "--label_dir", tmp_path / "nowhere"]
        refused(train_seg, *flags, names=[str(tmp_path / "nowhere"), "--label_dir", "make them first"])

    def test_a_file_in_place_of_the_folder(self, refused, path):
        refused(train_seg, *SEG_TRAIN, "--label_dir", path, names=[str(path), "--label_dir"])

    def test_one_is_missing(self, refused, path):
        path.unlink()
        refused(train_seg, *SEG_TRAIN, names=[f"run/seg_label/{FIRST}.png", "make it first"])

    def test_cut(self, refused, path):
        cut_in_half(path)
        refused(train_seg, *SEG_TRAIN, names=[f"run/seg_label/{FIRST}.png", "replace it"])

    @pytest.mark.parametrize(
        ("image", "names"),
        [
            (Image.new("L", (48, 64)), ["is 48x64, its picture 64x48"]),
            (Image.new("L", (64, 48), 37), ["class 37", "0..20"]),
            (Image.new("RGB", (64, 48)), ["RGB"]),
        ],
        ids=["another size", "an unknown class", "colours"],
    )
    def test_foreign(self, refused, path, image, names):
        image.save(path)
        refused(train_seg, *SEG_TRAIN, names=[f"run/seg_label/{FIRST}.png", *names])

    def test_nothing_but_255(self, refused, path):
        for name in NAMES:
            label_file.save(path.with_name(f"{name}.png"), np.full((48, 64), 255, np.uint8))
        refused(train_seg, *SEG_TRAIN, names=["run/seg_label", "no pixel of the 6 labels has a class", "all are 255"])

    def test_too_few_are_left_for_a_batch(self, refused, path):
        label_file.save(path, np.full((48, 64), 255, np.uint8))
        refused(train_seg, *SEG_TRAIN, "--batch_size", 6, names=["train_aug", "5 pictures do not fill a batch", "--batch_size 5"])

    @pytest.mark.parametrize("script", [train_seg, eval_seg], ids=lambda script: script.__name__)
    @pytest.mark.parametrize(
        "note",
        [
            {"made_by": "make_seg_labels", "refine": "crf", "cam": {"made_by": "make_cam", "class_names": ["background", "fish"]}},
            {"made_by": "infer_seg", "class_names": ["background", "fish"]},
        ],
        ids=["by maps", "by a segmentation network"],
    )
    def test_of_other_classes(self, refused, path, script, note):
        files.write_json(path.with_name("settings.json"), note)
        refused(script, *flags_of(script, None), names=["run/seg_label/settings.json", "other classes", "--dataset"])

    @pytest.mark.parametrize("script", [train_seg, eval_seg], ids=lambda script: script.__name__)
    def test_with_a_damaged_note(self, refused, path, script):
        cut_in_half(path.with_name("settings.json"))
        refused(script, *flags_of(script, None), names=["run/seg_label/settings.json", "delete it"])

    def test_backbone_that_is_not_there(self, refused, path):
        refused(train_seg, *SEG_TRAIN, "--weights", "none.pth", names=["none.pth", "correct the path"])

    def test_backbone_that_is_not_deep_enough(self, refused, path, tiny_backbone):
        flags = [*SEG_TRAIN, "--network", "deeplabv2_resnet101", "--weights", tiny_backbone]
        refused(train_seg, *flags, names=[str(tiny_backbone), "is of a shallower network"])

    def test_backbone_that_is_too_deep(self, refused, path, tiny_backbone, tmp_path):
        deeper = torch.load(tiny_backbone, weights_only=True) | {"layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)}
        torch.save(deeper, tmp_path / "resnet101.pth")
        flags = [*SEG_TRAIN, "--weights", tmp_path / "resnet101.pth"]
        refused(train_seg, *flags, names=["resnet101.pth", "is of a deeper network than this one (layer3.6)"])
        (tmp_path / "resnet101.pth").unlink()

    def test_a_batch_of_one_for_deeplab_v3(self, refused, path):
        flags = [*SEG_TRAIN, "--network", "deeplabv3_resnet50", "--batch_size", 1]
        refused(train_seg, *flags, names=["--batch_size 1", "2 pictures a process"])

    def test_a_picture_a_process_for_deeplab_v3(self, refused, path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        flags = [*SEG_TRAIN, "--network", "deeplabv3_resnet101", "--batch_size", 2]
        refused(train_seg, *flags, names=["--batch_size 2", "2 pictures a process"])

    def test_a_picture_that_cannot_be_read(self, refused, path, tiny_voc, tiny_backbone):
        cut_in_half(tiny_voc / f"JPEGImages/{FIRST}.jpg")
        flags = [*SEG_TRAIN, "--weights", tiny_backbone, "--batch_size", 6]
        refused(train_seg, *flags, names=f"JPEGImages/{FIRST}.jpg", begins=r"run/tensorboard/seg/.*")


class TestSegmentationCheckpoint:
    """What infer_seg.py says of a checkpoint that is no segmentation network for this dataset."""

    @pytest.fixture
    def refused_file(self, refused, tmp_path) -> Iterator[Callable[..., str]]:
        """Let infer_seg.py refuse a file with some content; it is large and goes away with the test."""

        def refused_file(content, *names: str) -> str:
            torch.save(content, tmp_path / "given.pth")
            return refused(infer_seg, *SEGMENT, "--ckpt", tmp_path / "given.pth", names=["given.pth", *names])

        yield refused_file
        (tmp_path / "given.pth").unlink()

    def test_not_trained_yet(self, refused):
        refused(infer_seg, *SEGMENT, names=["run/ckpt/seg.pth", "train first"])

    @pytest.mark.parametrize("kind", ["ours", "authors"])
    def test_of_sipe(self, refused, checkpoints, kind):
        refused(infer_seg, *SEGMENT, "--ckpt", checkpoints[kind], names=[f"{kind}.pth", "no segmentation network", "train_seg.py"])

    def test_of_irn(self, refused_file):
        content = {"model": IRN().state_dict(), "class_names": list(VOC_CLASSES), "arguments": {"crop_size": 512}}
        refused_file(content, "no segmentation network", "train_seg.py")

    def test_for_other_classes(self, refused_file):
        content = {"model": {}, "class_names": ["background", "cat", "dog"], "arguments": {"network": "deeplabv2_resnet50"}}
        refused_file(content, "2 classes (cat, dog)", "20")

    def test_of_fewer_classes_than_it_says(self, refused_file, checkpoints):
        content = checkpoint.read(checkpoints["segmentation"])
        content["model"]["classifier.branches.0.weight"] = content["model"]["classifier.branches.0.weight"][:3]
        refused_file(content, "tensor classifier.branches.0.weight is (3, 2048, 3, 3)", "(21, 2048, 3, 3)")

    def test_of_another_backbone_than_it_says(self, refused_file, checkpoints):
        content = checkpoint.read(checkpoints["segmentation"])
        content["arguments"]["network"] = "deeplabv2_resnet101"
        refused_file(content, "tensor backbone.layer3.6.conv1.weight is missing")

    @pytest.mark.parametrize("arguments", [{}, None, {"network": "unet"}, {"network": ["deeplabv2_resnet50"], "output_stride": 8}], ids=str)
    def test_without_a_network_that_is_known(self, refused_file, arguments):
        refused_file({"model": {}, "class_names": list(VOC_CLASSES), "arguments": arguments}, "no segmentation network")

    @pytest.mark.parametrize("content", [{"weights": 1}, [1, 2], {}, torch.zeros(2)], ids=str)
    def test_of_something_else(self, refused_file, content):
        refused_file(content)

    @pytest.mark.parametrize("model", [None, [1], {}], ids=str)
    def test_without_weights(self, refused_file, model):
        arguments = {"network": "deeplabv2_resnet50", "output_stride": 16}
        content = {"model": model, "class_names": list(VOC_CLASSES), "arguments": arguments}
        refused_file(content, "tensor backbone.conv1.weight is missing")

    def test_cut(self, refused, tmp_path):
        torch.save({"model": {"backbone.conv1.weight": torch.zeros(1000)}}, tmp_path / "cut.pth")
        cut_in_half(tmp_path / "cut.pth")
        refused(infer_seg, *SEGMENT, "--ckpt", tmp_path / "cut.pth", names="cut.pth")

    def test_a_picture_that_cannot_be_read(self, refused, checkpoints, tiny_voc):
        cut_in_half(tiny_voc / f"JPEGImages/{FIRST}.jpg")
        listed = write_list(tiny_voc, NAMES[1], FIRST, NAMES[2])
        flags = [*SEGMENT, "--ckpt", checkpoints["segmentation"], "--list", listed]
        refused(infer_seg, *flags, names=f"JPEGImages/{FIRST}.jpg", begins=rf"run/seg_pred/(settings\.json|{NAMES[1]}\.png)")


class TestPredictions:
    """What predict.py says of pictures, checkpoints, tags and places that it cannot use."""

    @pytest.fixture
    def pictures(self, tiny_voc) -> Path:
        return tiny_voc / "JPEGImages"

    @pytest.fixture
    def ckpt(self, checkpoints) -> list:
        return ["--ckpt", checkpoints["segmentation"]]

    @pytest.fixture
    def sipe(self, checkpoints) -> list:
        return ["--ckpt", checkpoints["ours"]]

    @pytest.mark.parametrize("given", ["none.jpg", "*.bmp", "**/*.tif", "nowhere/", "*.txt"])
    def test_no_such_picture(self, refused, ckpt, pictures, given):
        (pictures / "notes.txt").touch()
        looked_for = f"{pictures}/{given.strip('/')}"
        refused(predict, pictures / given, *ckpt, names=[looked_for, "no picture", "give pictures, folders or patterns"])

    def test_one_of_several_is_missing(self, refused, ckpt, pictures):
        refused(predict, pictures / f"{FIRST}.jpg", pictures / "none.jpg", *ckpt, names=["none.jpg", "no picture"])

    def test_empty_folder(self, refused, ckpt, tmp_path):
        (tmp_path / "empty").mkdir()
        refused(predict, tmp_path / "empty", *ckpt, names=[str(tmp_path / "empty"), "no picture"])

    def test_two_of_one_name(self, refused, ckpt, pictures, tmp_path):
        shutil.copy(pictures / f"{FIRST}.jpg", tmp_path / f"{FIRST}.png")
        names = [f"{FIRST}.png", f"{FIRST}.jpg", "different --output_dir"]
        refused(predict, pictures, tmp_path / f"{FIRST}.png", *ckpt, names=names)

    def test_two_of_one_name_in_a_folder(self, refused, ckpt, pictures):
        shutil.copy(pictures / f"{FIRST}.jpg", pictures / f"{FIRST}.png")
        refused(predict, pictures, *ckpt, names=[f"{FIRST}.jpg and {FIRST}.png", "rename one of them"])

    @pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", None], ids=["empty", "no picture", "cut"])
    def test_unreadable(self, refused, ckpt, pictures, content):
        """What was read before it keeps its mask."""
        path = pictures / f"{NAMES[1]}.jpg"
        path.write_bytes(path.read_bytes()[:2000] if content is None else content)
        begins = rf"run/{FIRST}(\.png|_overlay\.jpg)"
        refused(predict, pictures, *SEGMENT, *ckpt, names=[f"{NAMES[1]}.jpg", "not a readable picture"], begins=begins)

    def test_a_file_that_is_no_picture(self, refused, ckpt, pictures):
        (pictures / "notes.txt").write_text("no picture")
        refused(predict, pictures / "notes.txt", *ckpt, names=["notes.txt", "not a readable picture"], begins="")

    def test_sipe_without_tags(self, refused, sipe, pictures):
        refused(predict, pictures, *sipe, names=["ours.pth", "is SIPE", "--tags or --tag_table"])

    @pytest.mark.parametrize("flag", ["--tags", "--tag_table"])
    def test_segmentation_network_with_tags(self, refused, ckpt, pictures, flag):
        refused(predict, pictures, *ckpt, flag, "cat", names=["segmentation.pth", "by itself", "leave the tags out"])

    def test_unknown_tag(self, refused, sipe, pictures):
        refused(predict, pictures, *sipe, "--tags", "cat", "unicorn", names=["--tags", "'unicorn' is not a class"])

    def test_the_background_is_no_tag(self, refused, sipe, pictures):
        refused(predict, pictures, *sipe, "--tags", "background", names=["--tags", "'background' is not a class"])

    def test_unknown_tag_in_the_table(self, refused, sipe, pictures, tmp_path):
        table = write_lines(tmp_path / "tags.csv", "name,classes", f"{FIRST},unicorn")
        refused(predict, pictures, *sipe, "--tag_table", table, names=["tags.csv, line 2", "unicorn"])

    @pytest.mark.parametrize("row", [f"{NAMES[1]},cat", f"{FIRST},"], ids=["without it", "without its tags"])
    def test_table_that_lacks_a_picture(self, refused, sipe, pictures, row, tmp_path):
        table = write_lines(tmp_path / "tags.csv", row)
        refused(predict, pictures / f"{FIRST}.jpg", *sipe, "--tag_table", table, names=["tags.csv", f"picture {FIRST} has no tag"])

    def test_no_such_table(self, refused, sipe, pictures, tmp_path):
        refused(predict, pictures, *sipe, "--tag_table", tmp_path / "none.csv", names=["none.csv", "cannot be read"])

    @pytest.mark.parametrize("name", [f"{FIRST}.png", f"{NAMES[3]}.png", f"{FIRST}_overlay.jpg"])
    @pytest.mark.parametrize("maker", [None, "a painter"])
    def test_somebody_elses_files_stay(self, refused, ckpt, pictures, name, maker, tmp_path):
        """`refused` sees that not even a mask beside them comes."""
        (tmp_path / "run").mkdir()
        label_file.save(tmp_path / "run" / name, np.zeros((48, 64), np.uint8), maker)
        before = (tmp_path / "run" / name).read_bytes()
        refused(predict, pictures, *SEGMENT, *ckpt, names=[name, "not of predict.py", "give another --output_dir"])
        assert (tmp_path / "run" / name).read_bytes() == before

    @pytest.mark.parametrize("kind", ["pictures", "masks"])
    def test_the_folder_of_the_pictures_or_masks_themselves(self, refused, ckpt, tiny_voc, pictures, kind):
        folder = tiny_voc / "SegmentationClass" if kind == "masks" else pictures
        if kind == "pictures":
            for path in pictures.iterdir():
                path.rename(path.with_suffix(".png"))
        refused(predict, pictures / "*", *SEGMENT, *ckpt, run_dir=folder, names=[f"{folder}/{FIRST}.png", "another --output_dir"])

    def test_a_folder_of_pictures_is_no_place_for_masks(self, pictures, capsys):
        with pytest.raises(SystemExit) as stopped:
            predict.main(["--ckpt", "none.pth", str(pictures), "--output_dir", f"{pictures}/."])
        assert stopped.value.code == 2
        assert "is a folder of pictures to predict" in capsys.readouterr().err.splitlines()[-1]

    @pytest.mark.parametrize(
        "content",
        [
            {},
            {"weights": 1},
            {"model": {}},
            {"model": {}, "class_names": []},
            {"model": {}, "class_names": "cat"},
            {"net": {}},
            {"net": [1]},
            {"net": {"classifier.weight": torch.zeros(7, 2048, 1, 1)}},
            {"net": {"classifier.weight": torch.tensor(1)}},
        ],
        ids=lambda content: str(content)[:60],
    )
    def test_a_checkpoint_without_class_names(self, refused, pictures, content, tmp_path):
        torch.save(content, tmp_path / "other.pth")
        flags = ["--ckpt", tmp_path / "other.pth", "--tags", "cat"]
        refused(predict, pictures, *flags, names=["other.pth", "names no classes", "train_seg.py or SIPE"])

    def test_a_checkpoint_of_irn(self, refused, pictures, tmp_path):
        content = {"model": IRN().state_dict(), "class_names": list(VOC_CLASSES), "arguments": {"crop_size": 512}}
        torch.save(content, tmp_path / "irn.pth")
        refused(predict, pictures, "--ckpt", tmp_path / "irn.pth", names=["irn.pth", "tensor classifier.weight is missing"])
        (tmp_path / "irn.pth").unlink()

    @pytest.mark.parametrize(
        "content",
        [{"model": {}, "class_names": list(VOC_CLASSES)}, {"net": {"classifier.weight": torch.zeros(20, 2048, 1, 1)}}],
        ids=["ours", "authors"],
    )
    def test_a_checkpoint_that_lacks_a_tensor(self, refused, pictures, content, tmp_path):
        torch.save(content, tmp_path / "other.pth")
        refused(predict, pictures, "--ckpt", tmp_path / "other.pth", names=["other.pth", "tensor resnet50.conv1.weight is missing"])

    @pytest.mark.parametrize("name", ["none.pth", "cut.pth"])
    def test_a_checkpoint_that_is_missing_or_cut(self, refused, pictures, name, tmp_path):
        torch.save({"model": {"backbone.conv1.weight": torch.zeros(1000)}}, tmp_path / "cut.pth")
        cut_in_half(tmp_path / "cut.pth")
        refused(predict, pictures, "--ckpt", tmp_path / name, names=name)

    @pytest.mark.parametrize(
        "flags",
        ["--scales 0", "--scales 9", "--scales nan", "--max_side -1", "--tags cat --tag_table x.csv", "--num_workers -1", "--amp half"],
    )
    def test_a_flag_out_of_range_is_named(self, flags, capsys):
        with pytest.raises(SystemExit) as stopped:
            predict.main(["--ckpt", "none.pth", "none.jpg", *flags.split()])
        assert stopped.value.code == 2
        assert flags.split()[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (train, "--batch_size 0"),
        (train, "--max_epochs 0"),
        (train, "--crop_size 0"),
        (train, "--log_every 0"),
        (train, "--resize_long 64 32"),
        (train, "--resize_long 0 32"),
        (train, "--seed -1"),
        (train, "--seed 4294967296"),
        (train, "--save_every -1"),
        (train, "--lr -1"),
        (train, "--lr nan"),
        (train, "--lr inf"),
        (train, "--momentum -1"),
        (train, "--wt_dec -1"),
        (train, "--amp half"),
        (train, "--visualize False"),
        (train, "--num_workers -1"),
        (make_cam, "--scales 0"),
        (make_cam, "--scales 9"),
        (make_cam, "--scales nan"),
        (make_cam, "--maps grad_cam"),
        (eval_cam, "--num_workers -1"),
        (eval_cam, "--dataset imagenet"),
        (make_ir_labels, "--map grad_cam"),
        (make_ir_labels, "--num_workers 1.5"),
        (train_irn, "--batch_size 0"),
        (train_irn, "--crop_size 82"),
        (train_irn, "--crop_size 76"),
        (train_irn, "--scales 1.5 0.5"),
        (train_irn, "--scales 0 1"),
        (train_irn, "--scales 1 nan"),
        (train_irn, "--scales 1 9"),
        (train_irn, "--lr nan"),
        (make_seg_labels, "--refine sam"),
        (make_seg_labels, "--map grad_cam"),
        (make_seg_labels, "--crf_on pictures"),
        (make_seg_labels, "--beta 0"),
        (make_seg_labels, "--beta nan"),
        (make_seg_labels, "--beta 1001"),
        (make_seg_labels, "--exp_times -1"),
        (make_seg_labels, "--exp_times 17"),
        (make_seg_labels, "--exp_times 1.5"),
        (eval_seg, "--num_workers -1"),
        (train_seg, "--batch_size 0"),
        (train_seg, "--lr nan"),
        (train_seg, "--network unet"),
        (train_seg, "--output_stride 4"),
        (train_seg, "--scales 2 0.5"),
        (train_seg, "--scales 0 1"),
        (train_seg, "--class_balance -1"),
        (train_seg, "--class_balance 1.5"),
        (train_seg, "--class_balance nan"),
        (infer_seg, "--scales 0"),
        (infer_seg, "--scales 9"),
        (infer_seg, "--num_workers -1"),
        (infer_seg, "--submission mine.tgz --dataset folder"),
        (infer_seg, "--submission photo.jpg"),
        (infer_seg, "--max_side -1"),
        (train_seg, "--max_side many"),
        (infer_seg, "--submission mine.tgz --dataset coco"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_flag_out_of_range_is_named(script, flags, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        script.main([*flags.split(), "--dataset_root", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert flags.split()[0] in capsys.readouterr().err.splitlines()[-1]


def truncated_picture(root: Path, run_dir: Path) -> str:
    cut_in_half(root / f"JPEGImages/{FIRST}.jpg")
    return f"JPEGImages/{FIRST}.jpg"


def unknown_class_in_a_mask(root: Path, run_dir: Path) -> str:
    draw_maps(run_dir)
    Image.new("L", (64, 48), 37).save(root / f"SegmentationClass/{FIRST}.png")
    return f"SegmentationClass/{FIRST}.png"


def cut_maps(root: Path, run_dir: Path) -> str:
    draw_maps(run_dir)
    cut_in_half(cam_file.path_of(run_dir, FIRST))
    return f"run/cam/{FIRST}.npz"


def run_dir_below_a_file(root: Path, run_dir: Path) -> str:
    run_dir.write_text("in the way")
    return "run"


def hostile_checkpoint(root: Path, run_dir: Path) -> str:
    (run_dir / "ckpt").mkdir(parents=True)
    torch.save({"model": Payload(run_dir / "marker")}, run_dir / "ckpt/final.pth")
    return "run/ckpt/final.pth"


@pytest.mark.parametrize(
    ("script", "spoil", "flags"),
    [
        ("train_resnet50_SIPE.py", truncated_picture, [*TRAIN, "--batch_size", 6, "--num_workers", 1]),
        ("make_cam.py", hostile_checkpoint, MAP),
        ("eval_cam.py", unknown_class_in_a_mask, ["--num_workers", 1]),
        ("eval_cam.py", run_dir_below_a_file, []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_command_ends_with_one_line(tiny_voc, tmp_path, script, spoil, flags):
    named = spoil(tiny_voc, tmp_path / "run")
    command = [sys.executable, ROOT / script, "--dataset_root", tiny_voc, "--run_dir", tmp_path / "run", *flags]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    lines = [line for line in re.split(r"[\r\n]", ended.stderr) if line.strip() and "%|" not in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{script}: error: ")
    assert named in lines[0]
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("marker"))
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name in ("last.pth", "eval_cam.json")]


def label_of_another_size(root: Path, run_dir: Path) -> str:
    draw_labels(run_dir / "seg_label")
    Image.new("L", (48, 64)).save(label_file.path_of(run_dir / "seg_label", FIRST))
    return f"run/seg_label/{FIRST}.png"


@pytest.mark.parametrize(
    ("script", "spoil", "flags"),
    [(make_ir_labels, cut_maps, []), (train_seg, label_of_another_size, SEG_TRAIN)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_worker_process_meets_is_one_line(tiny_voc, tmp_path, monkeypatch, capfd, script, spoil, flags):
    """capfd, because it would see what the worker itself prints, too."""
    named = spoil(tiny_voc, tmp_path / "run")
    command = [f"{script.__name__}.py", "--dataset_root", tiny_voc, "--run_dir", tmp_path / "run", "--num_workers", 1, *flags]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    assert stage.run(script.main) == 2
    lines = [line for line in re.split(r"[\r\n]", capfd.readouterr().err) if line.strip() and "%|" not in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{script.__name__}.py: error: ") and named in lines[0] and "; " in lines[0]
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.pth"))
    assert not label_file.path_of(tmp_path / "run/ir_label", FIRST).exists()
