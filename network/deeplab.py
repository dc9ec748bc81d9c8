"""The segmentation networks that learn from pseudo labels (SIPE section 4.1).

DeepLab on torchvision's ResNet is defined here, and the registry holds all networks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from .resnet import WIDTHS, FoldedBottleneck, ResNetMaps, freeze_batchnorm
from .wideresnet import Block, DeepLabV1

OUTPUT_STRIDES = (8, 16)


class MultiRateClassifier(nn.Module):
    """DeepLab-v2's classifier: the sum of 3x3 convolutions at several dilation rates.

    Chen et al., TPAMI 2018, ASPP-L.
    """

    def __init__(self, width: int, num_classes: int, rates: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList()
        for rate in rates:
            branch = nn.Conv2d(width, num_classes, 3, padding=rate, dilation=rate)
            self.branches.append(branch)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        return sum(branch(feature) for branch in self.branches)


# name -> (width, num_classes, rates) -> head
HEADS = {"deeplabv2": MultiRateClassifier, "deeplabv3": DeepLabHead}
# dilation rates of the heads' convolutions at stride 8, as published
RATES = {"deeplabv2": (6, 12, 18, 24), "deeplabv3": (12, 24, 36)}


class DeepLab(nn.Module):
    """A dilated ResNet under DeepLab-v2's classifier or torchvision's DeepLab-v3 head.

    Under autocast the logits come at lower precision; compute the loss and the probabilities from
    them in float32.

    Args:
        network: HEAD_BACKBONE, of HEADS and of resnet.BLOCKS.
        num_classes: K, background included.
        output_stride: 8, or 16 for a quarter of the work in layer3 and layer4; the head's dilation
            rates follow it.
        frozen: the backbone keeps its BatchNorm statistics, as training from ImageNet weights needs
            it. False: it learns them, from scratch.
    """

    align_corners = False  # when its logits are resized
    mean_of_logits = False  # over scales and mirrors: the mean is of probabilities
    crf: Mapping[str, Any] = {}  # what differs from DeepLab-v2's settings of the dense CRF

    def __init__(self, network: str, num_classes: int, output_stride: int = 8, frozen: bool = True):
        super().__init__()
        self.frozen = frozen
        head, backbone = network.split("_")
        # instead of strides, in layer2, layer3 and layer4
        dilate = [False, output_stride == 8, True]
        self.backbone = ResNetMaps(backbone, replace_stride_with_dilation=dilate)
        rates = [rate * 8 // output_stride for rate in RATES[head]]
        self.classifier = HEADS[head](WIDTHS[-1], num_classes, rates)
        self.train(self.training)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters: the classifier takes ten times the learning rate."""
        backbone = list(self.backbone.parameters())
        classifier = list(self.classifier.parameters())
        return [{"params": backbone, "lr_scale": 1}, {"params": classifier, "lr_scale": 10}]

    def train(self, mode: bool = True) -> "DeepLab":
        super().train(mode)
        if self.frozen:
            freeze_batchnorm(self.backbone)
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> class logits (B, K, H / stride, W / stride), rounded up."""
        return self.classifier(self.backbone(image)[-1])


@dataclass(frozen=True)
class NetworkSpec:
    """A segmentation network of the registry.

    Attributes:
        head, backbone: as in its name, HEAD_BACKBONE.
        build: makes it of num_classes, output_stride and frozen (`build_network`). The network has
            `backbone`, `parameter_groups` and the three attributes of DeepLab.
    """

    head: str
    backbone: str
    build: Callable[[int, int, bool], nn.Module]

    @property
    def name(self) -> str:
        return f"{self.head}_{self.backbone}"


def deeplab_spec(head: str, backbone: str) -> NetworkSpec:
    """Register a head of HEADS on a backbone of resnet.BLOCKS."""
    build = functools.partial(DeepLab, f"{head}_{backbone}")
    return NetworkSpec(head, backbone, build)


def _build_deeplabv1(num_classes: int, output_stride: int, frozen: bool) -> DeepLabV1:
    return DeepLabV1(num_classes, frozen)  # at stride 8 only


SPECS = (
    deeplab_spec("deeplabv2", "resnet101"),
    deeplab_spec("deeplabv2", "resnet50"),
    deeplab_spec("deeplabv3", "resnet101"),
    deeplab_spec("deeplabv3", "resnet50"),
    NetworkSpec("deeplabv1", "wideresnet38", _build_deeplabv1),
)
NETWORKS: dict[str, NetworkSpec] = {spec.name: spec for spec in SPECS}


def build_network(
    name: str, num_classes: int, output_stride: int = 8, frozen: bool = True
) -> nn.Module:
    """Build a segmentation network with random weights.

    Args:
        name: of NETWORKS.
        num_classes: K, background included.
        output_stride: one of OUTPUT_STRIDES; deeplabv1_wideresnet38 has 8 in any case.
        frozen: the backbone keeps its BatchNorm statistics. False: it learns them, from scratch.

    Raises:
        ValueError: for another name or output stride.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"network {name}: no such network; use one of {', '.join(NETWORKS)}")
    if type(output_stride) is not int or output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output stride {output_stride}: use 8 or 16")
    return NETWORKS[name].build(num_classes, output_stride, frozen)


def checkpoint_blocks(network: nn.Module) -> None:
    """Keep only the input of each block of a backbone for the gradient.

    The gradient computes the block once more: less memory, more time.
    """
    for block in network.modules():
        if isinstance(block, FoldedBottleneck | Block):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
