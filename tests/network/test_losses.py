"""The losses: worked values and where their gradients go."""

import math

import pytest
import torch

from network.losses import class_weights, classification_loss, consistency_loss, segmentation_loss


def test_classification_loss_of_undecided_scores_is_log_two():
    loss = classification_loss(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)


def test_consistency_is_the_mean_gap_to_the_normalised_is_cam():
    cam = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    is_cam = torch.tensor([0.4, 0.3]).view(1, 1, 1, 2)  # normalised: 1, 0.75
    assert math.isclose(consistency_loss(cam, is_cam).item(), 0.125, abs_tol=1e-4)


def test_consistency_reaches_both_sides():
    cam, is_cam = (
        torch.rand(1, 2, 3, 3, requires_grad=True),
        torch.rand(1, 2, 3, 3, requires_grad=True),
    )
    consistency_loss(cam, is_cam).backward()
    assert cam.grad.abs().sum() > 0 and is_cam.grad.abs().sum() > 0


def test_segmentation_loss_by_hand():
    logits = (
        torch.tensor([1 / 4, 3 / 4]).log().view(1, 2, 1, 1).expand(1, 2, 1, 3)
    )  # every pixel is of class 1 with probability 3/4
    label = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    total, count = segmentation_loss(logits, label, torch.tensor([2.0, 3.0]))
    assert total.item() == pytest.approx(2 * math.log(4) + 3 * math.log(4 / 3))
    assert count.item() == 5


def test_segmentation_loss_is_of_logits_brought_to_the_labels_size():
    logits = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    label = torch.ones(1, 1, 4, dtype=torch.uint8)
    total, count = segmentation_loss(logits, label, torch.ones(2))
    assert total.item() == pytest.approx(
        sum(math.log(1 + math.exp(-logit)) for logit in (0, 1, 3, 4))
    )
    assert count.item() == 4


def segmentation_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, a label of three classes of which a fifth is unknown, and the weights of the classes."""
    generator = torch.Generator().manual_seed(0)
    label = torch.tensor([0, 1, 2, 2, 255])[torch.randint(5, (4, 9, 13), generator=generator)].to(
        torch.uint8
    )
    return (
        torch.randn(4, 3, 3, 4, generator=generator, requires_grad=True),
        label,
        torch.tensor([0.5, 1.0, 2.0]),
    )


def test_the_mean_is_that_of_weighted_cross_entropy():
    logits, label, weight = segmentation_case()
    total, count = segmentation_loss(logits, label, weight)
    enlarged = torch.nn.functional.interpolate(logits, (9, 13), mode="bilinear")
    torch.testing.assert_close(
        total / count,
        torch.nn.functional.cross_entropy(enlarged, label.long(), weight, ignore_index=255),
    )


def test_unknown_pixels_have_no_part_in_the_segmentation_loss():
    logits, label, weight = segmentation_case()
    label[1:] = 255
    total, count = segmentation_loss(logits, label, weight)
    alone = segmentation_loss(logits[:1], label[:1], weight)
    torch.testing.assert_close((total, count), alone)
    total.backward()
    assert logits.grad[0].any() and not logits.grad[1:].any()


def test_the_segmentation_loss_of_half_precision_is_float32():
    logits, label, weight = segmentation_case()
    total, _ = segmentation_loss(logits.bfloat16(), label, weight)
    assert total.dtype == torch.float32
    torch.testing.assert_close(
        total, segmentation_loss(logits.bfloat16().float(), label, weight)[0]
    )


@pytest.mark.parametrize(
    ("balance", "weights"),
    [
        (0, [1, 1]),
        (0.5, [2 / (0.5 + math.sqrt(0.75)), math.sqrt(4 / 3) / (0.5 + math.sqrt(0.75))]),
        (1, [2, 2 / 3]),
    ],
)
def test_class_weights_by_hand(balance, weights):
    found = class_weights(torch.tensor([100, 300]), balance)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(weights)


COUNTS = torch.tensor([7_000_000_000, 1_000_000, 0, 3, 250_000_000])


@pytest.mark.parametrize("balance", [0, 0.3, 1])
def test_class_weights_are_of_mean_one_over_the_pixels(balance):
    weight = class_weights(COUNTS, balance)
    assert (weight.double() * COUNTS).sum().item() == pytest.approx(COUNTS.sum().item())
    assert (weight > 0).tolist() == [True, True, False, True, True]
