"""What the stage scripts share: devices, folders, processes, and errors in one line."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._inductor.exc import InvalidCxxCompiler
from torch._utils import ExceptionWrapper

from errors import InputError
from tool import stage


def place(rank: int = 0, world_size: int = 1, **more) -> stage.Stage:
    return stage.Stage(torch.device("cpu"), rank, world_size, Path("runs"), **more)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_auto_is_the_cpu_without_a_gpu(no_gpu):
    assert stage.choose_device("auto") == torch.device("cpu")


def test_auto_is_this_processs_own_gpu(two_gpus):
    assert stage.choose_device("auto", local_rank=1) == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")]


def test_a_numbered_gpu_is_that_one_whatever_the_rank(two_gpus):
    assert stage.choose_device("cuda:0", local_rank=1) == torch.device("cuda:0")
    assert stage.choose_device("cpu", local_rank=1) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "cuda:1000"])
def test_a_gpu_that_is_not_there_is_refused(no_gpu, name):
    with pytest.raises(InputError, match=f"^--device {name}: this machine has 0 CUDA devices"):
        stage.choose_device(name)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:1000"])
def test_a_number_past_the_last_gpu_is_refused(two_gpus, name):
    with pytest.raises(InputError, match=f"^--device {name}: this machine has 2 CUDA devices"):
        stage.choose_device(name)
    assert two_gpus == []


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "mps", "meta"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=f"^--device {name}: .*; use auto, cpu, cuda or cuda:N$"):
        stage.choose_device(name)


def test_make_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    stage.make_writable(tmp_path / "runs/voc")
    stage.make_writable(tmp_path / "runs/voc")
    assert list((tmp_path / "runs/voc").iterdir()) == []


def test_make_writable_refuses_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InputError, match="cannot be written") as error:
            stage.make_writable(folder)
        assert str(error.value).startswith(f"{folder}: ")
    assert (tmp_path / "file").read_text() == "kept"


def test_make_writable_refuses_a_folder_that_takes_no_file(tmp_path, monkeypatch):
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        stage.make_writable(tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shards_share_out_a_list(world_size):
    shards = [place(rank, world_size).shard(list("abcde")) for rank in range(world_size)]
    assert sorted(item for shard in shards for item in shard) == list("abcde")
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_one_process_gathers_its_own_value():
    assert place().gather({"a": 1}) == [{"a": 1}]


def test_one_processs_mean_is_its_own_value_without_its_gradient():
    value = torch.tensor([3.0, 5.0], requires_grad=True)
    mean = place().mean(value)
    assert (mean.tolist(), mean.requires_grad) == ([3, 5], False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_mean_is_over_all_processes_and_leaves_the_value_as_it_was(monkeypatch, dtype):
    monkeypatch.setattr(stage.dist, "all_reduce", lambda value: value.add_(torch.tensor([4, 0])))  # what the other process has
    value = torch.tensor([3, 5], dtype=dtype)
    assert place(world_size=2).mean(value).tolist() == [3.5, 2.5]
    assert value.tolist() == [3, 5]


def test_only_the_first_process_speaks(capsys):
    place(rank=0, world_size=2).say("once")
    place(rank=1, world_size=2).say("twice")
    assert capsys.readouterr().out == "once\n"


def test_autocast_lowers_precision_only_where_asked():
    factors = torch.ones(2, 2), torch.ones(2, 2)
    with place().autocast():
        assert torch.mm(*factors).dtype == torch.float32
    with place(amp=torch.bfloat16).autocast():
        assert torch.mm(*factors).dtype == torch.bfloat16


def test_start_makes_the_folder_and_reads_the_place_from_torchrun(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    args = argparse.Namespace(run_dir=tmp_path / "run", device="cpu", amp="bf16")
    with stage.start(args) as run:
        assert (run.device, run.rank, run.world_size, run.amp) == (torch.device("cpu"), 0, 1, torch.bfloat16)
        assert run.is_main and run.run_dir.is_dir()


def test_a_stage_without_a_device_runs_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with stage.start(argparse.Namespace(run_dir=tmp_path)) as run:
        assert (run.device, run.amp) == (torch.device("cpu"), None)


def test_shared_flags_have_help_and_defaults():
    parser = stage.parser("doc", ["voc", "folder"])
    args = parser.parse_args(["--session_name", "runs/old"])  # the authors' name of --run_dir
    assert (args.dataset, args.run_dir, args.device, args.amp) == ("voc", Path("runs/old"), "auto", "off")
    assert all(action.help for action in parser._actions)
    assert not hasattr(stage.parser("doc", ["voc"], device=False).parse_args([]), "device")


def test_a_command_without_a_dataset_can_have_the_device_flags(capsys):
    parser = argparse.ArgumentParser()
    stage.add_device(parser)
    assert vars(parser.parse_args([])) == {"device": "auto", "amp": "off"}
    assert vars(parser.parse_args(["--device", "cuda:1", "--amp", "bf16"])) == {"device": "cuda:1", "amp": "bf16"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--amp", "fp8"])
    assert "invalid choice: 'fp8'" in capsys.readouterr().err


@pytest.mark.parametrize("scales", [[1.0], [0.01, 8], [1.5, 0.5, 1.0], []])
def test_factors_within_their_range_are_taken(scales):
    stage.check_scales(argparse.ArgumentParser(), scales)


@pytest.mark.parametrize("scale", [0.0, -1.0, 8.1, float("inf"), float("nan")])
def test_a_factor_out_of_its_range_is_refused(scale, capsys):
    for scales in ([scale], [1.0, scale]):
        with pytest.raises(SystemExit):
            stage.check_scales(argparse.ArgumentParser(), scales)
        assert "--scales are above 0 and at most 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cores", "processes", "most", "expected"),
    [(64, None, 8, 8), (64, None, None, 64), (3, None, 8, 3), (64, 16, 8, 4), (64, 16, None, 4), (2, 4, None, 1)],
)
def test_default_workers_share_out_the_cores(monkeypatch, cores, processes, most, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    parser = stage.parser("doc", ["voc"], most_workers=most)
    assert parser.parse_args([]).num_workers == expected
    assert ("at most 8" in " ".join(parser.format_help().split())) == (most == 8)
    assert parser.parse_args(["--num_workers", "0"]).num_workers == 0


@pytest.mark.parametrize("value", ["-1", "1.5", "many", ""])
def test_workers_are_a_whole_number(value, capsys):
    with pytest.raises(SystemExit):
        stage.parser("doc", ["voc"]).parse_args(["--num_workers", value])
    assert "is not a whole number from 0 up" in capsys.readouterr().err


def test_seeding_repeats_torchs_draws():
    stage.seed_everything(3)
    first = torch.rand(3)
    stage.seed_everything(3)
    assert torch.equal(first, torch.rand(3))


@pytest.fixture
def program(monkeypatch) -> str:
    monkeypatch.setattr(sys, "argv", ["/some/folder/make_cam.py", "--flag"])
    return "make_cam.py"


def raiser(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_run_returns_zero_in_silence(program, capsys):
    assert stage.run(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_run_prints_what_the_user_can_mend_in_one_line(program, capsys):
    assert stage.run(raiser(InputError("a.jpg: no such picture; correct the list"))) == 2
    assert capsys.readouterr() == ("", f"{program}: error: a.jpg: no such picture; correct the list\n")


@pytest.mark.parametrize("cause", [None, OSError("image file is truncated")])
def test_run_prints_a_workers_error_in_one_line(program, capsys, cause):
    def main() -> None:
        try:
            raise InputError("a.jpg: not a readable picture; replace it") from cause
        except InputError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()  # what a DataLoader does, without its process

    assert stage.run(main) == 2
    assert capsys.readouterr() == ("", f"{program}: error: a.jpg: not a readable picture; replace it\n")


def test_run_takes_the_last_of_chained_errors(program, capsys):
    trace = (
        "Caught InputError in DataLoader worker process 3.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nerrors.InputError: first\n\nDuring handling of the above exception, another exception occurred:\n\n'
        'Traceback (most recent call last):\n  File "y.py", line 2, in g\nerrors.InputError: b.jpg: replace it\n'
    )
    assert stage.run(raiser(InputError(trace))) == 2
    assert capsys.readouterr().err == f"{program}: error: b.jpg: replace it\n"


def test_run_says_that_a_stopped_run_goes_on(program, capsys):
    assert stage.run(raiser(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.strip() == f"{program}: stopped; the same command goes on from here"


def test_run_lets_bugs_through(program):
    with pytest.raises(ZeroDivisionError):
        stage.run(raiser(ZeroDivisionError()))


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:5540: Connection reset by peer. This is typically"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(GLOO), "has lost another one, so it ends, too (Read error [127.0.0.1]:5540: Connection reset by peer); mend what"),
        (dist.DistBackendError("NCCL error in: x.cpp:77, remote process exited\nLast error:"), "(NCCL error in: x.cpp:77, remote process"),
        (dist.DistStoreError("wait timeout after 300ms"), "has lost another one, so it ends, too (wait timeout after 300ms);"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "does not suffice (CUDA out of memory); use a smaller",
        ),
        (InvalidCxxCompiler(), "--compile does not work here (No working C++ compiler found"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a worker process was killed, perhaps for lack of memory"),
    ],
)
def test_run_says_in_one_line_what_pytorch_says_in_many(program, capsys, error, said):
    assert stage.run(raiser(error)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{program}: error: ") and said in line


def test_a_port_in_use_is_no_lost_process(program):
    with pytest.raises(dist.DistNetworkError):
        stage.run(raiser(dist.DistNetworkError("The server socket has failed to listen on any local network address. EADDRINUSE")))


@pytest.mark.parametrize(("taken", "calls"), [(1, [(-3, 2**30), (-1, 2**31 - 1)]), (0, [(-3, 2**30)])])
def test_the_allocator_is_left_alone_where_it_takes_no_such_threshold(monkeypatch, taken, calls):
    called = []
    library = argparse.Namespace(mallopt=lambda *values: called.append(values) or taken)
    monkeypatch.setattr(stage.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    stage.keep_freed_memory()
    assert called == calls


def test_run_lets_other_errors_of_pytorch_through(program):
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        stage.run(lambda: torch.mm(torch.ones(2, 3), torch.ones(2, 3)))


DEAF = """
import ctypes, os, signal, sys, threading
sys.path.insert(0, {root!r})
from tool import stage

def wait_without_end():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    mutex = ctypes.create_string_buffer(64)
    while True:  # the second time it is locked, and no signal wakes who waits for it
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

stage.run(wait_without_end)
"""


def test_sigterm_ends_a_stage_in_one_line_even_where_its_main_thread_hears_nothing():
    command = [sys.executable, "-c", DEAF.format(root=str(Path(stage.__file__).parents[1])), "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    expected = "stopped by SIGTERM, perhaps as another process has ended; the same command without --overwrite goes on from here"
    assert done.stderr.strip().endswith(expected) and len(done.stderr.strip().splitlines()) == 1


def test_run_leaves_sigterm_as_it_was(program):
    inside = []
    before = signal.getsignal(signal.SIGTERM)
    stage.run(lambda: inside.append(signal.getsignal(signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) == before != inside[0]
    assert signal.set_wakeup_fd(-1) == -1
