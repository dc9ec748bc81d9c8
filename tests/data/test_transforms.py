"""Augmentation, scales and normalization: sizes, places, odds and worked values."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.images import IGNORE
from data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    augment,
    augment_pair,
    jitter,
    normalize,
    resize,
    shrink,
)
from network.spatial import argmax_resized, resize_maps


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def span(line: np.ndarray) -> tuple[int, int]:
    """The first True of a line and one past the last, between which there is no gap."""
    places = np.flatnonzero(line)
    first = int(places[0])
    end = int(places[-1]) + 1
    assert len(places) == end - first
    return first, end


def spans(inside: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and the columns that hold the image, which is a rectangle without holes."""
    rows = span(inside.any(1))
    columns = span(inside.any(0))
    assert inside[slice(*rows), slice(*columns)].all()
    return rows, columns


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        # round() goes to the even neighbour: 187.5 -> 188 and 562.5 -> 562
        ((375, 500), 0.5, (188, 250)),
        ((375, 500), 1.5, (562, 750)),
        ((1, 100), 0.1, (1, 10)),  # no side vanishes
    ],
)
def test_resize_rounds_each_side(size, scale, expected):
    assert resize(white(*size), scale).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((375, 500), 100, (75, 100)),
        ((500, 375), 100, (100, 75)),
        ((48, 48), 47, (47, 47)),
        ((2, 900), 90, (1, 90)),
        ((301, 299), 7, (7, 7)),
    ],
)
def test_an_image_is_shrunk_to_its_longer_side(size, max_side, expected):
    assert shrink(noise(*size), max_side).shape == (*expected, 3)


@pytest.mark.parametrize("max_side", [500, 501, 0])
def test_an_image_is_never_made_larger(max_side):
    image = noise(375, 500)
    assert np.array_equal(shrink(image, max_side), image)


def test_shrinking_averages_instead_of_picking():
    stripes = white(8, 64)
    stripes[:, ::2] = 0
    shrunk = resize(stripes, 1 / 8)[:, 1:-1].astype(int)
    assert np.abs(shrunk - 127).max() < 10


def test_maps_are_interpolated_between_their_cells():
    maps = np.array([[[0.0, 1.0]]], np.float32)
    row = [0, 0.25, 0.75, 1]
    np.testing.assert_allclose(resize_maps(maps, (2, 4))[0], [row, row])
    assert resize_maps(maps, (1, 2)) is maps


def test_the_argmax_is_that_of_the_resized_maps():
    maps = np.random.default_rng(0).random((4, 5, 7), np.float32)
    maps[3] = maps[1]  # of equal ones the first
    argmax = argmax_resized(maps, (50, 63))
    assert np.array_equal(argmax, resize_maps(maps, (50, 63)).argmax(0))
    assert argmax.dtype == np.uint8


def test_a_large_image_is_cut_everywhere_and_half_of_the_time_flipped():
    height, width, side = 8, 12, 6
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 10 * np.arange(height)[:, None]  # ten times the row
    image[..., 1] = 10 * np.arange(width)
    before = image.copy()
    corners = set()
    flips = 0
    for seed in range(300):
        crop, inside = augment(image, (width, width), side, np.random.default_rng(seed))
        assert inside.all()
        rows = crop[:, 0, 0] // 10
        columns = crop[0, :, 1] // 10
        top = int(rows[0])
        assert rows.tolist() == list(range(top, top + side))
        left = int(columns.min())
        corners.add((top, left))
        flips += int(columns[-1] < columns[0])
    assert corners == set(np.ndindex(height - side + 1, width - side + 1))
    assert 110 < flips < 190
    assert np.array_equal(image, before)


def test_one_side_may_be_padded_and_the_other_cut():
    _, inside = augment(white(10, 40), (40, 40), 20, np.random.default_rng(0))
    (top, bottom), (left, right) = spans(inside)
    assert bottom - top == 10
    assert right - left == 20


