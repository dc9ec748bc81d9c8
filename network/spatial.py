"""Mirror, resize, and the strongest map of each pixel."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .prototypes import unit_cells


def add_mirror(maps: torch.Tensor) -> torch.Tensor:
    """Add the second half of a batch, mirrored back, to the first: (2B, ..., H, W) -> (B, ..., H, W)."""
    straight, mirrored = maps.chunk(2)
    return straight + mirrored.flip(-1)


def side_features(side: nn.Conv2d, layer: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """A side branch: (B, D, H, W) -> (B, D', h, w) float32, each cell divided by its norm, then resized bilinearly to the grid (h, w).

    Interpolation reads at most 2h x 2w cells (align_corners=False), so only these are computed: of layer1 that is a quarter.
    """
    if layer.shape[2:] == grid:
        return unit_cells(side(layer).float())
    (rows, below), (columns, right) = (
        _neighbours(*sizes, layer.device) for sizes in zip(layer.shape[2:], grid)
    )
    read = layer.permute(0, 2, 3, 1)[:, rows[:, None], columns].permute(0, 3, 1, 2)
    upper, lower = unit_cells(side(read).float()).chunk(2, 2)
    former, latter = torch.lerp(upper, lower, below[:, None]).chunk(2, 3)
    return torch.lerp(former, latter, right)


def _neighbours(cells: int, wanted: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear interpolation along a side: (2 * wanted,) the cells before and after each position, (wanted,) weights of those after."""
    position = ((torch.arange(wanted, device=device) + 0.5) * (cells / wanted) - 0.5).clamp_min(0)
    before = position.long()
    return torch.cat([before, (before + 1).clamp_max(cells - 1)]), position - before


def argmax_resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which of the maps (k, h, w) float32, k < 256, is the strongest when they are resized as by `resize_maps`: (H, W) uint8.

    Two maps at a time: all maps of a large photograph would take gigabytes, and with numpy's argmax eval_cam.py takes 1.1 times as long.
    """
    label, highest = np.zeros(size, np.uint8), resize_maps(maps[:1], size)[0].copy()
    for i in range(1, len(maps)):
        one = resize_maps(maps[i : i + 1], size)[0]
        label[one > highest] = i
        np.maximum(highest, one, out=highest)
    return label


def resize_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps (k, h, w) float32 of an image that was shrunk to (k, H, W), bilinear."""
    if maps.shape[1:] == tuple(size):
        return maps
    return F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)[
        0
    ].numpy()
