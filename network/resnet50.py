"""The backbone: torchvision's ResNet-50 with one feature map a layer, at strides 4, 4, 8, 16 and 16."""

import torch
from torch import nn
from torchvision.models import resnet50

WIDTHS = (64, 256, 512, 1024, 2048)


def keep_statistics(network: nn.Module) -> None:
    """Let every BatchNorm of a network use the statistics that it has, also in training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class ResNet50(nn.Module):
    """Image to five feature maps; the last stride is removed and nothing is dilated (SIPE section 4.1).

    Pretrained, it keeps its BatchNorm statistics for good and trains layer3 and layer4 alone, so that layer1 and layer2
    need no autograd graph. From scratch (`frozen=False`) every layer trains and BatchNorm learns its statistics.
    """

    def __init__(self, frozen: bool = True):
        super().__init__()
        trunk = resnet50(weights=None)
        trunk.layer4[0].conv2.stride = (1, 1)
        trunk.layer4[0].downsample[0].stride = (1, 1)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(trunk, name))
        self.frozen = frozen
        for module in (self.conv1, self.bn1, self.layer1, self.layer2):
            module.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ResNet50":
        super().train(mode)
        if self.frozen:
            keep_statistics(self)
        return self

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) normalised -> stem and layer1 (B, 64 and 256, H/4, W/4), layer2 (B, 512, H/8, W/8), layer3 and layer4
        (B, 1024 and 2048, H/16, W/16)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            stem = self.maxpool(self.relu(self.bn1(self.conv1(image))))
            layer1 = self.layer1(stem)
            layer2 = self.layer2(layer1)
        layer3 = self.layer3(layer2)
        return stem, layer1, layer2, layer3, self.layer4(layer3)
