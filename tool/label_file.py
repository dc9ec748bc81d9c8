"""Label images: palette PNGs of class ids in VOC's colours, 255 where there is none, in the image's stored frame."""

from pathlib import Path

import numpy as np
from PIL import Image

from errors import InputError

from .cam_file import read_array
from .outputs import SETTINGS, atomic_write, is_up_to_date, read_json


def palette() -> np.ndarray:
    """VOC's colours: (256, 3) uint8; the bits of a class id are dealt out to red, green and blue from the top bit down."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def path_of(folder: Path, name: str) -> Path:
    """Where the label of an image lies."""
    return folder / f"{name}.png"


def check_folder(folder: Path, class_names: tuple[str, ...]) -> None:
    """Raise InputError where there is no such folder of labels, or where its settings.json has other classes than these."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there are no labels here; correct the path or make them first")
    path = folder / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    source = (
        settings.get("cam") if isinstance(settings.get("cam"), dict) else settings
    )  # labels from maps note how these were made
    if source.get("class_names") not in (None, list(class_names)):
        raise InputError(
            f"{path}: the labels have other classes than the dataset; use the --dataset that they were made with"
        )


def save(path: Path, label: np.ndarray) -> None:
    """Write class ids (H, W) uint8."""
    image = Image.fromarray(label)
    image.putpalette(palette().tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="png")


def save_prediction(
    folder: Path, name: str, keys: np.ndarray, probability: np.ndarray, with_probability: bool
) -> None:
    """Write NAME.png: for each pixel the class id in keys (k,) with the largest probability (k, H, W) in [0, 1].

    with_probability: first `keys` and `probability`, as float16, to NAME.npz.
    """
    if with_probability:
        with atomic_write(folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, keys=keys, probability=probability.astype(np.float16))
    save(path_of(folder, name), keys[probability.argmax(0)].astype(np.uint8))


def read_probability(folder: Path, name: str, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """NAME.npz of an image of (H, W): class id -> (H, W) in [0, 1]; empty without it. Raises InputError for a damaged or foreign one."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            keys = read_array(arrays, "keys").tolist()
            probability = read_array(arrays, "probability", len(keys) * size[0] * size[1]).reshape(
                len(keys), *size
            )
        return dict(zip(keys, probability))
    except Exception as error:  # a damaged zip or array raises nearly anything
        raise InputError(
            f"{path}: not the probabilities of this image ({error}); delete it or write it again"
        ) from None


def kilobytes(with_probability: bool) -> float:
    """What `save_prediction` writes for an image of VOC, about."""
    return 500 if with_probability else 5


def is_prediction_up_to_date(
    folder: Path, name: str, with_probability: bool, *sources: Path
) -> bool:
    """Whether `save_prediction` has written all of its files, none older than the sources."""
    paths = [path_of(folder, name), *[folder / f"{name}.npz"] * with_probability]
    return all(is_up_to_date(path, *sources) for path in paths)
