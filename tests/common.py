"""What the tests of the stages share: a table of all stages, a run of them, and drawn maps.

Also ways to call a script, to stop one, and to compare what two have written.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

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
from network import resnet
from tool import cam_file, label_file, visualize
from tool.outputs import write_json

ROOT = Path(__file__).resolve().parents[1]
VOC_CLASSES = read_classes(VOC.classes)
NAMES = [f"2007_{i:06d}" for i in range(6)]  # of the drawn dataset
SIZE = (48, 64)
CELL = 8  # pixels of the drawn maps
ORIENTATION_TAG = 0x0112
QUARTER_TURN = 6  # clockwise, to show the image upright


@dataclass(frozen=True)
class Stop:
    """Where Ctrl-C is pressed: after so many calls of a function."""

    module: ModuleType
    function: str
    calls: int


@dataclass(frozen=True)
class Stage:
    """A stage as the tests run it.

    Attributes:
        flags: {run} is the run directory, {voc} the dataset, {weights} the initial weights.
        needs: what it reads below the run directory.
        makes: the folder or checkpoint that it writes there.
        stop: in the middle of its work.
        other_flags: ask for other results.
    """

    script: ModuleType
    flags: str
    needs: tuple[str, ...]
    makes: str
    stop: Stop
    other_flags: str

    @property
    def is_training(self) -> bool:
        return self.makes.endswith(".pth")


TRAINING = "--device cpu --weights {weights} --save_every 1"
SECOND_LABEL = Stop(label_file, "save", 2)
STAGES = {
    "train_sipe": Stage(
        script=train_resnet50_SIPE,
        flags=f"{TRAINING} --batch_size 2 --crop_size 64 --resize_long 48 64 --max_epochs 2",
        needs=(),
        makes="ckpt/final.pth",
        stop=Stop(train_resnet50_SIPE, "train_step", 4),
        other_flags="--lr 0.05",
    ),
    "make_cam": Stage(
        script=make_cam,
        flags="--device cpu --scales 1.0 0.5",
        needs=("ckpt/final.pth",),
        makes="cam",
        stop=Stop(cam_file, "save", 2),
        other_flags="--scales 1.0 --maps is_cam",
    ),
    "make_ir_labels": Stage(
        script=make_ir_labels,
        flags="",
        needs=("cam",),
        makes="ir_label",
        stop=SECOND_LABEL,
        other_flags="--map cam",
    ),
    "train_irn": Stage(
        script=train_irn,
        flags=f"{TRAINING} --batch_size 3 --crop_size 80 --max_epochs 2",
        needs=("ir_label",),
        makes="ckpt/irn.pth",
        stop=Stop(train_irn, "train_step", 1),
        other_flags="--scales 0.5 1.0",
    ),
    "labels_none": Stage(
        script=make_seg_labels,
        flags="--refine none --label_dir {run}/none",
        needs=("cam",),
        makes="none",
        stop=SECOND_LABEL,
        other_flags="--map cam",
    ),
    "labels_crf": Stage(
        script=make_seg_labels,
        flags="--refine crf --label_dir {run}/crf --save_prob",
        needs=("cam",),
        makes="crf",
        stop=SECOND_LABEL,
        other_flags="--crf_on maps",
    ),
    "labels_irn": Stage(
        script=make_seg_labels,
        flags="--device cpu --refine irn --exp_times 2 --save_prob",
        needs=("cam", "ckpt/irn.pth"),
        makes="seg_label",
        stop=SECOND_LABEL,
        other_flags="--beta 5",
    ),
    "train_seg": Stage(
        script=train_seg,
        flags=f"{TRAINING} --network deeplabv2_resnet50 --output_stride 16"
        " --batch_size 3 --crop_size 64 --max_epochs 2 --lr 1e-5",
        needs=("seg_label",),
        makes="ckpt/seg.pth",
        stop=Stop(train_seg, "train_step", 3),
        other_flags="--class_balance 0.5",
    ),
    "infer_seg": Stage(
        script=infer_seg,
        flags="--device cpu --scales 1.0 0.5 --save_prob",
        needs=("ckpt/seg.pth",),
        makes="seg_pred",
        stop=SECOND_LABEL,
        other_flags="--scales 1.0",
    ),
    "predict": Stage(
        script=predict,
        flags="{voc}/JPEGImages --device cpu --ckpt {run}/ckpt/seg.pth"
        " --output_dir {run}/predictions --scales 1.0",
        needs=("ckpt/seg.pth",),
        makes="predictions",
        stop=Stop(visualize, "overlay", 2),
        other_flags="--max_side 32",
    ),
}
TRAININGS = [name for name, stage in STAGES.items() if stage.is_training]
INFERENCES = [name for name, stage in STAGES.items() if not stage.is_training]


@dataclass(frozen=True)
class Run:
    """A run directory with the dataset and the initial weights of its stages.

    Attributes:
        weights: for --weights, a file or "none".
    """

    voc: Path
    folder: Path
    weights: Path | str

    def flags(self, name: str, num_workers: int = 0) -> list[str]:
        """The flags of a stage of the table."""
        flags = self._fill_in(STAGES[name].flags).split()
        if name == "predict":
            return [*flags, "--num_workers", str(num_workers)]
        return [*flags, *data_flags(self.voc, self.folder, num_workers)]

    def path(self, text: str) -> Path:
        """A path in which {run}, {voc} and {weights} stand for those of this run."""
        return Path(self._fill_in(text))

    def _fill_in(self, text: str) -> str:
        return text.format(run=self.folder, voc=self.voc, weights=self.weights)

    def stage(self, name: str, *more: object, num_workers: int = 0) -> str:
        """Run a stage of the table with more flags; returns what it prints."""
        return call(STAGES[name].script.main, *self.flags(name, num_workers), *more)

    def stop_stage(self, name: str, *more: object, calls: int | None = None) -> None:
        """Run a stage of the table, and press Ctrl-C in the middle of its work.

        calls: of the function at which the stage is stopped, in place of the table's number.
        """
        stop = STAGES[name].stop
        times = stop.calls if calls is None else calls
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, stop.module, stop.function, times)
            self.stage(name, *more)

    def makes(self, name: str) -> Path:
        """The folder or checkpoint that a stage of the table writes."""
        return self.folder / STAGES[name].makes

    def last_checkpoint(self, name: str) -> Path:
        """The checkpoint from which a training of the table resumes."""
        final = self.makes(name)
        file_name = "last.pth" if name == "train_sipe" else f"{final.stem}_last.pth"
        return final.with_name(file_name)


@dataclass(frozen=True)
class FinishedRun(Run):
    """A run in which all stages of the table have run; to read only.

    From the inter-pixel labels on, they started from the drawn maps in the folder cam.
    """

    @property
    def made_maps(self) -> Path:
        """A run directory with the maps of make_cam.py, whose place the drawn ones have taken."""
        return self.folder / "maps"

    def results(self, name: str) -> Path:
        """What a stage of the table has made."""
        if name == "make_cam":
            return self.made_maps / "cam"
        return self.makes(name)

    def prepare(self, name: str, run: Run) -> None:
        """Put what a stage reads into another run."""
        for below in STAGES[name].needs:
            copy(self.folder / below, run.folder / below)

    def copy_results(self, name: str, run: Run) -> None:
        """Put what a stage has made into another run, newer than all that it was made from."""
        makes = run.makes(name)
        copy(self.results(name), makes)
        if makes.is_dir():
            for path in makes.iterdir():
                os.utime(path)


def finish_run(run: Run) -> FinishedRun:
    """Run all stages of the table."""
    finished = FinishedRun(run.voc, run.folder, run.weights)
    for name in STAGES:
        run.stage(name)
        if name == "make_cam":
            shutil.move(run.folder / "cam", finished.results(name))
            draw_maps(run.voc, run.folder)
    return finished


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder; what lies above it is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def shrink_resnet50(patch: pytest.MonkeyPatch) -> None:
    """Give ResNet-50 one narrow block a layer.

    Its maps keep their strides and numbers of channels, but it has an eighth of the weights, which
    are what a stage on small images spends its time on.
    """
    patch.setitem(resnet.BLOCKS, "resnet50", (1, 1, 1, 1))
    narrow = functools.partialmethod(resnet.ResNetMaps.__init__, width_per_group=8)
    patch.setattr(resnet.ResNetMaps, "__init__", narrow)


def call(main: Callable[[list[str]], None], *arguments: object) -> str:
    """Call a script's main and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(argument) for argument in arguments])
    return printed.getvalue()


