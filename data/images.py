"""Read images and masks from disk as people expect to see them.

An image has two frames. In the stored frame, its pixels lie as in the file; in the upright frame,
they are turned as its EXIF orientation says. Masks, CAMs and pseudo labels all live in the stored
frame, where annotation tools draw them. The network sees the upright image, and `to_stored_frame`
brings its maps back.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from errors import InputError, UnreadableError

IGNORE = 255  # in masks and targets, the value of pixels that have no class
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of an image; PIL refuses larger ones

# what PIL raises for a file that is no image
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_ORIENTATION = 0x0112  # EXIF tag
# by orientation: counter-clockwise, from upright back to stored
_QUARTER_TURNS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 1, 7: 1, 8: 3}
_MIRRORED = {2, 4, 5, 7}
_SIDEWAYS = {5, 6, 7, 8}  # height and width change places


def read_image(path: Path, upright: bool = True, least_side: int | None = None) -> np.ndarray:
    """Any image that PIL opens -> (H, W, 3) uint8 RGB, in the upright or the stored frame.

    Grey, CMYK and palettes become RGB, 16 bits become 8, transparent parts become white.
    least_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, several times
    as fast, if its longer side keeps at least this many pixels.
    Raises UnreadableError for a missing, truncated or unreadable file.
    """
    try:
        with Image.open(path) as image:
            if least_side:
                _decode_smaller(image, least_side)
            image.load()
            if upright:
                # in place, without a copy, which takes long for large photographs
                ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_to_rgb(image))
    except _UNREADABLE as error:
        raise UnreadableError(
            f"{path}: unreadable image ({_reason(error)}); replace it or list others"
        ) from None


def _decode_smaller(image: Image.Image, least_side: int) -> None:
    """Let PIL decode a JPEG at a reduced size whose longer side has least_side pixels or more."""
    factor = max(image.size) // least_side
    if factor > 1:
        width, height = image.size
        least_size = (max(width // factor, 1), max(height // factor, 1))
        image.draft(None, least_size)  # does nothing to formats other than JPEG


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, 8 bits each, on white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Divide 16-bit grey by 257, and stretch wider or real-valued images over their own range."""
    values = np.asarray(image).astype(np.float64)
    low = values.min()
    high = values.max()
    if image.mode == "F" or high > 65535 or low < 0:
        values = (values - low) / max(high - low, 1e-12) * 65535
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _reason(error: Exception) -> str:
    """What is wrong, without the file's name if the operating system says it."""
    return getattr(error, "strerror", None) or str(error)


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a stored image, from its header alone if possible.

    Raises UnreadableError as `read_image` does.
    """
    try:
        with Image.open(path) as image:
            if image.format != "TIFF":  # PIL turns it while reading
                return image.height, image.width
    except _UNREADABLE:
        pass  # the error of read_image says why
    return read_image(path, upright=False).shape[:2]


def orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1 (upright as stored) to 8."""
    with Image.open(path) as image:
        if image.format == "TIFF":  # PIL turns it while reading, also for upright=False
            return 1
        value = image.getexif().get(_ORIENTATION, 1)
    if value not in _QUARTER_TURNS:
        return 1
    return value


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) of the stored image, from that of the upright one."""
    height, width = size
    if orientation in _SIDEWAYS:
        return width, height
    return height, width


def to_stored_frame(maps: np.ndarray, orientation: int) -> np.ndarray:
    """Turn maps (..., H, W) of the upright image into the frame in which the image is stored."""
    maps = np.rot90(maps, _QUARTER_TURNS[orientation], (-2, -1))
    if orientation in _MIRRORED:
        maps = maps[..., ::-1]
    return np.ascontiguousarray(maps)


def to_upright_frame(maps: np.ndarray, orientation: int) -> np.ndarray:
    """Turn maps (..., H, W) of the stored image upright: the inverse of `to_stored_frame`."""
    if orientation in _MIRRORED:
        maps = maps[..., ::-1]
    maps = np.rot90(maps, -_QUARTER_TURNS[orientation], (-2, -1))
    return np.ascontiguousarray(maps)


def read_mask(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A palette or grey PNG -> (H, W) uint8 class ids 0..num_classes-1 or IGNORE, as stored.

    size: (H, W) of its image as stored.
    Raises InputError for a missing or unreadable file, a colour image, another class id, or another
    size.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode = image.mode
            mask = np.asarray(image)
    except _UNREADABLE as error:
        raise InputError(
            f"{path}: unreadable mask ({_reason(error)}); replace it or list others"
        ) from None
    if mode not in ("P", "L"):
        raise InputError(
            f"{path}: a mask holds one class id per pixel (palette or grey PNG), "
            f"this is {mode}; convert it"
        )
    unknown = (mask >= num_classes) & (mask != IGNORE)
    if unknown.any():
        raise InputError(
            f"{path}: holds class {mask[unknown].min()}, "
            f"the dataset has 0..{num_classes - 1} and {IGNORE}; correct the mask"
        )
    if size is not None and mask.shape != tuple(size):
        height, width = mask.shape
        image_height, image_width = size
        raise InputError(
            f"{path}: is {width}x{height}, its image {image_width}x{image_height} as stored; "
            "give the mask the same size"
        )
    return mask
