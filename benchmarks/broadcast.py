"""The formulas of network/prototypes.py as the authors' program writes them down: by broadcasting, under masks of the crop's size."""

import torch

from network.prototypes import EPSILON


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
