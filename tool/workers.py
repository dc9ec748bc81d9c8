"""Worker processes: how many there may be, what they need, and calls spread over them."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from errors import InputError

try:
    import resource  # not on Windows
except ImportError:
    resource = None

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # items that each worker of a DataLoader makes ahead
FEW_FILES = 4096


def available_cores() -> int:
    """The cores that this process may use: its affinity, within the quota of its container."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = container_quota()
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores)


def container_quota() -> float | None:
    """How many cores the container of this process grants; None without a limit.

    Of version 1 of control groups, only the outermost group that the container shows is read.
    """
    quotas = [*_version_2_quotas(), *_version_1_quotas()]
    return min(quotas, default=None)


def _version_2_quotas() -> Iterator[float]:
    """The limits of this process's control group and of those above it."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = CGROUPS / own.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(CGROUPS):
            break
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            limit, period = (group / "cpu.max").read_text().split()
            yield int(limit) / int(period)  # "max" is no number: no limit


def _version_1_quotas() -> Iterator[float]:
    folder = CGROUPS / "cpu"
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        if limit > 0:
            yield limit / period


def default_count(max_workers: int | None) -> int:
    """Worker processes of a command by default: one a core, at most max_workers.

    The processes of torchrun share the cores of a machine, and each keeps one of them for itself.
    """
    cores = available_cores()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > 1:
        cores = max(1, cores // processes - 1)
    return min(max_workers or cores, cores)


def check_shared_memory(num_workers: int, item_bytes: int) -> None:
    """Raise InputError if /dev/shm cannot hold what the workers of all processes make ahead.

    Args:
        num_workers: of each process of torchrun.
        item_bytes: of what a worker passes at a time, such as the tensors of a batch.
    """
    if num_workers == 0 or not SHARED_MEMORY.is_dir():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = processes * num_workers * PREFETCHED * item_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise InputError(
            f"{SHARED_MEMORY}: {free / 1e6:.0f} MB are free, and --num_workers {num_workers} takes"
            f" about {needed / 1e6:.0f} MB of it; start Docker with --ipc=host or --shm-size 8g,"
            " or use a smaller --num_workers"
        )


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as the system allows.

    If the system allows few, worker processes pass tensors without keeping a file open for each.
    """
    if resource is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS does not take "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < FEW_FILES:
        import torch

        torch.multiprocessing.set_sharing_strategy("file_system")


class _Calls:
    """A dataset for a DataLoader: item i is what a function returns for the i-th value."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]):
        self.function = function
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def parallel_map(
    function: Callable[[Any], Any], items: Sequence[Any], num_workers: int
) -> "DataLoader":  # noqa: F821 (torch is imported only if somebody calls this)
    """Call a function on every item in worker processes; 0 workers: in this process.

    Results come as they are ready, in any order. A killed worker ends the command with an error;
    a multiprocessing pool would wait forever.
    """
    from torch.utils.data import DataLoader

    count = min(num_workers, len(items))
    return DataLoader(
        _Calls(function, items),
        batch_size=None,
        num_workers=count,
        collate_fn=_identity,
        in_order=count == 0,
    )


def _identity(value: Any) -> Any:
    return value
