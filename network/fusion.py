"""One map a class from the maps of several scales."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .prototypes import peak_normalize


def fuse_scales(
    grids: Sequence[torch.Tensor],
    size: tuple[int, int],
    normalize: bool,
    background: float | None = None,
) -> torch.Tensor:
    """Resize the maps of all scales to one size, bilinearly, and average them.

    Args:
        grids: (k, h, w) of each scale, background first, on any device.
        size: (H, W), pixels.
        normalize: scale each map to a maximum of 1. IS-CAMs need it. General CAMs do not: their own
            background already fits them.
        background: strength of the first map everywhere. None: its own.

    Returns:
        (k, H, W) float32.
    """
    device = grids[0].device
    height, width = size
    resized_rows = []
    column_weights = []
    for grid in grids:
        row_weights = _interpolation(grid.shape[1], height, device)
        resized_rows.append(row_weights @ grid.float())
        column_weights.append(_interpolation(grid.shape[2], width, device))
    # one product resizes the columns of all scales and adds the scales up
    total = torch.cat(resized_rows, 2) @ torch.cat(column_weights, 1).T
    maps = total / len(grids)
    if normalize:
        maps = peak_normalize(total)
    if background is not None:
        maps[0] = background
    return maps


# An image takes eight of them: 0.1 MB each in VOC, 8 MB if a side has 4,000 pixels.
@functools.lru_cache(maxsize=32)
def _interpolation(cells: int, pixels: int, device: torch.device) -> torch.Tensor:
    """Weights of bilinear interpolation along one side (align_corners=False): (pixels, cells)."""
    one_cell_each = torch.eye(cells, device=device)[None]
    weights = F.interpolate(one_cell_each, pixels, mode="linear", align_corners=False)
    return weights[0].T