def load_script(name: str) -> ModuleType:
    """A script at top level that shares its name with a package."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # workers look its functions up there
    spec.loader.exec_module(script)
    return script


def data_flags(root: Path, run_dir: Path, num_workers: int = 0) -> list[str]:
    return [
        *("--dataset_root", str(root)),
        *("--run_dir", str(run_dir)),
        *("--num_workers", str(num_workers)),
    ]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_mask(voc: Path, name: str) -> np.ndarray:
    """The true mask of an image of the drawn dataset."""
    with Image.open(voc / f"SegmentationClass/{name}.png") as image:
        return np.asarray(image)


def draw_maps(voc: Path, run_dir: Path, rotated: tuple[str, ...] = ()) -> None:
    """Write CAM files that know the masks; those of `rotated` images are turned clockwise."""
    for name in NAMES:
        mask = read_mask(voc, name)
        keys = np.unique(mask)
        foreground = shares_of_cells(mask, keys[1:])
        is_cam = with_background(0.9 * foreground)
        cam = with_background(0.6 * foreground)
        size = mask.shape
        if name in rotated:
            is_cam = np.rot90(is_cam, -1, (1, 2))
            cam = np.rot90(cam, -1, (1, 2))
            size = mask.shape[::-1]
        content = cam_file.CamGrids(keys, size, is_cam=[is_cam], cam=[cam])
        cam_file.save(cam_file.path_of(run_dir, name), content)
    write_map_settings(run_dir)


def shares_of_cells(mask: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The share of each cell that each class covers: (k, H / CELL, W / CELL)."""
    is_class = mask == keys[:, None, None]
    rows = mask.shape[0] // CELL
    columns = mask.shape[1] // CELL
    cells = is_class.reshape(len(keys), rows, CELL, columns, CELL)
    return cells.mean((2, 4))


