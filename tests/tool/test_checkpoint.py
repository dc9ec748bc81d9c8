"""Checkpoints: ours, the authors' and a backbone's; what is missing, misshapen or hostile is refused by name."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from errors import InputError
from network.deeplab import DeepLab
from network.resnet import ResNet50
from network.sipe import SIPE, release_names
from tool import checkpoint

CLASSES = ("background", "cat", "dog")


class Small(nn.Module):
    """A model of three tensors and a counter, with the names that matter."""

    def __init__(self, fill: float = 0.0):
        super().__init__()
        self.classifier = nn.Conv2d(2, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        nn.init.constant_(self.classifier.weight, fill)


def own(model: nn.Module, **changes) -> dict:
    return {"model": model.state_dict(), "class_names": list(CLASSES), **changes}


def two_names(name: str) -> list[str]:
    return [name, f"copy.{name}"]


def release(model: nn.Module) -> dict:
    return {"net": {alias: value.clone() for name, value in model.state_dict().items() for alias in two_names(name)}}


def unfilled(kind: type[nn.Module], *arguments: str | int) -> nn.Module:
    """A network without the seconds that its random initialization takes."""
    with torch.device("meta"):
        model = kind(*arguments)
    return model.to_empty(device="cpu")


def numbered(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state with every tensor full of its own number; in a file, too, it takes one number a tensor."""
    state = model.state_dict()
    return {name: torch.tensor(i, dtype=value.dtype, device="cpu").expand(value.shape) for i, (name, value) in enumerate(state.items())}


def torchvisions(name: str) -> dict[str, torch.Tensor]:
    """A state dict of torchvision's, its ImageNet head included."""
    with torch.device("meta"):
        return numbered(get_model(name, weights=None))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.pth"


def refusal(path: Path, content: object, model: nn.Module | None = None) -> str:
    """What load_model says about a file of this content."""
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        checkpoint.load_model(Small() if model is None else model, path, CLASSES, two_names)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_is_saved_is_read(path):
    content = {
        "model": Small(2).state_dict(),
        "step": 7,
        "arguments": {"lr": 0.1},
        "class_names": list(CLASSES),
        "rng": torch.get_rng_state(),
    }
    checkpoint.save(path, content)
    found = checkpoint.read(str(path))
    assert found.keys() == content.keys()
    assert (found["step"], found["arguments"], found["class_names"]) == (7, {"lr": 0.1}, list(CLASSES))
    assert torch.equal(found["model"]["classifier.weight"], content["model"]["classifier.weight"])
    assert torch.equal(found["rng"], content["rng"])


def test_saving_that_fails_says_so_and_keeps_the_file_of_before(path):
    checkpoint.save(path, {"step": 1})
    path.with_name("some.pth.tmp").mkdir()  # torch cannot open it for writing
    with pytest.raises(InputError, match="cannot be written") as error:
        checkpoint.save(path, {"step": 2})
    assert "\n" not in str(error.value)
    assert checkpoint.read(path) == {"step": 1}


def test_our_own_format_fills_the_model(path):
    torch.save(own(Small(2)), path)
    model = Small()
    checkpoint.load_model(model, path, CLASSES, two_names)
    assert (model.classifier.weight == 2).all()
    assert model.classifier.weight.requires_grad


def test_the_authors_format_fills_the_model(path):
    torch.save(release(Small(2)), path)
    model = Small()
    checkpoint.load_model(model, path, CLASSES, two_names)
    assert (model.classifier.weight == 2).all()


def test_the_authors_format_with_all_its_names_fills_sipe(path):
    model = unfilled(SIPE, 3)
    tensors = numbered(model)
    torch.save({"net": {alias: value for name, value in tensors.items() for alias in release_names(name)}}, path)
    checkpoint.load_model(model, path, CLASSES, release_names)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_a_missing_tensor_is_named(path):
    content = own(Small())
    del content["model"]["bn1.running_var"]
    assert "tensor bn1.running_var is missing" in refusal(path, content)


def test_a_missing_copy_is_named(path):
    content = release(Small())
    del content["net"]["copy.bn1.weight"]
    assert "tensor copy.bn1.weight is missing" in refusal(path, content)


def test_something_other_than_a_tensor_is_named(path):
    content = own(Small())
    content["model"]["bn1.weight"] = [1.0, 1.0]
    assert "tensor bn1.weight is missing" in refusal(path, content)


@pytest.mark.parametrize("kind", [own, release])
def test_a_misshapen_tensor_is_named(path, kind):
    content = kind(Small())
    next(iter(content.values()))["classifier.weight"] = torch.zeros(5, 2, 1, 1)
    assert "tensor classifier.weight is (5, 2, 1, 1), expected (2, 2, 1, 1)" in refusal(path, content)


def test_a_copy_that_differs_is_named(path):
    content = release(Small())
    content["net"]["copy.bn1.bias"] += 1
    assert "copy.bn1.bias differs from bn1.bias" in refusal(path, content)


def test_a_refused_checkpoint_leaves_the_model_as_it_was(path):
    content, model = own(Small(2)), Small(1)
    del content["model"]["bn1.running_var"]  # comes after the classifier
    refusal(path, content, model)
    assert (model.classifier.weight == 1).all()


@pytest.mark.parametrize("names", [["background", "dog", "cat"], ["background", "a", "b", "c", "d"]])
def test_other_class_names_are_refused_with_both_lists(path, names):
    message = refusal(path, own(Small(), class_names=names))
    assert f"trained on {len(names) - 1} classes" in message
    assert "the dataset has 2 (cat, dog)" in message


