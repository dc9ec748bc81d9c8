"""The two losses of SIPE; training adds them with equal weight (SIPE equation 8)."""

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