def with_background(foreground: np.ndarray) -> np.ndarray:
    """Maps with that of the background before them: what the strongest class leaves of 1."""
    background = 1 - foreground.max(0, keepdims=True)
    return np.concatenate([background, foreground])


def write_map_settings(run_dir: Path) -> None:
    """The settings.json of drawn maps."""
    settings = {
        "made_by": "make_cam",
        "checkpoint": "none",
        "scales": [1.0],
        "amp": "off",
        "maps": ["cam", "is_cam"],
        "class_names": list(VOC_CLASSES),
    }
    write_json(run_dir / "cam/settings.json", settings)


def label_of(folder: Path, name: str) -> np.ndarray:
    """The class ids of a label image, which is a palette PNG in VOC's colours."""
    with Image.open(label_file.path_of(folder, name)) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        colours = np.array(image.getpalette()).reshape(-1, 3)
        assert np.array_equal(colours, label_file.palette())
        return np.asarray(image)


def probability_of(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The class ids and the probabilities beside a label image, which must fit it."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["keys", "probability"]
        keys = arrays["keys"]
        probability = arrays["probability"]
    label = label_of(folder, name)
    assert probability.dtype == np.float16
    assert probability.shape == (len(keys), *label.shape)
    assert probability.min() >= 0
    assert probability.max() <= 1
    index = np.searchsorted(keys, label)
    of_label = np.take_along_axis(probability, index[None], axis=0)[0]
    assert np.array_equal(of_label, probability.max(0))
    return keys, probability


def rotate(image: Path, twin: Path) -> Image.Image:
    """Store an image lying on its side, as its EXIF says, and its upright twin as another one.

    PIL goes by what a file holds, so a lossless PNG may be called .jpg. Returns the stored image.
    """
    stored = Image.open(image).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = QUARTER_TURN
    stored.save(image, format="PNG", exif=exif)
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    upright.save(twin, format="PNG")
    return stored


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def equal_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> set[str]:
    """The names of the tensors that are the same in both."""
    return {name for name, value in ours.items() if torch.equal(value, theirs[name])}


def assert_same_results(ours: Path, theirs: Path) -> None:
    """Two checkpoints with the same weights, or two folders with the same files."""
    if ours.is_dir():
        assert bytes_below(ours) == bytes_below(theirs)
        return
    our_weights = weights_of(ours)
    their_weights = weights_of(theirs)
    assert our_weights.keys() == their_weights.keys()
    assert equal_tensors(our_weights, their_weights) == our_weights.keys()


def assert_close_weights(ours: Path, theirs: Path, rtol: float, atol: float) -> None:
    """Two checkpoints whose weights differ by rounding; rtol: of a tensor's largest value."""
    their_weights = weights_of(theirs)
    for name, value in weights_of(ours).items():
        expected = their_weights[name]
        difference = (value - expected).abs().max()
        assert difference <= rtol * expected.abs().max() + atol, name


def files_below(folder: Path) -> set[str]:
    """The files below a folder, locks and notes of sizes left out."""
    names = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            names.add(path.relative_to(folder).as_posix())
    return names


def times_below(folder: Path) -> dict[str, int]:
    """When each file below a folder was written, TensorBoard's left out."""
    times = {}
    for name in files_below(folder):
        if not name.startswith("tensorboard"):
            times[name] = (folder / name).stat().st_mtime_ns
    return times


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
    real = getattr(module, name)
    count = itertools.count(1)

    def call_or_stop(*args: object, **kwargs: object) -> object:
        if next(count) > times:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    patch.setattr(module, name, call_or_stop)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with as many threads as each of two processes has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_process(*command: object, **environment: str) -> None:
    """Run a Python command to its end, with as many threads as here."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | threads | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def kill_when_written(path: Path, script: ModuleType, flags: Sequence[object]) -> None:
    """Start a script in a process of its own, and kill it as soon as it has written a file.

    The process has as many threads as this one.
    """
    command = [sys.executable, script.__file__, *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as process:
        while process.poll() is None and not path.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


IN_TWO_PROCESSES = """
import importlib, json, os, sys
calls = json.loads(sys.argv[1])
scripts = [importlib.import_module(name) for name, *_ in calls]
child = os.fork()
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if child else "1"
for script, (_, port, *flags) in zip(scripts, calls):
    os.environ["MASTER_PORT"] = port
    script.main(flags)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


@dataclass(frozen=True)
class Call:
    """A script and its flags."""

    script: ModuleType
    flags: Sequence[object]


def run_in_two_processes(calls: Sequence[Call]) -> None:
    """Run scripts one after the other as torchrun does, each in two processes.

    The processes of a call meet at a port of its own. torch is imported only once.
    """
    content = []
    for port, script_call in zip(free_ports(len(calls)), calls):
        flags = [str(flag) for flag in script_call.flags]
        content.append([script_call.script.__name__, port, *flags])
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", IN_TWO_PROCESSES, json.dumps(content)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            assert process.wait(timeout=300) == 0
        finally:
            if process.returncode != 0:
                os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[str]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports
