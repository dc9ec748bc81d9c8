"""The CAM file: what make_cam.py writes for an image and the stages that need maps read.

RUN_DIR/cam/NAME.npz holds plain arrays:

- `keys` (k,): class ids, background (0) first
- `size` (2,): height and width of the image
- `is_cam_0`, `is_cam_1`, ... and `cam_0`, ... (both or one of them, by --maps): the maps
  (k, h, w) of each scale, in the order of --scales, on the network's own grid, float16
- `background`, if the recipe has one: the strength of the background in place of its own IS-CAM

Full-size maps are made on loading: they are means of these grids at the size of the image, and
more than 100 times as large.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.images import IGNORE, MAX_PIXELS
from errors import InputError, UnreadableError
from network.fusion import fuse_scales
from network.spatial import argmax_resized

from .outputs import SETTINGS, atomic_write, read_json

KINDS = ("is_cam", "cam")
MAKE_BOTH = "run make_cam.py --overwrite --maps is_cam cam"
BYTES_OF_FLOAT64 = 8
HEADER_BYTES = 1000  # of an array, at most
FEW_CELLS = 256
GRID_MARGIN = 64  # cells; at scale 8 the grid has half the image's side


@dataclass(frozen=True)
class CamFile:
    """The maps of one image, background first, in the frame in which the image is stored.

    Attributes:
        keys: (k,) int64 class ids.
        size: (H, W).
        is_cam, cam: (k, H, W) float32 in [0, 1]; None if the file lacks this kind.
    """

    path: Path
    keys: np.ndarray
    size: tuple[int, int]
    is_cam: np.ndarray | None
    cam: np.ndarray | None

    def maps(self, kind: str) -> np.ndarray:
        """(k, H, W) float32 in [0, 1]: the maps of a kind ("is_cam" or "cam").

        Raises InputError if the file lacks it.
        """
        maps = getattr(self, kind)
        if maps is None:
            raise InputError(f"{self.path}: holds no {kind} maps; {MAKE_BOTH}")
        return maps

    def label(self, kind: str) -> np.ndarray:
        """(H, W) uint8 class ids: the class of the strongest map of a kind, background included."""
        return self.keys.astype(np.uint8)[argmax_resized(self.maps(kind), self.size)]


def path_of(run_dir: Path, name: str) -> Path:
    """Where the CAM file of an image lies."""
    return run_dir / "cam" / f"{name}.npz"


def read_settings(run_dir: Path, class_names: tuple[str, ...]) -> dict[str, Any]:
    """How the maps of a run were made.

    Raises InputError if there are none, or if their classes are not the dataset's.
    """
    path = run_dir / "cam" / SETTINGS
    if not path.is_file():
        raise InputError(
            f"{path}: there are no maps of make_cam.py here;"
            " correct --run_dir or run make_cam.py first"
        )
    settings = read_json(path)
    maps = settings.get("maps")
    if not maps or not isinstance(maps, list) or any(kind not in KINDS for kind in maps):
        raise InputError(f"{path}: does not name the kinds of map; run make_cam.py --overwrite")
    if settings.get("class_names") != list(class_names):
        raise InputError(
            f"{path}: the maps have other classes than the dataset;"
            " use the --dataset that they were made with"
        )
    return settings


def require(
    run_dir: Path, names: Iterable[str], kind: str, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """`read_settings`, once every image has a CAM file with maps of this kind.

    Raises InputError for the first image that has none.
    """
    settings = read_settings(run_dir, class_names)
    if kind not in settings["maps"]:
        raise InputError(f"{run_dir / 'cam'}: holds no {kind} maps; {MAKE_BOTH}")
    for name in names:
        path = path_of(run_dir, name)
        if not path.is_file():
            raise InputError(f"{path}: no such CAM file; run make_cam.py on this list first")
    return settings


@dataclass(frozen=True)
class CamGrids:
    """What a CAM file stores: for each kind of map, one array (k, h, w) in [0, 1] per scale.

    Attributes:
        keys: (k,) class ids, background first.
        size: (H, W) of the image as it is stored.
        background: strength of the background in place of its own IS-CAM; None: its own.
    """

    keys: np.ndarray
    size: tuple[int, int]
    is_cam: Sequence[np.ndarray] = ()
    cam: Sequence[np.ndarray] = ()
    background: float | None = None


def save(path: Path, content: CamGrids, dtype: type = np.float16) -> None:
    """Write a CAM file with grids of this dtype."""
    arrays = {
        "keys": np.asarray(content.keys, np.int64),
        "size": np.asarray(content.size, np.int64),
    }
    for kind in KINDS:
        for i, grid in enumerate(getattr(content, kind)):
            arrays[f"{kind}_{i}"] = grid.astype(dtype)
    if content.background is not None:
        arrays["background"] = np.float32(content.background)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def load(
    path: str | Path, num_classes: int | None = None, size: tuple[int, int] | None = None
) -> CamFile:
    """Read a CAM file into full-size maps.

    Args:
        num_classes: of the dataset.
        size: (H, W) of the stored image.

    Raises UnreadableError for a missing, damaged or foreign file (nothing in it is executed, and
    nothing is unpacked that is larger than its image) and for an image of another size, and
    InputError for more classes than num_classes.
    """
    path = Path(path)
    try:
        # np.load leaves a damaged file open
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            keys = _read_keys(arrays)
            own_size = tuple(int(side) for side in read_array(arrays, "size"))
            maps = {kind: _read_maps(arrays, kind, len(keys), own_size) for kind in KINDS}
    except FileNotFoundError:
        raise UnreadableError(
            f"{path}: no such CAM file; run make_cam.py on this list first"
        ) from None
    except Exception as error:  # a damaged zip or array raises nearly anything
        raise UnreadableError(
            f"{path}: not a whole CAM file ({error}); delete it and run make_cam.py again"
        ) from None
    if num_classes is not None and keys.max() >= num_classes:
        raise InputError(
            f"{path}: holds class {keys.max()}, the dataset has 0..{num_classes - 1};"
            " use the --dataset that it was made with"
        )
    if size is not None and own_size != tuple(size):
        raise UnreadableError(
            f"{path}: is for an image of {own_size[1]}x{own_size[0]},"
            f" the image has {size[1]}x{size[0]}; delete it and run make_cam.py again"
        )
    return CamFile(path, keys, own_size, **maps)


def read_array(arrays: np.lib.npyio.NpzFile, name: str, cells: int = FEW_CELLS) -> np.ndarray:
    """An array of an .npz file.

    Raises ValueError, before it unpacks anything, if the array has more bytes than `cells` values
    of float64.
    """
    member = arrays.zip.getinfo(f"{name}.npy")
    if member.file_size > BYTES_OF_FLOAT64 * cells + HEADER_BYTES:
        raise ValueError(f"its {name} is too large")
    # arrays[name] would prefer a member without the ending .npy
    with arrays.zip.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_keys(arrays: np.lib.npyio.NpzFile) -> np.ndarray:
    keys = read_array(arrays, "keys")
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise ValueError("its keys are no class ids")
    if ((keys < 0) | (keys >= IGNORE)).any():
        raise ValueError("its keys are no class ids")
    return keys.astype(np.int64)


def _read_maps(
    arrays: np.lib.npyio.NpzFile, kind: str, count: int, size: tuple[int, int]
) -> np.ndarray | None:
    """The maps of one kind (k, H, W); None if the file lacks it. Raises ValueError if damaged."""
    names = {name for name in arrays.files if name.rpartition("_")[0] == kind}
    most_cells = _most_cells(count, size)
    grids = []
    for name in sorted(names, key=_scale_of):
        grids.append(torch.from_numpy(read_array(arrays, name, most_cells)))
    has_maps = most_cells > 0
    if not has_maps or any(grid.ndim != 3 or len(grid) != count for grid in grids):
        raise ValueError("its arrays do not fit together")
    if not grids:
        return None
    background = None
    if kind == "is_cam" and "background" in arrays:
        background = float(read_array(arrays, "background"))
    return fuse_scales(grids, size, kind == "is_cam", background).numpy()


def _scale_of(name: str) -> int:
    """The number of the scale in the name of an array, such as is_cam_2."""
    return int(name.rpartition("_")[2])


def _most_cells(count: int, size: tuple[int, int]) -> int:
    """The cells of all maps of an image at the largest scale, at most; 0 for impossible maps."""
    if count <= 1 or len(size) != 2:
        return 0
    height, width = size
    if min(size) <= 0 or height * width > MAX_PIXELS:
        return 0
    return count * (height // 2 + GRID_MARGIN) * (width // 2 + GRID_MARGIN)
