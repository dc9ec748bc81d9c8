"""Checkpoints: ours, the authors' and a backbone's; what is missing, misshapen or hostile is refused by name."""

import os
import pickle
import resource
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from errors import InputError
from exchange import weights
from network.deeplab import DeepLab
from network.resnet import ResNet50
from tool import checkpoint

CLASSES = ("background", "cat", "dog")


class Small(nn.Module):
    """A model of a few tensors and a counter, with the names that matter."""

    def __init__(self, fill: float = 0.0):
        super().__init__()
        self.classifier = nn.Conv2d(2, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        nn.init.constant_(self.classifier.weight, fill)


def unfilled(kind: type[nn.Module], *arguments: str | int) -> nn.Module:
    """A network without the seconds that its random initialization takes."""
    with torch.device("meta"):
        model = kind(*arguments)
    return model.to_empty(device="cpu")


def torchvisions(name: str) -> dict[str, torch.Tensor]:
    """A state dict of torchvision's, its ImageNet head included; every tensor is full of its own number, so that its file is small."""
    with torch.device("meta"):
        state = get_model(name, weights=None).state_dict()
    return {
        name: torch.tensor(i, dtype=value.dtype, device="cpu").expand(value.shape)
        for i, (name, value) in enumerate(state.items())
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.pth"


def assert_refused(call, path: Path | str, names: str = "") -> None:
    with pytest.raises(InputError) as error:
        call()
    assert (
        str(error.value).startswith(f"{path}: ")
        and names in str(error.value)
        and "\n" not in str(error.value)
    )


def test_what_is_saved_is_read(path):
    content = {
        "model": Small(2).state_dict(),
        "step": 7,
        "arguments": {"lr": 0.1},
        "class_names": [*CLASSES],
        "rng": torch.get_rng_state(),
    }
    checkpoint.save(path, content)
    found = checkpoint.read(str(path))
    assert found.keys() == content.keys()
    assert (found["step"], found["arguments"], found["class_names"]) == (
        7,
        {"lr": 0.1},
        list(CLASSES),
    )
    assert (found["model"]["classifier.weight"] == 2).all() and torch.equal(
        found["rng"], content["rng"]
    )


def test_saving_that_fails_names_the_file_and_keeps_the_one_of_before(path):
    checkpoint.save(path, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100, before[1])
    )  # as a full disk: the file ends after 100 bytes
    try:
        assert_refused(lambda: checkpoint.save(path, {"step": 2}), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.read(path) == {"step": 1}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cut_anywhere_is_refused(path, zipped):
    torch.save(
        {"model": Small().state_dict(), "class_names": list(CLASSES)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert_refused(lambda: checkpoint.read(path), path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap-went-off",)


FOREIGN = {
    "torch": lambda path: torch.save({"net": Trap()}, path),
    "old torch": lambda path: torch.save(
        {"net": Trap()}, path, _use_new_zipfile_serialization=False
    ),
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
    ("counter", "expected"),
    [({}, 0), ({"bn1.num_batches_tracked": torch.tensor([5])}, 5)],
    ids=["missing", "vector"],
)
def test_tensors_of_any_precision_fill_the_model_whatever_else_there_is(counter, expected):
    model, tensors = Small(), Small(2).half().state_dict()
    del tensors["bn1.num_batches_tracked"]
    checkpoint.load_tensors(model, tensors | counter | {"other": 3}, "a.pth")
    assert (model.classifier.weight == 2).all() and model.bn1.num_batches_tracked == expected
    assert model.classifier.weight.requires_grad and model.classifier.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bn1.running_var": None}, "bn1.running_var"),
        ({"bn1.weight": [1.0, 1.0]}, "bn1.weight"),
        ({"bn1.num_batches_tracked": 3}, "bn1.num_batches_tracked"),
        (
            {"classifier.weight": torch.zeros(5, 2, 1, 1)},
            "classifier.weight is (5, 2, 1, 1), expected (2, 2, 1, 1)",
        ),
        ({"classifier.weight": torch.zeros(2, 2)}, "classifier.weight is (2, 2)"),
        ({"bn1.num_batches_tracked": torch.zeros(2)}, "bn1.num_batches_tracked is (2,)"),
    ],
)
def test_the_first_tensor_that_is_missing_or_misshapen_is_named_and_the_model_stays_as_it_was(
    change, named
):
    model = Small(1)
    tensors = {
        name: value for name, value in (Small(2).state_dict() | change).items() if value is not None
    }
    assert_refused(
        lambda: checkpoint.load_tensors(model, tensors, "a.pth"), "a.pth", f"tensor {named}"
    )
    assert (model.classifier.weight == 1).all()
    for other in (None, {}, [1], "a", torch.ones(2), {1: torch.ones(2)}):
        assert_refused(
            lambda other=other: checkpoint.load_tensors(Small(), other, "a.pth"),
            "a.pth",
            "tensor classifier.weight",
        )


@pytest.mark.parametrize(
    "other", [None, "cat", {"cat": 1}, torch.ones(3), ["background", 1]], ids=str
)
def test_class_names_are_a_list_of_names_and_arguments_a_dict_or_there_are_none(other):
    ours, theirs = (
        {"class_names": list(CLASSES), "arguments": {"lr": 0.1}},
        {"class_names": other, "arguments": [other]},
    )
    assert (checkpoint.class_names_of(ours), checkpoint.arguments(ours)) == (CLASSES, {"lr": 0.1})
    for content in (theirs, {"net": {}}):
        assert (checkpoint.class_names_of(content), checkpoint.arguments(content)) == ((), {})
        checkpoint.check_classes(content, CLASSES, "a.pth")
    checkpoint.check_classes(ours, CLASSES, "a.pth")
    for names in (CLASSES[:1], CLASSES[:2], ("background", "dog", "cat")):
        assert_refused(lambda: checkpoint.check_classes(ours, names, "a.pth"), "a.pth")  # noqa: B023


@pytest.mark.parametrize(
    ("kind", "file", "nested"),
    [((ResNet50,), "resnet50", True), ((DeepLab, "deeplabv2_resnet101", 3), "resnet101", False)],
)
def test_torchvisions_backbones_load_without_their_head(path, kind, file, nested):
    tensors = torchvisions(file)
    assert "fc.weight" in tensors
    torch.save({"state_dict": tensors} if nested else tensors, path)
    model = unfilled(*kind)
    backbone = getattr(model, "backbone", model)
    weights.load_pretrained(backbone, str(path))
    assert all(torch.equal(value, tensors[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "file", "named"),
    [
        ((ResNet50,), "resnet101", "layer3.10"),  # deeper
        ((DeepLab, "deeplabv2_resnet101", 3), "resnet50", "layer3.10"),  # shallower
        ((ResNet50,), None, "conv1.weight"),
    ],
)
def test_a_backbone_of_another_depth_or_kind_is_refused(path, kind, file, named):
    torch.save(
        {"state_dict": torchvisions(file) if file else nn.Conv2d(3, 64, 7).state_dict()}, path
    )
    model = unfilled(*kind)
    assert_refused(
        lambda: weights.load_backbone(getattr(model, "backbone", model), path), path, named
    )


@pytest.mark.parametrize(
    "error",
    [None, OSError("no route"), IncompleteRead(b"half"), RuntimeError("invalid hash value")],
    ids=repr,
)
def test_torchvisions_weights_are_those_of_the_name_and_a_failed_download_names_the_flag(
    monkeypatch, error
):
    def get_state_dict(progress: bool, check_hash: bool) -> dict[str, torch.Tensor]:
        assert check_hash
        if error:
            raise error
        return Small(2).state_dict()

    listed = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(get_state_dict=get_state_dict))
    monkeypatch.setattr(weights, "get_model_weights", lambda name: {"small": listed}[name])
    model = Small()
    if error:
        assert_refused(
            lambda: weights.load_pretrained(model, "imagenet", "small"), "--weights imagenet"
        )
    else:
        weights.load_pretrained(model, "imagenet", "small")
        assert (model.classifier.weight == 2).all()