class TestAugmentPair:
    TARGETS = np.array([0, 7, IGNORE], np.uint8)

    @pytest.fixture
    def target(self) -> np.ndarray:
        """Blocks of three values."""
        values = np.random.default_rng(0).integers(0, 3, (5, 7))
        return self.TARGETS[values.repeat(8, 0).repeat(8, 1)]

    @pytest.fixture
    def image(self, target: np.ndarray) -> np.ndarray:
        """Shows each value of the target in a channel of its own."""
        return 255 * (target[..., None] == self.TARGETS).astype(np.uint8)

    @pytest.mark.parametrize(
        ("scales", "crop_size"),
        [
            ((1.0, 1.0), 24),
            ((0.5, 1.5), 24),
            ((0.5, 1.5), 64),
            ((2.0, 2.0), 48),
        ],
    )
    def test_an_image_and_its_target_are_cut_alike(self, image, target, scales, crop_size):
        # where blocks meet, a resized image mixes their colours
        least_share = 1 if scales == (1.0, 1.0) else 0.95
        for seed in range(20):
            rng = np.random.default_rng(seed)
            crop, inside, target_crop = augment_pair(image, target, scales, crop_size, rng)
            assert target_crop.shape == (crop_size, crop_size)
            assert target_crop.dtype == np.uint8
            shown = self.TARGETS[crop.argmax(2)]
            assert (shown == target_crop)[inside].mean() >= least_share
            assert np.isin(target_crop, self.TARGETS).all()
            assert (target_crop[~inside] == IGNORE).all()


@pytest.mark.parametrize("seed", range(10))
class TestDraws:
    """Size, flip, row, column: another order would change every training, resumed ones halfway."""

    CROP_SIZE = 41

    def assert_drawn(
        self, crop: np.ndarray, inside: np.ndarray, scale: float, rng: np.random.Generator
    ) -> None:
        """The crop is that of noise(64, 64) at this scale, with the next draws of rng."""
        image = resize(noise(64, 64), scale)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        height, width = image.shape[:2]
        top = int(rng.integers(self.CROP_SIZE - height + 1))
        left = int(rng.integers(self.CROP_SIZE - width + 1))
        assert spans(inside) == ((top, top + height), (left, left + width))
        assert np.array_equal(crop[inside], image.reshape(-1, 3))
        assert not crop[~inside].any()
        assert crop.shape == (self.CROP_SIZE, self.CROP_SIZE, 3)
        assert crop.dtype == np.uint8
        assert inside.shape == (self.CROP_SIZE, self.CROP_SIZE)
        assert inside.dtype == bool

    def test_of_an_image_come_in_the_published_order(self, seed):
        rng = np.random.default_rng(seed)
        crop, inside = augment(noise(64, 64), (20, 40), self.CROP_SIZE, rng)
        again = np.random.default_rng(seed)
        scale = again.integers(20, 41) / 64
        self.assert_drawn(crop, inside, scale, again)

    def test_of_a_pair_come_in_the_published_order(self, seed):
        rng = np.random.default_rng(seed)
        image = noise(64, 64)
        crop, inside, _ = augment_pair(image, image[..., 0], (0.3, 0.6), self.CROP_SIZE, rng)
        again = np.random.default_rng(seed)
        scale = again.uniform(0.3, 0.6)
        self.assert_drawn(crop, inside, scale, again)


def test_normalize_by_hand():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    normalized = normalize(pixels.view(1, 3, 1, 1)).flatten()
    expected = torch.tensor([(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(normalized, expected)
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


def test_normalize_is_zero_in_the_padding_and_nowhere_else():
    inside = torch.tensor([[[True, False]], [[False, True]]])
    image = torch.full((2, 3, 1, 2), 9, dtype=torch.uint8)
    normalized = normalize(image, inside)
    assert torch.equal(normalized != 0, inside[:, None].expand(2, 3, 1, 2))
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert normalized.dtype == torch.float32
    assert (image == 9).all()


@pytest.mark.parametrize(
    ("pixel", "shift", "expected"),
    [
        ((255, 0, 0), (-1, 0, 0), (255, 0, 8)),  # hue -1 is 179
        ((250, 0, 0), (0, 0, 10), (255, 0, 0)),  # value is cut at 255
        ((128, 128, 128), (5, -9, 0), (128, 128, 128)),  # saturation is cut at 0
    ],
)
def test_jitter_by_hand(pixel, shift, expected):
    image = np.full((2, 2, 3), pixel, np.uint8)
    rng = SimpleNamespace(integers=lambda low, high, count: np.array(shift))
    shifted = jitter(image, 10, rng)
    assert shifted[1, 1].tolist() == list(expected)
