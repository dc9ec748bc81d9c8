"""The flags of the scripts: what they take, what they refuse, and their defaults."""

import argparse
import importlib
from pathlib import Path

import pytest

from tool import flags, workers
from tool.flags import non_negative_float, non_negative_int, positive_int, scale
from tool.options import ResultPolicy, TrainingDefaults, TrainingOptions


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
        "--batch_size 0",
        "--max_epochs 0",
        "--crop_size 0",
        "--log_every 0",
        "--seed -1",
        "--save_every -1",
        "--lr nan",
        "--momentum -1",
        "--wt_dec -1",
        "--amp half",
        "--visualize False",
        "--num_workers -1",
        "--resize_long 64 32",
        "--resize_long 0 32",
        "--dataset folder",
        "--dataset coco",
        "--dataset imagenet",
    ],
    "make_cam": [
        "--scales 0",
        "--scales 9",
        "--scales 1 nan",
        "--maps grad_cam",
        "--batch_size 0",
    ],
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
        "--refine sam",
        "--map grad_cam",
        "--crf_on images",
        "--beta 0",
        "--beta nan",
        "--beta 1001",
        "--exp_times -1",
        "--exp_times 17",
        "--exp_times 1.5",
        "--crf_on maps",
        "--refine crf --beta 3",
        "--refine none --irn_ckpt x",
    ],
    "eval_seg": ["--num_workers -1"],
    "train_seg": [
        "--network unet",
        "--output_stride 4",
        "--scales 2 0.5",
        "--max_side many",
        "--class_balance -1",
        "--class_balance 1.5",
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
REFUSED = [(script, text) for script, texts in REFUSED_FLAGS.items() for text in texts]
STAGES = [script for script in REFUSED_FLAGS if script != "predict"]


@pytest.mark.parametrize(("script", "text"), REFUSED)
def test_a_script_refuses_a_flag_out_of_range_by_name(script, text, capsys, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    required = ["folder", "--ckpt", "none.pth"] if script == "predict" else []
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).parse_args([*required, *text.split()])
    assert end.value.code == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    names = [word for word in text.split() if word.startswith("--")]
    assert any(name in last_line for name in names)


@pytest.mark.parametrize("script", STAGES)
def test_stages_share_their_flags_and_the_places_that_depend_on_the_dataset(script):
    parse_args = importlib.import_module(script).parse_args
    args = parse_args(["--session_name", "runs/old"])  # the authors' name of --run_dir
    assert args.dataset == "voc"
    assert str(args.dataset_root) == "./VOC2012"
    assert args.run_dir == Path("runs/old")
    args = parse_args(["--dataset", "coco", "--dataset_root", "x"])
    assert args.run_dir == Path("runs/coco")


def test_workers_follow_the_cores_unless_they_are_given(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 5)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    parser = flags.stage_parser("doc", max_workers=8)
    assert parser.parse_args([]).num_workers == 5
    assert parser.parse_args(["--num_workers", "0"]).num_workers == 0


def training_parser(defaults: TrainingDefaults) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    flags.add_training_flags(parser, defaults, "of everything")
    flags.add_workers(parser)
    return parser


def test_defaults_are_the_published_ones():
    args = training_parser(TrainingDefaults(batch_size=16, max_epochs=5)).parse_args([])
    assert (args.batch_size, args.max_epochs, args.crop_size, args.seed) == (16, 5, 512, 15)
    assert (args.lr, args.momentum, args.wt_dec) == (0.1, 1e-4, 1e-4)
    assert args.resume and args.list is None and not args.compile


def test_the_authors_names_of_flags_are_known():
    defaults = TrainingDefaults(16, 5, lr=0.5, momentum=0.9, weight_decay=5e-4)
    text = "--train_list x.txt --max_epoches 3 --print_freq 7 --no-resume --num_workers 2"
    args = training_parser(defaults).parse_args(text.split())
    assert args.list == "x.txt"
    assert flags.training_options(args) == TrainingOptions(
        batch_size=16,
        max_epochs=3,
        crop_size=512,
        lr=0.5,
        momentum=0.9,
        weight_decay=5e-4,
        seed=15,
        resume=False,
        save_every=500,
        log_every=7,
        num_workers=2,
        compile=False,
    )


def test_flags_become_a_policy_and_what_a_run_keeps():
    parser = argparse.ArgumentParser()
    flags.add_results(parser)
    args = parser.parse_args(["--strict"])
    assert flags.result_policy(args) == ResultPolicy(overwrite=False, strict=True)
    kept = flags.resume_arguments(args, ["strict"], "of the data")
    assert kept == {"strict": True, "digest": "of the data"}
