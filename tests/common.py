"""What the tests of the stages share: the table of stages, drawn maps, calls of a script, and ways to stop one."""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import infer_seg
import make_cam
import make_ir_labels
import make_seg_labels
import predict
import train_irn
import train_resnet50_SIPE
import train_seg
from data.annotations import read_classes
from data.registry import VOC
from errors import InputError
from tool import cam_file, label_file, visualize
from tool.outputs import write_json

ROOT = Path(__file__).resolve().parents[1]
VOC_CLASSES = read_classes(VOC.classes)
NAMES = [f"2007_{i:06d}" for i in range(6)]  # of the drawn dataset
SIZE = (48, 64)


class Stage(NamedTuple):
    """A stage as the tests call it. In paths and flags {run} is the run directory, {voc} the drawn dataset, {weights} a backbone."""

    script: ModuleType
    flags: str
    needs: tuple[str, ...]  # what it reads below the run directory
    makes: str  # the folder or checkpoint that it writes there
    stop: tuple[ModuleType, str, int]  # a function, and how often it is called before Ctrl-C
    other: str  # flags that ask for other results

    @property
    def is_training(self) -> bool:
        return self.makes.endswith(".pth")


SMALL = "--device cpu --weights {weights} --save_every 1"
STAGES = {
    "train_sipe": Stage(
        train_resnet50_SIPE,
        f"{SMALL} --batch_size 2 --crop_size 64 --resize_long 48 64 --max_epochs 2",
        (),
        "ckpt/final.pth",
        (train_resnet50_SIPE, "train_step", 4),
        "--lr 0.05",
    ),
    "make_cam": Stage(
        make_cam,
        "--device cpu --scales 1.0 0.5",
        ("ckpt/final.pth",),
        "cam",
        (cam_file, "save", 2),
        "--scales 1.0 --maps is_cam",
    ),
    "make_ir_labels": Stage(
        make_ir_labels, "", ("cam",), "ir_label", (label_file, "save", 2), "--map cam"
    ),
    "train_irn": Stage(
        train_irn,
        f"{SMALL} --batch_size 3 --crop_size 80 --max_epochs 2",
        ("ir_label",),
        "ckpt/irn.pth",
        (train_irn, "train_step", 1),
        "--scales 0.5 1.0",
    ),
    "labels_none": Stage(
        make_seg_labels,
        "--refine none --label_dir {run}/none",
        ("cam",),
        "none",
        (label_file, "save", 2),
        "--map cam",
    ),
    "labels_crf": Stage(
        make_seg_labels,
        "--refine crf --label_dir {run}/crf --save_prob",
        ("cam",),
        "crf",
        (label_file, "save", 2),
        "--crf_on maps",
    ),
    "labels_irn": Stage(
        make_seg_labels,
        "--device cpu --refine irn --exp_times 4 --save_prob",
        ("cam", "ckpt/irn.pth"),
        "seg_label",
        (label_file, "save", 2),
        "--beta 5",
    ),
    "train_seg": Stage(
        train_seg,
        f"{SMALL} --network deeplabv2_resnet50 --output_stride 16 --batch_size 3 --crop_size 64 --max_epochs 2 --lr 1e-6",
        ("seg_label",),
        "ckpt/seg.pth",
        (train_seg, "train_step", 3),
        "--class_balance 0.5",
    ),
    "infer_seg": Stage(
        infer_seg,
        "--device cpu --scales 1.0 0.5 --save_prob",
        ("ckpt/seg.pth",),
        "seg_pred",
        (label_file, "save", 2),
        "--scales 1.0",
    ),
    "predict": Stage(
        predict,
        "{voc}/JPEGImages --device cpu --ckpt {run}/ckpt/seg.pth --output_dir {run}/predictions --scales 1.0",
        ("ckpt/seg.pth",),
        "predictions",
        (visualize, "overlay", 2),
        "--max_side 32",
    ),
}


def run_stage(
    name: str, voc: Path, run_dir: Path, weights: Path, *more, num_workers: int = 0
) -> str:
    """Run a stage of the table and return what it printed; its network is small enough that one thread computes it."""
    return call(
        STAGES[name].script.main, *stage_flags(name, voc, run_dir, weights, num_workers), *more
    )


def stage_flags(
    name: str, voc: Path, run_dir: Path, weights: Path, num_workers: int = 0
) -> list[str]:
    flags = STAGES[name].flags.format(run=run_dir, voc=voc, weights=weights).split()
    return flags + (
        ["--num_workers", str(num_workers)]
        if name == "predict"
        else data_flags(voc, run_dir, num_workers)
    )


