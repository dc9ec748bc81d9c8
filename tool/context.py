"""Where a command runs: its flags, device, processes and precision; and errors in one line."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from errors import InputError

from .outputs import make_writable

try:
    import resource  # not on Windows
except ImportError:
    resource = None

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FEW_FILES = 4096
PATIENCE = timedelta(
    hours=1
)  # with a process that does not answer; one that has ended is noticed at once by gloo


def world_size() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class Context:
    """Where a command runs: its device and precision, and its place among the processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    amp: torch.dtype | None = None
    stack: contextlib.ExitStack = field(
        default_factory=contextlib.ExitStack
    )  # what ends with the command

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """The context in which a network runs at the precision of --amp."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def print(self, text: str) -> None:
        """Print a text on rank 0."""
        if self.is_main:
            print(text, flush=True)

    def shard(self, items: Sequence) -> Sequence:
        """This process's share of a list, without padding or duplicates."""
        return items[self.rank :: self.world_size]

    def barrier(self) -> None:
        """Wait for the other processes."""
        self.all_gather_object(None)

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes; it carries no gradient."""
        value = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(value)
        return value / self.world_size

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def local_context(device: str, amp: str) -> Context:
    """The context of this process, by the flags --device and --amp. Raises InputError as `choose_device` and `check_precision` do."""
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    check_precision(amp, chosen)
    return Context(chosen, int(os.environ.get("RANK", 0)), world_size(), AMP[amp])


@contextlib.contextmanager
def run_context(args: argparse.Namespace) -> Iterator[Context]:
    """Choose the device, join torchrun's process group, and make sure that args.run_dir can be written."""
    context = local_context(getattr(args, "device", "cpu"), getattr(args, "amp", "off"))
    make_writable(args.run_dir)
    if context.world_size > 1:
        backend = (
            "cpu:gloo,cuda:nccl" if context.is_cuda else "gloo"
        )  # objects and barriers go by gloo
        dist.init_process_group(backend, timeout=PATIENCE)
    with context.stack:
        yield context
    if (
        context.world_size > 1
    ):  # not after an error: the other processes may be waiting for this one
        dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """auto, cpu, cuda (this process's own GPU) or cuda:N. Raises InputError for a device that this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not 0 <= device.index < count:  # cuda:1000 wraps below 0
            raise InputError(
                f"--device {name}: this machine has {count} CUDA devices; use --device cpu or another number"
            )
        torch.cuda.set_device(device)
    return device


def check_precision(amp: str, device: torch.device) -> None:
    """Raise InputError where a CPU has no instructions for the precision of --amp.

    By bf16, one with AVX2 alone takes 20 times as long as by float32; with AVX-512 alone, which oneDNN accepts, nearly three times.
    """
    if amp != "off" and device.type == "cpu" and not _has_instructions(amp):
        other = " or use bf16" if amp == "fp16" and _has_instructions("bf16") else ""
        raise InputError(
            f"--amp {amp}: this processor has no instructions for it and would be slower than in float32; leave it out{other}"
        )


def _has_instructions(amp: str) -> bool:
    """Whether this processor has instructions for bf16 or fp16; True where PyTorch does not say."""
    in_onednn = getattr(torch.ops.mkldnn, f"_is_mkldnn_{amp}_supported", lambda: True)
    has_avx512, has_bf16 = (
        getattr(torch.cpu, f"_is_avx512{part}_supported", lambda: True) for part in ("", "_bf16")
    )
    return in_onednn() and (amp != "bf16" or has_bf16() or not has_avx512())


def cli_main(main: Callable[[], None]) -> int:
    """Call a script's main and return the exit status: errors that the user can fix are one line and 2, Ctrl-C is 130."""
    program = Path(sys.argv[0]).name
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    _allow_open_files()
    try:
        main()
    except KeyboardInterrupt:
        fresh = " and ".join(
            flag for flag in ("--overwrite", "--no-resume") if flag in sys.argv
        )  # they would start over again
        print(
            f"\n{program}: stopped; run the same command{f' without {fresh}' if fresh else ''} to resume",
            file=sys.stderr,
        )
        return 130
    except (InputError, MemoryError, OSError, RuntimeError) as error:
        message = _one_line(error)
        if message is None:
            raise
        print(f"{program}: error: {message}", file=sys.stderr, flush=True)
        return getattr(error, "status", InputError.status)
    return 0


def _allow_open_files() -> None:
    """As many open files as the system allows; where these are few, worker processes pass tensors without keeping a file open for each."""
    if resource is None:
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # macOS does not take "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < FEW_FILES:
        torch.multiprocessing.set_sharing_strategy("file_system")


def _one_line(error: Exception) -> str | None:
    """The line that tells a user what to fix; None for an error that is ours."""
    text = str(error)
    if isinstance(error, InputError):  # a DataLoader worker puts its traceback before the message
        return text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
    if (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "DefaultCPUAllocator: can't allocate memory" in text
    ):
        return "out of memory; use a smaller --batch_size, --crop_size or --scales"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; mend it and run the same command"
    if "DataLoader worker (pid" in text:
        return (
            "a worker process was killed, perhaps for lack of memory; use a smaller --num_workers"
        )
    return None
