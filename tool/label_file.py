"""Label images: what make_ir_labels.py and make_seg_labels.py write for a picture, and any program can show.

RUN_DIR/FOLDER/NAME.png is a palette PNG of class ids in VOC's colours, 255 where there is none, in the picture's stored frame.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from errors import InputError

from . import files
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


def check_classes(folder: Path, class_names: tuple[str, ...]) -> None:
    """Raise InputError where the labels of a folder are not there, or are noted to be of other classes than these."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there are no labels; correct --label_dir or make them first")
    note = folder / "settings.json"
    settings = files.read_json(note) if note.is_file() else {}
    source = settings.get("cam") if isinstance(settings.get("cam"), dict) else settings  # labels from maps note how these were made
    if source.get("class_names") not in (None, list(class_names)):
        raise InputError(f"{note}: the labels are of other classes than the dataset's; use the --dataset that they were made with")


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
    """Who is noted in a label image, or in a JPEG's comment, as its maker; None for a file without a note, of another kind, or missing."""
    try:
        with Image.open(path) as image:
            comment = image.info.get("comment") if image.format == "JPEG" else None
            return comment.decode(errors="replace") if comment else image.info.get(_MAKER)
    except UNREADABLE:
        return None


def is_made(path: Path, source: Path) -> bool:
    """Whether a whole label lies there that is not older than the file that it is made from."""
    return is_whole(path) and files.is_up_to_date(path, source)


def is_whole(path: Path) -> bool:
    """Whether a whole PNG lies there."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def likely_classes(probability: np.ndarray) -> np.ndarray:
    """(k,) class ids that matter to a picture, from the probabilities (K, H, W): the background, what wins a pixel, what reaches 0.1."""
    matters = probability.reshape(len(probability), -1).max(1) >= 0.1
    matters[[0, *np.unique(probability.argmax(0))]] = True
    return np.flatnonzero(matters)


def save_result(folder: Path, name: str, keys: np.ndarray, probability: np.ndarray, with_probability: bool) -> None:
    """Write NAME.png, of each pixel the class id in keys (k,) of which probability (k, H, W) in [0, 1] is the largest.

    with_probability: first `keys` and `probability`, as float16, to NAME.npz.
    """
    if with_probability:
        with atomic_write(folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, keys=keys, probability=probability.astype(np.float16))
    save(path_of(folder, name), keys[probability.argmax(0)].astype(np.uint8))


def is_result_made(folder: Path, name: str, source: Path, with_probability: bool) -> bool:
    """Whether `save_result` has written all that it would, and not before the file that it is made from."""
    return is_made(path_of(folder, name), source) and (not with_probability or files.is_up_to_date(folder / f"{name}.npz", source))
