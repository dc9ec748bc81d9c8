"""Checkpoints: what is missing, misshapen or hostile is refused by name."""

import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from errors import InputError
from tool import checkpoint

CLASSES = ("background", "cat", "dog")
COUNTER = "bn1.num_batches_tracked"


class Small(nn.Module):
    """A model of a few tensors and a counter, with the names that matter."""

    def __init__(self, fill: float = 0.0):
        super().__init__()
        self.classifier = nn.Conv2d(2, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        nn.init.constant_(self.classifier.weight, fill)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.pth"


def assert_refused(call: Callable, path: Path | str, named: str = "") -> None:
    with pytest.raises(InputError) as error:
        call()
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert named in line
    assert "\n" not in line


def test_what_is_saved_is_read(path):
    content = {
        "model": Small(2).state_dict(),
        "step": 7,
        "arguments": {"lr": 0.1},
        "class_names": [*CLASSES],
        "rng": torch.get_rng_state(),
    }
    checkpoint.save(path, content)
    again = checkpoint.read(str(path))
    assert again.keys() == content.keys()
    for name in ("step", "arguments", "class_names"):
        assert again[name] == content[name]
    assert (again["model"]["classifier.weight"] == 2).all()
    assert torch.equal(again["rng"], content["rng"])


def test_saving_that_fails_names_the_file_and_keeps_the_one_of_before(path):
    checkpoint.save(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # as on a full disk, the file ends after 100 bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert_refused(lambda: checkpoint.save(path, {"step": 2}), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.read(path) == {"step": 1}


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint_cut_anywhere_is_refused(path, is_zip):
    content = {"model": Small().state_dict(), "class_names": list(CLASSES)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert_refused(lambda: checkpoint.read(path), path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap-went-off",)


def save_in_the_old_format(path: Path) -> None:
    torch.save({"net": Trap()}, path, _use_new_zipfile_serialization=False)


FOREIGN = {
    "torch": lambda path: torch.save({"net": Trap()}, path),
    "old torch": save_in_the_old_format,
    "pickle": lambda path: path.write_bytes(pickle.dumps({"net": Trap()})),
    "old pickle": lambda path: path.write_bytes(pickle.dumps({"net": Trap()}, protocol=2)),
    "module": lambda path: torch.save({"net": Small()}, path),
    "list": lambda path: torch.save([1], path),
    "text": lambda path: path.write_text("<html>404 Not Found</html>"),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_checkpoint_is_refused_and_never_run(path, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    FOREIGN[kind](path)
    assert_refused(lambda: checkpoint.read(path), path)
    assert not Path("trap-went-off").exists()


@pytest.mark.parametrize(
    ("counter", "expected"), [({}, 0), ({COUNTER: torch.tensor([5])}, 5)], ids=["missing", "vector"]
)
def test_tensors_of_any_precision_fill_the_model_whatever_else_there_is(counter, expected):
    model = Small()
    tensors = Small(2).half().state_dict()
    del tensors[COUNTER]
    checkpoint.load_tensors(model, tensors | counter | {"other": 3}, "a.pth")
    weight = model.classifier.weight
    assert (weight == 2).all()
    assert weight.requires_grad
    assert weight.dtype == torch.float32
    assert model.bn1.num_batches_tracked == expected


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("bn1.weight", [1.0, 1.0], "bn1.weight"),
        (COUNTER, 3, COUNTER),
        (
            "classifier.weight",
            torch.zeros(5, 2, 1, 1),
            "classifier.weight is (5, 2, 1, 1), expected (2, 2, 1, 1)",
        ),
        ("classifier.weight", torch.zeros(2, 2), "classifier.weight is (2, 2)"),
        (COUNTER, torch.zeros(2), f"{COUNTER} is (2,)"),
    ],
)
def test_a_misshapen_tensor_is_named_and_the_model_stays_as_it_was(name, value, named):
    model = Small(1)
    tensors = Small(2).state_dict() | {name: value}
    load = lambda: checkpoint.load_tensors(model, tensors, "a.pth")  # noqa: E731
    assert_refused(load, "a.pth", f"tensor {named}")
    assert (model.classifier.weight == 1).all()


def test_a_missing_tensor_is_named_and_the_model_stays_as_it_was():
    model = Small(1)
    tensors = Small(2).state_dict()
    del tensors["bn1.running_var"]
    with pytest.raises(InputError, match=r"^a\.pth: tensor bn1\.running_var"):
        checkpoint.load_tensors(model, tensors, "a.pth")
    assert (model.classifier.weight == 1).all()


NO_STATE_DICTS = [None, {}, [1], "a", torch.ones(2)]
NO_STATE_DICTS += [{1: torch.ones(2)}]


@pytest.mark.parametrize("other", NO_STATE_DICTS, ids=str)
def test_what_is_no_state_dict_lacks_the_first_tensor(other):
    with pytest.raises(InputError, match=r"^a\.pth: tensor classifier\.weight"):
        checkpoint.load_tensors(Small(), other, "a.pth")


OURS = {"class_names": list(CLASSES), "arguments": {"lr": 0.1}}
NO_NAMES = [None, "cat", {"cat": 1}, torch.ones(3), ["background", 1]]


def test_our_checkpoints_note_their_classes_and_arguments():
    assert checkpoint.class_names_of(OURS) == CLASSES
    assert checkpoint.arguments(OURS) == {"lr": 0.1}
    checkpoint.check_classes(OURS, CLASSES, "a.pth")


@pytest.mark.parametrize("names", [CLASSES[:1], CLASSES[:2], ("background", "dog", "cat")])
def test_a_checkpoint_of_other_classes_is_refused(names):
    assert_refused(lambda: checkpoint.check_classes(OURS, names, "a.pth"), "a.pth")


@pytest.mark.parametrize("other", NO_NAMES, ids=str)
def test_other_checkpoints_note_nothing(other):
    for content in ({"class_names": other, "arguments": [other]}, {"net": {}}):
        assert checkpoint.class_names_of(content) == ()
        assert checkpoint.arguments(content) == {}
        checkpoint.check_classes(content, CLASSES, "a.pth")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"kind": "irn"}, "irn"),
        ({"kind": "segmentation"}, "segmentation"),
        ({"kind": "of tomorrow"}, "sipe"),
        ({"arguments": {"network": "deeplabv2_resnet50"}}, "segmentation"),  # an older one
        ({"arguments": {"backbone": "resnet50"}}, "sipe"),
        ({"net": {}}, "sipe"),
    ],
)
def test_the_kind_of_a_checkpoint_is_noted_or_told_by_its_arguments(content, kind):
    assert checkpoint.kind_of(content) == kind
