"""Where a command runs: its device and processes; and errors in one line."""

import sys

import pytest
import torch
from torch._utils import ExceptionWrapper

from errors import InputError
from tool import context
from tool.context import Context, choose_device, cli_main

OLD_DRIVER = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 2023
GCC version:  gcc version 12.2.0
"""
OPEN_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (root@x)\n"
)


def place(rank: int = 0, world_size: int = 1) -> Context:
    return Context(torch.device("cpu"), rank, world_size)


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Set how many GPUs PyTorch can use; returns the devices that are chosen."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(context, "DRIVER", tmp_path / "no driver")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def set_count(count: int) -> list[torch.device]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return chosen

    return set_count


@pytest.mark.parametrize(
    ("count", "name", "expected"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (2, "auto", "cuda:1"),
        (2, "cuda", "cuda:1"),
        (2, "cuda:0", "cuda:0"),
    ],
)
def test_the_second_process_takes_its_own_device_or_the_one_that_is_named(
    gpus, count, name, expected
):
    chosen = gpus(count)
    assert choose_device(name, local_rank=1) == torch.device(expected)
    is_gpu = expected != "cpu"
    assert chosen == ([torch.device(expected)] if is_gpu else [])


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (0, "cuda"),
        (0, "cuda:0"),
        (0, "gpu"),
        (0, ""),
        (0, "cuda:x"),
        (0, "cuda:-1"),
        (0, "mps"),
        (0, "meta"),
        (2, "cuda:2"),
        (2, "cuda:256"),
        (2, "cuda:1000"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpus, count, name):
    chosen = gpus(count)
    with pytest.raises(InputError, match=f"^--device {name}: "):
        choose_device(name)
    assert chosen == []


def test_more_processes_than_gpus_are_refused(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"^--device cuda: this machine has 2 CUDA devices for 4"):
        choose_device("cuda", local_rank=2)


def test_one_gpu_on_each_of_two_machines_may_be_named(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert choose_device("cuda:1") == torch.device("cuda:1")


def test_one_gpu_for_several_processes_is_refused(gpus, monkeypatch):
    gpus(4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_device("cuda", local_rank=3) == torch.device("cuda:3")
    with pytest.raises(InputError, match=r"^--device cuda:1: 4 processes would share"):
        choose_device("cuda:1", local_rank=3)


class TestDriver:
    """A machine with NVIDIA's driver whose GPU PyTorch cannot use."""

    @pytest.fixture(autouse=True)
    def driver(self, gpus, monkeypatch, tmp_path):
        gpus(0)
        monkeypatch.setattr(context, "DRIVER", tmp_path / "version")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        (tmp_path / "version").write_text(OLD_DRIVER)

    def test_auto_does_not_take_the_cpu_in_silence(self):
        with pytest.raises(InputError) as error:
            choose_device("auto")
        line = str(error.value)
        assert "\n" not in line
        for part in ("--device auto: ", "535.104.05", "CUDA 13.0", "--device cpu"):
            assert part in line

    def test_a_build_without_cuda_is_named(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        with pytest.raises(InputError, match="is built without CUDA"):
            choose_device("auto")

    @pytest.mark.parametrize("hidden", ["", "-1"])
    def test_the_cpu_is_taken_if_it_is_meant(self, monkeypatch, hidden):
        assert choose_device("cpu") == torch.device("cpu")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert choose_device("auto") == torch.device("cpu")

    @pytest.mark.parametrize(
        ("text", "version"),
        [
            (OLD_DRIVER, "535.104.05"),
            (OPEN_DRIVER, "570.86.10"),
            ("something else", "of unknown version"),
        ],
    )
    def test_its_version_is_read(self, tmp_path, text, version):
        (tmp_path / "version").write_text(text)
        assert context.driver_version() == version


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_out_a_list_and_the_first_prints(world_size, capsys):
    places = [place(rank, world_size) for rank in range(world_size)]
    shards = [each.shard(list("abcde")) for each in places]
    items = []
    for shard in shards:
        items += shard
    assert sorted(items) == list("abcde")
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for each in places:
        each.print(f"rank {each.rank}")
    assert capsys.readouterr().out == "rank 0\n"


@pytest.mark.parametrize(
    ("where", "dtype"),
    [({"device": "cpu", "amp": "bf16"}, torch.bfloat16), ({}, torch.float32)],
    ids=["bf16", "off"],
)
def test_run_context_makes_the_folder_and_sets_the_precision(tmp_path, monkeypatch, where, dtype):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    # tests also run on processors without bf16
    monkeypatch.setattr(context, "check_precision", lambda amp, device: None)
    with context.run_context(tmp_path / "run", **where) as run:
        assert (run.device, run.rank, run.world_size) == (torch.device("cpu"), 0, 1)
        assert run.is_main and not run.is_cuda
        assert list((tmp_path / "run").iterdir()) == []
        with run.autocast():
            product = torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        assert product.dtype == dtype


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/folder/make_cam.py", "--flag"])


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def in_a_worker(error: Exception) -> Exception:
    """The error as a DataLoader raises it if its worker process did, without that process."""
    try:
        raise error from InputError("what the worker met first")
    except type(error):
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except type(error) as again:
        return again


LINE = "a.jpg: no such image; correct the list"
NO_MEMORY = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried\nmore"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nmore"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (InputError(LINE), LINE),
        (in_a_worker(InputError(LINE)), LINE),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"), "--batch_size"),
        (MemoryError(), "--batch_size"),
        (RuntimeError(NO_MEMORY), "--batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "--num_workers"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "--num_workers"),
        (RuntimeError(NO_KERNEL), "has no code for this GPU"),
    ],
)
def test_what_a_user_can_fix_is_one_line_and_a_status(capsys, error, named):
    assert cli_main(raising(error)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("make_cam.py: error: ")
    assert named in line
    if named == LINE:
        assert line == f"make_cam.py: error: {LINE}"


def test_ctrl_c_says_how_to_resume(capsys):
    assert cli_main(raising(KeyboardInterrupt())) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("make_cam.py: ")


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("ours"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        KeyError("ours"),
    ],
)
def test_other_errors_are_raised(error):
    assert cli_main(lambda: None) == 0
    with pytest.raises(type(error)):
        cli_main(raising(error))


@pytest.mark.parametrize(
    ("amp", "onednn", "avx512", "own_bf16", "is_refused"),
    [
        ("bf16", False, False, False, True),
        ("bf16", True, True, True, False),
        ("bf16", True, True, False, True),
        ("bf16", True, False, False, False),  # an ARM, say
        ("fp16", False, True, True, True),
        ("off", False, True, False, False),
    ],
)
def test_a_precision_without_instructions_for_it_is_refused_on_a_cpu(
    amp, onednn, avx512, own_bf16, is_refused, monkeypatch, tmp_path
):
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: own_bf16)
    context.check_precision(amp, torch.device("cuda"))
    run = context.run_context(tmp_path / "run", "cpu", amp)
    if is_refused:
        with pytest.raises(InputError, match=f"^--amp {amp}: "), run:
            pass
        assert not (tmp_path / "run").exists()
        return
    with run as here:
        assert here.amp == context.AMP[amp]
