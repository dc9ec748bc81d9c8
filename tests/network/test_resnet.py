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
            module.running_mean.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.2, 2, generator=generator)
            module.weight.data.uniform_(0.2, 1, generator=generator)
            module.bias.data.uniform_(-1, 1, generator=generator)
    return network


@pytest.fixture
def pair() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, WIDTH, 3, stride=2, padding=2, dilation=2, bias=False)
    return shaken(nn.Sequential(conv, nn.BatchNorm2d(WIDTH)))


def test_both_in_one_convolution_with_its_gradients(pair):
    pair.eval()
    image = torch.randn(2, 3, 9, 11, requires_grad=True)
    toward = torch.randn(2, WIDTH, 5, 6)
    leaves = [image, *pair.parameters()]
    folded = conv_bn(*pair, image)
    expected = pair(image)
    torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad((folded * toward).sum(), leaves)
    expected_gradients = torch.autograd.grad((expected * toward).sum(), leaves)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-4)


def test_statistics_that_are_learnt_are_learnt_still(pair):
    before = pair[1].running_mean.clone()
    conv_bn(*pair.train(), 3 + torch.randn(2, 3, 9, 11))
    assert (pair[1].running_mean - before).abs().max() > 0.01


def plain_block() -> FoldedBottleneck:
    return FoldedBottleneck(4 * WIDTH, WIDTH)


def block_with_downsample() -> FoldedBottleneck:
    conv = nn.Conv2d(16, 4 * WIDTH, 1, stride=2, bias=False)
    return FoldedBottleneck(16, WIDTH, 2, nn.Sequential(conv, nn.BatchNorm2d(4 * WIDTH)))


@pytest.mark.parametrize("build", [plain_block, block_with_downsample])
def test_a_block_is_torchvisions(build):
    torch.manual_seed(0)
    block = shaken(build()).eval()
    feature = torch.randn(2, block.conv1.in_channels, 8, 10)
    expected = Bottleneck.forward(block, feature)
    torch.testing.assert_close(block(feature), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_network_computes_what_torchvisions_does_also_when_it_is_folded(name):
    torch.manual_seed(0)
    network = shaken(ResNetMaps(name)).eval()
    torchvisions = get_model(name, weights=None).eval()
    torchvisions.load_state_dict(network.state_dict(), strict=False)
    torchvisions.avgpool = nn.Identity()
    torchvisions.fc = nn.Identity()
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        expected = torchvisions(image)
        in_training_form = network(image)[-1]
        assert fold_batchnorm(network) is network
        folded = network(image)[-1]
    tolerance = 1e-5 * expected.max().item()
    for layer4 in (in_training_form, folded):
        torch.testing.assert_close(layer4.flatten(1), expected, atol=tolerance, rtol=0)
    assert not has_batchnorm(network)


def has_batchnorm(network: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_from_scratch_every_layer_has_a_graph():
    layers = ResNet50(frozen=False)(torch.zeros(2, 3, 32, 32))
    assert all(layer.requires_grad for layer in layers)


def test_folded_weights_fit_float16(shared):
    """ImageNet's, as --amp fp16 casts them: the largest float16 is 65,504."""
    network = ResNet50()
    load_pretrained(network, shared / "weights/resnet50_imagenet_fp16.pth", "resnet50")
    folded = fold_batchnorm(network).half()
    assert not has_batchnorm(folded)
    for parameter in folded.parameters():
        assert parameter.isfinite().all()
        assert parameter.abs().max() < 655
