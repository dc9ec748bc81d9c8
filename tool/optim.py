"""The optimizer that every training stage shares: SGD on two groups under a polynomial schedule."""

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR


def poly_sgd(
    backbone: Iterable[nn.Parameter], heads: Iterable[nn.Parameter], lr: float, steps: int, momentum: float, weight_decay: float
) -> tuple[SGD, LRScheduler]:
    """lr for the backbone, ten times lr for the heads, both times (1 - step / steps) ** 0.9."""
    groups = [{"params": list(backbone), "lr": lr}, {"params": list(heads), "lr": 10 * lr}]
    optimizer = SGD(groups, momentum=momentum, weight_decay=weight_decay)
    return optimizer, PolynomialLR(optimizer, total_iters=steps, power=0.9)
