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

from data.registry import DATASETS
from errors import InputError
from network.recipe import RECIPES

from .outputs import make_writable

try:
    import resource  # not on Windows
except ImportError:
    resource = None

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_SCALE = 8
MAX_SIDE = 640  # pixels, the longest side in VOC and COCO
FEW_FILES = 4096
PATIENCE = timedelta(hours=1)  # with a process that does not answer; one that has ended is noticed at once by gloo


def _number(kind: type, wanted: str, is_allowed: Callable[[Any], bool]) -> Callable[[str], Any]:
    """An argparse type: numbers that are allowed; others end with a line that says what is wanted."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return parse


positive_int = _number(int, "a whole number from 1 up", lambda value: value >= 1)
non_negative_int = _number(int, "a whole number from 0 up, below 2**32", lambda value: 0 <= value < 2**32)
non_negative_float = _number(float, "a number from 0 up", lambda value: 0 <= value < 2**32)
scale = _number(float, f"a factor above 0, at most {MAX_SCALE}", lambda value: 0 < value <= MAX_SCALE)


def command_parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def stage_parser(doc: str, device: bool = True, max_workers: int | None = 8) -> argparse.ArgumentParser:
    """A parser with the flags that all stages share; max_workers: most worker processes that the stage starts by default."""
    parser = command_parser(doc)
    parser.add_argument("--dataset", choices=list(DATASETS), default="voc", help="kind of dataset (default voc)")
    parser.add_argument("--dataset_root", help="folder of the dataset (default ./VOC2012 for voc)")
    run_dir = "folder for everything that this run writes; all its stages share it (default runs/DATASET)"
    parser.add_argument("--run_dir", "--session_name", type=Path, help=run_dir)
    if device:
        add_device(parser)
    add_workers(parser, max_workers)
    return parser


def parse_stage(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags of a stage and fill in the defaults that depend on the dataset."""
    args = parser.parse_args(argv)
    if args.dataset_root is None and args.dataset != "voc":
        parser.error(f"--dataset {args.dataset} needs --dataset_root")
    args.dataset_root = args.dataset_root or "./VOC2012"
    args.run_dir = args.run_dir or Path("runs") / args.dataset
    return args


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device and --amp."""
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N (default auto)")
    amp = "precision of the convolutions; the rest stays in float32 (default off: float32 as published, TF32 on GPUs that have it)"
    parser.add_argument("--amp", choices=AMP, default="off", help=amp)


def add_workers(parser: argparse.ArgumentParser, max_workers: int | None = 8) -> None:
    """Add --num_workers; max_workers: most of them by default."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # torchrun's processes share a machine
    text = "worker processes that read pictures, for each process of torchrun; 0: the main process reads them"
    text += f" (default: one a core{f', at most {max_workers}' if max_workers else ''})"
    parser.add_argument("--num_workers", type=non_negative_int, default=min(max_workers or cores, cores), help=text)


def add_recipe(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add --recipe; None: that of the checkpoint."""
    text = "sipe as published, or plus for other IS-CAMs of the same network; see docs/results.md"
    parser.add_argument("--recipe", choices=RECIPES, default=default, help=f"{text} (default {default or 'that of the checkpoint'})")


def add_max_side(parser: argparse.ArgumentParser) -> None:
    """Add --max_side."""
    text = "shrink larger pictures to this side first, in pixels, so that training and inference see objects at one size; 0: never"
    parser.add_argument("--max_side", type=non_negative_int, default=MAX_SIDE, help=f"{text} (default {MAX_SIDE}, as VOC and COCO)")


def add_switch(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    """Add a boolean flag that is off by default; text: its help."""
    parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=False, help=f"{text} (default off)")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite and --strict."""
    add_switch(parser, "--overwrite", "delete the results in the output folder and make them again")
    add_switch(parser, "--strict", "stop at the first picture that cannot be read, instead of naming all of them at the end, with status 3")


def add_scales(parser: argparse.ArgumentParser, default: list[float], note: str = "") -> None:
    """Add --scales of inference; note: added to its help."""
    text = f"sizes relative to the picture, each used with its mirror{note} (default {' '.join(map(str, default))})"
    parser.add_argument("--scales", type=scale, nargs="+", default=default, help=text)


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
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # what ends with the command

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
        backend = "cpu:gloo,cuda:nccl" if context.is_cuda else "gloo"  # objects and barriers go by gloo
        dist.init_process_group(backend, timeout=PATIENCE)
    with context.stack:
        yield context
    if context.world_size > 1:  # not after an error: the other processes may be waiting for this one
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
            raise InputError(f"--device {name}: this machine has {count} CUDA devices; use --device cpu or another number")
        torch.cuda.set_device(device)
    return device


def check_precision(amp: str, device: torch.device) -> None:
    """Raise InputError where a CPU has no instructions for the precision of --amp.

    By bf16, one with AVX2 alone takes 20 times as long as by float32; with AVX-512 alone, which oneDNN accepts, nearly three times.
    """
    if amp != "off" and device.type == "cpu" and not _has_instructions(amp):
        other = " or use bf16" if amp == "fp16" and _has_instructions("bf16") else ""
        raise InputError(f"--amp {amp}: this processor has no instructions for it and would be slower than in float32; leave it out{other}")


def _has_instructions(amp: str) -> bool:
    """Whether this processor has instructions for bf16 or fp16; True where PyTorch does not say."""
    in_onednn = getattr(torch.ops.mkldnn, f"_is_mkldnn_{amp}_supported", lambda: True)
    has_avx512, has_bf16 = (getattr(torch.cpu, f"_is_avx512{part}_supported", lambda: True) for part in ("", "_bf16"))
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
        fresh = " and ".join(flag for flag in ("--overwrite", "--no-resume") if flag in sys.argv)  # they would start over again
        print(f"\n{program}: stopped; run the same command{f' without {fresh}' if fresh else ''} to resume", file=sys.stderr)
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
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator: can't allocate memory" in text:
        return "out of memory; use a smaller --batch_size, --crop_size or --scales"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; mend it and run the same command"
    if "DataLoader worker (pid" in text:
        return "a worker process was killed, perhaps for lack of memory; use a smaller --num_workers"
    return None
