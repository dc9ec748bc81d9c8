"""The shared optimizer: two groups, one schedule, and one step down."""

import pytest
import torch
from torch import nn

from tool.optim import descend, poly_sgd


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


def test_all_weights_in_one_pass_are_the_same_in_any_layout():
    """Three steps with momentum on convolutions as they lie in memory while training."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).to(memory_format=torch.channels_last) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    image = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    for layer, fused in zip(layers, (True, False)):
        optimizer, schedule = poly_sgd(layer[0].parameters(), layer[2].parameters(), 0.1, 10, momentum=0.9, weight_decay=0.01, fused=fused)
        assert all(group["fused"] is fused for group in optimizer.param_groups)
        for _ in range(3):
            descend(layer(image).square().mean(), optimizer, schedule, scaler())
    for one, another in zip(*(layer.parameters() for layer in layers)):
        torch.testing.assert_close(one, another, atol=1e-6, rtol=1e-6)


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


def scaler(**more) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=bool(more), **more)


@pytest.mark.parametrize(
    ("max_norm", "factor"), [(None, 1.0), (10.0, 1.0), (2.5, 0.5)], ids=["unclipped", "below the limit", "above the limit"]
)
@pytest.mark.parametrize("scale", [None, 1024.0], ids=["float32", "scaled"])
def test_descend_clips_the_gradient_and_returns_its_norm_of_before(max_norm, factor, scale):
    backbone, head, optimizer, schedule = make(lr=0.1)
    limit = {} if max_norm is None else {"max_norm": max_norm}
    norm = descend((3 * backbone + 4 * head).sum(), optimizer, schedule, scaler(**{"init_scale": scale} if scale else {}), **limit)
    assert norm.item() == pytest.approx(5)
    assert (backbone.item(), head.item()) == pytest.approx((1 - 0.1 * 3 * factor, 1 - 4 * factor), abs=1e-6)


def test_descend_forgets_the_gradient_of_the_step_before():
    backbone, head, optimizer, schedule = make(lr=0.1)
    norms = [descend((3 * backbone + 4 * head).sum(), optimizer, schedule, scaler()).item() for _ in range(2)]
    assert norms == pytest.approx([5, 5])


def test_descend_takes_the_schedule_along():
    backbone, head, optimizer, schedule = make(steps=10, lr=0.1)
    for step in range(1, 4):
        descend((backbone + head).sum(), optimizer, schedule, scaler())
        assert schedule.get_last_lr()[0] == pytest.approx(0.1 * (1 - step / 10) ** 0.9)


def test_a_step_that_overflows_is_left_out_of_weights_and_schedule():
    backbone, head, optimizer, schedule = make(lr=0.1)
    half = scaler(init_scale=1024.0)
    norm = descend((torch.inf * backbone + head).sum(), optimizer, schedule, half)
    assert not norm.isfinite()
    assert (backbone.item(), head.item(), schedule.get_last_lr()[0], half.get_scale()) == (1, 1, 0.1, 512)
    descend((backbone + head).sum(), optimizer, schedule, half)
    assert backbone.item() == pytest.approx(0.9)
    assert schedule.get_last_lr()[0] == pytest.approx(0.1 * 0.9**0.9)
