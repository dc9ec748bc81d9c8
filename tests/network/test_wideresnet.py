"""WideResNet38: the reference numbers, what trains, and at which rates."""

import zlib

import numpy as np
import pytest
import torch
from torch import nn

from network.wideresnet import DeepLabV1


def draw_weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights behind the reference numbers, which are drawn by name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    *_, module, kind = name.split(".")
    if module.startswith("bn") and kind in ("weight", "running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = rng.standard_normal(shape) * 0.1
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden/wideresnet38.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_names_and_shapes_are_those_of_the_files_in_circulation(golden):
    with torch.device("meta"):
        backbone = DeepLabV1(21).backbone
    shapes = {}
    for name, value in backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            shapes[name] = str(tuple(value.shape))
    assert shapes == dict(zip(golden["names"].tolist(), golden["shapes"].tolist()))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 105_070_912


def test_reference_numbers(golden, device):
    with torch.device("meta"):
        model = DeepLabV1(21).eval()
    tensors = {}
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            shape = tuple(value.shape)
            tensors[name] = draw_weights(name.removeprefix("backbone."), shape)
    model.load_state_dict(tensors, assign=True, strict=False)
    model.to(device)
    outputs = {}

    def note_input(name: str):
        def hook(layer, inputs):
            outputs[name] = inputs[0].mean(1)

        return hook

    def note_last_map(layer, inputs, output):
        outputs["conv6_mean"] = output.mean(1)
        outputs["conv6_slice"] = output[:, :32]

    backbone = model.backbone
    backbone.b5.conv_branch2a.register_forward_pre_hook(note_input("conv4_mean"))
    backbone.b6.conv_branch2a.register_forward_pre_hook(note_input("conv5_mean"))
    backbone.register_forward_hook(note_last_map)
    with torch.no_grad():
        outputs["logits"] = model(torch.from_numpy(golden["image"]).to(device))
    for name in ("conv4_mean", "conv5_mean", "conv6_mean", "conv6_slice", "logits"):
        difference = np.abs(outputs[name].cpu().numpy() - golden[name]).max()
        assert difference <= 1e-4 * np.abs(golden[name]).max(), name


def expected_rate(name: str) -> tuple[int, float | None]:
    """The learning rate's factor and the weight decay, None for the optimizer's own."""
    scale = 10 if name.startswith(("conv_fov", "cls_conv")) else 1
    if name.endswith("bias"):
        return (2 * scale, 0.0)
    return (scale, None)


@pytest.mark.parametrize("frozen", [True, False])
def test_rates(narrow_wideresnet, frozen):
    model = DeepLabV1(5, frozen)
    rates = {}
    for group in model.parameter_groups():
        for parameter in group["params"]:
            rates[parameter] = (group["lr_scale"], group.get("weight_decay"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert rates.keys() == set(trained.values())
    for name, parameter in trained.items():
        assert rates[parameter] == expected_rate(name), name


@pytest.mark.parametrize("frozen", [True, False])
def test_what_trains(narrow_wideresnet, frozen):
    model = DeepLabV1(5, frozen).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    parameters = []
    for group in model.parameter_groups():
        parameters += group["params"]
    model(torch.randn(2, 3, 33, 47)).square().mean().backward()
    torch.optim.SGD(parameters, lr=1).step()
    after = model.backbone.state_dict()
    unchanged = {name for name, value in after.items() if torch.equal(value, before[name])}
    expected = set()
    if frozen:
        expected = {name for name in before if name.startswith("conv1a") or "bn" in name}
    assert unchanged == expected
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training is not frozen
    assert model.bn_fov.training
    assert model.backbone.b7.training


def test_the_heads_statistics_and_first_weights(narrow_wideresnet):
    torch.manual_seed(0)
    model = DeepLabV1(5)
    assert model.bn_fov.momentum == model.bn_fov2.momentum == 3e-4
    fan_out = 9 * 512
    expected = (2 / fan_out) ** 0.5
    assert model.conv_fov.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_dropout(narrow_wideresnet):
    torch.manual_seed(0)
    backbone = DeepLabV1(5).backbone.train()
    assert (backbone.b6.dropout, backbone.b7.dropout) == (0.3, 0.5)
    feature = torch.rand(2, 256, 4, 4)
    assert not torch.equal(backbone.b6(feature), backbone.b6(feature))
    backbone.eval()
    assert torch.equal(backbone.b6(feature), backbone.b6(feature))
