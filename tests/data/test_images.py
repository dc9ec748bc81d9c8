"""Images and masks as people have them: every colour mode, orientation and kind of damage."""

from pathlib import Path
from typing import NamedTuple

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

BLACK = [0, 0, 0]
WHITE = [255, 255, 255]
RED = [255, 0, 0]
GREEN = [0, 255, 0]


def exif(value: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags


def image_of(values: list, dtype: type = np.uint8, mode: str | None = None) -> Image.Image:
    return Image.fromarray(np.array(values, dtype), mode)


def with_palette(ids: list[list[int]], palette: list[int]) -> Image.Image:
    image = image_of(ids)
    image.putpalette(palette)
    return image


def assert_refused(path: Path, read, *arguments) -> None:
    with pytest.raises(InputError) as error:
        read(path, *arguments)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


TWO_COLOURS = with_palette([[0, 1]], [*RED, *GREEN])
GREY_16_BIT = image_of([[0, 257, 25700, 65535]], np.uint16)
GREYS = [BLACK, [1, 1, 1], [100, 100, 100], WHITE]
HALF_CLEAR = image_of([[[*RED, 255], [*RED, 0], [0, 0, 0, 51]]])
CMYK = image_of([[[0, 255, 255, 0], [0, 0, 0, 0]]], mode="CMYK")


class Colours(NamedTuple):
    """An image of one row, and what is read of it."""

    file: str
    image: Image.Image
    expected: list[list[int]]
    transparency: int | bytes | None = None


COLOURS = [
    Colours("a.png", image_of([[0, 7, 255]]), [BLACK, [7, 7, 7], WHITE]),
    Colours("16 bit.png", GREY_16_BIT, GREYS),
    Colours("16 bit.tif", GREY_16_BIT, GREYS),
    Colours("real.tif", image_of([[-1.0, 0.0, 1.0]], np.float32), [BLACK, [128, 128, 128], WHITE]),
    Colours("32 bit.tif", image_of([[0, 100_000]], np.int32), [BLACK, WHITE]),
    Colours("negative.tif", image_of([[-10, 10]], np.int32), [BLACK, WHITE]),
    Colours("constant.tif", image_of([[3.5]], np.float32), [BLACK]),
    Colours("palette.png", TWO_COLOURS, [RED, GREEN]),
    Colours("one clear entry.png", TWO_COLOURS, [RED, WHITE], transparency=1),
    Colours("clear entries.png", TWO_COLOURS, [RED, WHITE], transparency=b"\xff\x00"),
    Colours("rgba.png", HALF_CLEAR, [RED, WHITE, [204, 204, 204]]),
    Colours("la.png", image_of([[[9, 255], [9, 0]]], mode="LA"), [[9, 9, 9], WHITE]),
    Colours("cmyk.tif", CMYK, [RED, WHITE]),
]


@pytest.mark.parametrize("case", COLOURS, ids=[case.file for case in COLOURS])
def test_every_colour_mode_becomes_rgb(tmp_path, case):
    options = {} if case.transparency is None else {"transparency": case.transparency}
    case.image.save(tmp_path / case.file, **options)
    image = read_image(tmp_path / case.file)
    assert image.tolist() == [case.expected]
    assert image.dtype == np.uint8


UPRIGHT = np.array(
    [[0, 1, 2], [3, 4, 5]], np.uint8
)  # none of its eight turns and mirrors are alike

# What lies in the file for each EXIF orientation. The tag's definition: where row 0 and column 0 of
# the file belong.
STORED = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[2, 5], [1, 4], [0, 3]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[3, 0], [4, 1], [5, 2]],
}
UNKNOWN_ORIENTATIONS = (0, 9, 77)  # mean upright


def blocks(ids: np.ndarray | list[list[int]]) -> np.ndarray:
    """Every id as a block of equal pixels, which survives JPEG."""
    pixels = 30 * np.array(ids, np.uint8)
    return pixels.repeat(8, axis=0).repeat(8, axis=1)


def assert_shows(image: np.ndarray, expected: np.ndarray) -> None:
    """The red channel is as expected, but for JPEG's losses."""
    difference = image[..., 0].astype(int) - expected
    assert np.abs(difference).max() < 8


@pytest.mark.parametrize("value", [*STORED, *UNKNOWN_ORIENTATIONS])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_every_orientation_is_read_upright_and_as_stored(tmp_path, suffix, value):
    path = tmp_path / f"a.{suffix}"
    upright = blocks(UPRIGHT)
    stored = blocks(STORED.get(value, UPRIGHT))
    image = Image.fromarray(stored).convert("RGB")
    image.save(path, exif=exif(value), quality=95)
    expected_orientation = value if value in STORED else 1
    if suffix == "tif":  # PIL turns a TIFF as it decodes it, so its stored frame is the upright one
        expected_orientation = 1
        stored = upright
    assert orientation(path) == expected_orientation
    assert image_size(path) == stored.shape
    assert_shows(read_image(path), upright)
    assert_shows(read_image(path, upright=False), stored)


