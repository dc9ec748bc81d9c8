"""What a user can get wrong ends in one clear line: which file, what to do; nothing is executed, nothing is left half-written."""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval_cam
import make_cam
import train_resnet50_SIPE as train
from data.registry import VOC_CLASSES, open_dataset
from errors import InputError
from network.sipe import SIPE, release_names
from tool import cam_file, checkpoint, files

ROOT = Path(__file__).resolve().parents[1]
NAMES = [f"2007_{i:06d}" for i in range(6)]
FIRST = NAMES[0]
STAGES = [train, make_cam, eval_cam]
TRAIN = ["--device", "cpu", "--batch_size", 2, "--crop_size", 32, "--resize_long", 32, 48, "--weights", "none"]
MAP = ["--device", "cpu", "--scales", 0.5]


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


def flags_of(script, ckpt: Path) -> list:
    return {train: TRAIN, make_cam: [*MAP, "--ckpt", ckpt], eval_cam: []}[script]


def write_list(root: Path, *lines: str) -> Path:
    path = root.parent / "list.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def draw_maps(run_dir: Path, names: list[str] = NAMES, **more) -> None:
    """CAM files that need no network."""
    maps = np.stack([np.linspace(0, 1, 12).reshape(3, 4), np.linspace(1, 0, 12).reshape(3, 4)])
    for name in names:
        cam_file.save(cam_file.path_of(run_dir, name), [0, 12], (48, 64), is_cam=[maps], **more)


def tree(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(tiny_voc: Path, tmp_path: Path) -> Callable[..., str]:
    """Call a script that must refuse: one line that holds all of `names` and a cure; no file comes or goes but those of `begins`."""

    def refused(script, *flags, names: str | list[str], run_dir: Path | None = None, begins: str | None = None) -> str:
        run_dir = run_dir or tmp_path / "run"
        existed, before = run_dir.exists(), tree(tmp_path)
        common = ["--dataset_root", tiny_voc, "--run_dir", run_dir, "--num_workers", 0]
        with pytest.raises(InputError) as caught:
            script.main([str(flag) for flag in (*common, *flags)])
        message = str(caught.value)
        assert "\n" not in message
        assert "; " in message
        for name in [names] if isinstance(names, str) else names:
            assert name in message
        after = tree(tmp_path)
        assert all(re.fullmatch(begins or "", path) for path in after.keys() - before.keys())
        assert before.items() <= after.items()
        assert existed or begins is not None or not run_dir.exists()
        return message

    return refused


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same untrained network in our format and in the authors'."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    tensors = SIPE(21).state_dict()
    checkpoint.save(folder / "ours.pth", {"model": tensors, "class_names": list(VOC_CLASSES), "arguments": {}})
    checkpoint.save(folder / "authors.pth", {"net": {alias: value for name, value in tensors.items() for alias in release_names(name)}})
    yield {"ours": folder / "ours.pth", "authors": folder / "authors.pth"}
    for path in folder.iterdir():
        path.unlink()


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
    @pytest.mark.parametrize("script", STAGES, ids=lambda script: script.__name__)
    def test_run_dir_below_a_file(self, refused, script, tmp_path, checkpoints):
        (tmp_path / "file").write_text("in the way")
        run_dir = tmp_path / "file/run"
        refused(script, *flags_of(script, checkpoints["ours"]), run_dir=run_dir, names=[str(run_dir), "--run_dir"])

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

        @pytest.mark.parametrize("name", ["last.pth", "final.pth"])
        def test_for_resuming(self, refused, payload, write, name, tmp_path):
            (tmp_path / "run/ckpt").mkdir(parents=True)
            write(tmp_path / "run/ckpt" / name, {"model": payload, "arguments": payload})
            refused(train, *TRAIN, names=[f"run/ckpt/{name}", "trust"])

    def test_object_array_in_a_cam_file(self, refused, payload, tmp_path):
        draw_maps(tmp_path / "run")
        np.savez(tmp_path / f"run/cam/{FIRST}.npz", keys=np.array([0, payload]), size=np.array([48, 64]))
        refused(eval_cam, names=[f"run/cam/{FIRST}.npz", "make_cam.py"])

    def test_pickle_in_place_of_a_cam_file(self, refused, payload, tmp_path):
        draw_maps(tmp_path / "run")
        raw_pickle(tmp_path / f"run/cam/{FIRST}.npz", {"keys": payload})
        refused(eval_cam, names=[f"run/cam/{FIRST}.npz", "make_cam.py"])


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
    return train.recipe(args, dataset.digest(entries, dataset.labels(entries)))


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
        refused(train, *TRAIN, names=[f"run/ckpt/{name}", "other pictures, tags or classes", "--run_dir"])

    def test_from_a_checkpoint_that_lacks_a_part(self, refused, tiny_voc, tmp_path):
        checkpoint.save(tmp_path / "run/ckpt/last.pth", {"arguments": recipe_of(tiny_voc)})
        refused(train, *TRAIN, names=["run/ckpt/last.pth", "--no-resume"])


class TestCamFiles:
    def test_missing(self, refused, tmp_path):
        draw_maps(tmp_path / "run", NAMES[1:])
        refused(eval_cam, names=[f"run/cam/{FIRST}.npz", "make_cam.py"])

    def test_of_a_dataset_with_more_classes(self, refused, tmp_path):
        draw_maps(tmp_path / "run")
        cam_file.save(cam_file.path_of(tmp_path / "run", FIRST), [0, 40], (48, 64), is_cam=[np.zeros((2, 3, 4))])
        refused(eval_cam, names=[f"{FIRST}.npz", "class 40", "--dataset"])

    def test_without_maps(self, refused, tmp_path):
        draw_maps(tmp_path / "run")
        cam_file.save(cam_file.path_of(tmp_path / "run", FIRST), [0, 12], (48, 64))
        refused(eval_cam, names=[f"{FIRST}.npz", "make_cam.py"])

    def test_of_different_kinds(self, refused, tmp_path):
        draw_maps(tmp_path / "run")
        draw_maps(tmp_path / "run", NAMES[3:], cam=[np.zeros((2, 3, 4))])
        refused(eval_cam, names=["run/cam", "--overwrite"])

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

    def test_of_another_dataset_are_not_scored(self, refused, tmp_path):
        draw_maps(tmp_path / "run")
        files.write_json(tmp_path / "run/cam/settings.json", {"class_names": ["background", "fish"]})
        refused(eval_cam, names=["run/cam/settings.json", "other classes"])

    def test_without_settings_nothing_is_added_to_them(self, refused, tiny_voc, tmp_path, checkpoints):
        draw_maps(tmp_path / "run")
        refused(make_cam, *MAP, "--ckpt", checkpoints["ours"], names=["run/cam/settings.json", "--overwrite"])

    def test_of_another_checkpoint_or_other_scales_are_not_mixed(self, refused, tiny_voc, tmp_path, checkpoints):
        listed = write_list(tiny_voc, FIRST)
        common = ["--dataset_root", tiny_voc, "--run_dir", tmp_path / "run", "--num_workers", 0, "--list", listed, *MAP]
        make_cam.main([str(flag) for flag in (*common, "--ckpt", checkpoints["ours"])])
        changed = {"checkpoint": ["--ckpt", checkpoints["authors"]], "scales": ["--scales", 1.0]}
        for name, flags in changed.items():
            names = ["run/cam/settings.json", f"another {name};", "--overwrite"]
            refused(make_cam, "--list", listed, *MAP, "--ckpt", checkpoints["ours"], *flags, names=names)


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
