"""What every stage script shares: flags, device, processes, precision, and errors in one line."""

import argparse
import contextlib
import ctypes
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from errors import InputError

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# what PyTorch's errors, as "module.class: text", mean to the user; the parentheses say what of the text is worth repeating
MEANINGS = (
    (
        r"DataLoader worker .*(exited unexpectedly|killed)",
        "a worker process was killed, perhaps for lack of memory; use a smaller --num_workers",
    ),
    (r"OutOfMemoryError: (.*?)\.", "the GPU's memory does not suffice ({}); use a smaller --batch_size, --crop_size or --scales"),
    (r"DefaultCPUAllocator: can't allocate memory: (.*?)\.", "the memory does not suffice ({}); use a smaller --batch_size or --scales"),
    (r"^torch\._(?:dynamo|inductor)\..*?: (.*)", "--compile does not work here ({}); leave it out, or mend what it needs"),
    (
        r"(?:distributed.*Dist\w*Error: |gloo/transport\S*\] )(.*?(?:exited|reset|closed|[Bb]roken pipe|[Tt]ime).*?)(?:\. |\n|$)",
        "this process has lost another one, so it ends, too ({}); mend what the other one says, if anything, and the same command goes on",
    ),
)


def parser(doc: str, datasets: list[str], device: bool = True, most_workers: int | None = 8) -> argparse.ArgumentParser:
    """An argument parser with the flags that all stages share; most_workers: of the processes that a stage starts by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=datasets, default="voc", help="kind of dataset (default voc)")
    parser.add_argument("--dataset_root", help="folder of the dataset (default ./VOC2012 for voc)")
    parser.add_argument(
        "--run_dir",
        "--session_name",
        type=Path,
        help="folder for everything that this run writes; all its stages share it (default runs/DATASET)",
    )
    if device:
        add_device(parser)
    add_workers(parser, most_workers)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Give a command that computes with a network its flags --device and --amp."""
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp",
        choices=AMP,
        default="off",
        help="precision of the convolutions; seeds, prototypes and losses stay float32 (default off: float32 as published; "
        "GPUs that have TF32 use it)",
    )


def add_max_side(parser: argparse.ArgumentParser) -> None:
    """Give a command of the segmentation network the flag --max_side."""
    parser.add_argument(
        "--max_side",
        type=_count,
        default=640,
        help="larger pictures are shrunk to this side before anything else, pixels, so that training and masks see things at one size; "
        "0: not at all (default 640, which no picture of VOC and COCO exceeds)",
    )


def check_scales(parser: argparse.ArgumentParser, scales: Sequence[float]) -> None:
    """End with argparse's error where a factor by which pictures are resized is out of range."""
    if not all(0 < scale <= 8 for scale in scales):
        parser.error("--scales are above 0 and at most 8")


def add_workers(parser: argparse.ArgumentParser, most_workers: int | None = 8) -> None:
    """Give a command the flag --num_workers; most_workers: the processes that it starts by default."""
    parser.add_argument(
        "--num_workers",
        type=_count,
        default=min(most_workers or sys.maxsize, _cores()),
        help="processes that work on pictures, for each process that torchrun starts if it does; 0 does it in the main process "
        f"(default: the cores{f', at most {most_workers}' if most_workers else ''})",
    )


