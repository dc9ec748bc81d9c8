"""WideResNet38 ("Wider or Deeper", Wu et al., 2019) and SIPE's second segmentation network on it.

Tensors have the names of the PyTorch files in circulation, which therefore load as they are.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import FrozenNorms

WIDTH = 64  # of the first map; all others are multiples of it


class Group(NamedTuple):
    """Residual blocks of two 3x3 convolutions at one resolution; widths are multiples of WIDTH."""

    before: int  # width of its input
    middle: int  # within a block
    after: int
    stride: int  # of the first block
    dilations: tuple[int, int]  # of the first block's convolutions; the others' have the second
    more_blocks: int  # after the first


class Bottleneck(NamedTuple):
    """A residual block of three convolutions, which doubles the width."""

    before: int  # width of its input, a multiple of WIDTH
    dilation: int  # of its 3x3 convolution
    dropout: float


# by their numbers in the names of tensors
GROUPS = {
    2: Group(1, 2, 2, stride=2, dilations=(1, 1), more_blocks=2),
    3: Group(2, 4, 4, stride=2, dilations=(1, 1), more_blocks=2),
    4: Group(4, 8, 8, stride=2, dilations=(1, 1), more_blocks=5),
    5: Group(8, 8, 16, stride=1, dilations=(1, 2), more_blocks=2),
}
BOTTLENECKS = {
    6: Bottleneck(16, dilation=4, dropout=0.3),
    7: Bottleneck(32, dilation=4, dropout=0.5),
}


def _conv(width: int, out: int, size: int = 1, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(width, out, size, stride, padding, dilation, bias=False)


class Block(nn.Module):
    """Two or three convolutions, each after its BatchNorm and ReLU, beside a shortcut."""

    def __init__(self, *convs: nn.Conv2d, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.branches = ("2a", "2b1", "2b2")[: len(convs)]
        for branch, conv in zip(self.branches, convs):
            self.add_module(f"bn_branch{branch}", nn.BatchNorm2d(conv.in_channels))
            self.add_module(f"conv_branch{branch}", conv)
        width = convs[0].in_channels
        out = convs[-1].out_channels
        stride = convs[0].stride[0]
        self.conv_branch1 = None
        if width != out or stride != 1:
            self.conv_branch1 = _conv(width, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn_branch2a(x), inplace=True)
        out = self.conv_branch2a(active)
        for branch in self.branches[1:]:
            norm = getattr(self, f"bn_branch{branch}")
            conv = getattr(self, f"conv_branch{branch}")
            out = F.relu(norm(out), inplace=True)
            out = conv(F.dropout2d(out, self.dropout, self.training))
        if self.conv_branch1 is not None:
            x = self.conv_branch1(active)
        return out + x


def _build_group(number: int, group: Group) -> dict[str, Block]:
    """The blocks of a group by their names, bN, bN_1, bN_2 and so on."""
    before = group.before * WIDTH
    middle = group.middle * WIDTH
    after = group.after * WIDTH
    first, second = group.dilations
    conv_a = _conv(before, middle, 3, group.stride, first)
    conv_b = _conv(middle, after, 3, dilation=second)
    blocks = {f"b{number}": Block(conv_a, conv_b)}
    for i in range(1, 1 + group.more_blocks):
        conv_a = _conv(after, middle, 3, dilation=second)
        conv_b = _conv(middle, after, 3, dilation=second)
        blocks[f"b{number}_{i}"] = Block(conv_a, conv_b)
    return blocks


def _build_bottleneck(bottleneck: Bottleneck) -> Block:
    before = bottleneck.before * WIDTH
    narrow = before // 2
    convs = (
        _conv(before, narrow),
        _conv(narrow, before, 3, dilation=bottleneck.dilation),
        _conv(before, 2 * before),
    )
    return Block(*convs, dropout=bottleneck.dropout)


class WideResNet38(FrozenNorms, nn.Sequential):
    """Image (B, 3, H, W), normalised -> its last map (B, 4096, H / 8, W / 8), at least 0.

    Args:
        frozen: the first convolution and every BatchNorm stay as they are, as training from
            ImageNet weights needs it. False trains everything.
    """

    def __init__(self, frozen: bool = True):
        layers = OrderedDict(conv1a=_conv(3, WIDTH, 3))
        for number, group in GROUPS.items():
            layers |= _build_group(number, group)
        for number, bottleneck in BOTTLENECKS.items():
            layers[f"b{number}"] = _build_bottleneck(bottleneck)
        layers["bn7"] = nn.BatchNorm2d(2 * BOTTLENECKS[7].before * WIDTH)
        super().__init__(layers)
        self.frozen = frozen
        if frozen:
            self._freeze_parameters()
        self.train()

    def _freeze_parameters(self) -> None:
        self.conv1a.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(image), inplace=True)


class DeepLabV1(nn.Module):
    """WideResNet38 under DeepLab-v1's head with a large field of view.

    Image (B, 3, H, W), normalised -> class logits (B, K, H / 8, W / 8).

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
        feature = self.backbone(image)
        feature = F.relu(self.bn_fov(self.conv_fov(feature)))
        feature = F.relu(self.bn_fov2(self.conv_fov2(feature)))
        return self.cls_conv(F.dropout(feature, 0.5, self.training))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters: the head's convolutions take ten times the learning rate.

        Biases take twice the rate of their weights, and no weight decay.
        """
        weights = {"params": [], "lr_scale": 1}
        biases = {"params": [], "lr_scale": 2, "weight_decay": 0.0}
        head_weights = {"params": [], "lr_scale": 10}
        head_biases = {"params": [], "lr_scale": 20, "weight_decay": 0.0}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            is_head = name.startswith(("conv_fov", "cls_conv"))
            is_bias = name.endswith("bias")
            if is_head and is_bias:
                group = head_biases
            elif is_head:
                group = head_weights
            elif is_bias:
                group = biases
            else:
                group = weights
            group["params"].append(parameter)
        return [weights, biases, head_weights, head_biases]
