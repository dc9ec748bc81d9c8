"""What the tests of the stages share: calls of a script, maps that need no network, and ways to spoil a run."""

import contextlib
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

import numpy as np
import pytest
import torch
from PIL import Image

from data.registry import VOC
from data.tables import read_classes
from tool import cam_file, files, label_file

ROOT = Path(__file__).resolve().parents[1]
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


def label_of(folder: Path, name: str) -> np.ndarray:
    """The class ids of a label image, which is a palette PNG in VOC's colours."""
    with Image.open(label_file.path_of(folder, name)) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert np.array_equal(np.array(image.getpalette()).reshape(-1, 3), label_file.palette())
        return np.asarray(image)


def probability_of(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The class ids and the probabilities that lie beside a label image, after a look whether they fit it."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["keys", "probability"]
        keys, probability = arrays["keys"], arrays["probability"]
    label = label_of(folder, name)
    assert (probability.dtype, probability.shape) == (np.float16, (len(keys), *label.shape))
    assert 0 <= probability.min() <= probability.max() <= 1
    of_label = np.take_along_axis(probability, np.searchsorted(keys, label)[None], 0)
    assert np.array_equal(of_label[0], probability.max(0))
    return keys, probability


def turn(picture: Path, twin: Path) -> Image.Image:
    """Store a picture as one that lies on its side, as its EXIF orientation tells, and its upright twin in place of another.

    PIL goes by what a file holds, so that a lossless PNG may be called .jpg. Returns the picture as it is stored.
    """
    stored, turned = Image.open(picture).convert("RGB"), Image.Exif()
    turned[0x0112] = 6  # a quarter turn clockwise shows it upright
    stored.save(picture, format="PNG", exif=turned)
    stored.transpose(Image.Transpose.ROTATE_270).save(twin, format="PNG")
    return stored


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


def kill_once_there(path: Path, script: ModuleType, flags: list) -> None:
    """Start a script in a process of its own, with as many threads as here, and kill it as soon as a file is there."""
    command = [sys.executable, script.__file__, *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not path.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with as many threads as each of two processes has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    todo = [[script.__name__, str(port.getsockname()[1]), *map(str, flags)] for port, (script, *flags) in zip(ports, calls)]
    for port in ports:
        port.close()
    place = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", IN_TWO_PROCESSES, json.dumps(todo)]
    with subprocess.Popen(command, cwd=ROOT, env=place, start_new_session=True) as process:
        try:
            assert process.wait(timeout=300) == 0
        finally:
            if process.returncode != 0:
                os.killpg(process.pid, signal.SIGKILL)


def kill_one_of_two(path: Path, script: ModuleType, flags: list) -> str:
    """Start a stage by torchrun in two processes, kill the second as soon as a file is there, and return what was said on stderr."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script.__file__, *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not path.exists():
                time.sleep(0.01)
            ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            (second,) = (int(pid) for pid in ranks if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
            os.kill(second, signal.SIGKILL)
            said = process.communicate(timeout=60)[1]
        finally:
            process.terminate()  # torchrun ends its processes
    assert process.returncode == 1
    return said
