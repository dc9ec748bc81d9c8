"""Initial weights: torchvision's layout, other depths, and downloads that fail."""

from http.client import IncompleteRead
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from errors import InputError
from exchange import weights
from network.deeplab import DeepLab
from network.resnet import ResNet50

RESNET50 = (ResNet50,)
RESNET101 = (DeepLab, "deeplabv2_resnet101", 3)


def unfilled_backbone(kind: type[nn.Module], *arguments: str | int) -> nn.Module:
    """A backbone without the seconds that its random initialization takes."""
    with torch.device("meta"):
        model = kind(*arguments)
    model = model.to_empty(device="cpu")
    return getattr(model, "backbone", model)


def torchvisions(name: str) -> dict[str, torch.Tensor]:
    """A state dict of torchvision's, its ImageNet head included.

    Every tensor is full of its own number, so that its file is small.
    """
    with torch.device("meta"):
        state = get_model(name, weights=None).state_dict()
    tensors = {}
    for number, (tensor, value) in enumerate(state.items()):
        filled = torch.tensor(number, dtype=value.dtype, device="cpu")
        tensors[tensor] = filled.expand(value.shape)
    return tensors


@pytest.mark.parametrize(
    ("network", "file", "is_nested"),
    [(RESNET50, "resnet50", True), (RESNET101, "resnet101", False)],
    ids=["resnet50", "resnet101"],
)
def test_torchvisions_backbones_load_without_their_head(tmp_path, network, file, is_nested):
    tensors = torchvisions(file)
    assert "fc.weight" in tensors
    torch.save({"state_dict": tensors} if is_nested else tensors, tmp_path / "some.pth")
    backbone = unfilled_backbone(*network)
    weights.load_pretrained(backbone, str(tmp_path / "some.pth"))
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, tensors[name])


def refusal(backbone: nn.Module, path) -> str:
    with pytest.raises(InputError) as error:
        weights.load_backbone(backbone, path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("network", "file", "depth"),
    [(RESNET50, "resnet101", "deeper"), (RESNET101, "resnet50", "shallower")],
    ids=["deeper", "shallower"],
)
def test_a_backbone_of_another_depth_is_refused(tmp_path, network, file, depth):
    path = tmp_path / "some.pth"
    torch.save({"state_dict": torchvisions(file)}, path)
    line = refusal(unfilled_backbone(*network), path)
    assert depth in line
    assert "layer3.10" in line


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "some.pth"
    torch.save({"state_dict": nn.Conv2d(3, 64, 7).state_dict()}, path)
    assert "conv1.weight" in refusal(unfilled_backbone(ResNet50), path)


def offer(monkeypatch, error: Exception | None) -> None:
    """Let torchvision have one network, small, whose download may fail."""

    def get_state_dict(progress: bool, check_hash: bool) -> dict[str, torch.Tensor]:
        assert check_hash
        if error:
            raise error
        return {"weight": torch.full((1, 1), 2.0), "bias": torch.zeros(1)}

    listed = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(get_state_dict=get_state_dict))
    networks = {"small": listed}
    monkeypatch.setattr(weights, "get_model_weights", networks.__getitem__)


def test_torchvisions_weights_are_those_of_the_name(monkeypatch):
    offer(monkeypatch, None)
    model = nn.Linear(1, 1)
    weights.load_pretrained(model, "imagenet", "small")
    assert model.weight.item() == 2


@pytest.mark.parametrize(
    "error",
    [OSError("no route"), IncompleteRead(b"half"), RuntimeError("invalid hash value")],
    ids=repr,
)
def test_a_failed_download_names_the_flag(monkeypatch, error):
    offer(monkeypatch, error)
    with pytest.raises(InputError) as refused:
        weights.load_pretrained(nn.Linear(1, 1), "imagenet", "small")
    assert str(refused.value).startswith("--weights imagenet: ")
    assert "\n" not in str(refused.value)
