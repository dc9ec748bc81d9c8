"""DeepLab on torchvision's ResNet: the segmentation networks that learn from pseudo labels (SIPE section 4.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from .resnet import BLOCKS, WIDTHS, ResNetMaps, freeze_batchnorm

HEADS = ("deeplabv2", "deeplabv3")
NETWORKS = tuple(f"{head}_{backbone}" for head in HEADS for backbone in BLOCKS)
RATES = {"deeplabv2": (6, 12, 18, 24), "deeplabv3": (12, 24, 36)}  # of the atrous convolutions at stride 8, as published


class MultiRateClassifier(nn.Module):
    """DeepLab-v2's classifier: the sum of 3x3 convolutions at several dilation rates (Chen et al., TPAMI 2018, ASPP-L)."""

    def __init__(self, width: int, num_classes: int, rates: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(width, num_classes, 3, padding=rate, dilation=rate) for rate in rates)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        return sum(branch(feature) for branch in self.branches)


class DeepLab(nn.Module):
    """A dilated ResNet with frozen BatchNorm statistics under DeepLab-v2's classifier or torchvision's DeepLab-v3 head.

    Under autocast the logits come at lower precision; compute the loss and the probabilities from them in float32.

    Args:
        network: one of NETWORKS.
        num_classes: K, background included.
        output_stride: 8, or 16 for a quarter of the work in layer3 and layer4; the head's dilation rates follow it.
    """

    def __init__(self, network: str, num_classes: int, output_stride: int = 8):
        super().__init__()
        head, backbone = network.split("_")
        rates = [rate * 8 // output_stride for rate in RATES[head]]
        self.backbone = ResNetMaps(backbone, replace_stride_with_dilation=[False, output_stride == 8, True])
        self.classifier = {"deeplabv2": MultiRateClassifier, "deeplabv3": DeepLabHead}[head](WIDTHS[-1], num_classes, rates)
        self.train(self.training)

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], num_classes: int) -> "DeepLab | None":
        """The network that train_seg.py's arguments name; None where they name none."""
        network, output_stride = arguments.get("network"), arguments.get("output_stride")
        return cls(network, num_classes, output_stride) if network in NETWORKS and output_stride in (8, 16) else None

    def train(self, mode: bool = True) -> "DeepLab":
        super().train(mode)
        freeze_batchnorm(self.backbone)
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> class logits (B, K, H / stride, W / stride), rounded up."""
        return self.classifier(self.backbone(image)[-1])
