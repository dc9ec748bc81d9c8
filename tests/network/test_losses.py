"""The losses: worked values and where their gradients go."""

import math

import torch

from network.losses import classification_loss, consistency_loss


def test_classification_loss_of_undecided_scores_is_log_two():
    loss = classification_loss(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)


def test_consistency_is_the_mean_gap_to_the_normalised_is_cam():
    cam = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    is_cam = torch.tensor([0.4, 0.3]).view(1, 1, 1, 2)  # normalised: 1, 0.75
    assert math.isclose(consistency_loss(cam, is_cam).item(), 0.125, abs_tol=1e-4)


def test_consistency_reaches_both_sides():
    cam, is_cam = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(1, 2, 3, 3, requires_grad=True)
    consistency_loss(cam, is_cam).backward()
    assert cam.grad.abs().sum() > 0 and is_cam.grad.abs().sum() > 0