def call(main, *arguments) -> str:
    """Call a script's main and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(argument) for argument in arguments])
    return printed.getvalue()


def load_script(name: str) -> ModuleType:
    """A script at top level that shares its name with a package."""
    about = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    script = importlib.util.module_from_spec(about)
    sys.modules[about.name] = script  # workers look its functions up there
    about.loader.exec_module(script)
    return script


def data_flags(root: Path, run_dir: Path, num_workers: int = 0) -> list[str]:
    return [
        "--dataset_root",
        str(root),
        "--run_dir",
        str(run_dir),
        "--num_workers",
        str(num_workers),
    ]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_map_settings(run_dir: Path, kinds: tuple[str, ...] = ("is_cam", "cam")) -> None:
    """The settings.json of drawn maps."""
    about = {"made_by": "make_cam", "checkpoint": "none", "scales": [1.0], "amp": "off"}
    write_json(
        run_dir / "cam/settings.json",
        about | {"maps": sorted(kinds), "class_names": list(VOC_CLASSES)},
    )


def draw_maps(root: Path, run_dir: Path, rotated: tuple[str, ...] = ()) -> Path:
    """CAM files that know the masks, on a grid of 6x8 cells; those of `rotated` images are turned clockwise."""
    for name in NAMES:
        mask = np.asarray(Image.open(root / f"SegmentationClass/{name}.png"))
        keys = np.unique(mask)
        foreground = (mask == keys[1:, None, None]).reshape(-1, 6, 8, 8, 8).mean((2, 4))
        grids = {
            kind: [np.stack([1 - part.max(0), *part])]
            for kind, part in (("is_cam", foreground * 0.9), ("cam", foreground * 0.6))
        }
        size = mask.shape
        if name in rotated:
            size, grids = (
                size[::-1],
                {kind: [np.rot90(maps[0], -1, (1, 2))] for kind, maps in grids.items()},
            )
        cam_file.save(cam_file.path_of(run_dir, name), cam_file.CamGrids(keys, size, **grids))
    write_map_settings(run_dir)
    return run_dir


def label_of(folder: Path, name: str) -> np.ndarray:
    """The class ids of a label image, which is a palette PNG in VOC's colours."""
    with Image.open(label_file.path_of(folder, name)) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert np.array_equal(np.array(image.getpalette()).reshape(-1, 3), label_file.palette())
        return np.asarray(image)


def probability_of(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The class ids and the probabilities beside a label image, once they fit it."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["keys", "probability"]
        keys, probability = arrays["keys"], arrays["probability"]
    label = label_of(folder, name)
    assert (probability.dtype, probability.shape) == (np.float16, (len(keys), *label.shape))
    assert 0 <= probability.min() <= probability.max() <= 1
    of_label = np.take_along_axis(probability, np.searchsorted(keys, label)[None], 0)
    assert np.array_equal(of_label[0], probability.max(0))
    return keys, probability


def rotate(image: Path, twin: Path) -> Image.Image:
    """Store an image lying on its side, as its EXIF orientation says, and its upright twin in place of another.

    PIL goes by what a file holds, so a lossless PNG may be called .jpg. Returns the image as it is stored.
    """
    stored, exif = Image.open(image).convert("RGB"), Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    stored.save(image, format="PNG", exif=exif)
    stored.transpose(Image.Transpose.ROTATE_270).save(twin, format="PNG")
    return stored


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def assert_same_results(ours: Path, theirs: Path) -> None:
    """Two checkpoints with the same weights, or two folders with the same files."""
    if ours.is_dir():
        assert bytes_below(ours) == bytes_below(theirs)
    else:
        one, other = weights_of(ours), weights_of(theirs)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def files_below(folder: Path) -> set[str]:
    """The files below a folder, locks and notes of sizes left out."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def times_below(folder: Path) -> dict[str, int]:
    """When each file below a folder was written, TensorBoard's left out."""
    return {
        name: (folder / name).stat().st_mtime_ns
        for name in files_below(folder)
        if not name.startswith("tensorboard")
    }


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


@contextlib.contextmanager
def refused(start: object) -> Iterator[None]:
    """The block raises InputError in one line that begins with a file or an address."""
    with pytest.raises(InputError) as error:
        yield
    line = str(error.value)
    assert line.startswith(f"{start}: ")
    assert "\n" not in line


def stop_after(patch: pytest.MonkeyPatch, module: ModuleType, name: str, times: int) -> None:
    """Let a function be called so many times, then press Ctrl-C."""
    real, count = getattr(module, name), itertools.count(1)

    def stopping(*args, **kwargs):
        if next(count) > times:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    patch.setattr(module, name, stopping)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with as many threads as each of two processes has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kill_once_there(path: Path, script: ModuleType, flags: list) -> None:
    """Start a script in a process of its own, with as many threads as here, and kill it as soon as a file is there."""
    command = [sys.executable, script.__file__, *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not path.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


IN_TWO_PROCESSES = """
import importlib, json, os, sys
todo = json.loads(sys.argv[1])
scripts = [importlib.import_module(name) for name, *_ in todo]
child = os.fork()
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if child else "1"
for script, (_, port, *flags) in zip(scripts, todo):
    os.environ["MASTER_PORT"] = port
    script.main(flags)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


def in_two_processes(calls: list[list]) -> None:
    """Run stages one after the other as torchrun does, each in two processes that meet at a port of its own; torch is imported once."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in calls]
    todo = [
        [script.__name__, str(port.getsockname()[1]), *map(str, flags)]
        for port, (script, *flags) in zip(ports, calls)
    ]
    for port in ports:
        port.close()
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", IN_TWO_PROCESSES, json.dumps(todo)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            assert process.wait(timeout=300) == 0
        finally:
            if process.returncode != 0:
                os.killpg(process.pid, signal.SIGKILL)
