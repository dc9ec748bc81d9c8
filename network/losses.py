"""The two losses of SIPE and that of segmentation networks.

SIPE's training adds its two with equal weight (SIPE equation 8). All are computed in float32,
also under autocast.
"""

import torch
import torch.nn.functional as F

from .prototypes import peak_normalize


def classification_loss(score: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Multi-label soft-margin loss (SIPE section 3.1).

    score (B, K-1) logits, tags (B, K-1) 0/1 -> scalar.
    """
    return F.multilabel_soft_margin_loss(score.float(), tags)


def consistency_loss(cam: torch.Tensor, is_cam: torch.Tensor) -> torch.Tensor:
    """General-specific consistency (GSC, SIPE section 3.3).

    The mean |CAM - peak-normalised IS-CAM| over all maps and cells.

    cam, is_cam: (B, K, H, W) in [0, 1] -> scalar. Both sides get a gradient.
    """
    return F.l1_loss(peak_normalize(is_cam), cam)


def segmentation_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the cross entropy of the labelled pixels, and the weights of these pixels.

    The loss is the quotient: the caller can first add up both sums of all processes.

    Args:
        logits: (B, K, h, w), resized to the target.
        target: (B, H, W) uint8, class ids or ignore_index.
        weight: (K,) of each class.

    Returns:
        Two scalars.
    """
    size = target.shape[1:]
    logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)
    target = target.long()
    total = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="sum")
    is_labelled = target != ignore_index
    weights = weight[target * is_labelled] * is_labelled
    return total, weights.sum()


def class_weights(counts: torch.Tensor, balance: float) -> torch.Tensor:
    """Weigh classes by their share of the pixels: 1 / share ** balance, of mean 1 over the pixels.

    Args:
        counts: (K,) pixels of each class.
        balance: 0 weighs all pixels alike, 1 all classes.

    Returns:
        (K,) float32; 0 for a class without pixels.
    """
    share = counts.double() / counts.sum()
    weight = torch.where(share > 0, share**-balance, 0)
    return (weight / (share * weight).sum()).float()
