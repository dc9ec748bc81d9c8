"""WideResNet38: the reference numbers, what trains, and at which rates."""

import zlib

import numpy as np
import pytest
import torch
from torch import nn

from network.wideresnet import DeepLabV1


def by_rule(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights behind the reference numbers, which are drawn by name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.split(".")[-2].startswith("bn") and name.endswith(("weight", "running_var")):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.standard_normal(shape) * (
            np.sqrt(2 / np.prod(shape[1:])) if len(shape) == 4 else 0.1
        )
    return torch.from_numpy(values.astype(np.float32))


def test_reference_numbers(shared, device):
    golden = np.load(shared / "golden/wideresnet38.npz", allow_pickle=False)
    with torch.device("meta"):
        model = DeepLabV1(21).eval()
    shapes = {
        name: tuple(v.shape)
        for name, v in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    backbone = {
        name.removeprefix("backbone."): str(shape)
        for name, shape in shapes.items()
        if name.startswith("backbone.")
    }
    assert backbone == dict(zip(golden["names"].tolist(), golden["shapes"].tolist()))
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == 105_070_912
    filled = {
        name: by_rule(name.removeprefix("backbone."), shape) for name, shape in shapes.items()
    }
    model.load_state_dict(filled, assign=True, strict=False)
    model.to(device)
    found = {}
    for name, block in (("conv4", "b5"), ("conv5", "b6")):
        layer = getattr(model.backbone, block).conv_branch2a
        layer.register_forward_pre_hook(
            lambda layer, inputs, name=name: found.update({f"{name}_mean": inputs[0].mean(1)})
        )
    model.backbone.register_forward_hook(
        lambda *call: found.update(conv6_mean=call[2].mean(1), conv6_slice=call[2][:, :32])
    )
    with torch.no_grad():
        found["logits"] = model(torch.from_numpy(golden["image"]).to(device))
    for name in ("conv4_mean", "conv5_mean", "conv6_mean", "conv6_slice", "logits"):
        assert (
            np.abs(found[name].cpu().numpy() - golden[name]).max()
            <= 1e-4 * np.abs(golden[name]).max()
        ), name


@pytest.mark.parametrize("frozen", [True, False])
def test_what_trains_and_at_which_rates(narrow_wideresnet, frozen):
    model = DeepLabV1(5, frozen).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    groups = {
        (group["lr_scale"], group.get("weight_decay")): group["params"]
        for group in model.parameter_groups()
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(parameter)]: rate for rate, params in groups.items() for parameter in params}
    assert rates.keys() == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for name, rate in rates.items():
        is_new = name.startswith(("conv_fov", "cls_conv"))
        assert rate == (
            (20 if is_new else 2, 0.0) if name.endswith("bias") else (10 if is_new else 1, None)
        ), name
    model(torch.randn(2, 3, 33, 47)).square().mean().backward()
    torch.optim.SGD((parameter for params in groups.values() for parameter in params), lr=1).step()
    kept = {
        name
        for name, value in model.backbone.state_dict().items()
        if torch.equal(value, before[name])
    }
    assert kept == (
        {name for name in before if name.startswith("conv1a") or "bn" in name} if frozen else set()
    )
    assert {
        norm.training for norm in model.backbone.modules() if isinstance(norm, nn.BatchNorm2d)
    } == {not frozen}
    assert model.bn_fov.training and model.backbone.b7.training


def test_dropout_and_the_heads_statistics(narrow_wideresnet):
    torch.manual_seed(0)
    model = DeepLabV1(5).train()
    assert (model.backbone.b6.dropout, model.backbone.b7.dropout) == (0.3, 0.5)
    assert model.bn_fov.momentum == model.bn_fov2.momentum == 3e-4
    assert model.conv_fov.weight.std().item() == pytest.approx(
        (2 / (9 * 512)) ** 0.5, rel=0.05
    )  # fan_out
    feature = torch.rand(2, 256, 4, 4)
    first, second = model.backbone.b6(feature), model.backbone.b6(feature)
    assert not torch.equal(first, second) and torch.equal(
        model.eval().backbone.b6(feature), model.backbone.b6(feature)
    )
