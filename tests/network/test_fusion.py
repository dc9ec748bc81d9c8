"""Maps of several scales become one map a class."""

import pytest
import torch
import torch.nn.functional as F

from network.fusion import fuse_scales

SIZE = (12, 16)


@pytest.fixture
def grids():
    torch.manual_seed(0)
    return [torch.rand(3, *grid) for grid in ((3, 4), (2, 2), (6, 8))]


def sum_of_scales(grids: list[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros(3, *SIZE)
    for grid in grids:
        total += F.interpolate(grid[None], SIZE, mode="bilinear", align_corners=False)[0]
    return total


def test_general_cams_are_averaged(grids):
    maps = fuse_scales(grids, SIZE, normalize=False)
    torch.testing.assert_close(maps, sum_of_scales(grids) / 3, atol=1e-6, rtol=0)


def test_is_cams_have_a_maximum_of_one(grids):
    total = sum_of_scales(grids)
    expected = total / (total.amax((1, 2), keepdim=True) + 1e-5)
    maps = fuse_scales(grids, SIZE, normalize=True)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)


def test_an_empty_map_stays_empty():
    assert not fuse_scales([torch.zeros(1, 2, 2)], (4, 4), normalize=True).any()


def test_a_constant_takes_the_place_of_the_background(grids):
    maps = fuse_scales(grids, SIZE, True, 0.35)
    assert (maps[0] == 0.35).all()
    assert torch.equal(maps[1:], fuse_scales(grids, SIZE, True)[1:])
