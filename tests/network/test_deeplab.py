"""DeepLab: its grid and its reach, what trains and what stays, and the probabilities of whole images."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from network.deeplab import HEADS, NETWORKS, DeepLab, MultiRateClassifier, build_network

SIZE = (33, 47)
RESNETS = [name for name in NETWORKS if "resnet38" not in name]


def built(network: str) -> DeepLab:
    """A network whose logits are of ordinary size, although its backbone's statistics fit no data."""
    torch.manual_seed(0)
    model = DeepLab(network, 5).eval()
    with torch.no_grad():
        last = (
            model.classifier.branches if network.startswith("deeplabv2") else [model.classifier[-1]]
        )
        spread = model(torch.randn(2, 3, *SIZE)).std()
        for layer in last:
            layer.weight /= spread
    return model


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def deeplabv2():
    return built("deeplabv2_resnet50")


@pytest.fixture(scope="module")
def deeplabv3():
    return built("deeplabv3_resnet50")


@pytest.fixture(params=HEADS)
def model(request):
    return request.getfixturevalue(request.param)


def sketch(*arguments) -> DeepLab:
    """A network of shapes alone."""
    with torch.device("meta"):
        return DeepLab(*arguments)


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("network", RESNETS)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_have_the_output_stride_whatever_the_size(network, output_stride):
    model = sketch(network, 7, output_stride).eval()
    for height, width in ((33, 47), (64, 80), (65, 31), (9, 9)):
        grid = math.ceil(height / output_stride), math.ceil(width / output_stride)
        assert model(torch.empty(2, 3, height, width, device="meta")).shape == (2, 7, *grid)


@pytest.mark.parametrize(
    ("output_stride", "in_layers", "in_v2", "in_v3"),
    [(8, [1, 2, 4], [6, 12, 18, 24], [12, 24, 36]), (16, [1, 1, 2], [3, 6, 9, 12], [6, 12, 18])],
)
def test_dilation_follows_the_output_stride(output_stride, in_layers, in_v2, in_v3):
    deeplabv2, deeplabv3 = (sketch(f"{head}_resnet50", 5, output_stride) for head in HEADS)
    for model in (deeplabv2, deeplabv3):
        layers = [model.backbone.layer2, model.backbone.layer3, model.backbone.layer4]
        assert [layer[-1].conv2.dilation[0] for layer in layers] == in_layers
    branches = [
        *deeplabv2.classifier.branches,
        *(branch[0] for branch in deeplabv3.classifier[0].convs[1:4]),
    ]
    assert [branch.dilation for branch in branches] == [(rate, rate) for rate in in_v2 + in_v3]
    assert all(branch.padding == branch.dilation for branch in branches)


def test_the_classifier_is_the_sum_of_its_branches_by_hand():
    classifier = MultiRateClassifier(1, 1, (1, 2))
    for branch, weight, bias in zip(classifier.branches, (1, 10), (0.5, 0.25)):
        nn.init.constant_(branch.weight, weight)
        nn.init.constant_(branch.bias, bias)
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
        theirs = get_model(network.split("_")[1], weights=None).state_dict()
    ours = sketch(network, 5).backbone.state_dict()
    assert ours.keys() == theirs.keys() - {"fc.weight", "fc.bias"}
    assert all(value.shape == theirs[name].shape for name, value in ours.items())


def test_the_backbone_keeps_its_statistics_and_the_head_learns_its_own(model):
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert (
        model.train() is model
        and model.training
        and model.backbone.training
        and model.classifier.training
    )
    assert not any(norm.training for norm in norms_of(model.backbone))
    assert all(norm.training for norm in norms_of(model.classifier))
    with torch.no_grad():
        model(torch.randn(2, 3, *SIZE))
    changed = {
        name for name, value in model.named_buffers() if not torch.equal(value, before[name])
    }
    model.load_state_dict(before, strict=False)
    assert changed == {name for name in before if name.startswith("classifier.")}
    assert len(changed) == 3 * len(norms_of(model.classifier))
    assert not any(module.training for module in model.eval().modules())


def test_every_parameter_trains(model):
    model.train()(torch.randn(2, 3, *SIZE)).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model.eval()
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("network", RESNETS)
def test_a_network_is_the_one_that_its_arguments_tell_of(network, output_stride):
    with torch.device("meta"):
        model = build_network(network, 7, output_stride)
    expected = sketch(network, 7, output_stride).state_dict()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    side = 64 // output_stride
    assert model.eval()(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 7, side, side)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("deeplabv4_resnet50", 8),
        ("resnet50", 8),
        ("", 8),
        (None, 8),
        ([RESNETS[0]], 8),
        (RESNETS[0], 4),
        (RESNETS[0], "8"),
        (RESNETS[0], None),
        (RESNETS[0], 16.0),
        (RESNETS[0], torch.tensor([8, 8])),
    ],
)
def test_other_names_and_strides_are_refused(name, output_stride):
    with pytest.raises(ValueError, match="network|output stride"):
        build_network(name, 7, output_stride)
