"""The training loop: two groups under one schedule, terms that hold, and a stopped run that ends like a whole one."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.utils.data import Dataset

from data.registry import Samples
from errors import InputError
from tool import checkpoint, trainer
from tool.context import Context
from tool.trainer import RunFiles, Trainer, make_optimizer, optimizer_step

NAMES = ("background", "cat")
NUM_IMAGES, BATCH_SIZE, EPOCHS = 7, 2, 2  # three steps an epoch, six in all


def parse(*flags: str, **defaults) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    trainer.add_flags(
        parser,
        **{"batch_size": BATCH_SIZE, "max_epochs": EPOCHS, "lr_help": "of everything"} | defaults,
    )
    parser.set_defaults(num_workers=0)  # of a flag that the scripts' parsers have
    return parser.parse_args(flags)


class Numbers(Dataset):
    """Images of two numbers, which depend on epoch and index as a crop does."""

    samples = Samples.of([])

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"value": torch.tensor(epoch_and_index, dtype=torch.float32)}


def terms_of(*flags: str, digest: str) -> dict:
    return trainer.terms_of(
        argparse.Namespace(**vars(parse(*flags)), scales=[0.5, 1.5]),
        ("seed", "lr", "batch_size", "scales"),
        digest,
    )


def groups_of(backbone: nn.Parameter, head: nn.Parameter) -> list[dict]:
    return [
        {"params": [backbone], "lr_scale": 1},
        {"params": [head], "lr_scale": 10, "weight_decay": 0.0},
    ]


def trainer_in(
    folder: Path, *flags: str, digest: str = "of the data", kind: type[Context] = Context, **place
) -> Trainer:
    """A trainer of three weights, on numbers that torch draws."""
    torch.manual_seed(0)
    args, terms, model = parse(*flags), terms_of(*flags, digest=digest), nn.Linear(2, 1)
    args.momentum, args.wt_dec = 0.5, 0.1
    context = kind(torch.device("cpu"), **place)
    return Trainer(
        args,
        context,
        RunFiles.of(folder, "irn"),
        terms,
        NAMES,
        NUM_IMAGES,
        model,
        groups_of(model.weight, model.bias),
    )


def train(run: Trainer, stop_after: int | None = None, spoil: int | None = None) -> list[int]:
    """Train to the end, or stop in the middle of the step after stop_after; returns the steps that were taken."""
    taken = []
    for batch in run.batches(Numbers()):
        if stop_after is not None and run.current > stop_after:
            return taken
        norm = run.step(
            (run.network(batch["value"]) - torch.rand(BATCH_SIZE, 1)).square().sum(), max_norm=1
        )
        if run.current == spoil:
            run.model.bias.data.fill_(torch.nan)
        run.log({"norm": norm}, "nothing", lambda: np.zeros((4, 4, 3), np.uint8))
        taken.append(run.current)
    run.finish()
    return taken


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.pth")}


def test_defaults_are_the_published_ones_and_the_authors_names_are_known():
    args = parse(batch_size=16, max_epochs=5)
    assert (args.batch_size, args.max_epochs, args.crop_size, args.seed) == (16, 5, 512, 15)
    assert (args.lr, args.momentum, args.wt_dec) == (0.1, 1e-4, 1e-4)
    assert args.resume and args.list is None and not args.compile
    args = parse(
        "--train_list",
        "x.txt",
        "--max_epoches",
        "3",
        "--print_freq",
        "7",
        "--no-resume",
        lr=0.5,
        momentum=0.9,
        wt_dec=5e-4,
    )
    assert (args.list, args.max_epochs, args.log_every, args.resume, args.lr, args.momentum) == (
        "x.txt",
        3,
        7,
        False,
        0.5,
        0.9,
    )
    assert RunFiles.of(Path("run"), "") == (
        Path("run/ckpt/final.pth"),
        Path("run/ckpt/last.pth"),
        Path("run/tensorboard"),
    )


@pytest.mark.parametrize("when", ["open", "write"])
def test_a_training_goes_on_without_tensorboard(when, tmp_path, capsys, monkeypatch):
    if when == "open":
        (tmp_path / "tensorboard").touch()
    else:
        monkeypatch.setattr(
            RecordWriter,
            "write",
            lambda self, data: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
    train(trainer_in(tmp_path, "--log_every", "1"))
    printed = capsys.readouterr()
    assert files_in(tmp_path) == {"irn.pth"} and "Traceback" not in printed.err
    assert printed.out.count(f"warning: {tmp_path / 'tensorboard/irn'}: ") == 1


def test_images_that_cannot_be_read_are_named_before_the_first_step(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(b"no image")
    rows = [(name, str(tmp_path / f"{name}.jpg"), "") for name in ("a", "b")]
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(InputError, match=f"^{tmp_path / 'a.jpg'}: "),
    ):
        patch.setattr(Numbers, "samples", Samples.of(rows))
        train(trainer_in(tmp_path))
    assert f"\n{tmp_path / 'b.jpg'}: " in capsys.readouterr().out


def test_a_batch_that_cannot_be_filled_or_shared_is_refused():
    args = parse("--list", "x.txt", "--batch_size", "16")
    trainer.check_batch(args, 16, 4)
    for images, processes, name in ((15, 1, "--list x.txt"), (16, 3, "--batch_size 16")):
        with pytest.raises(InputError, match=f"^{name}: "):
            trainer.check_batch(args, images, processes)


def make(steps: int = 10, lr: float = 0.1, momentum: float = 0.0, weight_decay: float = 0.0):
    backbone, head = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer, schedule = make_optimizer(
        groups_of(backbone, head), lr, steps, momentum, weight_decay
    )
    return backbone, head, optimizer, schedule


def scaler(**more) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=bool(more), **more)


def test_learning_rates_follow_the_polynomial_in_both_groups():
    *_, optimizer, schedule = make(steps=10, lr=0.1)
    for step in range(12):
        expected = 0.1 * max(0, 1 - step / 10) ** 0.9  # it stays zero after the last step
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [expected, 10 * expected], abs=1e-9
        )
        optimizer.step()
        schedule.step()


def test_two_steps_by_hand():
    backbone, head, optimizer, _ = make(lr=0.1, momentum=0.5, weight_decay=0.5)
    (2 * backbone + 2 * head).sum().backward()
    optimizer.step()
    # gradient 2 + decay 0.5 * 1, of the backbone alone; learning rates 0.1 and 1
    assert (backbone.item(), head.item()) == pytest.approx((1 - 0.25, 1 - 2))
    optimizer.step()  # gradient 2 + 0.5 * 0.75, momentum 0.5 * 2.5
    assert backbone.item() == pytest.approx(0.75 - 0.1 * (2.375 + 1.25))


@pytest.mark.parametrize(
    ("max_norm", "factor"), [(math.inf, 1.0), (10.0, 1.0), (2.5, 0.5)], ids=str
)
@pytest.mark.parametrize("scale", [None, 1024.0], ids=["float32", "scaled"])
def test_a_step_clips_the_gradient_and_returns_its_norm_of_before(max_norm, factor, scale):
    backbone, head, optimizer, schedule = make(lr=0.1)
    half = scaler(**{"init_scale": scale} if scale else {})
    norm = optimizer_step((3 * backbone + 4 * head).sum(), optimizer, schedule, half, max_norm)
    assert norm.item() == pytest.approx(5)
    assert (backbone.item(), head.item()) == pytest.approx(
        (1 - 0.1 * 3 * factor, 1 - 4 * factor), abs=1e-6
    )
    assert schedule.get_last_lr()[0] == pytest.approx(0.1 * 0.9**0.9)
    again = optimizer_step((3 * backbone + 4 * head).sum(), optimizer, schedule, scaler())
    assert again.item() == pytest.approx(5)  # the gradient of the step before is forgotten


def test_a_step_that_overflows_is_left_out_of_weights_and_schedule():
    backbone, head, optimizer, schedule = make(lr=0.1)
    half = scaler(init_scale=1024.0)
    norm = optimizer_step((torch.inf * backbone + head).sum(), optimizer, schedule, half)
    assert not norm.isfinite()
    assert (backbone.item(), head.item(), schedule.get_last_lr()[0], half.get_scale()) == (
        1,
        1,
        0.1,
        512,
    )
    optimizer_step((backbone + head).sum(), optimizer, schedule, half)
    assert backbone.item() == pytest.approx(0.9)
    assert schedule.get_last_lr()[0] == pytest.approx(0.1 * 0.9**0.9)


def test_a_training_ends_with_its_final_checkpoint_alone(tmp_path, capsys):
    run = trainer_in(tmp_path)
    about = run.args, run.files, run.about["arguments"], run.context
    assert not trainer.is_finished(*about)
    assert train(run) == [1, 2, 3, 4, 5, 6]
    assert files_in(tmp_path) == {"irn.pth"}
    content = checkpoint.read(run.files.final)
    assert content.keys() == {"model", "arguments", "class_names"}
    assert content["arguments"] == {
        "seed": 15,
        "lr": 0.1,
        "batch_size": 2,
        "scales": [0.5, 1.5],
        "digest": "of the data",
    }
    assert content["class_names"] == ["background", "cat"]
    assert str(run.files.final) in capsys.readouterr().out
    run.context.stack.close()  # as at the end of a command
    assert trainer.is_finished(*about)


class Beside(Context):
    """One of two processes; the other finds no checkpoint."""

    def all_gather_object(self, value: int) -> list[int]:
        return [value, 0]


def test_processes_that_see_different_checkpoints_do_not_start(tmp_path):
    run = trainer_in(tmp_path)
    about = run.args, run.files, run.about["arguments"], Beside(torch.device("cpu"))
    assert not trainer.is_finished(*about)
    train(run, stop_after=3)
    with pytest.raises(InputError, match=f"^{run.files.last}: "):
        trainer_in(tmp_path, kind=Beside)
    train(trainer_in(tmp_path))
    about[-1].stack.close()  # as at the end of a command
    with pytest.raises(InputError, match=f"^{run.files.final}: "):
        trainer.is_finished(*about)


@pytest.mark.parametrize(
    ("stop_after", "before", "after"), [(2, [], ["--compile"]), (3, [], []), (5, ["--compile"], [])]
)
def test_a_stopped_run_ends_like_a_whole_one_compiled_or_not(
    tmp_path, monkeypatch, stop_after, before, after
):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend="eager"))
    train(trainer_in(tmp_path / "whole"))
    assert train(
        trainer_in(tmp_path / "stopped", "--save_every", "1", *before), stop_after
    ) == list(range(1, stop_after + 1))
    run = trainer_in(
        tmp_path / "stopped", "--save_every", "7", "--log_every", "1", *after
    )  # none of them is part of its terms
    assert run.plan.endswith(f" {stop_after}")
    assert train(run) == list(range(stop_after + 1, 7))
    whole, stopped = (
        checkpoint.read(tmp_path / f"{name}/ckpt/irn.pth") for name in ("whole", "stopped")
    )
    assert whole["arguments"] == stopped["arguments"]
    assert whole["model"].keys() == stopped["model"].keys() == {"weight", "bias"}
    assert all(torch.equal(value, stopped["model"][name]) for name, value in whole["model"].items())


@pytest.mark.parametrize(("save_every", "saved"), [(0, [3, 6]), (2, [2, 3, 4, 6]), (5, [3, 5, 6])])
def test_finite_weights_are_saved_after_every_epoch_and_so_many_steps(
    tmp_path, monkeypatch, save_every, saved
):
    steps, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda path, content: (steps.append(content.get("step")), save(path, content)),
    )
    train(trainer_in(tmp_path, "--save_every", str(save_every)))
    assert steps == [*saved, None]  # the final one counts no steps
    with pytest.raises(InputError, match=r"^step 3: "):
        train(trainer_in(tmp_path, "--no-resume", "--save_every", "0"), spoil=3)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("stop_after", [3, None], ids=["stopped", "finished"])
@pytest.mark.parametrize(
    ("flags", "digest"),
    [(["--lr", "0.2"], "of the data"), (["--lr", "1", "--seed", "1"], "other"), ([], "other")],
)
def test_a_run_keeps_its_terms(tmp_path, stop_after, flags, digest):
    run = trainer_in(tmp_path)
    train(run, stop_after)
    with pytest.raises(InputError) as error:
        if stop_after:
            trainer_in(tmp_path, *flags, digest=digest)
        else:
            trainer.is_finished(run.args, run.files, terms_of(*flags, digest=digest), run.context)
    assert str(error.value).startswith(
        f"{run.files.last if stop_after else run.files.final}: "
    ) and "\n" not in str(error.value)
    assert {
        flag for flag in ("--lr", "--seed", "--batch_size") if f"{flag} " in str(error.value)
    } == {*flags[::2]}


@pytest.mark.parametrize(
    "spoil", ["model", "optimizer", "schedule", "step", "another network", "another origin"]
)
def test_a_checkpoint_that_does_not_fit_is_not_resumed(tmp_path, spoil):
    run = trainer_in(tmp_path)
    train(run, stop_after=3)
    content = checkpoint.read(run.files.last)
    if spoil in content:
        del content[spoil]
    else:
        content |= {
            "another network": {"model": nn.Linear(3, 1).state_dict()},
            "another origin": {"arguments": {}},
        }[spoil]
    checkpoint.save(run.files.last, content)
    with pytest.raises(InputError) as error:
        trainer_in(tmp_path)
    assert str(error.value).startswith(f"{run.files.last}: ") and "\n" not in str(error.value)
