"""What the tests of the stages share: calls of a script, maps that need no network, and ways to spoil a run."""

import contextlib
import io
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from data.registry import VOC
from data.tables import read_classes
from tool import cam_file, files

VOC_CLASSES = read_classes(VOC.classes)
NAMES = [f"2007_{i:06d}" for i in range(6)]  # of the drawn dataset
FIRST = NAMES[0]


def call(main, *arguments) -> str:
    """Call a script's main and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(argument) for argument in arguments])
    return printed.getvalue()


def data_flags(root: Path, run_dir: Path, num_workers: int = 0) -> list:
    return ["--dataset_root", root, "--run_dir", run_dir, "--num_workers", num_workers]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def note_maps(run_dir: Path, kinds: tuple[str, ...] = ("is_cam",), **more) -> None:
    """The note beside the CAM files of how they were made."""
    settings = {
        "made_by": "make_cam",
        "checkpoint": "none",
        "scales": [1.0],
        "maps": sorted(kinds),
        "amp": "off",
        "class_names": list(VOC_CLASSES),
    }
    files.write_json(run_dir / "cam/settings.json", settings | more)


def draw_maps(run_dir: Path, names: list[str] = NAMES) -> None:
    """CAM files that need no network: background on the left, dog on the right."""
    note_maps(run_dir)
    maps = np.stack([np.linspace(1, 0, 12).reshape(4, 3).T, np.linspace(0, 1, 12).reshape(4, 3).T])
    for name in names:
        cam_file.save(cam_file.path_of(run_dir, name), [0, 12], (48, 64), is_cam=[maps])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def assert_same_weights(path: Path, other: Path) -> None:
    ours, theirs = weights_of(path), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def times_below(folder: Path) -> dict[str, int]:
    """When each file below a folder was written."""
    return {name: (folder / name).stat().st_mtime_ns for name in files_below(folder)}


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def stop_after(patch: pytest.MonkeyPatch, module: ModuleType, name: str, times: int) -> None:
    """Let a function of a script be called so many times, then press Ctrl-C."""
    real, count = getattr(module, name), itertools.count(1)

    def stopping(*args, **kwargs):
        if next(count) > times:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    patch.setattr(module, name, stopping)