def _cores() -> int:
    """The CPU cores that each of this machine's processes under torchrun may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _count(text: str) -> int:
    """A flag's whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 up")
    return int(text)


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags, and fill in the defaults that depend on the dataset."""
    args = parser.parse_args(argv)
    if args.dataset_root is None and args.dataset != "voc":
        parser.error(f"--dataset {args.dataset} needs --dataset_root")
    args.dataset_root = args.dataset_root or "./VOC2012"
    args.run_dir = args.run_dir or Path("runs") / args.dataset
    return args


def world_size() -> int:
    """How many processes torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class Stage:
    """Where a stage runs: its device, its place among the processes, its folder."""

    device: torch.device
    rank: int
    world_size: int
    run_dir: Path
    amp: torch.dtype | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """The context in which the network runs at the precision of --amp."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(text, flush=True)

    def shard(self, items: Sequence) -> Sequence:
        """This process's share of a list: no padding, no duplicates."""
        return items[self.rank :: self.world_size]

    def wait(self) -> None:
        """Wait for the other processes."""
        self.gather(None)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes; it carries no gradient."""
        value = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(value)
        return value / self.world_size

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def start(args: argparse.Namespace) -> Iterator[Stage]:
    """Choose the device, join the other processes of torchrun, and make sure that the run directory can be written."""
    processes = world_size()
    device = choose_device(getattr(args, "device", "cpu"), int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cpu":
        keep_freed_memory()
    make_writable(args.run_dir)
    if processes > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    yield Stage(device, int(os.environ.get("RANK", 0)), processes, args.run_dir, AMP[getattr(args, "amp", "off")])
    if processes > 1:  # after an error the others may be waiting for this one, and taking leave of them would wait in turn
        dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """auto, cpu, cuda (this process's own GPU) or cuda:N. Raises InputError for what this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if device.index is not None and not 0 <= device.index < torch.cuda.device_count():  # cuda:1000 wraps below 0
            raise InputError(
                f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu or another number"
            )
        torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Let this process keep the memory of maps that are no longer needed for those that follow.

    glibc's allocator gives all blocks above 32 MB back to the system at once, and getting them anew, page by page, is a tenth of the time
    that a network takes on a CPU. Does nothing where there is another allocator, or a glibc that takes no larger threshold (before 2.35).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and mallopt(MMAP_THRESHOLD, 2**30):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def make_writable(folder: Path) -> None:
    """Make a folder; raises InputError where nothing can be written to it."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's own generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run(main: Callable[[], None]) -> int:
    """Call a script's main; what the user can mend is one line on stderr and exit status 2. So are Ctrl-C (130) and SIGTERM (143)."""
    program = Path(sys.argv[0]).name
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    anew = " and ".join(flag for flag in ("--overwrite", "--no-resume") if flag in sys.argv)
    goes_on = f"the same command{f' without {anew}' if anew else ''} goes on from here"
    try:
        with _heed_sigterm(f"\n{program}: stopped by SIGTERM, perhaps as another process has ended; {goes_on}"):
            main()
    except InputError as error:
        # a worker process of a DataLoader wraps the message into its traceback; the message is what comes last
        message = str(error).rsplit("InputError: ", 1)[-1].strip()
        print(f"{program}: error: {message}", file=sys.stderr, flush=True)
        return 2
    except RuntimeError as error:
        message = _meaning(error)
        if message is None:
            raise
        print(f"{program}: error: {message}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"\n{program}: stopped; {goes_on}", file=sys.stderr, flush=True)
        return 130
    return 0


@contextlib.contextmanager
def _heed_sigterm(line: str) -> Iterator[None]:
    """At SIGTERM, which torchrun sends to the processes that are left when one has ended, say a line and end.

    A thread does so: the main one may be waiting for a GPU or for the process that has ended, and would never hear of it. Nothing is
    tidied up, as every file is whole or absent.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def end_when_told() -> None:
        while (number := os.read(reader, 1)) != bytes([signal.SIGTERM]):
            if not number:
                return os.close(reader)
        print(line, file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None), signal.set_wakeup_fd(writer)  # to which the signal's number is written
    threading.Thread(target=end_when_told, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before[1])
        signal.signal(signal.SIGTERM, before[0])
        os.close(writer)


def _meaning(error: RuntimeError) -> str | None:
    """One line for an error of PyTorch's that is no bug of ours; None for any other."""
    text = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    for pattern, meaning in MEANINGS:
        found = re.search(pattern, text)
        if found:
            return meaning.format(found[1])
    return None