@pytest.mark.parametrize("value", STORED)
def test_maps_are_turned_between_the_frames(value):
    stored = np.array(STORED[value])
    assert np.array_equal(to_stored_frame(UPRIGHT, value), stored)
    assert np.array_equal(to_upright_frame(stored, value), UPRIGHT)
    assert stored_size([2, 3], value) == stored.shape


@pytest.mark.parametrize("value", STORED)
@pytest.mark.parametrize(
    ("turn", "turn_back"),
    [(to_stored_frame, to_upright_frame), (to_upright_frame, to_stored_frame)],
)
def test_many_maps_are_turned_there_and_back(turn, turn_back, value):
    maps = np.random.default_rng(0).random((2, 3, 4))
    turned = turn(maps, value)
    assert turned.flags.c_contiguous
    assert np.array_equal(turned[1], turn(maps[1], value))
    assert np.array_equal(turn_back(turned, value), maps)


DECODED = [  # width and height of the file, the least side, and the size that is read
    # a half, a quarter and an eighth that are just enough
    ("jpg", (64, 48), 32, (32, 24)),
    ("jpg", (64, 48), 33, (64, 48)),
    ("jpg", (65, 47), 32, (33, 24)),
    ("jpg", (400, 300), 80, (100, 75)),
    ("jpg", (300, 400), 50, (38, 50)),
    ("jpg", (3200, 2400), 50, (400, 300)),
    ("jpg", (800, 1), 100, (800, 1)),
    ("jpg", (64, 48), None, (64, 48)),
    # other formats are decoded whole
    ("png", (64, 48), 8, (64, 48)),
    ("webp", (64, 48), 8, (64, 48)),
    ("tif", (64, 48), 8, (64, 48)),
    ("bmp", (64, 48), 8, (64, 48)),
]


@pytest.mark.parametrize(("suffix", "size", "least_side", "expected"), DECODED)
def test_a_jpeg_is_decoded_at_a_fraction_that_leaves_enough(
    tmp_path, suffix, size, least_side, expected
):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", size, "teal").save(path)
    image = read_image(path, least_side=least_side)
    width, height = expected
    assert image.shape == (height, width, 3)
    teal = [0, 128, 128]
    assert np.abs(image.astype(int) - teal).max() <= 3


def write_bomb(path: Path) -> None:
    """A header that claims billions of pixels."""
    Image.new("L", (2, 2)).save(path, format="bmp")
    content = bytearray(path.read_bytes())
    side = (100_000).to_bytes(4, "little")
    content[18:22] = side  # width
    content[22:26] = side  # height
    path.write_bytes(content)


def write_half(path: Path) -> None:
    """A JPEG that was cut off in the middle."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="jpeg")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


SPOILT = {
    "missing": lambda path: None,
    "empty": Path.touch,
    "a folder": Path.mkdir,
    "a bomb": write_bomb,
    "cut off": write_half,
    "a web page": lambda path: path.write_text("<html>404</html>"),
}
READERS = {
    "image": read_image,
    "size": image_size,
    "mask": lambda path: read_mask(path, 21),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("reader", READERS)
def test_a_spoilt_file_is_refused_by_its_path(tmp_path, reader, kind):
    path = tmp_path / "a.jpg"
    SPOILT[kind](path)
    if (reader, kind) == ("size", "cut off"):
        assert image_size(path) == (64, 64)  # the header is enough
    else:
        assert_refused(path, READERS[reader])


MASK_IDS = [[0, 20, 255], [3, 3, 0]]
ANY_PALETTE = np.random.default_rng(0).integers(0, 256, 768).tolist()


@pytest.mark.parametrize(
    "image", [with_palette(MASK_IDS, ANY_PALETTE), image_of(MASK_IDS)], ids=["palette", "grey"]
)
def test_a_mask_is_its_class_ids_whatever_the_colours(tmp_path, image):
    image.save(tmp_path / "a.png", exif=exif(6))
    mask = read_mask(tmp_path / "a.png", 21, (2, 3))  # in the stored frame
    assert mask.tolist() == MASK_IDS
    assert mask.dtype == np.uint8


BAD_MASKS = {  # the mask, the number of classes, and (H, W) of its image
    "RGB": (Image.new("RGB", (3, 2)), 21, (2, 3)),
    "1 bit": (Image.new("1", (3, 2)), 21, (2, 3)),
    "class 21": (Image.new("L", (3, 2), 21), 21, (2, 3)),
    "class 254": (Image.new("L", (3, 2), 254), 21, (2, 3)),
    "class 37 with a palette": (with_palette([[0, 37]], ANY_PALETTE), 37, (1, 2)),
    "another size": (Image.new("L", (3, 2)), 21, (3, 2)),
}


@pytest.mark.parametrize(("image", "num_classes", "size"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_mask_that_does_not_fit_is_refused_by_its_path(tmp_path, image, num_classes, size):
    image.save(tmp_path / "a.png")
    assert_refused(tmp_path / "a.png", read_mask, num_classes, size)
