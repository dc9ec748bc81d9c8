"""Where a command runs: its flags, device and processes; and errors in one line."""

import argparse
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch._utils import ExceptionWrapper

from errors import InputError
from tool import context, flags
from tool.context import Context, choose_device, cli_main
from tool.flags import non_negative_float, non_negative_int, positive_int, scale


@pytest.mark.parametrize(("most", "strategy"), [(64, "file_system"), (10**6, None), (-1, None)])
def test_many_files_may_be_open_as_far_as_the_system_allows(monkeypatch, most, strategy):
    calls = {}

    def setrlimit(kind, limits):
        if limits == (-1, -1):
            raise ValueError("as macOS does")
        calls[kind] = limits

    fake = argparse.Namespace(
        RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda kind: (32, most), setrlimit=setrlimit
    )
    monkeypatch.setattr(context, "resource", fake)
    monkeypatch.setattr(
        torch.multiprocessing, "set_sharing_strategy", lambda name: calls.update(strategy=name)
    )
    assert cli_main(lambda: None) == 0
    assert (calls.get(7), calls.get("strategy")) == (None if most < 0 else (most, most), strategy)


def place(rank: int = 0, world_size: int = 1, **more) -> Context:
    return Context(torch.device("cpu"), rank, world_size, **more)


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (positive_int, {"1": 1, "16": 16}, ["0", "-1", "1.5", "many", ""]),
        (
            non_negative_int,
            {"0": 0, "4294967295": 2**32 - 1},
            ["-1", "4294967296", "1.5", "nan", ""],
        ),
        (non_negative_float, {"0": 0, "1e-4": 1e-4, "3": 3}, ["-1", "nan", "inf", "x", ""]),
        (scale, {"0.01": 0.01, "8": 8}, ["0", "-1", "8.1", "nan", "inf", "x"]),
    ],
)
def test_numbers_of_flags(kind, taken, refused):
    assert {text: kind(text) for text in taken} == taken
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


REFUSED_FLAGS = {
    "train_resnet50_SIPE": [
        *(
            "--batch_size 0",
            "--max_epochs 0",
            "--crop_size 0",
            "--log_every 0",
            "--seed -1",
            "--save_every -1",
            "--lr nan",
        ),
        *("--momentum -1", "--wt_dec -1", "--amp half", "--visualize False", "--num_workers -1"),
        *(
            "--resize_long 64 32",
            "--resize_long 0 32",
            "--dataset folder",
            "--dataset coco",
            "--dataset imagenet",
        ),
    ],
    "make_cam": ["--scales 0", "--scales 9", "--scales 1 nan", "--maps grad_cam", "--batch_size 0"],
    "eval_cam": ["--num_workers -1", "--device cpu"],
    "make_ir_labels": ["--map grad_cam", "--num_workers 1.5"],
    "train_irn": [
        "--crop_size 82",
        "--crop_size 76",
        "--scales 1.5 0.5",
        "--scales 0 1",
        "--scales 1 nan",
        "--scales 1",
    ],
    "make_seg_labels": [
        *(
            "--refine sam",
            "--map grad_cam",
            "--crf_on images",
            "--beta 0",
            "--beta nan",
            "--beta 1001",
            "--exp_times -1",
        ),
        *(
            "--exp_times 17",
            "--exp_times 1.5",
            "--crf_on maps",
            "--refine crf --beta 3",
            "--refine none --irn_ckpt x",
        ),
    ],
    "eval_seg": ["--num_workers -1"],
    "train_seg": [
        *(
            "--network unet",
            "--output_stride 4",
            "--scales 2 0.5",
            "--max_side many",
            "--class_balance -1",
            "--class_balance 1.5",
        )
    ],
    "infer_seg": [
        "--scales 0",
        "--max_side -1",
        "--submission photo.jpg",
        "--submission mine.tgz --dataset coco --dataset_root x",
    ],
    "predict": [
        "--scales 0",
        "--max_side -1",
        "--num_workers -1",
        "--amp half",
        "--tags cat --tag_table x.csv",
        "--output_dir folder",
    ],
}


@pytest.mark.parametrize(
    ("script", "flags"),
    [(script, flags) for script, table in REFUSED_FLAGS.items() for flags in table],
)
def test_a_script_refuses_a_flag_out_of_range_by_name(script, flags, capsys, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    more = ["folder", "--ckpt", "none.pth"] if script == "predict" else []
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).parse_args([*more, *flags.split()])
    assert end.value.code == 2
    assert any(
        part in capsys.readouterr().err.splitlines()[-1]
        for part in flags.split()
        if part.startswith("--")
    )


