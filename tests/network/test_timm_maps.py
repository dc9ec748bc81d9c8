"""Networks of timm as backbones of SIPE: what fits, what is refused, and what is told to the network."""

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


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("test_resnet.r160_in1k", (4, 8, 16, 16)),
        ("test_convnext", (4, 8, 16, 16)),
        ("test_vit", (16, 16, 16, 16)),
    ],
)
@pytest.mark.parametrize("frozen", [True, False])
def test_maps_widths_and_what_trains(name, strides, frozen):
    torch.manual_seed(0)
    model = SIPE(4, frozen, f"timm:{name}").train()
    maps = model.backbone(torch.randn(1, 3, 96, 128))
    assert [(one.shape[1], 96 // one.shape[2], 128 // one.shape[3]) for one in maps] == [
        *zip(model.backbone.widths, strides, strides)
    ]
    assert any(norm.training for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)) == (
        not frozen and "resnet" in name
    )
    label, inside = torch.tensor([[1.0, 0, 1]] * 2), torch.ones(2, 70, 90)
    out = model(torch.randn(2, 3, 70, 90), label, inside)
    assert out.is_cam.shape[:2] == (2, 4) and out.is_cam.isfinite().all()
    (out.score.square().mean() + out.is_cam.mean() + out.cam.mean()).backward()
    assert [
        name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
    ] == []
    assert all(p.grad.any() for p in model.parameter_groups()[1]["params"])


def test_the_networks_own_mean_and_deviation_are_used():
    name = "test_vit.r160_in1k"
    model, image = TimmMaps(name).eval(), torch.rand(1, 3, 64, 64)
    about = model.net.pretrained_cfg
    assert about["mean"] != timm.data.IMAGENET_DEFAULT_MEAN
    own, usual = (
        (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        for mean, std in (
            (about["mean"], about["std"]),
            (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD),
        )
    )
    for one, other in zip(model(usual), model.net(own)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


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
def test_what_does_not_fit_is_one_line(backbone):
    with pytest.raises(InputError) as error:
        checkpoint.build_sipe(4, backbone)
    assert str(error.value).startswith(f"backbone {backbone}: ") and "\n" not in str(error.value)


def test_without_timm_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert checkpoint.build_sipe(4)
    with pytest.raises(InputError, match="pip install timm"):
        checkpoint.build_sipe(4, "timm:test_resnet")


def test_weights_come_from_timms_own_download_or_a_file_in_its_layout(tmp_path, monkeypatch):
    whole, model = timm.create_model("test_convnext"), TimmMaps("test_convnext")
    torch.save(whole.state_dict(), tmp_path / "a.pth")
    weights.load_pretrained(model, str(tmp_path / "a.pth"))
    assert torch.equal(
        model.net.stages_3.blocks[0].mlp.fc1.weight, whole.stages[3].blocks[0].mlp.fc1.weight
    )
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: tensor stem_0"):
        weights.load_pretrained(model, str(tmp_path / "other.pth"))
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match="deeper"):
        weights.load_pretrained(TimmMaps("resnet18"), str(tmp_path / "other.pth"))
    net = model.create()

    def download(*name, pretrained: bool, **options) -> nn.Module:
        raise OSError("no route\nto the host")

    monkeypatch.setattr(timm, "create_model", download)
    with pytest.raises(InputError, match=r"--weights imagenet: .*no route\)"):
        weights.load_pretrained(model, "imagenet")
    nn.init.ones_(net.stem_0.weight)
    monkeypatch.setattr(timm, "create_model", lambda *name, pretrained, **options: net)
    weights.load_pretrained(model, "imagenet")
    assert (model.net.stem_0.weight == 1).all()
