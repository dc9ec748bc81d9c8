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
    """Bring the maps of all scales to one size and average them.

    grids: (k, h, w) a scale, on any device. Returns (k, H, W) float32; IS-CAMs are then normalised to a maximum of 1 a map,
    general CAMs are not: their own background already fits them. background: strength of the first map everywhere, if it is given.
    """
    device, (height, width) = grids[0].device, size
    rows = torch.cat(
        [_interpolation(grid.shape[1], height, device) @ grid.float() for grid in grids], 2
    )
    columns = torch.cat([_interpolation(grid.shape[2], width, device) for grid in grids], 1)
    total = rows @ columns.T
    maps = peak_normalize(total) if normalize else total / len(grids)
    if background is not None:
        maps[0] = background
    return maps


@functools.lru_cache(
    maxsize=32
)  # an image takes eight, of 0.1 MB each in VOC and of 8 MB where a side has 4,000 pixels
def _interpolation(cells: int, pixels: int, device: torch.device) -> torch.Tensor:
    """(pixels, cells) the weights of bilinear interpolation along one side (align_corners=False)."""
    return F.interpolate(
        torch.eye(cells, device=device)[None], pixels, mode="linear", align_corners=False
    )[0].T
