"""Where a command runs: device, processes and precision; and errors in one line."""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from errors import InputError

from .outputs import make_writable
from .workers import allow_open_files

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# how long to wait for a process that does not answer; gloo notices at once if one has ended
PROCESS_TIMEOUT = timedelta(hours=1)
DRIVER = Path("/proc/driver/nvidia/version")
INTERRUPTED = 130  # exit status after Ctrl-C
# what PyTorch says if /dev/shm is full: in a worker, and about a worker that it ended
FULL_SHARED_MEMORY = (
    "unable to allocate shared memory",
    "unable to open shared memory object",
    "unable to mmap",
    "out of shared memory",
)


def world_size() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class Context:
    """Where a command runs: its device and precision, and its place among the processes.

    Attributes:
        stack: what is undone when the command ends, such as locks.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    amp: torch.dtype | None = None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

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


def local_context(device: str = "cpu", amp: str = "off") -> Context:
    """The context of this process, by the flags --device and --amp.

    Raises InputError as `choose_device` and `check_precision` do.
    """
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    check_precision(amp, chosen)
    rank = int(os.environ.get("RANK", 0))
    return Context(chosen, rank, world_size(), AMP[amp])


@contextlib.contextmanager
def join_run(context: Context, folder: Path) -> Iterator[Context]:
    """Join torchrun's process group, and make sure that a folder can be written."""
    make_writable(folder)
    if context.world_size > 1:
        # objects and barriers go by gloo
        backend = "cpu:gloo,cuda:nccl" if context.is_cuda else "gloo"
        dist.init_process_group(backend, timeout=PROCESS_TIMEOUT)
    with context.stack:
        yield context
    # not after an error: the other processes may be waiting for this one
    if context.world_size > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def run_context(folder: Path, device: str = "cpu", amp: str = "off") -> Iterator[Context]:
    """`join_run` with the context that the flags --device and --amp ask for."""
    with join_run(local_context(device, amp), folder) as context:
        yield context


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """auto, cpu, cuda (this process's own GPU) or cuda:N.

    Raises InputError for a device that this machine lacks, for one GPU that several processes
    would share, and for auto on a machine whose GPU PyTorch cannot use.
    """
    if name == "auto":
        name = "cuda" if has_usable_gpu() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        check_gpu(name, local_rank)
        torch.cuda.set_device(device)
    return device


def check_gpu(name: str, local_rank: int) -> None:
    """Raise InputError if this process cannot have the GPU that cuda or cuda:N names."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    count = torch.cuda.device_count()
    if name == "cuda":
        if local_rank >= count:
            raise InputError(
                f"--device cuda: this machine has {count} CUDA devices for {processes} processes;"
                " start one process for each, or use --device cpu"
            )
        return
    if processes > 1:
        raise InputError(
            f"--device {name}: {processes} processes would share this GPU;"
            " use --device cuda, which gives each process one of its own"
        )
    number = int(name.removeprefix("cuda:"))  # torch.device wraps large numbers
    if not 0 <= number < count:
        raise InputError(
            f"--device {name}: this machine has {count} CUDA devices;"
            " use --device cpu or another number"
        )


def has_usable_gpu() -> bool:
    """Whether PyTorch can use a CUDA GPU here.

    Raises InputError if the machine has NVIDIA's driver, but this PyTorch cannot use it: days of
    training on the CPU would be a surprise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's remark on the driver
        if torch.cuda.is_available():
            return True
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    version = driver_version()
    if version is None or is_hidden:
        return False
    if torch.version.cuda:
        build = f"is built for CUDA {torch.version.cuda}"
        cure = "install a newer driver, or a PyTorch for an older CUDA (pytorch.org)"
    else:
        build = "is built without CUDA"
        cure = "install a PyTorch with CUDA (pytorch.org)"
    raise InputError(
        f"--device auto: NVIDIA's driver {version} is here, but PyTorch {torch.__version__}"
        f" {build} and cannot use a GPU; {cure}, start Docker with --gpus all,"
        " or use --device cpu if you mean the CPU"
    )


def driver_version() -> str | None:
    """The version of NVIDIA's driver on this machine, such as "535.104.05"; None without one."""
    try:
        text = DRIVER.read_text()
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?(\d+(?:\.\d+)+)", text)
    return match[1] if match else "of unknown version"


def check_precision(amp: str, device: torch.device) -> None:
    """Raise InputError if a CPU has no instructions for the precision of --amp.

    In bf16, a CPU with AVX2 alone takes 20 times as long as in float32. One with AVX-512 alone,
    which oneDNN accepts, takes nearly three times as long.
    """
    if amp == "off" or device.type != "cpu" or _has_instructions(amp):
        return
    alternative = " or use bf16" if amp == "fp16" and _has_instructions("bf16") else ""
    raise InputError(
        f"--amp {amp}: this processor has no instructions for it"
        f" and would be slower than in float32; leave it out{alternative}"
    )


def _has_instructions(amp: str) -> bool:
    """Whether this processor has instructions for bf16 or fp16; True if PyTorch does not say."""

    def ask(owner: object, name: str) -> bool:
        answer = getattr(owner, name, None)
        return answer is None or answer()

    if not ask(torch.ops.mkldnn, f"_is_mkldnn_{amp}_supported"):
        return False
    if amp != "bf16":
        return True
    has_avx512 = ask(torch.cpu, "_is_avx512_supported")
    return ask(torch.cpu, "_is_avx512_bf16_supported") or not has_avx512


def cli_main(main: Callable[[], None]) -> int:
    """Call a script's main and return the exit status.

    Errors that the user can fix are one line and status 2 (or 3), Ctrl-C is 130.
    """
    program = Path(sys.argv[0]).name
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    allow_open_files()
    try:
        main()
    except KeyboardInterrupt:
        print(
            f"\n{program}: stopped; run the same command{_without_restart()} to resume",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (InputError, MemoryError, OSError, RuntimeError) as error:
        message = describe_error(error)
        if message is None:
            raise
        print(f"{program}: error: {message}", file=sys.stderr, flush=True)
        return getattr(error, "status", InputError.status)
    return 0


def _without_restart() -> str:
    """The flags of this command that would start over, in words."""
    flags = [flag for flag in ("--overwrite", "--no-resume") if flag in sys.argv]
    return f" without {' and '.join(flags)}" if flags else ""


def describe_error(error: Exception) -> str | None:
    """The line that tells a user what to fix; None for an error of the program itself."""
    text = str(error)
    if isinstance(error, InputError):
        # a DataLoader's worker puts its traceback before the message
        return text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
    is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if is_memory or "DefaultCPUAllocator: can't allocate memory" in text:
        return "out of memory; use a smaller --batch_size, --crop_size or --scales"
    if any(sign in text for sign in FULL_SHARED_MEMORY):
        return (
            "/dev/shm: the shared memory through which workers pass images is full;"
            " start Docker with --ipc=host or --shm-size 8g, or use a smaller --num_workers"
        )
    if "no kernel image is available" in text:
        return (
            f"PyTorch {torch.__version__} has no code for this GPU;"
            " install a build for it (pytorch.org), or use --device cpu"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; mend it and run the same command"
    if "DataLoader worker (pid" in text:
        return (
            "a worker process was killed, perhaps for lack of memory; use a smaller --num_workers"
        )
    return None
