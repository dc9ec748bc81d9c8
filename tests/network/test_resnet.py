"""The backbone: BatchNorm as part of its convolution changes nothing that it computes."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck

from exchange.weights import load_pretrained
from network.resnet import BLOCKS, FoldedBottleneck, ResNet50, ResNetMaps, conv_bn, fold_batchnorm

WIDTH = 8


def shaken(network: nn.Module) -> nn.Module:
    """Every BatchNorm with statistics, factors and shifts of its own."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.2, 2),
                (module.weight, 0.2, 1),
                (module.bias, -1, 1),
            ):
                values.data.uniform_(low, high, generator=generator)
    return network


@pytest.fixture
def pair() -> nn.Sequential:
    torch.manual_seed(0)
    return shaken(
        nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, stride=2, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(WIDTH),
        )
    )


def test_both_in_one_convolution_with_its_gradients(pair):
    pair.eval()
    image, toward = torch.randn(2, 3, 9, 11, requires_grad=True), torch.randn(2, WIDTH, 5, 6)
    leaves = [image, *pair.parameters()]
    found, expected = conv_bn(*pair, image), pair(image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad((found * toward).sum(), leaves),
        torch.autograd.grad((expected * toward).sum(), leaves),
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_statistics_that_are_learnt_are_learnt_still(pair):
    image, before = 3 + torch.randn(2, 3, 9, 11), pair[1].running_mean.clone()
    conv_bn(*pair.train(), image)
    assert (pair[1].running_mean - before).abs().max() > 0.01


@pytest.mark.parametrize("downsample", [False, True])
def test_a_block_is_torchvisions(downsample):
    torch.manual_seed(0)
    shortcut = (
        nn.Sequential(nn.Conv2d(16, 4 * WIDTH, 1, stride=2, bias=False), nn.BatchNorm2d(4 * WIDTH))
        if downsample
        else None
    )
    block = shaken(
        FoldedBottleneck(16 if downsample else 4 * WIDTH, WIDTH, 2 if downsample else 1, shortcut)
    ).eval()
    feature = torch.randn(2, block.conv1.in_channels, 8, 10)
    torch.testing.assert_close(
        block(feature), Bottleneck.forward(block, feature), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_a_network_computes_what_torchvisions_does_also_when_it_is_folded(name):
    torch.manual_seed(0)
    network, theirs, image = (
        shaken(ResNetMaps(name)).eval(),
        get_model(name, weights=None).eval(),
        torch.randn(1, 3, 40, 56),
    )
    theirs.load_state_dict(network.state_dict(), strict=False)
    theirs.avgpool = theirs.fc = nn.Identity()
    with torch.no_grad():
        expected = theirs(image)
        folded = network(image)[-1]
        assert fold_batchnorm(network) is network
        for found in (folded, network(image)[-1]):
            torch.testing.assert_close(
                found.flatten(1), expected, atol=1e-5 * expected.max().item(), rtol=0
            )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_from_scratch_every_layer_has_a_graph():
    assert all(layer.requires_grad for layer in ResNet50(frozen=False)(torch.zeros(2, 3, 32, 32)))


def test_folded_weights_fit_float16(shared):
    """ImageNet's, as --amp fp16 casts them: the largest float16 is 65,504."""
    network = ResNet50()
    load_pretrained(network, shared / "weights/resnet50_imagenet_fp16.pth", "resnet50")
    folded = fold_batchnorm(network).half()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(p.isfinite().all() and p.abs().max() < 655 for p in folded.parameters())
