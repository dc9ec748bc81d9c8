"""The two losses of SIPE, which training adds with equal weight (SIPE equation 8), and that of segmentation networks.

All are computed in float32, also under autocast.
"""

import torch
import torch.nn.functional as F

from .prototypes import peak_normalize


def classification_loss(score: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Multi-label soft-margin loss: score (B, K-1) logits, label (B, K-1) 0/1 -> scalar (SIPE section 3.1)."""
    return F.multilabel_soft_margin_loss(score.float(), label)


def consistency_loss(cam: torch.Tensor, is_cam: torch.Tensor) -> torch.Tensor:
    """General-specific consistency (GSC, SIPE section 3.3): mean |CAM - peak-normalised IS-CAM| over all maps and cells.

    cam, is_cam: (B, K, H, W) in [0, 1] -> scalar. Both sides get a gradient.
    """
    return F.l1_loss(peak_normalize(is_cam), cam)


def segmentation_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    weight: torch.Tensor,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of the labelled pixels, as its sum and the sum of their weights: so the mean can be taken over processes.

    logits (B, K, h, w), resized to label (B, H, W) uint8 class ids or ignore_index; weight (K,) of each class -> two scalars.
    """
    logits = F.interpolate(
        logits.float(), label.shape[1:], mode="bilinear", align_corners=align_corners
    )
    total = F.cross_entropy(
        logits, label.long(), weight, ignore_index=ignore_index, reduction="sum"
    )
    known = label != ignore_index
    return total, (weight[label.long() * known] * known).sum()


def class_weights(counts: torch.Tensor, balance: float) -> torch.Tensor:
    """Class weights from the pixels of each class: counts (K,) -> (K,) float32, 1 / share ** balance, of mean 1 over the pixels.

    balance 0 weighs all pixels alike, 1 all classes. A class without pixels has weight 0.
    """
    share = counts.double() / counts.sum()
    weight = torch.where(share > 0, share**-balance, 0)
    return (weight / (share * weight).sum()).float()
