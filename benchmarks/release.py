"""What network/ computes, written down as the authors' program does.

Prototypes by broadcasting, under masks of the crop's size; every BatchNorm after its convolution; side branches on all cells.
"""

import torch
import torch.nn.functional as F
from torchvision.models.resnet import Bottleneck

from network.prototypes import EPSILON, unit_cells
from network.sipe import SIPE


def describe(model: SIPE, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SIPE.describe: (B, 3, H, W) -> class logits (B, K-1, h, w), layer4 (B, 2048, h, w), hierarchical feature (B, 768, h, w)."""
    trunk, layers, sides = model.resnet50, [], []
    layer = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(image))))
    for i in range(1, 5):
        for block in getattr(trunk, f"layer{i}"):
            layer = Bottleneck.forward(block, layer)
        layers.append(layer)
        sides.append(unit_cells(getattr(model, f"side{i}")(layer.detach()).float()))
    features = [F.interpolate(side, layer.shape[2:], mode="bilinear", align_corners=False) for side in sides]
    return model.classifier(layer), layer, torch.cat(features, 1)


def full_masks(label: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Label (B, K-1) 0/1 and inside (B, H, W) bool at the crop's size -> valid (B, K, H, W) 0/1."""
    background = inside[:, None].float()
    return torch.cat([background, background * label[:, :, None, None]], 1)


@torch.no_grad()
def locate_seeds(cam: torch.Tensor, features: torch.Tensor, valid: torch.Tensor, background_scale: float = 0.5) -> torch.Tensor:
    """Seeds (B, K, H, W) 0/1 by way of the similarity of all cells times the maps of all classes, B x K x N x N."""
    cells = features.flatten(2)
    cells = cells / (cells.norm(dim=1, keepdim=True) + EPSILON)
    similarity = (cells.transpose(1, 2) @ cells).relu_()[:, None]
    maps = cam.flatten(2)[:, :, None]
    inter = (similarity * maps).sum(3)
    fit = inter / (similarity.sum(3) + maps.sum(3) - inter)
    fit[:, 0] *= background_scale
    return torch.zeros_like(fit).scatter_(1, fit.argmax(1, keepdim=True), 1).view_as(cam) * valid


def pool_prototypes(seeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Prototypes (B, K, D) by way of a copy of all features for each class, B x K x D x N."""
    return (seeds[:, :, None] * features[:, None]).mean((3, 4))


def activate(prototypes: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """IS-CAM (B, K, H, W) in [0, 1] by way of the product of each cell's and each prototype's channels, B x K x D x N.

    F.cosine_similarity of today's torch would keep several tensors of that size.
    """
    product = (features[:, None] * prototypes[..., None, None]).sum(2)
    norms = features.norm(dim=1)[:, None] * prototypes.norm(dim=2)[..., None, None]
    return (product / norms.clamp_min(1e-8)).relu()
