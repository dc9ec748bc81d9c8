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
    """A network whose logits are of ordinary size, although its backbone's statistics fit no data."""
    torch.manual_seed(0)
    model = DeepLab("deeplabv2_resnet50", 5).eval()
    with torch.no_grad():
        spread = model(torch.randn(2, 3, *SIZE)).std()
        for layer in model.classifier.branches:
            layer.weight /= spread
    return model


@pytest.fixture(autouse=True)
def images_as_they_are(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(inference, "normalize", lambda image: image)


def probability(
    model: nn.Module, images: list[torch.Tensor], size: tuple[int, int]
) -> torch.Tensor:
    item = MultiscaleImage(0, [image[0] for image in images], torch.zeros(0), size, size, 1, None)
    return inference.multiscale_probability(model, item, Context(torch.device("cpu")))


@pytest.mark.parametrize("size", [SIZE, (64, 16), (1, 1)])
def test_probabilities_have_the_working_size_and_sum_to_one(model, size):
    found = probability(model, [torch.randn(1, 3, *SIZE), torch.randn(1, 3, 24, 35)], size)
    assert (found.shape, found.dtype, found.requires_grad) == ((5, *size), torch.float32, False)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(0), torch.ones(size))


@pytest.mark.parametrize("width", [47, 48])
def test_a_mirrored_image_has_mirrored_probabilities(model, width):
    images = [torch.randn(1, 3, 33, width), torch.randn(1, 3, 17, width // 2)]
    found = probability(model, images, (33, width))
    torch.testing.assert_close(
        probability(model, [image.flip(3) for image in images], (33, width)),
        found.flip(2),
        atol=1e-5,
        rtol=0,
    )
    assert (found - found.flip(2)).abs().max() > 1e-3


def test_probabilities_by_hand():
    model = nn.Identity()
    model.align_corners = model.mean_of_logits = False
    first, second = (
        torch.tensor(odds).log().view(1, 3, 1, 1) for odds in ([1.0, 3.0, 4.0], [2.0, 1.0, 1.0])
    )
    found = probability(model, [first.expand(1, 3, 2, 4), second], (3, 5))
    expected = torch.tensor([(1 / 8 + 2 / 4) / 2, (3 / 8 + 1 / 4) / 2, (4 / 8 + 1 / 4) / 2])
    torch.testing.assert_close(found, expected.view(3, 1, 1).expand(3, 3, 5))


def test_the_mirror_is_turned_back_by_hand():
    model = nn.Conv2d(2, 2, (1, 3), padding=(0, 1), bias=False)
    model.align_corners = model.mean_of_logits = False
    with torch.no_grad():
        model.weight.zero_()[1, 1, 0, 0] = (
            1  # class 1 is one cell to the right of where the image shows it
        )
    image = torch.zeros(1, 2, 1, 5)
    image[0, 1, 0, 2] = math.log(3)
    found = probability(model, [image], (1, 5))
    expected = torch.tensor([1 / 2, (3 / 4 + 1 / 2) / 2, 1 / 2, (3 / 4 + 1 / 2) / 2, 1 / 2])
    torch.testing.assert_close(found[1, 0], expected)
