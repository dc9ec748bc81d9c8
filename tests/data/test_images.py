"""Images and masks as they come from people's disks: every colour mode, every EXIF orientation, every kind of damage."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import (
    image_size,
    orientation,
    read_image,
    read_mask,
    stored_size,
    to_stored_frame,
    to_upright_frame,
)
from errors import InputError

RED, GREEN, WHITE = [255, 0, 0], [0, 255, 0], [255, 255, 255]
UPRIGHT = np.arange(6, dtype=np.uint8).reshape(
    2, 3
)  # no two of its eight turns and mirrors are alike

# what lies in the file for each EXIF orientation, by the tag's definition: where row 0 and column 0 of the file belong
STORED = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
}
STORED |= {
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[2, 5], [1, 4], [0, 3]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[3, 0], [4, 1], [5, 2]],
}
UNKNOWN = {value: STORED[1] for value in (0, 9, 77)}  # mean upright


def exif(value: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags


def assert_refused(path: Path, read, *arguments) -> None:
    with pytest.raises(InputError) as error:
        read(path, *arguments)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def blocks(ids: np.ndarray) -> np.ndarray:
    """Every id as a block of equal pixels, which survives JPEG."""
    return np.kron(30 * np.asarray(ids), np.ones((8, 8), np.uint8)).astype(np.uint8)


def with_palette(ids: list[list[int]], palette: list[int]) -> Image.Image:
    image = Image.fromarray(np.array(ids, np.uint8))
    image.putpalette(palette)
    return image


TWO_COLOURS = with_palette([[0, 1]], [*RED, *GREEN])
COLOURS = [
    ("a.png", Image.fromarray(np.array([[0, 7, 255]], np.uint8)), {}, [[0] * 3, [7] * 3, WHITE]),
    (
        "16 bit.png",
        Image.fromarray(np.array([[0, 257, 25700, 65535]], np.uint16)),
        {},
        [[0] * 3, [1] * 3, [100] * 3, WHITE],
    ),
    (
        "16 bit.tif",
        Image.fromarray(np.array([[0, 257, 25700, 65535]], np.uint16)),
        {},
        [[0] * 3, [1] * 3, [100] * 3, WHITE],
    ),
    (
        "real.tif",
        Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)),
        {},
        [[0] * 3, [128] * 3, WHITE],
    ),
    ("32 bit.tif", Image.fromarray(np.array([[0, 100_000]], np.int32)), {}, [[0] * 3, WHITE]),
    ("negative.tif", Image.fromarray(np.array([[-10, 10]], np.int32)), {}, [[0] * 3, WHITE]),
    ("constant.tif", Image.fromarray(np.full((1, 1), 3.5, np.float32)), {}, [[0] * 3]),
    ("palette.png", TWO_COLOURS, {}, [RED, GREEN]),
    ("one clear entry.png", TWO_COLOURS, {"transparency": 1}, [RED, WHITE]),
    ("clear entries.png", TWO_COLOURS, {"transparency": b"\xff\x00"}, [RED, WHITE]),
    (
        "rgba.png",
        Image.fromarray(np.array([[[*RED, 255], [*RED, 0], [0, 0, 0, 51]]], np.uint8)),
        {},
        [RED, WHITE, [204] * 3],
    ),
    (
        "la.png",
        Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA"),
        {},
        [[9] * 3, WHITE],
    ),
    (
        "cmyk.tif",
        Image.fromarray(np.array([[[0, 255, 255, 0], [0, 0, 0, 0]]], np.uint8), "CMYK"),
        {},
        [RED, WHITE],
    ),
]
# the smallest of all, a half, a quarter and an eighth that is just enough; other formats are decoded whole
JPEGS = [
    ((64, 48), 32, (32, 24)),
    ((64, 48), 33, (64, 48)),
    ((65, 47), 32, (33, 24)),
    ((400, 300), 80, (100, 75)),
]
JPEGS += [
    ((300, 400), 50, (38, 50)),
    ((3200, 2400), 50, (400, 300)),
    ((800, 1), 100, (800, 1)),
    ((64, 48), None, (64, 48)),
]
DECODED = [
    *(("jpg", *row) for row in JPEGS),
    *((suffix, (64, 48), 8, (64, 48)) for suffix in ("png", "webp", "tif", "bmp")),
]
BAD_MASKS = [(Image.new(mode, (3, 2)), 21, (2, 3)) for mode in ("RGB", "1")]
BAD_MASKS += [(Image.new("L", (3, 2), value), 21, (2, 3)) for value in (21, 254)]
BAD_MASKS += [
    (with_palette([[0, 37]], [0] * 768), 37, (1, 2)),
    (Image.new("L", (3, 2)), 21, (3, 2)),
]


@pytest.mark.parametrize(
    ("name", "image", "options", "colours"), COLOURS, ids=[row[0] for row in COLOURS]
)
def test_every_colour_mode_becomes_rgb(tmp_path, name, image, options, colours):
    image.save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    assert (image.tolist(), image.dtype) == ([colours], np.uint8)


@pytest.mark.parametrize("value", [*STORED, *UNKNOWN])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_every_orientation_is_read_upright_and_as_stored(tmp_path, suffix, value):
    path, stored = tmp_path / f"a.{suffix}", blocks((STORED | UNKNOWN)[value])
    Image.fromarray(stored).convert("RGB").save(path, exif=exif(value), quality=95)
    if suffix == "tif":  # PIL turns a TIFF as it decodes it, so its stored frame is the upright one
        value, stored = 1, blocks(UPRIGHT)
    assert orientation(path) == (1 if value in UNKNOWN else value)
    assert image_size(path) == stored.shape
    assert np.abs(read_image(path)[..., 0].astype(int) - blocks(UPRIGHT)).max() < 8
    assert np.abs(read_image(path, upright=False)[..., 0].astype(int) - stored).max() < 8


@pytest.mark.parametrize("value", STORED)
def test_maps_are_turned_between_the_frames(value):
    stored = np.array(STORED[value])
    assert np.array_equal(to_stored_frame(UPRIGHT, value), stored)
    assert np.array_equal(to_upright_frame(stored, value), UPRIGHT)
    assert stored_size([2, 3], value) == stored.shape
    maps = np.random.default_rng(0).random((2, 3, 4))
    for there, back in ((to_stored_frame, to_upright_frame), (to_upright_frame, to_stored_frame)):
        turned = there(maps, value)
        assert turned.flags.c_contiguous and np.array_equal(turned[1], there(maps[1], value))
        assert np.array_equal(back(turned, value), maps)


@pytest.mark.parametrize(("suffix", "size", "least_side", "expected"), DECODED)
def test_a_jpeg_is_decoded_at_a_fraction_that_leaves_enough(
    tmp_path, suffix, size, least_side, expected
):
    Image.new("RGB", size, "teal").save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}", least_side=least_side)
    assert image.shape == (*expected[::-1], 3)
    assert np.abs(image.astype(int) - [0, 128, 128]).max() <= 3


def a_bomb(path: Path) -> None:
    """A header that claims billions of pixels."""
    Image.new("L", (2, 2)).save(path, format="bmp")
    content = bytearray(path.read_bytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2  # width and height
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        path, format="jpeg"
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT = {
    "missing": lambda path: None,
    "empty": Path.touch,
    "a folder": Path.mkdir,
    "a bomb": a_bomb,
    "cut off": cut_off,
}
SPOILT |= {"a web page": lambda path: path.write_text("<html>404</html>")}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize(
    "read",
    [read_image, image_size, lambda path: read_mask(path, 21)],
    ids=["image", "size", "mask"],
)
def test_a_spoilt_file_is_refused_by_its_path(tmp_path, read, kind):
    path = tmp_path / "a.jpg"
    SPOILT[kind](path)
    if (read, kind) == (image_size, "cut off"):
        assert read(path) == (64, 64)  # the header is enough
    else:
        assert_refused(path, read)


@pytest.mark.parametrize("palette", [True, False])
def test_a_mask_is_its_class_ids_whatever_the_colours(tmp_path, palette):
    ids = [[0, 20, 255], [3, 3, 0]]
    colours = np.random.default_rng(0).integers(0, 256, 768).tolist()
    (with_palette(ids, colours) if palette else Image.fromarray(np.array(ids, np.uint8))).save(
        tmp_path / "a.png", exif=exif(6)
    )
    mask = read_mask(tmp_path / "a.png", 21, (2, 3))  # in the stored frame
    assert (mask.tolist(), mask.dtype) == (ids, np.uint8)


@pytest.mark.parametrize(("image", "num_classes", "size"), BAD_MASKS)
def test_a_mask_that_does_not_fit_is_refused_by_its_path(tmp_path, image, num_classes, size):
    image.save(tmp_path / "a.png")
    assert_refused(tmp_path / "a.png", read_mask, num_classes, size)
