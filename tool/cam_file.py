"""The CAM file: what make_cam.py writes for an image and every later stage reads.

RUN_DIR/cam/NAME.npz holds plain arrays: `keys` (k,) class ids, background (0) first; `size` (2,) height and width of the image;
`is_cam_0`, `is_cam_1`, ... and, if kept, `cam_0`, ...: the maps (k, h, w) of each scale on the network's own grid, float16; and, if the
recipe has one, `background`: the strength of the background in place of its own IS-CAM.
Full-size maps are made on loading: they are sums of these grids, upsampled, and more than 100 times as large.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.images import MAX_PIXELS
from errors import InputError, UnreadableError
from network.fusion import fuse_scales
from network.spatial import argmax_resized

from .outputs import SETTINGS, atomic_write, read_json

KINDS = ("is_cam", "cam")
_MAKE_BOTH = "run make_cam.py --overwrite --maps is_cam cam"


@dataclass(frozen=True)
class CamFile:
    """The maps of one image, background first, in the frame in which the image is stored."""

    path: Path
    keys: np.ndarray  # (k,) int64 class ids
    size: tuple[int, int]  # (H, W)
    is_cam: np.ndarray | None  # (k, H, W) float32 in [0, 1]
    cam: np.ndarray | None  # (k, H, W) float32 in [0, 1]

    def maps(self, kind: str) -> np.ndarray:
        """(k, H, W) float32 in [0, 1]: the maps of a kind ("is_cam" or "cam"). Raises InputError where the file lacks it."""
        maps = getattr(self, kind)
        if maps is None:
            raise InputError(f"{self.path}: holds no {kind} maps; {_MAKE_BOTH}")
        return maps

    def label(self, kind: str) -> np.ndarray:
        """(H, W) uint8 class ids: the strongest of the maps of a kind, its own background map included."""
        return self.keys.astype(np.uint8)[argmax_resized(self.maps(kind), self.size)]


def path_of(run_dir: Path, name: str) -> Path:
    """Where the CAM file of an image lies."""
    return run_dir / "cam" / f"{name}.npz"


def read_settings(run_dir: Path, class_names: tuple[str, ...]) -> dict[str, Any]:
    """How the maps of a run were made. Raises InputError where there are none, or where their classes are not the dataset's."""
    path = run_dir / "cam" / SETTINGS
    if not path.is_file():
        raise InputError(
            f"{path}: there are no maps of make_cam.py here; correct --run_dir or run make_cam.py first"
        )
    settings = read_json(path)
    maps = settings.get("maps")
    if not maps or not isinstance(maps, list) or any(kind not in KINDS for kind in maps):
        raise InputError(f"{path}: does not name the kinds of map; run make_cam.py --overwrite")
    if settings.get("class_names") != list(class_names):
        raise InputError(
            f"{path}: the maps have other classes than the dataset; use the --dataset that they were made with"
        )
    return settings


def require(
    run_dir: Path, names: Iterable[str], kind: str, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """`read_settings`, once every image has a CAM file with maps of this kind. Raises InputError where one has not."""
    settings = read_settings(run_dir, class_names)
    if kind not in settings["maps"]:
        raise InputError(f"{run_dir / 'cam'}: holds no {kind} maps; {_MAKE_BOTH}")
    missing = next(
        (path for path in (path_of(run_dir, name) for name in names) if not path.is_file()), None
    )
    if missing:
        raise InputError(f"{missing}: no such CAM file; run make_cam.py on this list first")
    return settings


def save(
    path: Path,
    keys: np.ndarray,
    size: tuple[int, int],
    is_cam: Sequence[np.ndarray] = (),
    cam: Sequence[np.ndarray] = (),
    background: float | None = None,
    dtype: type = np.float16,
) -> None:
    """Write a CAM file; is_cam and cam: (k, h, w) in [0, 1] a scale."""
    grids = {
        f"{kind}_{i}": grid.astype(dtype)
        for kind, maps in (("is_cam", is_cam), ("cam", cam))
        for i, grid in enumerate(maps)
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        if background is not None:
            grids["background"] = np.float32(background)
        np.savez_compressed(
            file, keys=np.asarray(keys, np.int64), size=np.asarray(size, np.int64), **grids
        )


def load(
    path: str | Path, num_classes: int | None = None, size: tuple[int, int] | None = None
) -> CamFile:
    """Read a CAM file into full-size maps.

    Raises UnreadableError for a missing, damaged or foreign file (nothing in it is ever executed, and nothing is unpacked that is larger
    than its image), and, where the image's (H, W) are given, for one of another size; InputError for more classes than num_classes.
    """
    path = Path(path)
    try:
        with (
            open(path, "rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):  # np.load leaves a damaged file open
            keys, own_size = (
                _read_keys(read_array(arrays, "keys")),
                tuple(int(side) for side in read_array(arrays, "size")),
            )
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
            f"{path}: holds class {keys.max()}, the dataset has 0..{num_classes - 1}; use the --dataset that it was made with"
        )
    if size is not None and own_size != tuple(size):
        raise UnreadableError(
            f"{path}: is for an image of {own_size[1]}x{own_size[0]}, the image has {size[1]}x{size[0]}; "
            "delete it and run make_cam.py again"
        )
    return CamFile(path, keys, own_size, **maps)


def read_array(arrays: np.lib.npyio.NpzFile, name: str, cells: int = 256) -> np.ndarray:
    """An array of the file; raises ValueError before it is unpacked where it has more than so many float64 cells and a header."""
    member = arrays.zip.getinfo(f"{name}.npy")
    if member.file_size > 8 * cells + 1000:
        raise ValueError(f"its {name} is too large")
    with arrays.zip.open(
        member
    ) as file:  # arrays[name] would rather read a member of that very name
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_keys(keys: np.ndarray) -> np.ndarray:
    if keys.ndim != 1 or keys.dtype.kind not in "iu" or ((keys < 0) | (keys >= 255)).any():
        raise ValueError("its keys are no class ids")
    return keys.astype(np.int64)


def _read_maps(
    arrays: np.lib.npyio.NpzFile, kind: str, count: int, size: tuple[int, int]
) -> np.ndarray | None:
    names = sorted(
        {name for name in arrays.files if name.rpartition("_")[0] == kind},
        key=lambda name: int(name.rpartition("_")[2]),
    )
    fits = count > 1 and len(size) == 2 and min(size) > 0 and size[0] * size[1] <= MAX_PIXELS
    most = (
        count * (size[0] // 2 + 64) * (size[1] // 2 + 64) if fits else 0
    )  # at scale 8 the grid has half the image's side
    grids = [torch.from_numpy(read_array(arrays, name, most)) for name in names]
    if not fits or any(grid.ndim != 3 or len(grid) != count for grid in grids):
        raise ValueError("its arrays do not fit together")
    is_cam = kind == "is_cam"
    background = (
        float(read_array(arrays, "background")) if is_cam and "background" in arrays else None
    )
    return (
        fuse_scales(grids, size, normalize=is_cam, background=background).numpy() if grids else None
    )
