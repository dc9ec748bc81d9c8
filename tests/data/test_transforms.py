"""Augmentation, scales and normalisation: sizes, places, odds and worked values."""

import numpy as np
import pytest
import torch

from data.transforms import IMAGENET_MEAN, IMAGENET_STD, augment, augment_pair, enlarge, normalize, pyramid, resize, shrink, to_tensor


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def two_halves(height: int, width: int) -> np.ndarray:
    """Bright left half, dark (but not black) right half."""
    picture = np.full((height, width, 3), 50, np.uint8)
    picture[:, : width // 2] = 200
    return picture


def spans(inside: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last row and column that hold the picture."""
    return [(int(np.flatnonzero(line)[0]), int(np.flatnonzero(line)[-1]) + 1) for line in (inside.any(1), inside.any(0))]


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((375, 500), 0.5, (188, 250)), ((375, 500), 1.5, (562, 750)), ((5, 7), 2, (10, 14)), ((2, 3), 1.0, (2, 3)), ((1, 100), 0.1, (1, 10))],
)
def test_resize_rounds_each_side(size, scale, expected):
    # round() goes to the even neighbour: 187.5 -> 188 and 562.5 -> 562; no side vanishes
    assert resize(white(*size), scale).shape == (*expected, 3)


def test_resize_by_one_changes_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert np.array_equal(resize(picture, 1.0), picture)


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((375, 500), 100, (75, 100)),
        ((500, 375), 100, (100, 75)),
        ((48, 48), 47, (47, 47)),
        ((2, 900), 90, (1, 90)),
        ((375, 500), 500, (375, 500)),
        ((375, 500), 501, (375, 500)),
        ((375, 500), 0, (375, 500)),
    ],
)
def test_a_picture_is_shrunk_to_its_longer_side_and_never_enlarged(size, max_side, expected):
    assert shrink(white(*size), max_side).shape == (*expected, 3)


@pytest.mark.parametrize("max_side", [1, 7, 99])
def test_no_side_is_longer_than_asked_for(max_side):
    picture = white(301, 301)
    assert all(max(shrink(picture[:side], max_side).shape) == max(max_side, 3) for side in (1, 30, 299, 301))


@pytest.mark.parametrize("max_side", [500, 4000, 0])
def test_a_picture_that_is_small_enough_stays_as_it_is(max_side):
    picture = np.random.default_rng(0).integers(0, 256, (4, 500, 3), dtype=np.uint8)
    assert np.array_equal(shrink(picture, max_side), picture)


def test_maps_are_enlarged_between_their_cells():
    maps = np.array([[[0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(enlarge(maps, (2, 4))[0], [[0, 0.25, 0.75, 1]] * 2)
    assert enlarge(maps, (1, 2)) is maps


def test_shrinking_averages_instead_of_picking():
    stripes = white(8, 64)
    stripes[:, ::2] = 0
    assert np.abs(resize(stripes, 1 / 8)[:, 1:-1].astype(int) - 127).max() < 10


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (10, 200), (16, 16)])
def test_augment_keeps_shape_and_type_whatever_the_picture(size):
    for seed in range(5):
        crop, inside = augment(white(*size), (20, 40), 24, np.random.default_rng(seed))
        assert (crop.shape, crop.dtype) == ((24, 24, 3), np.uint8)
        assert (inside.shape, inside.dtype) == ((24, 24), bool)


def test_inside_is_where_the_picture_was_put_and_zero_is_elsewhere():
    for seed in range(20):
        crop, inside = augment(white(30, 20), (15, 40), 24, np.random.default_rng(seed))
        assert (crop[inside] == 255).all()
        assert (crop[~inside] == 0).all()
        (top, bottom), (left, right) = spans(inside)
        assert inside.sum() == (bottom - top) * (right - left)  # a rectangle without holes


def test_long_side_takes_every_value_of_its_range():
    sizes = set()
    for seed in range(80):
        (top, bottom), (left, right) = spans(augment(white(50, 100), (10, 14), 20, np.random.default_rng(seed))[1])
        sizes.add((bottom - top, right - left))
    assert sizes == {(5, 10), (6, 11), (6, 12), (6, 13), (7, 14)}  # 5.5 -> 6 and 6.5 -> 6


def test_small_picture_is_put_everywhere_up_to_both_ends():
    tops, lefts = set(), set()
    for seed in range(100):
        (top, _), (left, _) = spans(augment(white(6, 8), (8, 8), 10, np.random.default_rng(seed))[1])
        tops.add(top)
        lefts.add(left)
    assert tops == {0, 1, 2, 3, 4}
    assert lefts == {0, 1, 2}


def test_large_picture_is_cut_everywhere_up_to_both_ends():
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[..., 0] = 10 * np.arange(1, 9)[:, None]  # row
    picture[..., 1] = 10 * np.arange(1, 13)  # column
    corners, flips = set(), 0
    for seed in range(300):
        crop, inside = augment(picture, (12, 12), 6, np.random.default_rng(seed))
        assert inside.all()
        row, column, last = crop[0, 0, 0] // 10 - 1, crop[0, 0, 1] // 10 - 1, crop[0, -1, 1] // 10 - 1
        flips += last < column
        corners.add((int(row), int(min(column, last))))
        assert crop[-1, 0, 0] // 10 - 1 == row + 5
    assert corners == {(row, column) for row in range(3) for column in range(7)}
    assert 110 < flips < 190


def test_one_side_may_be_cut_while_the_other_is_padded():
    _, inside = augment(white(10, 40), (40, 40), 20, np.random.default_rng(0))
    (top, bottom), (left, right) = spans(inside)
    assert (bottom - top, right - left) == (10, 20)


def test_half_of_the_pictures_are_flipped():
    flipped = 0
    for seed in range(200):
        crop, _ = augment(two_halves(8, 8), (8, 8), 8, np.random.default_rng(seed))
        assert {int(crop[4, 0, 0]), int(crop[4, -1, 0])} == {50, 200}
        flipped += crop[4, 0, 0] == 50
    assert 70 < flipped < 130


def test_the_same_generator_draws_the_same_crop():
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    first, again, other = (augment(picture, (20, 60), 24, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


def test_augment_leaves_the_picture_as_it_was():
    picture = two_halves(16, 16)
    augment(picture, (16, 16), 16, np.random.default_rng(1))
    assert np.array_equal(picture, two_halves(16, 16))


def pair(height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of three class ids, one of them 255, and a picture that shows each in a colour of its own."""
    blocks = np.random.default_rng(0).integers(0, 3, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    return 255 * np.eye(3, dtype=np.uint8)[blocks], np.array([0, 7, 255], np.uint8)[blocks]


def shown(crop: np.ndarray) -> np.ndarray:
    """The class ids that a picture of `pair` shows."""
    return np.array([0, 7, 255])[crop.argmax(2)]


@pytest.mark.parametrize(("scales", "crop_size"), [((1.0, 1.0), 24), ((0.5, 1.5), 24), ((0.5, 1.5), 64), ((2.0, 2.0), 48)])
def test_a_picture_and_its_label_are_cut_alike(scales, crop_size):
    for seed in range(20):
        crop, inside, label = augment_pair(*pair(), scales, crop_size, np.random.default_rng(seed))
        assert (crop.shape, crop.dtype) == ((crop_size, crop_size, 3), np.uint8)
        assert (inside.shape, inside.dtype) == ((crop_size, crop_size), bool)
        assert (label.shape, label.dtype) == ((crop_size, crop_size), np.uint8)
        same = (shown(crop) == label)[inside]
        assert same.all() if scales == (1, 1) else same.mean() > 0.95  # where blocks meet, the resized picture mixes their colours
        assert set(np.unique(label)) <= {0, 7, 255}
        assert not crop[~inside].any()
        assert (label[~inside] == 255).all()


def test_half_of_the_pairs_are_flipped_together():
    (picture, label), flipped = pair(), 0
    for seed in range(100):
        crop, inside, found = augment_pair(picture[:40, :40], label[:40, :40], (1, 1), 40, np.random.default_rng(seed))
        assert inside.all()
        is_flipped = not np.array_equal(found, label[:40, :40])
        assert np.array_equal(found, label[:40, 39::-1] if is_flipped else label[:40, :40])
        assert np.array_equal(crop, picture[:40, 39::-1] if is_flipped else picture[:40, :40])
        flipped += is_flipped
    assert 30 < flipped < 70


def test_the_factor_takes_all_of_its_range_and_the_same_on_both_sides():
    sizes = []
    for seed in range(60):
        (top, bottom), (left, right) = spans(augment_pair(*pair(), (0.5, 1.5), 96, np.random.default_rng(seed))[1])
        sizes.append((bottom - top, right - left))
    assert all(abs(width - height * 56 / 40) < 1.5 for height, width in sizes)
    heights = [height for height, _ in sizes]
    assert 20 <= min(heights) < 25 and 55 < max(heights) <= 60
    assert len(set(heights)) > 20


def test_a_pair_is_repeatable_and_left_as_it_was():
    picture, label = pair()
    first, again, other = (augment_pair(picture, label, (0.5, 1.5), 24, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[2], other[2])
    assert all(np.array_equal(a, b) for a, b in zip((picture, label), pair()))


def test_normalize_by_hand():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    found = normalize(image)
    expected = [(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))
    assert found.dtype == torch.float32


def test_normalize_gives_the_mean_colour_zero_and_one_deviation_one():
    grey = 255 * torch.tensor([IMAGENET_MEAN, [m + s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD)]])
    found = normalize(grey.round().to(torch.uint8).view(2, 3, 1, 1))[:, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([[0.0] * 3, [1.0] * 3]), atol=0.01, rtol=0)


def test_normalize_is_zero_in_the_padding_and_nowhere_else():
    inside = torch.tensor([[[True, False]], [[False, True]]])
    found = normalize(torch.full((2, 3, 1, 2), 9, dtype=torch.uint8), inside)
    assert found[0, :, 0, 0].all() and found[1, :, 0, 1].all()
    assert not found[0, :, 0, 1].any() and not found[1, :, 0, 0].any()


def test_normalize_lays_channels_last():
    assert normalize(torch.zeros(2, 3, 4, 5, dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)


def test_to_tensor_moves_the_channels_to_the_front():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tensor = to_tensor(picture)
    assert (tensor.shape, tensor.dtype) == ((3, 2, 2), torch.uint8)
    assert tensor[1].tolist() == [[1, 4], [7, 10]]


def test_pyramid_has_one_picture_a_scale():
    picture = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    images = pyramid(picture, [1.0, 0.5, 1.5, 2.0])
    assert [tuple(image.shape) for image in images] == [(3, 15, 20), (3, 8, 10), (3, 22, 30), (3, 30, 40)]
    assert all(image.dtype == torch.uint8 for image in images)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), picture)
