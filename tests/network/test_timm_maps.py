"""Networks of timm as backbones of SIPE: what fits, what is refused, what the network is given."""

import sys

import pytest
import torch
from torch import nn

from errors import InputError
from exchange import weights
from network.sipe import SIPE
from network.timm_maps import TimmMaps
from tool import checkpoint

timm = pytest.importorskip("timm", reason="timm is not installed")

STRIDES = {
    "test_resnet.r160_in1k": [4, 8, 16, 16],
    "test_convnext": [4, 8, 16, 16],
    "test_vit": [16, 16, 16, 16],
}


def sipe_on(name: str, frozen: bool) -> SIPE:
    torch.manual_seed(0)
    return SIPE(4, frozen, f"timm:{name}").train()


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("frozen", [True, False])
def test_maps_and_widths(name, frozen):
    backbone = sipe_on(name, frozen).backbone
    maps = backbone(torch.randn(2, 3, 96, 128))
    assert tuple(feature.shape[1] for feature in maps) == backbone.widths
    assert [96 / feature.shape[2] for feature in maps] == STRIDES[name]
    assert [128 / feature.shape[3] for feature in maps] == STRIDES[name]


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("frozen", [True, False])
def test_what_trains(name, frozen):
    model = sipe_on(name, frozen)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    learns_statistics = any(norm.training for norm in norms)
    assert learns_statistics == ("resnet" in name and not frozen)
    tags = torch.tensor([[1.0, 0, 1]]).expand(2, 3)
    out = model(torch.randn(2, 3, 70, 90), tags, torch.ones(2, 70, 90))
    assert out.is_cam.shape[:2] == (2, 4)
    assert out.is_cam.isfinite().all()
    (out.score.square().mean() + out.is_cam.mean() + out.cam.mean()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, parameter_name
    heads = model.parameter_groups()[1]["params"]
    assert all(parameter.grad.any() for parameter in heads)


def normalized(image: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    centred = image - torch.tensor(mean).view(3, 1, 1)
    return centred / torch.tensor(std).view(3, 1, 1)


def test_the_networks_own_mean_and_deviation_are_used():
    model = TimmMaps("test_vit.r160_in1k").eval()
    config = model.net.pretrained_cfg
    imagenet_mean = timm.data.IMAGENET_DEFAULT_MEAN
    assert config["mean"] != imagenet_mean
    image = torch.rand(1, 3, 64, 64)
    by_imagenet = normalized(image, imagenet_mean, timm.data.IMAGENET_DEFAULT_STD)
    own = normalized(image, config["mean"], config["std"])
    for feature, expected in zip(model(by_imagenet), model.net(own)):
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "backbone",
    [
        "timm:none",
        "timm:",
        "timm:swin_s3_tiny_224",
        "timm:shvit_s1",
        "timm:hf-hub:a/b",
        "resnet18",
        "",
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(backbone):
    with pytest.raises(InputError) as error:
        checkpoint.build_sipe(4, backbone)
    message = str(error.value)
    assert message.startswith(f"backbone {backbone}: ")
    assert "\n" not in message


def test_without_timm_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert checkpoint.build_sipe(4)
    with pytest.raises(InputError, match="pip install timm"):
        checkpoint.build_sipe(4, "timm:test_resnet")


class TestWeights:
    """What `exchange.weights.load_pretrained` does for a network of timm."""

    @pytest.fixture
    def model(self):
        return TimmMaps("test_convnext")

    def test_they_come_from_a_file_in_timms_layout(self, model, tmp_path):
        whole = timm.create_model("test_convnext")
        torch.save(whole.state_dict(), tmp_path / "a.pth")
        weights.load_pretrained(model, str(tmp_path / "a.pth"))
        loaded = model.net.stages_3.blocks[0].mlp.fc1.weight
        assert torch.equal(loaded, whole.stages[3].blocks[0].mlp.fc1.weight)

    def test_other_files_are_refused(self, model, tmp_path):
        torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
        with pytest.raises(InputError, match=r"other\.pth: tensor stem_0"):
            weights.load_pretrained(model, str(tmp_path / "other.pth"))
        torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "other.pth")
        with pytest.raises(InputError, match="deeper"):
            weights.load_pretrained(TimmMaps("resnet18"), str(tmp_path / "other.pth"))

    def test_they_come_from_timms_own_download(self, model, monkeypatch):
        net = model.create()
        nn.init.ones_(net.stem_0.weight)
        monkeypatch.setattr(timm, "create_model", lambda *name, pretrained, **options: net)
        weights.load_pretrained(model, "imagenet")
        assert (model.net.stem_0.weight == 1).all()

    def test_a_download_that_fails_is_one_line(self, model, monkeypatch):
        def download(*name, pretrained: bool, **options) -> nn.Module:
            raise OSError("no route\nto the host")

        monkeypatch.setattr(timm, "create_model", download)
        with pytest.raises(InputError, match=r"--weights imagenet: .*no route\)"):
            weights.load_pretrained(model, "imagenet")
