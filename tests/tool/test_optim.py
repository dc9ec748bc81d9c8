"""The shared optimizer: two groups and one schedule."""

import pytest
import torch
from torch import nn

from tool.optim import poly_sgd


def make(steps: int = 10, lr: float = 0.1, momentum: float = 0.0, weight_decay: float = 0.0):
    backbone, head = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer, schedule = poly_sgd(iter([backbone]), iter([head]), lr, steps, momentum, weight_decay)
    return backbone, head, optimizer, schedule


def test_learning_rates_follow_the_polynomial_in_both_groups():
    *_, optimizer, schedule = make(steps=10, lr=0.1)
    for step in range(11):
        expected = 0.1 * (1 - step / 10) ** 0.9
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, 10 * expected], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_the_rate_stays_zero_after_the_last_step():
    *_, optimizer, schedule = make(steps=2)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]


def test_one_step_by_hand():
    backbone, head, optimizer, _ = make(lr=0.1, weight_decay=0.5)
    (2 * backbone + 2 * head).sum().backward()
    optimizer.step()
    # gradient 2 + decay 0.5 * 1; learning rates 0.1 and 1
    assert (backbone.item(), head.item()) == pytest.approx((1 - 0.25, 1 - 2.5))


def test_momentum_carries_over():
    backbone, _, optimizer, _ = make(lr=0.1, momentum=0.5)
    for _ in range(2):
        backbone.grad = torch.ones(1)
        optimizer.step()
    assert backbone.item() == pytest.approx(1 - 0.1 * 1 - 0.1 * 1.5)


def test_a_schedule_goes_on_where_it_was_saved():
    *_, optimizer, schedule = make()
    for _ in range(4):
        optimizer.step()
        schedule.step()
    *_, other_optimizer, other_schedule = make()
    other_optimizer.load_state_dict(optimizer.state_dict())
    other_schedule.load_state_dict(schedule.state_dict())
    for one, another in ((optimizer, schedule), (other_optimizer, other_schedule)):
        one.step()
        another.step()
    rates = [[group["lr"] for group in each.param_groups] for each in (optimizer, other_optimizer)]
    assert rates[0] == rates[1] == pytest.approx([0.1 * 0.5**0.9, 0.5**0.9])
