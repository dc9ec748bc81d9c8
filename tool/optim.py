"""The optimizer that every training stage shares: SGD on two groups under a polynomial schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR


def poly_sgd(
    backbone: Iterable[nn.Parameter],
    heads: Iterable[nn.Parameter],
    lr: float,
    steps: int,
    momentum: float,
    weight_decay: float,
    fused: bool = True,
) -> tuple[SGD, LRScheduler]:
    """lr for the backbone, ten times lr for the heads, both times (1 - step / steps) ** 0.9.

    fused: all weights in one pass; not with a GradScaler, as PyTorch's fused SGD takes memory that nobody wrote to for its momentum
    where the first step of all overflows.
    """
    groups = [{"params": list(backbone), "lr": lr}, {"params": list(heads), "lr": 10 * lr}]
    optimizer = SGD(groups, momentum=momentum, weight_decay=weight_decay, fused=fused)
    return optimizer, PolynomialLR(optimizer, total_iters=steps, power=0.9)


def descend(
    loss: torch.Tensor, optimizer: SGD, schedule: LRScheduler, scaler: torch.amp.GradScaler, max_norm: float = math.inf
) -> torch.Tensor:
    """One step down; returns the gradient's norm before it is clipped to max_norm."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), max_norm)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() >= scale:  # else fp16 overflowed and the optimizer left this step out
        schedule.step()
    return norm
