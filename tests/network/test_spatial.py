"""Mirrors, and side branches that are computed only where interpolation reads them."""

import pytest
import torch
import torch.nn.functional as F

from network.prototypes import unit_cells
from network.spatial import add_mirror, side_features


def test_the_second_half_of_a_batch_is_mirrored_back():
    maps = torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]])[:, None]
    assert add_mirror(maps).tolist() == [[[11, 22, 33]]]


SIZES = [
    (32, 48),
    (31, 47),
    (33, 64),
    (16, 24),
    (17, 1),
    (8, 12),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_side_branch_is_computed_where_interpolation_reads_it(size):
    """Against all cells, then resized; at its own size nothing is resized."""
    torch.manual_seed(0)
    side = torch.nn.Conv2d(6, 5, 1, bias=False)
    layer = torch.randn(2, 6, *size)
    grid = torch.Size((8, 12))
    expected = F.interpolate(unit_cells(side(layer)), grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(side_features(side, layer, grid), expected, atol=1e-6, rtol=0)
