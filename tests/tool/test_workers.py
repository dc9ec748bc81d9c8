"""How many workers a command starts, what they need, and what they return."""

import os
import shutil
import sys
import traceback
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from errors import InputError
from tool import context, workers

Usage = namedtuple("Usage", "total used free")
MEGABYTE = 1_000_000


@pytest.fixture
def cgroups(monkeypatch, tmp_path):
    """A folder in place of /sys/fs/cgroup; returns a function that writes a file below it."""
    monkeypatch.setattr(workers, "CGROUPS", tmp_path)
    monkeypatch.setattr(workers, "OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("0::/a/b\n")

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "damaged"}, None),
    ],
)
def test_a_containers_quota_is_the_smallest_of_its_groups(cgroups, files, expected):
    for name, text in files.items():
        cgroups(name, text)
    assert workers.container_quota() == expected


def test_cores_are_those_of_the_affinity_within_the_quota_rounded_up(cgroups, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert workers.available_cores() == 8
    cgroups("cpu.max", "250000 100000\n")
    assert workers.available_cores() == 3
    cgroups("cpu.max", "1000 100000\n")
    assert workers.available_cores() == 1


@pytest.mark.parametrize(
    ("cores", "processes", "most", "expected"),
    [
        (64, None, 8, 8),
        (64, None, None, 64),
        (3, None, 8, 3),
        (64, 16, 8, 3),
        (64, 16, None, 3),
        (2, 4, None, 1),
    ],
)
def test_each_process_of_torchrun_keeps_one_of_its_cores(
    monkeypatch, cores, processes, most, expected
):
    monkeypatch.setattr(workers, "available_cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert workers.default_count(most) == expected


@pytest.mark.parametrize(
    ("num_workers", "processes", "is_enough"),
    [(0, 1, True), (4, 1, True), (5, 1, False), (2, 4, False)],
)
def test_too_small_a_shared_memory_is_named_with_its_cure(
    monkeypatch, tmp_path, num_workers, processes, is_enough
):
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 64 * MEGABYTE))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    item_bytes = 8 * MEGABYTE
    if is_enough:
        workers.check_shared_memory(num_workers, item_bytes)
        return
    with pytest.raises(
        InputError, match=f"64 MB are free.*--num_workers {num_workers}.*--shm-size"
    ):
        workers.check_shared_memory(num_workers, item_bytes)


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device",
        "unable to mmap 1024 bytes from file </torch_1_2_3>: Cannot allocate memory (12)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory.",
    ],
)
def test_pytorchs_texts_on_full_shared_memory_become_one_line(text):
    line = context.describe_error(RuntimeError(text))
    assert line.startswith("/dev/shm: ") and "--shm-size" in line and "\n" not in line


@pytest.mark.parametrize(
    ("most", "raised_to", "strategy"),
    [(64, (64, 64), "file_system"), (10**6, (10**6, 10**6), None), (-1, None, None)],
)
def test_as_many_files_may_be_open_as_the_system_allows(monkeypatch, most, raised_to, strategy):
    calls = {}

    def setrlimit(kind, limits):
        if limits == (-1, -1):
            raise ValueError("as macOS does")
        calls["limits"] = limits

    fake = SimpleNamespace(
        RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda kind: (32, most), setrlimit=setrlimit
    )
    monkeypatch.setattr(workers, "resource", fake)
    monkeypatch.setattr(
        torch.multiprocessing, "set_sharing_strategy", lambda name: calls.update(strategy=name)
    )
    workers.allow_open_files()
    assert calls.get("limits") == raised_to
    assert calls.get("strategy") == strategy


in_workers = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)


def do_all(function, items, num_workers: int) -> list:
    """All results.

    An error lets go of what its frames hold at once: if that were collected later, a loader
    would wait 5 seconds for each worker.
    """
    try:
        return list(workers.parallel_map(function, items, num_workers))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise


def square(item: int) -> dict:
    return {"item": item, "process": os.getpid(), "values": np.full(2, item**2)}


@in_workers
@pytest.mark.parametrize(("items", "num_workers"), [(7, 0), (7, 2), (2, 8), (0, 0), (0, 2)])
def test_every_item_is_done_once_in_the_workers_and_comes_back_as_it_is(items, num_workers):
    loader = workers.parallel_map(square, range(items), num_workers)
    assert loader.num_workers == min(items, num_workers)
    results = do_all(square, range(items), num_workers)
    assert sorted(result["item"] for result in results) == list(range(items))
    for result in results:
        is_here = result["process"] == os.getpid()
        assert is_here == (num_workers == 0)
        assert isinstance(result["values"], np.ndarray)
        assert result["values"].tolist() == [result["item"] ** 2, result["item"] ** 2]


def refuse_the_third(item: int) -> int:
    if item == 2:
        raise InputError(f"{item}.jpg: not a readable image; replace it")
    return item


def die(item: int) -> None:
    os._exit(1)


@in_workers
@pytest.mark.parametrize(
    ("function", "num_workers", "ending"),
    [
        (refuse_the_third, 0, ": error: 2.jpg: not a readable image; replace it"),
        (refuse_the_third, 1, ": error: 2.jpg: not a readable image; replace it"),
        (die, 1, "--num_workers"),
    ],
)
def test_an_error_and_a_dead_worker_reach_the_user_as_one_line(
    function, num_workers, ending, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["make_ir_labels.py"])
    assert context.cli_main(lambda: do_all(function, range(4), num_workers)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(ending)
