"""Augmentation, scales and normalization: sizes, places, odds and worked values."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

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


def spans(inside: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last row and column that hold the image, which is a rectangle without holes."""
    ends = [
        (int(np.flatnonzero(line)[0]), int(np.flatnonzero(line)[-1]) + 1)
        for line in (inside.any(1), inside.any(0))
    ]
    assert inside.sum() == np.prod([end - start for start, end in ends])
    return ends


def test_resize_rounds_each_side():
    # round() goes to the even neighbour: 187.5 -> 188 and 562.5 -> 562; no side vanishes
    for size, scale, expected in (
        ((375, 500), 0.5, (188, 250)),
        ((375, 500), 1.5, (562, 750)),
        ((1, 100), 0.1, (1, 10)),
    ):
        assert resize(white(*size), scale).shape == (*expected, 3)


def test_an_image_is_shrunk_to_its_longer_side_and_never_enlarged():
    image = noise(375, 500)
    rows = [
        ((500, 375), 100, (100, 75)),
        ((48, 48), 47, (47, 47)),
        ((2, 900), 90, (1, 90)),
        ((301, 299), 7, (7, 7)),
    ]
    for size, max_side, expected in [*rows, ((375, 500), 100, (75, 100))]:
        assert shrink(noise(*size), max_side).shape == (*expected, 3)
    assert all(np.array_equal(shrink(image, max_side), image) for max_side in (500, 501, 0))


def test_shrinking_averages_instead_of_picking():
    stripes = white(8, 64)
    stripes[:, ::2] = 0
    assert np.abs(resize(stripes, 1 / 8)[:, 1:-1].astype(int) - 127).max() < 10


def test_maps_are_enlarged_between_their_cells():
    maps = np.array([[[0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(resize_maps(maps, (2, 4))[0], [[0, 0.25, 0.75, 1]] * 2)
    assert resize_maps(maps, (1, 2)) is maps


def test_the_strongest_map_is_that_of_the_enlarged_maps():
    maps = np.random.default_rng(0).random((4, 5, 7), np.float32)
    maps[3] = maps[1]  # of equal ones the first
    assert np.array_equal(argmax_resized(maps, (50, 63)), resize_maps(maps, (50, 63)).argmax(0))
    assert argmax_resized(maps, (50, 63)).dtype == np.uint8


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Blocks of three class ids, one of them 255, and an image that shows each in a colour of its own."""
    blocks = np.random.default_rng(0).integers(0, 3, (5, 7)).repeat(8, 0).repeat(8, 1)
    return 255 * np.eye(3, dtype=np.uint8)[blocks], np.array([0, 7, 255], np.uint8)[blocks]


def test_a_large_image_is_cut_everywhere_up_to_both_ends_and_half_of_the_time_flipped():
    image = np.zeros((8, 12, 3), np.uint8)
    image[..., 0] = 10 * np.arange(1, 9)[:, None]  # row
    image[..., 1] = 10 * np.arange(1, 13)  # column
    before, corners, flips = image.copy(), set(), 0
    for seed in range(300):
        crop, inside = augment(image, (12, 12), 6, np.random.default_rng(seed))
        assert inside.all()
        row, column, last = (
            crop[0, 0, 0] // 10 - 1,
            crop[0, 0, 1] // 10 - 1,
            crop[0, -1, 1] // 10 - 1,
        )
        flips += last < column
        corners.add((int(row), int(min(column, last))))
        assert crop[-1, 0, 0] // 10 - 1 == row + 5
    assert corners == {(row, column) for row in range(3) for column in range(7)}
    assert 110 < flips < 190
    assert np.array_equal(image, before)
    (top, bottom), (left, right) = spans(
        augment(white(10, 40), (40, 40), 20, np.random.default_rng(0))[1]
    )
    assert (bottom - top, right - left) == (10, 20)  # one side padded, the other cut


@pytest.mark.parametrize(
    ("scales", "crop_size"),
    [((1.0, 1.0), 24), ((0.5, 1.5), 24), ((0.5, 1.5), 64), ((2.0, 2.0), 48)],
)
def test_an_image_and_its_label_are_cut_alike(scales, crop_size):
    for seed in range(20):
        crop, inside, label = augment_pair(*pair(), scales, crop_size, np.random.default_rng(seed))
        assert (label.shape, label.dtype) == ((crop_size, crop_size), np.uint8)
        same = (np.array([0, 7, 255])[crop.argmax(2)] == label)[inside]
        assert (
            same.all() if scales == (1, 1) else same.mean() > 0.95
        )  # where blocks meet, the resized image mixes their colours
        assert set(np.unique(label)) <= {0, 7, 255}
        assert (label[~inside] == 255).all()


@pytest.mark.parametrize("seed", range(10))
def test_draws_come_in_the_published_order(seed):
    """Size, flip, row, column: another order would change every training, and resumed ones halfway."""
    drawn = augment(noise(64, 64), (20, 40), 41, np.random.default_rng(seed))
    pair_drawn = augment_pair(
        noise(64, 64), noise(64, 64)[..., 0], (0.3, 0.6), 41, np.random.default_rng(seed)
    )
    for (crop, inside, *_), draw in (
        (drawn, lambda rng: rng.integers(20, 41) / 64),
        (pair_drawn, lambda rng: rng.uniform(0.3, 0.6)),
    ):
        rng = np.random.default_rng(seed)
        image, step = resize(noise(64, 64), draw(rng)), -1 if rng.random() < 0.5 else 1
        top, left = (int(rng.integers(41 - len(image) + 1)) for _ in range(2))
        assert spans(inside) == [(top, top + len(image)), (left, left + len(image))]
        assert (
            np.array_equal(crop[inside], image[:, ::step].reshape(-1, 3))
            and not crop[~inside].any()
        )
        assert (crop.shape, crop.dtype, inside.shape, inside.dtype) == (
            (41, 41, 3),
            np.uint8,
            (41, 41),
            bool,
        )


def test_normalize_by_hand():
    normalized = normalize(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1))
    expected = [(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(normalized.flatten(), torch.tensor(expected))
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_normalize_is_zero_in_the_padding_and_nowhere_else():
    inside = torch.tensor([[[True, False]], [[False, True]]])
    image = torch.full((2, 3, 1, 2), 9, dtype=torch.uint8)
    normalized = normalize(image, inside)
    assert torch.equal(normalized != 0, inside[:, None].expand(2, 3, 1, 2))
    assert (
        normalized.is_contiguous(memory_format=torch.channels_last)
        and normalized.dtype == torch.float32
    )
    assert (image == 9).all()


@pytest.mark.parametrize(
    ("pixel", "shift", "expected"),
    [
        ((255, 0, 0), (-1, 0, 0), (255, 0, 8)),
        ((250, 0, 0), (0, 0, 10), (255, 0, 0)),
        ((128, 128, 128), (5, -9, 0), (128, 128, 128)),
    ],
)  # hue -1 is 179; value and saturation are cut at 255 and 0
def test_jitter_by_hand(pixel, shift, expected):
    drawn = SimpleNamespace(integers=lambda low, high, count: np.array(shift))
    assert jitter(np.full((2, 2, 3), pixel, np.uint8), 10, drawn)[1, 1].tolist() == list(expected)
