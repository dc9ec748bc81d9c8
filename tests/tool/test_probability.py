"""Class probabilities of whole images: the mean over scales and mirrors."""

import math

import pytest
import torch
from torch import nn

from data.datasets import MultiscaleImage
from network.deeplab import DeepLab
from tool import inference
from tool.context import Context

SIZE = (33, 47)


@pytest.fixture(scope="module")
def model():
    """A network whose logits are of ordinary size, although it knows no statistics of its data."""
    torch.manual_seed(0)
    model = DeepLab("deeplabv2_resnet50", 5).eval()
    with torch.no_grad():
        deviation = model(torch.randn(2, 3, *SIZE)).std()
        for layer in model.classifier.branches:
            layer.weight /= deviation
    return model


@pytest.fixture(autouse=True)
def images_as_they_are(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(inference, "normalize", lambda image: image)


def probability(
    model: nn.Module, images: list[torch.Tensor], size: tuple[int, int]
) -> torch.Tensor:
    no_tags = torch.zeros(0)
    item = MultiscaleImage(0, [image[0] for image in images], no_tags, size, size, 1, None)
    return inference.multiscale_probability(model, item, Context(torch.device("cpu")))


def as_segmentation_network(module: nn.Module) -> nn.Module:
    module.align_corners = False
    module.mean_of_logits = False
    return module


@pytest.mark.parametrize("size", [SIZE, (64, 16), (1, 1)])
def test_probabilities_have_the_working_size_and_sum_to_one(model, size):
    images = [torch.randn(1, 3, *SIZE), torch.randn(1, 3, 24, 35)]
    result = probability(model, images, size)
    assert result.shape == (5, *size)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert result.min() >= 0
    torch.testing.assert_close(result.sum(0), torch.ones(size))


@pytest.mark.parametrize("width", [47, 48])
def test_a_mirrored_image_has_mirrored_probabilities(model, width):
    images = [torch.randn(1, 3, 33, width), torch.randn(1, 3, 17, width // 2)]
    mirrors = [image.flip(3) for image in images]
    result = probability(model, images, (33, width))
    of_mirrors = probability(model, mirrors, (33, width))
    torch.testing.assert_close(of_mirrors, result.flip(2), atol=1e-5, rtol=0)
    assert (result - result.flip(2)).abs().max() > 1e-3


def test_probabilities_by_hand():
    model = as_segmentation_network(nn.Identity())
    first = torch.tensor([1.0, 3.0, 4.0]).log().view(1, 3, 1, 1)
    second = torch.tensor([2.0, 1.0, 1.0]).log().view(1, 3, 1, 1)
    result = probability(model, [first.expand(1, 3, 2, 4), second], (3, 5))
    of_first = torch.tensor([1 / 8, 3 / 8, 4 / 8])
    of_second = torch.tensor([2 / 4, 1 / 4, 1 / 4])
    expected = (of_first + of_second) / 2
    torch.testing.assert_close(result, expected.view(3, 1, 1).expand(3, 3, 5))


def test_the_mirror_is_turned_back_by_hand():
    """Class 1 is found one cell to the right of the place where the image shows it."""
    model = as_segmentation_network(nn.Conv2d(2, 2, (1, 3), padding=(0, 1), bias=False))
    with torch.no_grad():
        model.weight.zero_()
        model.weight[1, 1, 0, 0] = 1
    image = torch.zeros(1, 2, 1, 5)
    image[0, 1, 0, 2] = math.log(3)
    result = probability(model, [image], (1, 5))
    shown = (3 / 4 + 1 / 2) / 2  # by the image or its mirror
    expected = torch.tensor([1 / 2, shown, 1 / 2, shown, 1 / 2])
    torch.testing.assert_close(result[1, 0], expected)
