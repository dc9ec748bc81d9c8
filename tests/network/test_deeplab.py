"""DeepLab and the registry: grid and reach, what trains and what stays, what is built by name."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from network.deeplab import HEADS, NETWORKS, DeepLab, MultiRateClassifier, build_network

SIZE = (33, 47)
RESNETS = [name for name, spec in NETWORKS.items() if spec.head in HEADS]


def build_scaled(network: str) -> DeepLab:
    """A network whose logits are of ordinary size, although its statistics fit no data."""
    torch.manual_seed(0)
    model = DeepLab(network, 5).eval()
    last_layers = [model.classifier[-1]] if "v3" in network else model.classifier.branches
    with torch.no_grad():
        scale = model(torch.randn(2, 3, *SIZE)).std()
        for layer in last_layers:
            layer.weight /= scale
    return model


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def deeplabv2():
    return build_scaled("deeplabv2_resnet50")


@pytest.fixture(scope="module")
def deeplabv3():
    return build_scaled("deeplabv3_resnet50")


@pytest.fixture(params=HEADS)
def model(request):
    return request.getfixturevalue(request.param)


def without_values(*arguments) -> DeepLab:
    """A network of shapes alone."""
    with torch.device("meta"):
        return DeepLab(*arguments)


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize("network", RESNETS)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_have_the_output_stride_whatever_the_size(network, output_stride):
    model = without_values(network, 7, output_stride).eval()
    for height, width in ((33, 47), (64, 80), (65, 31), (9, 9)):
        image = torch.empty(2, 3, height, width, device="meta")
        grid = (math.ceil(height / output_stride), math.ceil(width / output_stride))
        assert model(image).shape == (2, 7, *grid)


@pytest.mark.parametrize(("output_stride", "expected"), [(8, [1, 2, 4]), (16, [1, 1, 2])])
@pytest.mark.parametrize("head", HEADS)
def test_dilation_of_the_backbone_follows_the_output_stride(head, output_stride, expected):
    backbone = without_values(f"{head}_resnet50", 5, output_stride).backbone
    layers = (backbone.layer2, backbone.layer3, backbone.layer4)
    dilations = [layer[-1].conv2.dilation[0] for layer in layers]
    assert dilations == expected


@pytest.mark.parametrize(
    ("head", "output_stride", "rates"),
    [
        ("deeplabv2", 8, [6, 12, 18, 24]),
        ("deeplabv2", 16, [3, 6, 9, 12]),
        ("deeplabv3", 8, [12, 24, 36]),
        ("deeplabv3", 16, [6, 12, 18]),
    ],
)
def test_dilation_of_the_head_follows_the_output_stride(head, output_stride, rates):
    classifier = without_values(f"{head}_resnet50", 5, output_stride).classifier
    if head == "deeplabv2":
        convs = list(classifier.branches)
    else:
        convs = [branch[0] for branch in classifier[0].convs[1:4]]
    assert [conv.dilation for conv in convs] == [(rate, rate) for rate in rates]
    assert all(conv.padding == conv.dilation for conv in convs)


def test_the_classifier_is_the_sum_of_its_branches_by_hand():
    classifier = MultiRateClassifier(1, 1, (1, 2))
    near, far = classifier.branches
    nn.init.constant_(near.weight, 1)
    nn.init.constant_(near.bias, 0.5)
    nn.init.constant_(far.weight, 10)
    nn.init.constant_(far.bias, 0.25)
    feature = torch.zeros(1, 1, 5, 5)
    feature[..., 2, 2] = 1
    expected = [
        [10, 0, 10, 0, 10],
        [0, 1, 1, 1, 0],
        [10, 1, 11, 1, 10],
        [0, 1, 1, 1, 0],
        [10, 0, 10, 0, 10],
    ]
    assert torch.equal(classifier(feature)[0, 0], torch.tensor(expected) + 0.75)


@pytest.mark.parametrize("network", RESNETS)
def test_the_backbones_tensors_are_torchvisions_without_its_head(network):
    with torch.device("meta"):
        expected = shapes_of(get_model(network.split("_")[1], weights=None))
    del expected["fc.weight"], expected["fc.bias"]
    assert shapes_of(without_values(network, 5).backbone) == expected


def test_the_backbone_keeps_its_statistics_and_the_head_learns_its_own(model):
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert model.train() is model
    assert model.training and model.backbone.training and model.classifier.training
    assert not any(norm.training for norm in norms_of(model.backbone))
    assert all(norm.training for norm in norms_of(model.classifier))
    with torch.no_grad():
        model(torch.randn(2, 3, *SIZE))
    buffers = model.named_buffers()
    changed = {name for name, value in buffers if not torch.equal(value, before[name])}
    model.load_state_dict(before, strict=False)
    assert changed == {name for name in before if name.startswith("classifier.")}
    assert len(changed) == 3 * len(norms_of(model.classifier))
    assert not any(module.training for module in model.eval().modules())


def test_every_parameter_trains(model):
    model.train()(torch.randn(2, 3, *SIZE)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.eval()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", RESNETS)
def test_a_network_is_built_by_its_name(name, output_stride):
    with torch.device("meta"):
        model = build_network(name, 7, output_stride).eval()
        image = torch.empty(1, 3, 64, 64)
    assert shapes_of(model) == shapes_of(without_values(name, 7, output_stride))
    side = 64 // output_stride
    assert model(image).shape == (1, 7, side, side)


def test_a_name_is_that_of_head_and_backbone():
    for name, spec in NETWORKS.items():
        assert name == spec.name == f"{spec.head}_{spec.backbone}"


@pytest.mark.parametrize(
    "name",
    ["deeplabv4_resnet50", "resnet50", "", None, [RESNETS[0]]],
    ids=str,
)
def test_other_networks_are_refused(name):
    with pytest.raises(ValueError, match="network"):
        build_network(name, 7)


@pytest.mark.parametrize("output_stride", [4, "8", None, 16.0, torch.tensor([8, 8])], ids=str)
def test_other_output_strides_are_refused(output_stride):
    with pytest.raises(ValueError, match="output stride"):
        build_network(RESNETS[0], 7, output_stride)


def test_the_classifier_learns_ten_times_as_fast_as_the_backbone(model):
    rates = {}
    for group in model.parameter_groups():
        for parameter in group["params"]:
            rates[parameter] = group["lr_scale"]
    for name, parameter in model.named_parameters():
        expected = 10 if name.startswith("classifier.") else 1
        assert rates[parameter] == expected, name
