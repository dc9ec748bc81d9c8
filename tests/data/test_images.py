"""Pictures and masks as they come from people's disks: every colour mode, every EXIF orientation, every kind of damage."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import orientation, picture_size, read_mask, read_picture, stored_size, to_stored_frame, to_upright_frame
from errors import InputError

RED, GREEN, WHITE = [255, 0, 0], [0, 255, 0], [255, 255, 255]
UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3)  # no two of its eight turns and mirrors are alike

# what lies in the file for each EXIF orientation, by the tag's definition: where row 0 and column 0 of the file belong
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


def exif(value: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags


def blocks(ids: np.ndarray) -> np.ndarray:
    """Every id as a block of 8x8 equal pixels, which survives JPEG."""
    return np.kron(30 * ids, np.ones((8, 8), np.uint8)).astype(np.uint8)


def assert_one_line_naming(error: pytest.ExceptionInfo, path: Path) -> None:
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_grey_becomes_rgb(tmp_path):
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").tolist() == [[[0] * 3, [7] * 3, WHITE]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_to_eight(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.array([[0, 257, 257 * 100, 257 * 255]], np.uint16)).save(path)
    with Image.open(path) as image:
        assert image.mode == "I;16"
    assert read_picture(path)[0, :, 0].tolist() == [0, 1, 100, 255]


def test_real_valued_pictures_are_stretched_over_their_range(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 128, 255]


def test_constant_real_valued_picture_is_no_division_by_zero(tmp_path):
    Image.fromarray(np.full((2, 2), 3.5, np.float32)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").shape == (2, 2, 3)


def test_cmyk_becomes_the_colour_that_the_inks_mix_to(tmp_path):
    inks = np.zeros((16, 32, 4), np.uint8)  # cyan, magenta, yellow, black
    inks[:, :16, 1:3] = 255
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100)
    picture = read_picture(tmp_path / "a.jpg").astype(int)
    assert np.abs(picture[4, 4] - RED).max() < 5
    assert np.abs(picture[4, 28] - WHITE).max() < 5


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([*RED, *GREEN])
    return image


def test_palette_becomes_its_colours(tmp_path):
    palette_image().save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").tolist() == [[RED, GREEN]]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_transparent_palette_entries_become_white(tmp_path, transparency):
    palette_image().save(tmp_path / "a.png", transparency=transparency)
    assert read_picture(tmp_path / "a.png").tolist() == [[RED, WHITE]]


def test_what_is_transparent_becomes_white(tmp_path):
    Image.fromarray(np.array([[[*RED, 255], [*RED, 0], [0, 0, 0, 51]]], np.uint8)).save(tmp_path / "rgba.png")
    assert read_picture(tmp_path / "rgba.png").tolist() == [[RED, WHITE, [204] * 3]]  # 255 * (1 - 51 / 255)
    Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert read_picture(tmp_path / "la.png").tolist() == [[[9] * 3, WHITE]]


@pytest.mark.parametrize("value", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_every_orientation_is_read_upright_and_as_stored(tmp_path, suffix, value):
    path, stored = tmp_path / f"a.{suffix}", blocks(np.array(STORED[value]))
    Image.fromarray(stored).convert("RGB").save(path, exif=exif(value), quality=95)
    assert orientation(path) == value
    assert np.abs(read_picture(path)[..., 0].astype(int) - blocks(UPRIGHT)).max() < 8
    assert np.abs(read_picture(path, upright=False)[..., 0].astype(int) - stored).max() < 8


@pytest.mark.parametrize("value", STORED)
def test_maps_of_the_upright_picture_go_back_to_the_stored_frame(value):
    stored = np.array(STORED[value])
    found = to_stored_frame(UPRIGHT, value)
    assert np.array_equal(found, stored)
    assert found.flags.c_contiguous
    pair = to_stored_frame(np.stack([UPRIGHT, 10 + UPRIGHT]), value)
    assert np.array_equal(pair, np.stack([stored, 10 + stored]))


@pytest.mark.parametrize("value", STORED)
def test_maps_of_the_stored_picture_are_turned_as_it_is_shown(value):
    found = to_upright_frame(np.array(STORED[value]), value)
    assert np.array_equal(found, UPRIGHT)
    assert found.flags.c_contiguous
    maps = np.random.default_rng(0).random((2, 3, 4))
    assert np.array_equal(to_stored_frame(to_upright_frame(maps, value), value), maps)
    assert np.array_equal(to_upright_frame(to_stored_frame(maps, value), value), maps)


@pytest.mark.parametrize("value", STORED)
def test_stored_size_is_that_of_the_stored_picture(value):
    assert stored_size([2, 3], value) == np.shape(STORED[value])


@pytest.mark.parametrize("value", STORED)
def test_a_tiff_is_turned_once_and_for_all(tmp_path, value):
    # PIL turns a TIFF as it decodes it, so its stored frame is the upright one
    Image.fromarray(blocks(np.array(STORED[value]))).convert("RGB").save(tmp_path / "a.tif", exif=exif(value))
    upright = read_picture(tmp_path / "a.tif")
    assert np.array_equal(upright[..., 0], blocks(UPRIGHT))
    back = to_stored_frame(upright[..., 0], orientation(tmp_path / "a.tif"))
    assert np.array_equal(back, read_picture(tmp_path / "a.tif", upright=False)[..., 0])


@pytest.mark.parametrize("value", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_pictures_size_is_that_of_its_stored_frame(tmp_path, suffix, value):
    path, stored = tmp_path / f"a.{suffix}", blocks(np.array(STORED[value]))
    Image.fromarray(stored).convert("RGB").save(path, exif=exif(value))
    assert picture_size(path) == read_picture(path, upright=False).shape[:2]
    assert picture_size(path) == (blocks(UPRIGHT) if suffix == "tif" else stored).shape


def test_a_pictures_size_needs_no_more_than_its_header(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert picture_size(tmp_path / "a.jpg") == (480, 640)


@pytest.mark.parametrize("content", [None, b"", b"<html>404</html>", b"\xff\xd8\xff"])
def test_a_file_without_a_size_is_refused_as_a_picture(tmp_path, content):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="no such picture" if content is None else "not a readable picture") as error:
        picture_size(path)
    assert_one_line_naming(error, path)


@pytest.mark.parametrize(
    ("size", "least_side", "expected"),
    [
        ((64, 48), 32, (32, 24)),  # a half is just enough
        ((64, 48), 33, (64, 48)),
        ((63, 47), 32, (63, 47)),
        ((65, 47), 32, (33, 24)),
        ((400, 300), 80, (100, 75)),  # of a half, a quarter and an eighth the smallest that will do
        ((300, 400), 50, (38, 50)),
        ((3200, 2400), 50, (400, 300)),
        ((800, 1), 100, (800, 1)),
        ((64, 48), None, (64, 48)),
    ],
)
def test_a_jpeg_is_decoded_at_a_fraction_that_leaves_enough(tmp_path, size, least_side, expected):
    Image.new("RGB", size, "teal").save(tmp_path / "a.jpg")
    found = read_picture(tmp_path / "a.jpg", least_side=least_side)
    assert found.shape == (*expected[::-1], 3)
    assert np.abs(found.astype(int) - [0, 128, 128]).max() <= 3


@pytest.mark.parametrize("value", STORED)
def test_a_reduced_jpeg_is_read_upright_and_as_stored(tmp_path, value):
    Image.fromarray(np.kron(30 * np.array(STORED[value]), np.ones((32, 32))).astype(np.uint8)).save(tmp_path / "a.jpg", exif=exif(value))
    upright, stored = (read_picture(tmp_path / "a.jpg", upright, least_side=24) for upright in (True, False))
    for found, expected in ((upright, UPRIGHT), (stored, np.array(STORED[value]))):
        assert found.shape[:2] == tuple(8 * side for side in expected.shape)
        assert np.abs(found[4::8, 4::8, 0].astype(int) - 30 * expected).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp"])
def test_other_formats_are_decoded_in_full(tmp_path, suffix):
    Image.new("RGB", (64, 48)).save(tmp_path / f"a.{suffix}")
    assert read_picture(tmp_path / f"a.{suffix}", least_side=8).shape == (48, 64, 3)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist_means_upright(tmp_path, value):
    Image.fromarray(blocks(UPRIGHT)).save(tmp_path / "a.png", exif=exif(value))
    assert orientation(tmp_path / "a.png") == 1
    assert np.array_equal(read_picture(tmp_path / "a.png")[..., 0], blocks(UPRIGHT))


def test_truncated_picture_is_refused_in_one_line(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a readable picture") as error:
            read_picture(path)
        assert_one_line_naming(error, path)


def test_missing_picture_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no such picture") as error:
        read_picture(tmp_path / "a.jpg")
    assert_one_line_naming(error, tmp_path / "a.jpg")


def test_text_under_a_pictures_name_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    for read in (read_picture, lambda path: read_mask(path, 21)):
        with pytest.raises(InputError, match="not a readable") as error:
            read(tmp_path / "a.jpg")
        assert_one_line_naming(error, tmp_path / "a.jpg")


def test_a_header_that_claims_billions_of_pixels_is_refused(tmp_path):
    path = tmp_path / "bomb.bmp"
    Image.new("L", (2, 2)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2  # width and height
    path.write_bytes(content)
    for read in (read_picture, lambda path: read_mask(path, 21)):
        with pytest.raises(InputError, match="not a readable"):
            read(path)


def save_mask(path: Path, ids: list[list[int]], palette: bool) -> Path:
    image = Image.fromarray(np.array(ids, np.uint8))
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)
    return path


@pytest.mark.parametrize("palette", [True, False])
def test_mask_is_its_class_ids_whatever_the_colours(tmp_path, palette):
    path = save_mask(tmp_path / "a.png", [[0, 20, 255], [3, 3, 0]], palette)
    mask = read_mask(path, 21, (2, 3))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 20, 255], [3, 3, 0]]


def test_mask_stays_in_the_stored_frame(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=exif(6))
    assert np.array_equal(read_mask(tmp_path / "a.png", 21), UPRIGHT)


def test_mask_in_colour_is_refused(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="this is RGB") as error:
        read_mask(tmp_path / "a.png", 21)
    assert_one_line_naming(error, tmp_path / "a.png")


def test_mask_with_an_unknown_class_is_refused(tmp_path):
    path = save_mask(tmp_path / "a.png", [[0, 37]], True)
    with pytest.raises(InputError, match=r"holds class 37, the dataset has 0\.\.20") as error:
        read_mask(path, 21)
    assert_one_line_naming(error, path)
    assert read_mask(path, 38).tolist() == [[0, 37]]


def test_mask_of_another_size_is_refused(tmp_path):
    path = save_mask(tmp_path / "a.png", [[0, 1, 2], [0, 1, 2]], True)
    with pytest.raises(InputError, match="is 3x2, its picture 2x3") as error:
        read_mask(path, 21, (3, 2))
    assert_one_line_naming(error, path)


def test_missing_mask_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such label") as error:
        read_mask(tmp_path / "a.png", 21)
    assert_one_line_naming(error, tmp_path / "a.png")
