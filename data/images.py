"""Read pictures and masks from disk as a person would expect to see them.

Two frames: a picture's stored frame (its pixels as they lie in the file) and its upright frame (turned as its EXIF
orientation says). Masks, CAMs and label images all live in the stored frame, as annotation tools have it; the network sees the
upright picture, and `to_stored_frame` brings its maps back.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from errors import InputError

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises for a file that is no picture
_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 1, 7: 1, 8: 3}  # counter-clockwise, from upright back to stored
_MIRRORED = {2, 4, 5, 7}


def read_picture(path: Path, upright: bool = True, least_side: int | None = None) -> np.ndarray:
    """Any picture that PIL opens -> (H, W, 3) uint8 RGB, in the upright frame or the stored one.

    Grey becomes RGB, 16 bits become 8, CMYK and palettes become colours, what is transparent becomes white.
    least_side: a JPEG is decoded at a half, a quarter or an eighth of its size, which is several times as fast, where its longer side
    then still has at least so many pixels.
    Raises InputError for a missing, truncated or unreadable file.
    """
    try:
        with Image.open(path) as image:
            factor = max(image.size) // least_side if least_side else 1
            if factor > 1:
                image.draft(None, tuple(max(side // factor, 1) for side in image.size))  # does nothing to formats other than JPEG
            image.load()
            if upright:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":
                image = _to_eight_bits(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture; correct the list or the dataset root") from None
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable picture ({error}); replace it or take it off the list") from None


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture as it is stored, without decoding it where its header tells. Raises InputError as `read_picture` does."""
    try:
        with Image.open(path) as image:
            if image.format != "TIFF":  # PIL turns it while reading
                return image.size[::-1]
    except _UNREADABLE:
        pass
    return read_picture(path, upright=False).shape[:2]


def orientation(path: Path) -> int:
    """The EXIF orientation of a picture: 1 (upright as stored) to 8."""
    with Image.open(path) as image:
        if image.format == "TIFF":  # PIL turns it while reading, also for upright=False
            return 1
        value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _QUARTER_TURNS else 1


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) of the stored picture, from that of the upright one."""
    return tuple(size) if orientation < 5 else tuple(size[::-1])


def to_stored_frame(maps: np.ndarray, orientation: int) -> np.ndarray:
    """Turn maps (..., H, W) of the upright picture back into the frame in which the picture is stored."""
    maps = np.rot90(maps, _QUARTER_TURNS[orientation], (-2, -1))
    return np.ascontiguousarray(maps[..., ::-1] if orientation in _MIRRORED else maps)


def to_upright_frame(maps: np.ndarray, orientation: int) -> np.ndarray:
    """Turn maps (..., H, W) of the stored picture as it is shown: what `to_stored_frame` takes back."""
    maps = maps[..., ::-1] if orientation in _MIRRORED else maps
    return np.ascontiguousarray(np.rot90(maps, -_QUARTER_TURNS[orientation], (-2, -1)))


def read_mask(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A palette or greyscale PNG -> (H, W) uint8 class ids 0..num_classes-1, and 255 to be ignored, in the stored frame.

    Raises InputError for a missing or unreadable file, a colour picture, another class id, or a size other than (H, W).
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, mask = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise InputError(f"{path}: no such label; give a --list of pictures that have one, or make it first") from None
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable mask ({error}); replace it") from None
    if mode not in ("P", "L"):
        raise InputError(f"{path}: a mask holds one class id a pixel (palette or grey PNG), this is {mode}; convert it")
    unknown = (mask >= num_classes) & (mask < 255)
    if unknown.any():
        raise InputError(f"{path}: holds class {mask[unknown].min()}, the dataset has 0..{num_classes - 1} and 255; correct the mask")
    if size is not None and mask.shape != tuple(size):
        raise InputError(
            f"{path}: is {mask.shape[1]}x{mask.shape[0]}, its picture {size[1]}x{size[0]}; a mask has the size of its picture as stored"
        )
    return mask


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey is divided by 257; wider or real-valued pictures are stretched over their own range."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.max() > 65535 or values.min() < 0:
        values = (values - values.min()) / max(values.max() - values.min(), 1e-12) * 65535
    return Image.fromarray((values / 257).round().astype(np.uint8))
