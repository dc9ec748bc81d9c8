"""WideResNet38 ("Wider or Deeper", Wu et al., 2019) and SIPE's second segmentation network on it.

Tensors have the names of the PyTorch files in circulation, which therefore load as they are.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import FrozenNorms

WIDTH = 64  # of the first map; all others are multiples of it
# group -> widths before, within and after its first block, stride, dilation of both 3x3 convolutions, number of further blocks
GROUPS = {
    2: (1, 2, 2, 2, (1, 1), 2),
    3: (2, 4, 4, 2, (1, 1), 2),
    4: (4, 8, 8, 2, (1, 1), 5),
    5: (8, 8, 16, 1, (1, 2), 2),
}
BOTTLENECKS = {6: (16, 4, 0.3), 7: (32, 4, 0.5)}  # width before, which doubles; dilation; dropout


def _conv(width: int, out: int, size: int = 1, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, out, size, stride, dilation * (size // 2), dilation, bias=False)


class Block(nn.Module):
    """Two or three convolutions, each after its BatchNorm and ReLU, beside a shortcut."""

    def __init__(self, *convs: nn.Conv2d, dropout: float = 0.0):
        super().__init__()
        self.dropout, self.branches = dropout, ("2a", "2b1", "2b2")[: len(convs)]
        for branch, conv in zip(self.branches, convs):
            self.add_module(f"bn_branch{branch}", nn.BatchNorm2d(conv.in_channels))
            self.add_module(f"conv_branch{branch}", conv)
        width, out, stride = convs[0].in_channels, convs[-1].out_channels, convs[0].stride[0]
        self.conv_branch1 = None if (width, stride) == (out, 1) else _conv(width, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn_branch2a(x), inplace=True)
        out = self.conv_branch2a(active)
        for branch in self.branches[1:]:
            out = F.relu(getattr(self, f"bn_branch{branch}")(out), inplace=True)
            out = getattr(self, f"conv_branch{branch}")(
                F.dropout2d(out, self.dropout, self.training)
            )
        return out + (x if self.conv_branch1 is None else self.conv_branch1(active))


class WideResNet38(FrozenNorms, nn.Sequential):
    """Image (B, 3, H, W), normalised -> its last map (B, 4096, H / 8, W / 8), at least 0.

    frozen: as from ImageNet weights: the first convolution and every BatchNorm stay as they are. False trains everything.
    """

    def __init__(self, frozen: bool = True):
        layers = OrderedDict(conv1a=_conv(3, WIDTH, 3))
        for group, (width, middle, out, stride, (first, second), more) in GROUPS.items():
            for i in range(1 + more):
                name, shape = (
                    (f"b{group}_{i}", (out, 1, second))
                    if i
                    else (f"b{group}", (width, stride, first))
                )
                first_conv = _conv(shape[0] * WIDTH, middle * WIDTH, 3, *shape[1:])
                layers[name] = Block(
                    first_conv, _conv(middle * WIDTH, out * WIDTH, 3, dilation=second)
                )
        for group, (width, dilation, dropout) in BOTTLENECKS.items():
            quarter, half, out = (width * WIDTH // 2, width * WIDTH, 2 * width * WIDTH)
            convs = (
                _conv(half, quarter),
                _conv(quarter, half, 3, dilation=dilation),
                _conv(half, out),
            )
            layers[f"b{group}"] = Block(*convs, dropout=dropout)
        super().__init__(layers | {"bn7": nn.BatchNorm2d(out)})
        self.frozen = frozen
        for module in self.modules():
            if frozen and (module is self.conv1a or isinstance(module, nn.BatchNorm2d)):
                module.requires_grad_(False)
        self.train()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(image), inplace=True)


class DeepLabV1(nn.Module):
    """WideResNet38 under DeepLab-v1's head with a large field of view: image (B, 3, H, W) -> class logits (B, K, H / 8, W / 8).

    Args:
        num_classes: K, background included.
        frozen: as in WideResNet38; the head always learns its BatchNorm statistics.
    """

    align_corners = True  # when its logits are resized
    mean_of_logits = True  # over scales and mirrors; softmax comes last
    crf = {"iterations": 1}  # noqa: RUF012 (what differs from the settings of other networks)

    def __init__(self, num_classes: int, frozen: bool = True):
        super().__init__()
        self.backbone = WideResNet38(frozen)
        self.conv_fov = _conv(self.backbone.bn7.num_features, 512, 3, dilation=12)
        self.bn_fov = nn.BatchNorm2d(512, momentum=0.0003)
        self.conv_fov2 = _conv(512, 512)
        self.bn_fov2 = nn.BatchNorm2d(512, momentum=0.0003)
        self.cls_conv = nn.Conv2d(512, num_classes, 1)
        for layer in (self.conv_fov, self.conv_fov2, self.cls_conv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        feature = F.relu(self.bn_fov(self.conv_fov(self.backbone(image))))
        feature = F.relu(self.bn_fov2(self.conv_fov2(feature)))
        return self.cls_conv(F.dropout(feature, 0.5, self.training))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer: the head's convolutions take ten times the rate, biases twice the rate and no decay."""
        groups = [
            {"params": [], "lr_scale": scale} | ({} if scale in (1, 10) else {"weight_decay": 0.0})
            for scale in (1, 2, 10, 20)
        ]
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_new = name.startswith(("conv_fov", "cls_conv"))
                groups[2 * is_new + name.endswith("bias")]["params"].append(parameter)
        return groups
