"""Stages in processes of their own, with ResNet-50 at its full size."""

import shutil
from dataclasses import replace

import pytest
from common import (
    STAGES,
    TRAININGS,
    Call,
    Run,
    assert_close_weights,
    assert_same_results,
    copy,
    draw_maps,
    kill_when_written,
    one_thread,
    run_in_two_processes,
)

pytestmark = pytest.mark.slow
ONE_STEP = ("--batch_size", 6, "--max_epochs", 1)
MORE_FLAGS = {
    "train_sipe": ONE_STEP,
    "train_irn": ONE_STEP,
    "train_seg": (*ONE_STEP, "--lr", 1e-3, "--class_balance", 0.5),
}


@pytest.fixture
def run(fixed_voc, tiny_backbone, run_dir) -> Run:
    return Run(fixed_voc, run_dir, tiny_backbone)


def in_folder(run: Run, name: str) -> Run:
    return replace(run, folder=run.folder / name)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_training_ends_with_the_same_weights(name, run):
    killed = in_folder(run, "killed")
    whole = in_folder(run, "whole")
    for own in (killed, whole):
        for folder in STAGES[name].needs:  # masks as labels
            copy(run.voc / "SegmentationClass", own.folder / folder)
    kill_when_written(killed.last_checkpoint(name), STAGES[name].script, killed.flags(name))
    assert not killed.makes(name).exists()
    assert "from step" in killed.stage(name)
    whole.stage(name)
    assert_same_results(killed.makes(name), whole.makes(name))


def run_of_stage(run: Run, name: str) -> Run:
    """From the inter-pixel labels on, stages start from the drawn maps in a folder below."""
    reads_made_maps = name in ("train_sipe", "make_cam")
    return run if reads_made_maps else in_folder(run, "drawn")


def test_two_processes_do_what_one_does(run):
    """Maps, labels and masks are the same byte by byte.

    A step over two halves of the batch is one over the whole, up to rounding.
    """
    together = in_folder(run, "together")
    alone = in_folder(run, "alone")
    for own in (together, alone):
        draw_maps(run.voc, own.folder / "drawn")
    calls = []
    for name, stage in STAGES.items():
        flags = run_of_stage(together, name).flags(name)
        calls.append(Call(stage.script, [*flags, *MORE_FLAGS.get(name, ())]))
    run_in_two_processes(calls)
    for name, stage in STAGES.items():
        ours = run_of_stage(together, name)
        theirs = run_of_stage(alone, name)
        for below in stage.needs:  # the same weights
            if below.endswith(".pth"):
                shutil.copy(ours.folder / below, theirs.folder / below)
        with one_thread():
            theirs.stage(name, *MORE_FLAGS.get(name, ()))
        if stage.is_training:
            assert_close_weights(ours.makes(name), theirs.makes(name), rtol=1e-4, atol=1e-6)
        else:
            assert_same_results(ours.makes(name), theirs.makes(name))


def test_a_compiled_training_is_resumed_without_compile(run):
    """The rate is small: with random weights, a large one lets roundings grow into other seeds."""
    flags = ["--lr", 0.001]
    compiled = in_folder(run, "compiled")
    plain = in_folder(run, "plain")
    compiled.stop_stage("train_sipe", *flags, "--compile", calls=3)
    assert "from step 3" in compiled.stage("train_sipe", *flags)
    plain.stage("train_sipe", *flags)
    ours = compiled.makes("train_sipe")
    assert_close_weights(ours, plain.makes("train_sipe"), rtol=1e-5, atol=1e-7)
