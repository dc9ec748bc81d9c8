"""Label images: what make_ir_labels.py and make_seg_labels.py write for a picture, and any program can show.

RUN_DIR/FOLDER/NAME.png is a palette PNG of class ids in VOC's colours, 255 where there is none, in the picture's stored frame.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .files import atomic_write

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises for a file that is no picture
_MAKER = "Software"  # a keyword of the PNG format
_END = b"IEND\xaeB`\x82"  # the last bytes of every whole PNG


def palette() -> np.ndarray:
    """VOC's colours: (256, 3) uint8; the bits of a class id are dealt out to red, green and blue from the top bit down."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def path_of(folder: Path, name: str) -> Path:
    """Where the label of a picture lies."""
    return folder / f"{name}.png"


def save(path: Path, label: np.ndarray, maker: str | None = None) -> None:
    """Write class ids (H, W) uint8, whole or not at all; the maker is noted in the file."""
    image, note = Image.fromarray(label), PngInfo()
    image.putpalette(palette().tobytes())
    if maker:
        note.add_text(_MAKER, maker)
    with atomic_write(path) as temporary:
        image.save(temporary, format="png", pnginfo=note)


def maker_of(path: Path) -> str | None:
    """Who is noted in a label image as its maker; None for a file without a note, of another kind, or missing."""
    try:
        with Image.open(path) as image:
            return image.info.get(_MAKER)
    except UNREADABLE:
        return None


def is_made(path: Path, source: Path) -> bool:
    """Whether a whole label lies there that is not older than the file that it is made from."""
    try:
        return is_whole(path) and path.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except OSError:
        return False


def is_whole(path: Path) -> bool:
    """Whether a whole PNG lies there."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def save_probability(path: Path, keys: np.ndarray, probability: np.ndarray) -> None:
    """Write `keys` (k,) class ids, background first, and `probability` (k, H, W) in [0, 1] as float16 to a NAME.npz."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, keys=keys, probability=probability.astype(np.float16))
