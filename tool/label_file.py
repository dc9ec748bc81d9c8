"""Label images: palette PNGs of class ids in VOC's colours, in the frame of the stored image.

255 marks pixels without a class.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from errors import InputError

from .cam_file import read_array
from .outputs import SETTINGS, atomic_write, is_up_to_date, read_json

KILOBYTES = 5  # of a label of VOC, about
KILOBYTES_WITH_PROBABILITY = 500


def palette() -> np.ndarray:
    """VOC's colours: (256, 3) uint8.

    The bits of a class id are dealt out to red, green and blue, from the top bit of each down.
    """
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            value = ids >> (3 * bit + channel) & 1
            colours[:, channel] |= (value << (7 - bit)).astype(np.uint8)
    return colours


def path_of(folder: Path, name: str) -> Path:
    """Where the label of an image lies."""
    return folder / f"{name}.png"


def probability_path_of(folder: Path, name: str) -> Path:
    """Where the probabilities beside the label of an image lie."""
    return folder / f"{name}.npz"


def check_folder(folder: Path, class_names: tuple[str, ...]) -> None:
    """Raise InputError if there is no such folder, or if it notes other classes than these."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there are no labels here; correct the path or make them first")
    path = folder / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    maps = settings.get("cam")  # labels from maps note how these were made
    source = maps if isinstance(maps, dict) else settings
    if source.get("class_names") not in (None, list(class_names)):
        raise InputError(
            f"{path}: the labels have other classes than the dataset;"
            " use the --dataset that they were made with"
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
    """Write NAME.png: the class of the largest probability at each pixel.

    Args:
        keys: (k,) class ids.
        probability: (k, H, W) in [0, 1].
        with_probability: first write both to NAME.npz, the probabilities as float16.
    """
    if with_probability:
        path = probability_path_of(folder, name)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, keys=keys, probability=probability.astype(np.float16))
    label = keys[probability.argmax(0)].astype(np.uint8)
    save(path_of(folder, name), label)


def read_probability(folder: Path, name: str, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """NAME.npz of an image of (H, W): class id -> (H, W) in [0, 1]; empty without it.

    Raises InputError for a damaged or foreign file.
    """
    path = probability_path_of(folder, name)
    if not path.is_file():
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            keys = read_array(arrays, "keys").tolist()
            cells = len(keys) * size[0] * size[1]
            probability = read_array(arrays, "probability", cells)
        return dict(zip(keys, probability.reshape(len(keys), *size)))
    except Exception as error:  # a damaged zip or array raises nearly anything
        raise InputError(
            f"{path}: not the probabilities of this image ({error}); delete it or write it again"
        ) from None


def kilobytes(with_probability: bool) -> float:
    """What `save_prediction` writes for an image of VOC, about."""
    return KILOBYTES_WITH_PROBABILITY if with_probability else KILOBYTES


def is_prediction_up_to_date(
    folder: Path, name: str, with_probability: bool, *sources: Path
) -> bool:
    """Whether `save_prediction` has written all of its files, none older than the sources."""
    paths = [path_of(folder, name)]
    if with_probability:
        paths.append(probability_path_of(folder, name))
    return all(is_up_to_date(path, *sources) for path in paths)
