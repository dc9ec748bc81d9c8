"""Stages in two processes: they do what one does, and where one of them is killed the same command goes on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import NAMES, assert_same_weights, bytes_below, call, data_flags, in_two_processes, kill_one_of_two, one_thread, weights_of

import eval_cam
import make_cam
import train_resnet50_SIPE as train

STEPS = 6  # two epochs of three batches
LOST = ("this process has lost another one", "stopped by SIGTERM")  # what is met first, the broken connection or torchrun's signal


@pytest.fixture(scope="module")
def two(fixed_voc: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Training, maps and their evaluation by two processes that nobody stops."""
    folder = tmp_path_factory.mktemp("two")
    common = data_flags(fixed_voc, folder / "run")
    training = ["--device", "cpu", "--weights", tiny_backbone, "--max_epochs", 2, "--batch_size", 2, "--lr", 0.001, "--save_every", 1]
    training += ["--crop_size", 64, "--resize_long", 48, 64]
    mapping = ["--device", "cpu", "--ckpt", folder / "run/ckpt/final.pth", "--scales", 5.0, 0.5]  # large: there is time to kill
    in_two_processes([[train, *common, *training]])
    in_two_processes([[make_cam, *common, *mapping], [eval_cam, *common]])
    yield SimpleNamespace(folder=folder, run_dir=folder / "run", common=common, training=training, mapping=mapping)
    shutil.rmtree(folder)


def test_training_in_two_processes_is_training_in_one(two, fixed_voc):
    """Several steps over halves of the batches. The rate is small: with random weights a large one lets roundings grow into other seeds."""
    with one_thread():
        assert f"{STEPS} steps" in call(train.main, *data_flags(fixed_voc, two.folder / "alone"), *two.training)
    ours, theirs = (weights_of(two.folder / name / "ckpt/final.pth") for name in ("run", "alone"))
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= 1e-5 * theirs[name].abs().max() + 1e-7, name  # biases are 0 at first


def test_maps_of_two_processes_are_those_of_one_byte_by_byte(two, fixed_voc):
    with one_thread():
        call(make_cam.main, *data_flags(fixed_voc, two.folder / "alone"), *two.mapping)
    assert set(bytes_below(two.run_dir / "cam")) == {"settings.json", *(f"{name}.npz" for name in NAMES)}
    assert bytes_below(two.run_dir / "cam") == bytes_below(two.folder / "alone/cam")


def test_two_processes_report_what_one_does(two):
    report = two.run_dir / "eval_cam.json"
    before = report.read_bytes()
    report.unlink()
    call(eval_cam.main, *two.common)
    assert report.read_bytes() == before


def check_said(said: str, script) -> None:
    """The process that was left has ended in one line, of no traceback (torchrun itself ends in one)."""
    lines = [line for line in said.splitlines() if line.startswith(f"{Path(script.__file__).name}: ")]
    assert len(lines) == 1 and any(text in lines[0] for text in LOST), said
    assert f'File "{script.__file__}"' not in said


def test_a_training_of_which_a_process_is_killed_ends_with_the_same_weights(two, fixed_voc):
    run_dir = two.folder / "killed"
    flags = [*data_flags(fixed_voc, run_dir), *two.training]
    check_said(kill_one_of_two(run_dir / "ckpt/last.pth", train, flags), train)
    assert [path.name for path in (run_dir / "ckpt").iterdir()] == ["last.pth"]
    in_two_processes([[train, *flags]])
    assert_same_weights(run_dir / "ckpt/final.pth", two.run_dir / "ckpt/final.pth")
    shutil.rmtree(run_dir)


def test_maps_of_which_a_process_is_killed_are_finished_by_the_same_command(two, fixed_voc):
    run_dir = two.folder / "killed"
    flags = [*data_flags(fixed_voc, run_dir, num_workers=1), *two.mapping]
    check_said(kill_one_of_two(run_dir / f"cam/{NAMES[0]}.npz", make_cam, flags), make_cam)
    done = bytes_below(run_dir / "cam")
    assert len(done) < len(NAMES)
    in_two_processes([[make_cam, *flags]])
    assert bytes_below(run_dir / "cam") == bytes_below(two.run_dir / "cam")
