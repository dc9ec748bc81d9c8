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
    """A backbone whose BatchNorms keep their running statistics, also in training, while `frozen` is true."""

    frozen: bool

    def train(self, mode: bool = True) -> "FrozenNorms":
        super().train(mode)
        if self.frozen:
            freeze_batchnorm(self)
        return self


def conv_bn(conv: nn.Conv2d, norm: nn.Module, feature: torch.Tensor) -> torch.Tensor:
    """A convolution without bias, then its BatchNorm: (B, D, H, W) -> (B, D', H', W').

    A frozen BatchNorm is a factor and a shift of each channel. Folded into the convolution, they save a map that the gradient would keep:
    a training step takes a fifth less memory than torchvision's.
    """
    if norm.training or isinstance(
        norm, nn.Identity
    ):  # learns its statistics, or is folded already
        return norm(conv(feature))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight, bias = conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return F.conv2d(feature, weight, bias, conv.stride, conv.padding, conv.dilation)


class FoldedBottleneck(Bottleneck):
    """torchvision's block, computed by `conv_bn`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(conv_bn(self.conv1, self.bn1, x))
        out = self.relu(conv_bn(self.conv2, self.bn2, out))
        out = conv_bn(self.conv3, self.bn3, out)
        out += x if self.downsample is None else conv_bn(*self.downsample, x)
        return self.relu(out)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Prepare a network for inference: fold each BatchNorm of its ResNet into its convolution, for good."""
    network.eval()
    for module in [*network.modules()]:
        if isinstance(module, (FoldedBottleneck, ResNetMaps)):
            pairs = [
                (module, f"conv{i}", f"bn{i}") for i in range(1, 4) if hasattr(module, f"conv{i}")
            ]
            if getattr(module, "downsample", None):
                pairs.append((module.downsample, "0", "1"))
            for owner, conv, norm in pairs:
                setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
                setattr(owner, norm, nn.Identity())
    return network


class ResNetMaps(ResNet):
    """Image to five feature maps: torchvision's ResNet, computed by `conv_bn`, without its pooling and its 1000-way head.

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
        """(B, 3, H, W) normalised -> stem and layer1 (B, 64 and 256, H/4, W/4), layer2 (B, 512, H/8, W/8), layer3 and layer4
        (B, 1024 and 2048) at the strides that they were built with."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            stem = self.maxpool(self.relu(conv_bn(self.conv1, self.bn1, image)))
            layer1 = self.layer1(stem)
            layer2 = self.layer2(layer1)
        layer3 = self.layer3(layer2)
        return stem, layer1, layer2, layer3, self.layer4(layer3)


class ResNet50(FrozenNorms, ResNetMaps):
    """SIPE's backbone: strides 4, 4, 8, 16 and 16, as the last stride is removed and nothing is dilated (SIPE section 4.1).

    Pretrained, its BatchNorm statistics stay frozen and only layer3 and layer4 train.
    From scratch (`frozen=False`) every layer trains and BatchNorm learns its statistics.
    """

    widths = WIDTHS  # of its maps

    def __init__(self, frozen: bool = True):
        super().__init__("resnet50", frozen)
        self.layer4[0].conv2.stride = self.layer4[0].downsample[0].stride = (1, 1)
        self.train()
