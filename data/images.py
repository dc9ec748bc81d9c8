"""Read images and masks from disk as people expect to see them.

Two frames: an image's stored frame (its pixels as they lie in the file) and its upright frame (turned as its EXIF orientation says).
Masks, CAMs and label images all live in the stored frame, where annotation tools draw them; the network sees the upright image, and
`to_stored_frame` brings its maps back.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from errors import InputError, UnreadableError

IGNORE = 255  # the label of pixels that have no class
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of an image; PIL refuses larger ones

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)  # what PIL raises for a file that is no image
_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = {
    1: 0,
    2: 0,
    3: 2,
    4: 2,
    5: 3,
    6: 1,
    7: 1,
    8: 3,
}  # counter-clockwise, from upright back to stored
_MIRRORED = {2, 4, 5, 7}


def read_image(path: Path, upright: bool = True, least_side: int | None = None) -> np.ndarray:
    """Any image that PIL opens -> (H, W, 3) uint8 RGB, in the upright or the stored frame.

    Grey, CMYK and palettes become RGB, 16 bits become 8, transparent parts become white.
    least_side: JPEGs are decoded at a half, a quarter or an eighth of their size, several times as fast, as long as their longer side
    keeps at least this many pixels.
    Raises UnreadableError for a missing, truncated or unreadable file.
    """
    try:
        with Image.open(path) as image:
            factor = max(image.size) // least_side if least_side else 1
            if factor > 1:
                image.draft(
                    None, tuple(max(side // factor, 1) for side in image.size)
                )  # does nothing to formats other than JPEG
            image.load()
            if upright:
                ImageOps.exif_transpose(
                    image, in_place=True
                )  # without a copy, which large photographs feel
            if image.mode.startswith("I") or image.mode == "F":
                image = _to_eight_bits(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(
                    Image.new("RGBA", image.size, "white"), image.convert("RGBA")
                )
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableError(
            f"{path}: unreadable image ({reason}); replace it or list others"
        ) from None


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a stored image, from its header alone if possible. Raises UnreadableError as `read_image` does."""
    try:
        with Image.open(path) as image:
            if image.format != "TIFF":  # PIL turns it while reading
                return image.size[::-1]
    except _UNREADABLE:
        pass
    return read_image(path, upright=False).shape[:2]


def orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1 (upright as stored) to 8."""
    with Image.open(path) as image:
        if image.format == "TIFF":  # PIL turns it while reading, also for upright=False
            return 1
        value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _QUARTER_TURNS else 1


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) of the stored image, from that of the upright one."""
    return tuple(size) if orientation < 5 else tuple(size[::-1])


def to_stored_frame(maps: np.ndarray, orientation: int) -> np.ndarray:
    """Turn maps (..., H, W) of the upright image back into the frame in which the image is stored."""
    maps = np.rot90(maps, _QUARTER_TURNS[orientation], (-2, -1))
    return np.ascontiguousarray(maps[..., ::-1] if orientation in _MIRRORED else maps)


def to_upright_frame(maps: np.ndarray, orientation: int) -> np.ndarray:
    """Turn maps (..., H, W) of the stored image upright: the inverse of `to_stored_frame`."""
    maps = maps[..., ::-1] if orientation in _MIRRORED else maps
    return np.ascontiguousarray(np.rot90(maps, -_QUARTER_TURNS[orientation], (-2, -1)))


def read_mask(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A palette or grey PNG -> (H, W) uint8 class ids 0..num_classes-1 or IGNORE, in the stored frame.

    Raises InputError for a missing or unreadable file, a colour image, another class id, or a size other than (H, W).
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, mask = image.mode, np.asarray(image)
    except _UNREADABLE as error:
        raise InputError(
            f"{path}: unreadable mask ({getattr(error, 'strerror', None) or error}); replace it or list others"
        ) from None
    if mode not in ("P", "L"):
        raise InputError(
            f"{path}: a mask holds one class id per pixel (palette or grey PNG), this is {mode}; convert it"
        )
    unknown = (mask >= num_classes) & (mask != IGNORE)
    if unknown.any():
        raise InputError(
            f"{path}: holds class {mask[unknown].min()}, the dataset has 0..{num_classes - 1} and {IGNORE}; correct the mask"
        )
    if size is not None and mask.shape != tuple(size):
        height, width = mask.shape
        raise InputError(
            f"{path}: is {width}x{height}, its image {size[1]}x{size[0]} as stored; give the mask the same size"
        )
    return mask


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey is divided by 257; wider or real-valued images are stretched over their own range."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.max() > 65535 or values.min() < 0:
        values = (values - values.min()) / max(values.max() - values.min(), 1e-12) * 65535
    return Image.fromarray((values / 257).round().astype(np.uint8))