@pytest.mark.parametrize(
    "content", [{"weights": {}}, {"net": None}, {"net": [1]}, {"net": torch.ones(2)}, {"model": None}, {"model": "a"}, [1], 3]
)
def test_other_content_is_refused(path, content):
    refusal(path, content)


def test_counters_may_be_missing_and_scalars_may_be_vectors(path):
    content = own(Small(2))
    del content["model"]["bn1.num_batches_tracked"]
    torch.save(content, path)
    checkpoint.load_model(Small(), path, CLASSES, two_names)
    content["model"]["bn1.num_batches_tracked"] = torch.tensor([5])
    torch.save(content, path)
    model = Small()
    checkpoint.load_model(model, path, CLASSES, two_names)
    assert model.bn1.num_batches_tracked == 5


@pytest.mark.parametrize("names", [["background"], ["background", "cat", "dog", "cow"], ["background", "dog", "cat"]])
def test_classes_of_a_checkpoint_that_are_not_the_datasets_are_refused(names):
    with pytest.raises(InputError, match=rf"^a\.pth: was trained on {len(names) - 1} classes .*, the dataset has 2 \(cat, dog\); "):
        checkpoint.check_classes({"class_names": names}, CLASSES, "a.pth")


@pytest.mark.parametrize("content", [{"class_names": list(CLASSES)}, {}, {"net": {}}, {"class_names": None}])
def test_classes_that_are_the_datasets_or_not_noted_are_taken(content):
    checkpoint.check_classes(content, CLASSES, "a.pth")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"class_names": list(CLASSES)}, CLASSES),
        ({"class_names": []}, ()),
        ({"net": {}}, ()),
        ({"class_names": None}, ()),
        ({"class_names": "cat"}, ()),
        ({"class_names": {"cat": 1}}, ()),
        ({"class_names": torch.ones(3)}, ()),
        ({"class_names": ["background", 1]}, ()),
    ],
)
def test_class_names_are_a_list_of_names_or_none(content, names):
    assert checkpoint.class_names_of(content) == names


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        ({"arguments": {"lr": 0.1}}, {"lr": 0.1}),
        ({}, {}),
        ({"net": {}}, {}),
        ({"arguments": None}, {}),
        ({"arguments": [("lr", 0.1)]}, {}),
        ({"arguments": torch.ones(3)}, {}),
    ],
)
def test_arguments_are_a_dict_or_none(content, arguments):
    assert checkpoint.arguments(content) == arguments


@pytest.mark.parametrize("nested", [True, False])
def test_a_half_precision_backbone_loads_without_its_head(path, nested):
    tensors = torchvisions("resnet50")
    assert "fc.weight" in tensors
    tensors = {name: value.half() for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": tensors} if nested else tensors, path)
    backbone = unfilled(ResNet50)
    checkpoint.load_backbone(backbone, path)
    assert backbone.conv1.weight.dtype == torch.float32
    assert all(torch.equal(value, tensors[name].float()) for name, value in backbone.state_dict().items() if name in tensors)


@pytest.mark.parametrize("kind", ["resnet50", "resnet101"])
def test_torchvisions_backbones_fill_segmentation_networks(path, kind):
    tensors = torchvisions(kind)
    torch.save(tensors, path)
    backbone = unfilled(DeepLab, f"deeplabv2_{kind}", 3).backbone
    checkpoint.load_backbone(backbone, path)
    assert all(torch.equal(value, tensors[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", [(ResNet50,), (DeepLab, "deeplabv3_resnet50", 3)], ids=["SIPE", "DeepLab"])
def test_a_deeper_backbone_is_refused(path, kind, nested):
    tensors = torchvisions("resnet101")
    torch.save({"state_dict": tensors} if nested else tensors, path)
    model = unfilled(*kind)
    with pytest.raises(InputError, match=r"is of a deeper network than this one \(layer3\.10\); ") as error:
        checkpoint.load_backbone(getattr(model, "backbone", model), path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_shallower_backbone_is_refused(path):
    torch.save(torchvisions("resnet50"), path)
    with pytest.raises(InputError, match=r"is of a shallower network than this one \(layer3\.10\); give weights of the same depth"):
        checkpoint.load_backbone(unfilled(DeepLab, "deeplabv2_resnet101", 3).backbone, path)


def test_a_backbone_of_another_kind_is_refused(path):
    torch.save(nn.Conv2d(3, 64, 7).state_dict(), path)
    with pytest.raises(InputError, match=r"tensor conv1\.weight is missing"):
        checkpoint.load_backbone(unfilled(ResNet50), path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cut_anywhere_is_refused(path, zipped):
    torch.save(own(Small()), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as error:
            checkpoint.read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def test_a_missing_checkpoint_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoint.read(tmp_path / "none.pth")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        checkpoint.read(tmp_path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap-went-off",)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"net": Trap()}, path),
        lambda path: torch.save({"net": Trap()}, path, _use_new_zipfile_serialization=False),
        lambda path: path.write_bytes(pickle.dumps({"net": Trap()})),
        lambda path: path.write_bytes(pickle.dumps({"net": Trap()}, protocol=2)),
    ],
    ids=["torch", "old torch", "pickle", "old pickle"],
)
def test_a_hostile_checkpoint_is_refused_without_running(path, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(path)
    with pytest.raises(InputError, match="refused, it is damaged or holds objects other than tensors") as error:
        checkpoint.read(path)
    assert "\n" not in str(error.value)
    assert not Path("trap-went-off").exists()


def test_fingerprint_tells_files_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"b")
    assert checkpoint.fingerprint(tmp_path / "a") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert checkpoint.fingerprint(tmp_path / "a") != checkpoint.fingerprint(tmp_path / "b")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.fingerprint(tmp_path / "c")
