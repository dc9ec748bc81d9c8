"""The course of a training: flags in their ranges, a recipe that holds, and a stopped run that ends like a whole one."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from errors import InputError
from tool import checkpoint, training
from tool.stage import Stage

EPOCH_STEPS = 3


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    training.add_flags(parser, batch_size=16, max_epochs=2, lr_help="of everything")
    args = parser.parse_args(flags)
    training.check_flags(parser, args)
    return args


def course_in(folder: Path, *flags: str, digest: str = "of the data", amp: torch.dtype | None = None) -> training.Training:
    args = parse(*flags)
    kept = {name: getattr(args, name) for name in ("seed", "lr", "batch_size")} | {"scales": [0.5, 1.5], "digest": digest}
    run = Stage(torch.device("cpu"), 0, 1, folder, amp)
    names = ("background", "cat")
    return training.Training(args, run, kept, names, folder / "last.pth", folder / "final.pth", EPOCH_STEPS, folder / "tensorboard")


def train(course: training.Training, stop_after: int | None = None, spoil: bool = False) -> list[int]:
    """Train three weights on numbers that torch draws; returns the steps that were taken."""
    torch.manual_seed(0)
    model, taken = nn.Linear(2, 1), []
    course.args.momentum, course.args.wt_dec = 0.5, 0.1
    course.begin(model, [model.weight], [model.bias])
    parallel = course.parallel(model)
    for batch in course.batches([{"value": torch.tensor([step, 1.0])} for step in range(course.start, course.steps)]):
        loss = (parallel(batch["value"]) - torch.rand(1)).square().sum()
        norm = course.descend(loss, max_norm=1)
        if spoil:
            model.bias.data.fill_(torch.nan)
        course.record({"loss": loss, "norm": norm}, lambda: np.zeros((4, 4, 3), np.uint8), "nothing")
        taken.append(course.step)
        if course.step == stop_after:
            course.journal.close()
            return taken
    course.finish()
    return taken


def test_defaults_are_the_published_ones():
    args = parse()
    assert (args.batch_size, args.max_epochs, args.crop_size, args.seed) == (16, 2, 512, 15)
    assert (args.lr, args.momentum, args.wt_dec) == (0.1, 1e-4, 1e-4)
    assert args.resume and args.list is None
    assert parse("--train_list", "x.txt", "--max_epoches", "3", "--print_freq", "7", "--no-resume").log_every == 7  # the authors' names


def test_a_stage_can_have_other_defaults_and_its_help_tells_them():
    parser = argparse.ArgumentParser()
    training.add_flags(parser, batch_size=4, max_epochs=30, lr_help="of the backbone", lr=0.007, momentum=0.9, wt_dec=5e-4)
    args, told = parser.parse_args([]), " ".join(parser.format_help().split())
    assert (args.batch_size, args.max_epochs, args.lr, args.momentum, args.wt_dec) == (4, 30, 0.007, 0.9, 5e-4)
    for part in ("of the backbone (default 0.007)", "of SGD (default 0.9)", "weight decay (default 0.0005)", "is seen (default 30)"):
        assert part in told


def test_the_help_of_a_momentum_of_practically_none_says_so():
    parser = argparse.ArgumentParser()
    training.add_flags(parser, batch_size=4, max_epochs=3, lr_help="of everything")
    assert "of SGD; the published numbers have practically none (default 0.0001)" in " ".join(parser.format_help().split())


@pytest.mark.parametrize("scales", [(0.5, 2.0), (1.0, 1.0), (0.01, 8)])
def test_a_range_of_factors_is_taken(scales):
    training.check_scale_range(argparse.ArgumentParser(), scales)


NAN = float("nan")


@pytest.mark.parametrize("scales", [(0.0, 1.0), (-1.0, 1.0), (2.0, 0.5), (0.5, 8.1), (NAN, 1.0), (0.5, NAN)])
def test_a_range_of_factors_that_is_none_is_refused(scales, capsys):
    with pytest.raises(SystemExit):
        training.check_scale_range(argparse.ArgumentParser(), scales)
    assert "--scales takes the smallest and the largest factor, above 0 and at most 8" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["batch_size", "max_epochs", "crop_size", "log_every"])
def test_counts_are_at_least_one(flag, capsys):
    with pytest.raises(SystemExit):
        parse(f"--{flag}", "0")
    assert f"--{flag} is at least 1" in capsys.readouterr().err
    assert getattr(parse(f"--{flag}", "1"), flag) == 1


@pytest.mark.parametrize("value", ["-1", "4294967296"])
@pytest.mark.parametrize("flag", ["seed", "lr", "momentum", "wt_dec", "save_every"])
def test_the_other_numbers_are_at_least_zero(flag, value, capsys):
    with pytest.raises(SystemExit):
        parse(f"--{flag}", value)
    assert f"--{flag} is at least 0" in capsys.readouterr().err
    assert getattr(parse(f"--{flag}", "0"), flag) == 0


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_learning_rate_is_a_number(value, capsys):
    with pytest.raises(SystemExit):
        parse("--lr", value)
    assert "--lr is at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pictures", "processes", "match"), [(15, 1, "--list x.txt: 15 pictures do not fill a batch"), (16, 3, "is not a multiple of the 3")]
)
def test_a_batch_that_cannot_be_filled_or_shared_is_refused(pictures, processes, match):
    with pytest.raises(InputError, match=match):
        training.check_batch(parse("--list", "x.txt"), pictures, processes)


def test_a_batch_that_fits_is_taken():
    training.check_batch(parse(), 16, 4)


def test_a_training_ends_with_its_final_checkpoint_alone(tmp_path, capsys):
    course = course_in(tmp_path)
    assert not course.is_complete
    assert course.plan == "6 steps on cpu"
    assert train(course) == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"final.pth", "tensorboard"}
    content = checkpoint.read(tmp_path / "final.pth")
    assert content.keys() == {"model", "arguments", "class_names"}
    assert content["arguments"] == {"seed": 15, "lr": 0.1, "batch_size": 16, "scales": [0.5, 1.5], "digest": "of the data"}
    assert content["class_names"] == ["background", "cat"]
    assert f"wrote {tmp_path / 'final.pth'}" in capsys.readouterr().out
    assert course_in(tmp_path).is_complete


@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_a_stopped_run_ends_like_a_whole_one(tmp_path, stop_after):
    train(course_in(tmp_path / "whole"))
    assert train(course_in(tmp_path / "stopped", "--save_every", "1"), stop_after) == list(range(1, stop_after + 1))
    course = course_in(tmp_path / "stopped")
    assert train(course) == list(range(stop_after + 1, 7))
    assert course.plan.endswith(f", from step {stop_after}")
    whole, stopped = (checkpoint.read(tmp_path / f"{name}/final.pth")["model"] for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize(("save_every", "saved"), [(0, [3, 6]), (2, [2, 3, 4, 6]), (5, [3, 5, 6])])
def test_progress_is_saved_after_every_epoch_and_so_many_steps(tmp_path, monkeypatch, save_every, saved):
    steps, save = [], checkpoint.save

    def note(path: Path, content: dict) -> None:
        steps.append(content.get("step"))
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", note)
    train(course_in(tmp_path, "--save_every", str(save_every)))
    assert steps == [*saved, None]  # the final one counts no steps


@pytest.mark.parametrize("stop_after", [3, None], ids=["stopped", "complete"])
@pytest.mark.parametrize(
    ("flags", "digest", "told"),
    [
        (["--lr", "0.2"], "of the data", r"--lr 0\.1 \(now 0\.2\);"),
        (["--lr", "0.2", "--seed", "1"], "of other data", r"--seed 15 \(now 1\), --lr 0\.1 \(now 0\.2\);"),
        ([], "of other data", "other pictures, tags, labels or classes"),
    ],
)
def test_a_run_keeps_its_recipe(tmp_path, stop_after, flags, digest, told):
    train(course_in(tmp_path), stop_after)
    with pytest.raises(InputError, match=f"was trained with {told}") as error:
        course_in(tmp_path, *flags, digest=digest)
    assert str(error.value).startswith(f"{tmp_path / ('last.pth' if stop_after else 'final.pth')}: ")
    assert "\n" not in str(error.value)


def test_how_a_run_is_shown_and_saved_is_no_part_of_its_recipe(tmp_path):
    train(course_in(tmp_path), stop_after=3)
    assert train(course_in(tmp_path, "--save_every", "7", "--log_every", "1")) == [4, 5, 6]


@pytest.mark.parametrize("content", [{"net": {}}, {"model": {}, "arguments": None}])
def test_a_checkpoint_of_another_origin_is_not_resumed(tmp_path, content):
    checkpoint.save(tmp_path / "last.pth", content)
    with pytest.raises(InputError, match=r"last\.pth: was trained with --seed None \(now 15\)"):
        course_in(tmp_path)


@pytest.mark.parametrize("missing", ["model", "optimizer", "rng", "step"])
def test_a_checkpoint_without_a_part_is_not_resumed(tmp_path, missing):
    train(course_in(tmp_path), stop_after=3)
    content = checkpoint.read(tmp_path / "last.pth")
    del content[missing]
    checkpoint.save(tmp_path / "last.pth", content)
    with pytest.raises(InputError, match=rf"last\.pth: cannot be resumed \('{missing}'\); use --no-resume"):
        train(course_in(tmp_path))


@pytest.mark.parametrize("stop_after", [3, None], ids=["stopped", "complete"])
def test_no_resume_starts_over(tmp_path, stop_after):
    train(course_in(tmp_path), stop_after)
    course = course_in(tmp_path, "--no-resume", "--lr", "0.2")
    assert not course.is_complete
    assert train(course, stop_after=1) == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"tensorboard"}


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(InputError, match=r"^step 3: the weights are not finite any more; .* smaller --lr$"):
        train(course_in(tmp_path), spoil=True)
    assert not list(tmp_path.glob("*.pth"))


@pytest.fixture
def quick_compile(monkeypatch) -> list[nn.Module]:
    """torch.compile without its code generator, and what it was given."""
    compiled, real = [], torch.compile

    def compile(model: nn.Module) -> nn.Module:
        compiled.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    return compiled


@pytest.mark.parametrize(("before", "after"), [([], ["--compile"]), (["--compile"], []), (["--compile"], ["--compile"])])
def test_a_run_goes_on_compiled_or_not_and_ends_like_one_that_was_not(tmp_path, quick_compile, before, after):
    train(course_in(tmp_path / "whole"))
    train(course_in(tmp_path / "stopped", "--save_every", "1", *before), stop_after=2)
    assert train(course_in(tmp_path / "stopped", *after)) == [3, 4, 5, 6]
    assert len(quick_compile) == len(before) + len(after)
    whole, stopped = (checkpoint.read(tmp_path / f"{name}/final.pth") for name in ("whole", "stopped"))
    assert whole["arguments"] == stopped["arguments"]
    assert whole["model"].keys() == stopped["model"].keys() == {"weight", "bias"}
    assert all(torch.equal(whole["model"][name], stopped["model"][name]) for name in whole["model"])


def test_half_precision_survives_that_its_first_step_overflows(tmp_path):
    """The fused SGD would begin its momentum with memory that nobody wrote to."""
    course, model = course_in(tmp_path, amp=torch.float16), nn.Linear(2, 1)
    course.args.momentum = 0.9
    course.begin(model, [model.weight], [model.bias])
    assert not any(group["fused"] for group in course.optimizer.param_groups)
    for factor in (torch.inf, 1.0):
        course.descend((factor * model(torch.ones(2))).sum())
    assert all((state["momentum_buffer"] - 1).abs().max() < 0.01 for state in course.optimizer.state.values())
    course.journal.close()


def test_otherwise_the_optimizer_is_fused(tmp_path):
    for amp in (None, torch.bfloat16):
        course, model = course_in(tmp_path, amp=amp), nn.Linear(2, 1)
        course.begin(model, [model.weight], [model.bias])
        assert all(group["fused"] for group in course.optimizer.param_groups)
        course.journal.close()
