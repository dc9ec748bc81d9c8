"""The losses: worked values and where their gradients go."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from network.losses import class_weights, classification_loss, consistency_loss, segmentation_loss


def test_classification_loss_of_undecided_scores_is_log_two():
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    loss = classification_loss(torch.zeros(2, 3), tags)
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)


def test_consistency_is_the_mean_gap_to_the_normalised_is_cam():
    cam = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    is_cam = torch.tensor([0.4, 0.3]).view(1, 1, 1, 2)  # normalised: 1, 0.75
    assert math.isclose(consistency_loss(cam, is_cam).item(), 0.125, abs_tol=1e-4)


def test_consistency_reaches_both_sides():
    cam = torch.rand(1, 2, 3, 3, requires_grad=True)
    is_cam = torch.rand(1, 2, 3, 3, requires_grad=True)
    consistency_loss(cam, is_cam).backward()
    assert cam.grad.any()
    assert is_cam.grad.any()


def test_segmentation_loss_by_hand():
    probabilities = torch.tensor([1 / 4, 3 / 4])  # of every pixel
    logits = probabilities.log().view(1, 2, 1, 1).expand(1, 2, 1, 3)
    target = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    total, weights = segmentation_loss(logits, target, torch.tensor([2.0, 3.0]))
    of_first_pixel = 2 * math.log(4)
    of_second_pixel = 3 * math.log(4 / 3)
    assert total.item() == pytest.approx(of_first_pixel + of_second_pixel)
    assert weights.item() == 5


def test_segmentation_loss_is_of_logits_resized_to_the_target():
    logits = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    target = torch.ones(1, 1, 4, dtype=torch.uint8)
    total, weights = segmentation_loss(logits, target, torch.ones(2))
    resized = (0, 1, 3, 4)
    expected = sum(math.log(1 + math.exp(-logit)) for logit in resized)
    assert total.item() == pytest.approx(expected)
    assert weights.item() == 4


class Case(NamedTuple):
    """The arguments of `segmentation_loss`."""

    logits: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def random_case() -> Case:
    """Three classes in four images; a fifth of the pixels has no label."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(5, (4, 9, 13), generator=generator)
    target = torch.tensor([0, 1, 2, 2, 255])[drawn].to(torch.uint8)
    logits = torch.randn(4, 3, 3, 4, generator=generator, requires_grad=True)
    return Case(logits, target, torch.tensor([0.5, 1.0, 2.0]))


def test_the_mean_is_that_of_weighted_cross_entropy():
    logits, target, weight = random_case()
    total, weights = segmentation_loss(logits, target, weight)
    resized = F.interpolate(logits, (9, 13), mode="bilinear")
    expected = F.cross_entropy(resized, target.long(), weight, ignore_index=255)
    torch.testing.assert_close(total / weights, expected)


def test_pixels_without_a_label_have_no_part_in_the_segmentation_loss():
    logits, target, weight = random_case()
    target[1:] = 255
    total, weights = segmentation_loss(logits, target, weight)
    of_first_image = segmentation_loss(logits[:1], target[:1], weight)
    torch.testing.assert_close((total, weights), of_first_image)
    total.backward()
    assert logits.grad[0].any()
    assert not logits.grad[1:].any()


def test_the_segmentation_loss_of_half_precision_is_float32():
    logits, target, weight = random_case()
    half = logits.bfloat16()
    total, _ = segmentation_loss(half, target, weight)
    expected, _ = segmentation_loss(half.float(), target, weight)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected)


# shares 1/4 and 3/4: the mean of 1 / sqrt(share) over the pixels
MEAN = 1 / 4 * math.sqrt(4) + 3 / 4 * math.sqrt(4 / 3)


@pytest.mark.parametrize(
    ("balance", "weights"),
    [
        (0, [1, 1]),
        (0.5, [math.sqrt(4) / MEAN, math.sqrt(4 / 3) / MEAN]),
        (1, [2, 2 / 3]),
    ],
)
def test_class_weights_by_hand(balance, weights):
    result = class_weights(torch.tensor([100, 300]), balance)
    assert result.dtype == torch.float32
    assert result.tolist() == pytest.approx(weights)


COUNTS = torch.tensor([7_000_000_000, 1_000_000, 0, 3, 250_000_000])


@pytest.mark.parametrize("balance", [0, 0.3, 1])
def test_class_weights_are_of_mean_one_over_the_pixels(balance):
    weight = class_weights(COUNTS, balance)
    weighted_pixels = (weight.double() * COUNTS).sum().item()
    assert weighted_pixels == pytest.approx(COUNTS.sum().item())
    assert (weight > 0).tolist() == [True, True, False, True, True]