@pytest.mark.parametrize("script", [script for script in REFUSED_FLAGS if script != "predict"])
def test_stages_share_their_flags_and_the_places_that_depend_on_the_dataset(script):
    parse_args = importlib.import_module(script).parse_args
    args = parse_args(["--session_name", "runs/old"])  # the authors' name of --run_dir
    assert (args.dataset, str(args.dataset_root), args.run_dir) == (
        "voc",
        "./VOC2012",
        Path("runs/old"),
    )
    assert parse_args(["--dataset", "coco", "--dataset_root", "x"]).run_dir == Path("runs/coco")


@pytest.mark.parametrize(
    ("cores", "processes", "most", "expected"),
    [
        (64, None, 8, 8),
        (64, None, None, 64),
        (3, None, 8, 3),
        (64, 16, 8, 4),
        (64, 16, None, 4),
        (2, 4, None, 1),
    ],
)
def test_default_workers_share_out_the_cores(monkeypatch, cores, processes, most, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    parser = flags.stage_parser("doc", max_workers=most)
    assert parser.parse_args([]).num_workers == expected
    assert parser.parse_args(["--num_workers", "0"]).num_workers == 0


@pytest.mark.parametrize(
    ("count", "name", "expected"),
    [
        *(
            (0, "auto", "cpu"),
            (0, "cpu", "cpu"),
            (2, "cpu", "cpu"),
            (2, "auto", "cuda:1"),
            (2, "cuda", "cuda:1"),
            (2, "cuda:0", "cuda:0"),
        ),
        *(
            (0, name, None)
            for name in ("cuda", "cuda:0", "gpu", "", "cuda:x", "cuda:-1", "mps", "meta")
        ),
        *((2, name, None) for name in ("cuda:2", "cuda:1000")),
    ],
)
def test_the_second_process_takes_its_own_device_or_the_one_that_is_named(
    monkeypatch, count, name, expected
):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if expected:
        assert choose_device(name, local_rank=1) == torch.device(expected)
        assert chosen == [torch.device(expected)] * (expected != "cpu")
    else:
        with pytest.raises(InputError, match=f"^--device {name}: "):
            choose_device(name)
        assert chosen == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_out_a_list_and_the_first_prints(world_size, capsys):
    places = [place(rank, world_size) for rank in range(world_size)]
    shards = [each.shard(list("abcde")) for each in places]
    assert sorted(item for shard in shards for item in shard) == list("abcde")
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for each in places:
        each.print(f"rank {each.rank}")
    assert capsys.readouterr().out == "rank 0\n"


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [({"device": "cpu", "amp": "bf16"}, torch.bfloat16), ({}, torch.float32)],
    ids=["bf16", "off"],
)
def test_run_context_makes_the_folder_and_sets_the_precision(tmp_path, monkeypatch, flags, dtype):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        context, "check_precision", lambda amp, device: None
    )  # tests also run on processors without bf16
    with context.run_context(argparse.Namespace(run_dir=tmp_path / "run", **flags)) as found:
        assert (found.device, found.rank, found.world_size) == (torch.device("cpu"), 0, 1)
        assert found.is_main and not found.is_cuda and list((tmp_path / "run").iterdir()) == []
        with found.autocast():
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/folder/make_cam.py", "--flag"])


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def in_a_worker(error: Exception) -> Exception:
    """The error as a DataLoader raises it when its worker process did, without that process."""
    try:
        raise error from InputError("what the worker met first")
    except type(error):
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except type(error) as again:
        return again


LINE = "a.jpg: no such image; correct the list"


@pytest.mark.parametrize(
    ("error", "status", "named"),
    [
        (InputError(LINE), 2, LINE),
        (in_a_worker(InputError(LINE)), 2, LINE),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            2,
            "--batch_size",
        ),
        (MemoryError(), 2, "--batch_size"),
        (
            RuntimeError(
                "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried\nmore"
            ),
            2,
            "--batch_size",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            2,
            "--num_workers",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), 2, "--num_workers"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_user_can_fix_is_one_line_and_a_status(capsys, error, status, named):
    assert cli_main(raising(error)) == status
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().splitlines()) == 1
    assert (
        printed.err.strip().startswith("make_cam.py: error: " if status == 2 else "make_cam.py: ")
        and named in printed.err
    )
    assert LINE not in named or printed.err == f"make_cam.py: error: {LINE}\n"


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
    ("amp", "onednn", "avx512", "own_bf16", "ends"),
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
    amp, onednn, avx512, own_bf16, ends, monkeypatch, tmp_path
):
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: own_bf16)
    context.check_precision(amp, torch.device("cuda"))
    args = argparse.Namespace(device="cpu", amp=amp, run_dir=tmp_path / "run")
    if ends:
        with pytest.raises(InputError, match=f"^--amp {amp}: "), context.run_context(args):
            pass
        assert not args.run_dir.exists()
    else:
        with context.run_context(args) as place:
            assert place.amp == context.AMP[amp]
