"""The backbone: torchvision's ResNet with one feature map a layer, and as SIPE uses it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck, ResNet

WIDTHS = (64, 256, 512, 1024, 2048)
BLOCKS = {"resnet101": (3, 4, 23, 3), "resnet50": (3, 4, 6, 3)}  # of layer1 to layer4


def freeze_batchnorm(network: nn.Module) -> None:
    """Make every BatchNorm of a network use its running statistics, also in training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class FrozenNorms(nn.Module):
    """A backbone whose BatchNorms always keep their running statistics if `frozen` is true."""

    frozen: bool

    def train(self, mode: bool = True) -> "FrozenNorms":
        super().train(mode)
        if self.frozen:
            freeze_batchnorm(self)
        return self


def conv_bn(conv: nn.Conv2d, norm: nn.Module, feature: torch.Tensor) -> torch.Tensor:
    """A convolution without bias, then its BatchNorm: (B, D, H, W) -> (B, D', H', W').

    A frozen BatchNorm is a factor and a shift of each channel. Folded into the convolution, they
    save a map that the gradient would keep: a training step takes a fifth less memory than
    torchvision's.
    """
    is_folded = isinstance(norm, nn.Identity)
    if norm.training or is_folded:
        return norm(conv(feature))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    return F.conv2d(feature, weight, bias, conv.stride, conv.padding, conv.dilation)


class FoldedBottleneck(Bottleneck):
    """torchvision's block, computed by `conv_bn`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(conv_bn(self.conv1, self.bn1, x))
        out = self.relu(conv_bn(self.conv2, self.bn2, out))
        out = conv_bn(self.conv3, self.bn3, out)
        if self.downsample is not None:
            x = conv_bn(*self.downsample, x)
        out += x
        return self.relu(out)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm of a network's ResNet into its convolution, for good: for inference."""
    network.eval()
    for module in list(network.modules()):
        if not isinstance(module, FoldedBottleneck | ResNetMaps):
            continue
        for i in range(1, 4):  # a bottleneck has three convolutions, the stem has one
            if hasattr(module, f"conv{i}"):
                _fold(module, f"conv{i}", f"bn{i}")
        if getattr(module, "downsample", None):
            _fold(module.downsample, "0", "1")
    return network


def _fold(owner: nn.Module, conv: str, norm: str) -> None:
    """Replace a convolution of a module by one that does the work of its BatchNorm, too."""
    folded = fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm))
    setattr(owner, conv, folded)
    setattr(owner, norm, nn.Identity())


class ResNetMaps(ResNet):
    """Image to five feature maps: torchvision's ResNet without its pooling and its 1000-way head.

    It is computed by `conv_bn`.

    Args:
        name: one of BLOCKS.
        frozen: stem, layer1 and layer2 do not train, so they need no autograd graph.
        options: of torchvision's class.
    """

    def __init__(self, name: str, frozen: bool = False, **options: Any):
        super().__init__(FoldedBottleneck, BLOCKS[name], **options)
        del self.avgpool, self.fc
        self.frozen = frozen
        for module in (self.conv1, self.bn1, self.layer1, self.layer2):
            module.requires_grad_(not frozen)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the maps of the stem and of layer1 to layer4.

        (B, 3, H, W) normalised -> stem (B, 64, H/4, W/4), layer1 (B, 256, H/4, W/4), layer2
        (B, 512, H/8, W/8), and layer3 (B, 1024, ...) and layer4 (B, 2048, ...) at the strides that
        they were built with.
        """
        needs_graph = torch.is_grad_enabled() and not self.frozen
        with torch.set_grad_enabled(needs_graph):
            stem = self.maxpool(self.relu(conv_bn(self.conv1, self.bn1, image)))
            layer1 = self.layer1(stem)
            layer2 = self.layer2(layer1)
        layer3 = self.layer3(layer2)
        layer4 = self.layer4(layer3)
        return stem, layer1, layer2, layer3, layer4


class ResNet50(FrozenNorms, ResNetMaps):
    """SIPE's backbone: a ResNet-50 of strides 4, 4, 8, 16 and 16 (SIPE section 4.1).

    The last stride is removed and nothing is dilated.

    Args:
        frozen: BatchNorm keeps its statistics, and only layer3 and layer4 train, as from ImageNet
            weights. False: every layer trains and BatchNorm learns its statistics, from scratch.
    """

    widths = WIDTHS  # of its maps

    def __init__(self, frozen: bool = True):
        super().__init__("resnet50", frozen)
        first_block = self.layer4[0]
        first_block.conv2.stride = (1, 1)
        first_block.downsample[0].stride = (1, 1)
        self.train()
