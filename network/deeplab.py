"""The segmentation networks that learn from pseudo labels (SIPE section 4.1): DeepLab on torchvision's ResNet, and their registry."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from .resnet import BLOCKS, WIDTHS, FoldedBottleneck, ResNetMaps, freeze_batchnorm
from .wideresnet import Block, DeepLabV1

HEADS = ("deeplabv2", "deeplabv3")
RATES = {
    "deeplabv2": (6, 12, 18, 24),
    "deeplabv3": (12, 24, 36),
}  # of the atrous convolutions at stride 8, as published


class MultiRateClassifier(nn.Module):
    """DeepLab-v2's classifier: the sum of 3x3 convolutions at several dilation rates (Chen et al., TPAMI 2018, ASPP-L)."""

    def __init__(self, width: int, num_classes: int, rates: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(width, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        return sum(branch(feature) for branch in self.branches)


class DeepLab(nn.Module):
    """A dilated ResNet with frozen BatchNorm statistics under DeepLab-v2's classifier or torchvision's DeepLab-v3 head.

    Under autocast the logits come at lower precision; compute the loss and the probabilities from them in float32.

    Args:
        network: HEAD_BACKBONE, of HEADS and BLOCKS.
        num_classes: K, background included.
        output_stride: 8, or 16 for a quarter of the work in layer3 and layer4; the head's dilation rates follow it.
        frozen: the backbone keeps its BatchNorm statistics, as from ImageNet weights. False: it learns them, from scratch.
    """

    align_corners = False  # when its logits are resized
    mean_of_logits = False  # over scales and mirrors: the mean is of probabilities
    crf: Mapping[str, Any] = {}  # what differs from DeepLab-v2's settings of the dense CRF

    def __init__(self, network: str, num_classes: int, output_stride: int = 8, frozen: bool = True):
        super().__init__()
        self.frozen = frozen
        head, backbone = network.split("_")
        rates = [rate * 8 // output_stride for rate in RATES[head]]
        self.backbone = ResNetMaps(
            backbone, replace_stride_with_dilation=[False, output_stride == 8, True]
        )
        self.classifier = {"deeplabv2": MultiRateClassifier, "deeplabv3": DeepLabHead}[head](
            WIDTHS[-1], num_classes, rates
        )
        self.train(self.training)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer: the classifier takes ten times the rate."""
        return [
            {"params": [*self.backbone.parameters()], "lr_scale": 1},
            {"params": [*self.classifier.parameters()], "lr_scale": 10},
        ]

    def train(self, mode: bool = True) -> "DeepLab":
        super().train(mode)
        if self.frozen:
            freeze_batchnorm(self.backbone)
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> class logits (B, K, H / stride, W / stride), rounded up."""
        return self.classifier(self.backbone(image)[-1])


# name -> (num_classes, output_stride, frozen) -> network; a network has `backbone`, `parameter_groups` and the three attributes of DeepLab
NETWORKS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    **{
        f"{head}_{backbone}": functools.partial(DeepLab, f"{head}_{backbone}")
        for head in HEADS
        for backbone in BLOCKS
    },
    "deeplabv1_wideresnet38": lambda num_classes, _, frozen: DeepLabV1(num_classes, frozen),
}


def build(arguments: Mapping[str, Any], num_classes: int) -> nn.Module | None:
    """The network that train_seg.py's arguments name; None where they name none."""
    network, output_stride = arguments.get("network"), arguments.get("output_stride")
    if (
        not isinstance(network, str)
        or network not in NETWORKS
        or type(output_stride) is not int
        or output_stride not in (8, 16)
    ):
        return None
    return NETWORKS[network](num_classes, output_stride, arguments.get("weights") != "none")


def checkpoint_blocks(network: nn.Module) -> None:
    """Keep only the input of each block of a backbone for the gradient, and compute the block once more there: less memory, more time."""
    for block in network.modules():
        if isinstance(block, (FoldedBottleneck, Block)):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
