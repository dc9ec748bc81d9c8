"""What the benchmarks share: versions of one piece of work that take turns, each in a process of its own, and the line that compares two.

Reads memory from /proc, so a CPU's is told on Linux alone.
"""

import argparse
import contextlib
import io
import multiprocessing
import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from errors import InputError
from tool import stage

Work = Callable[[], Any]
Prepare = Callable[[Namespace], Work]


class Cost(NamedTuple):
    """What a version took."""

    seconds: float  # the fastest of its runs
    megabytes: float  # the most that the memory of its process (on a GPU: of torch) grew while it ran
    result: Any  # of its first run


class Timed:
    """A version in this very process: prepared at once, and called for seconds, MB and result."""

    def __init__(self, prepare: Prepare, args: Namespace):
        self.on_gpu = stage.choose_device(getattr(args, "device", "cpu")).type == "cuda"
        self.work = prepare(args)
        self.before = None

    def __call__(self) -> tuple[float, float, Any]:
        held = self.start_memory()
        self.before = held if self.before is None else self.before
        with contextlib.redirect_stderr(io.StringIO()):  # bars would run through the table
            start = time.perf_counter()
            result = self.work()
            if self.on_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        return seconds, self.peak() - self.before, result

    def start_memory(self) -> float:
        """What is held now, MB; the peak begins here."""
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 2**20
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else _status("VmHWM")


def _status(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10


def parser(doc: str, repeats: int) -> argparse.ArgumentParser:
    """An argument parser with the flags that `compare` reads; repeats is their default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"runs of each version, of which the fastest counts (default {repeats})"
    )
    parser.add_argument(
        "--apart",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="each version in a process of its own; --no-apart: all in this one, where their memory cannot be told apart (default apart)",
    )
    return parser


def compare(versions: dict[str, Prepare], args: Namespace, anew: bool = False) -> dict[str, Cost]:
    """Prepare every version, then let them run in turns, so that what disturbs the machine disturbs all of them.

    versions: prepare(args) of each makes ready what is not measured, first calls of libraries included, and returns the work.
    anew: prepare a version for each of its runs, where what it has left in memory would be a burden to the processes that the next starts.
    Raises InputError where a version's process dies.
    """
    stage.choose_device(getattr(args, "device", "cpu"))  # complains once
    runs = {name: [] for name in versions}
    for _ in range(args.repeats if anew else 1):
        with contextlib.ExitStack() as stack:
            calls = {
                name: stack.enter_context(_apart(name, prepare, args)) if args.apart else Timed(prepare, args)
                for name, prepare in versions.items()
            }
            for _ in range(1 if anew else args.repeats):
                for name, call in calls.items():
                    runs[name].append(call())
    return {name: Cost(min(run[0] for run in of), max(run[1] for run in of), of[0][2]) for name, of in runs.items()}


@contextlib.contextmanager
def _apart(name: str, prepare: Prepare, args: Namespace) -> Iterator[Work]:
    """A version in a fresh process that waits for its turns."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(prepare, args, theirs))
    process.start()
    theirs.close()

    def ask() -> Any:
        try:
            ours.send(None)
            return ours.recv()
        except (EOFError, OSError):
            raise InputError(f"{name}: its process died, for lack of memory if it does not say why; make the sizes smaller") from None

    try:
        ask()  # waits until it is prepared
        yield ask
    finally:
        process.terminate()
        process.join()


def _serve(prepare: Prepare, args: Namespace, connection: Connection) -> None:
    multiprocessing.set_start_method(None, force=True)  # loaders start their workers as in the stages, and not as this one was started
    connection.recv()
    timed = Timed(prepare, args)
    connection.send(None)
    while True:
        connection.recv()
        connection.send(timed())


def line(name: str, ours: Cost, plain: Cost) -> str:
    """The table's line of two versions."""
    faster, smaller = plain.seconds / ours.seconds, max(plain.megabytes, 1) / max(ours.megabytes, 1)
    times = f"{faster:.3g} times faster" if faster > 1 else f"{1 / faster:.2f} times as long"
    memory = f"1/{smaller:.3g}" if smaller > 1 else f"{1 / smaller:.2f} times as much"
    seconds = f"{ours.seconds:.3g} s against {plain.seconds:.3g} s"
    return f"{name:<28}{seconds}: {times}; {ours.megabytes:,.0f} MB against {plain.megabytes:,.0f} MB: {memory}"


def differences(ours: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    """How far two versions' results lie apart: the largest absolute difference under each name."""
    return {name: float(np.abs(np.asarray(ours[name], np.float64) - np.asarray(plain[name], np.float64)).max()) for name in ours}


def told(differences: dict[str, float]) -> str:
    """Differences as they stand below a line of the table."""
    return "  differences: " + ", ".join(f"{name} {value:.1e}" if value else f"{name} none" for name, value in differences.items())
