"""The training loop: two groups under one schedule; a stopped run ends like a whole one."""

import dataclasses
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
from tool.options import TrainingOptions
from tool.trainer import RunFiles, Trainer, TrainingJob, make_optimizer, optimizer_step

CPU = torch.device("cpu")
NAMES = ("background", "cat")
NUM_IMAGES = 7
OPTIONS = TrainingOptions(  # three steps an epoch, six in all
    batch_size=2,
    max_epochs=2,
    crop_size=8,
    lr=0.1,
    momentum=0.5,
    weight_decay=0.1,
    seed=15,
    resume=True,
    save_every=500,
    log_every=50,
    num_workers=0,
    compile=False,
)


class Numbers(Dataset):
    """Images of two numbers, which depend on epoch and index as a crop does."""

    samples = Samples.of([])

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"value": torch.tensor(epoch_and_index, dtype=torch.float32)}


class Line(nn.Linear):
    """Three weights, of which the bias learns ten times as fast and does not decay."""

    def parameter_groups(self) -> list[dict]:
        return [
            {"params": [self.weight], "lr_scale": 1},
            {"params": [self.bias], "lr_scale": 10, "weight_decay": 0.0},
        ]


def make_job(folder: Path, digest: str = "of the data", **changes) -> TrainingJob:
    options = dataclasses.replace(OPTIONS, **changes)
    arguments = {
        "seed": options.seed,
        "lr": options.lr,
        "batch_size": options.batch_size,
        "scales": [0.5, 1.5],
        "digest": digest,
    }
    files = RunFiles.of(folder, "irn")
    return TrainingJob(files, options, arguments, NAMES, NUM_IMAGES, checkpoint.IRN_KIND)


def make_trainer(job: TrainingJob, context: Context | None = None) -> Trainer:
    """A trainer of three weights that torch draws."""
    torch.manual_seed(0)
    return Trainer(job, Line(2, 1), context or Context(CPU))


def trainer_in(folder: Path, **changes) -> Trainer:
    return make_trainer(make_job(folder, **changes))


def train(run: Trainer, stop_after: int | None = None, spoil: int | None = None) -> list[int]:
    """Train to the end, or stop in the middle of the step after stop_after.

    spoil: the step after which a weight is no number. Returns the steps that were taken.
    """
    taken = []
    for batch in run.batches(Numbers()):
        if stop_after is not None and run.current > stop_after:
            return taken
        difference = run.network(batch["value"]) - torch.rand(OPTIONS.batch_size, 1)
        norm = run.step(difference.square().sum(), max_norm=1)
        if run.current == spoil:
            run.model.bias.data.fill_(torch.nan)
        run.log({"norm": norm}, "nothing", lambda: np.zeros((4, 4, 3), np.uint8))
        taken.append(run.current)
    run.finish()
    return taken


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.pth")}


def assert_is_one_line_about(error: InputError, path: Path) -> None:
    assert str(error).startswith(f"{path}: ")
    assert "\n" not in str(error)


def test_sipes_files_have_no_name_before_them():
    files = RunFiles.of(Path("run"), "")
    assert files.final == Path("run/ckpt/final.pth")
    assert files.last == Path("run/ckpt/last.pth")
    assert files.logs == Path("run/tensorboard")


def refuse_to_write(self, data) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("when", ["open", "write"])
def test_a_training_goes_on_without_tensorboard(when, tmp_path, capsys, monkeypatch):
    if when == "open":
        (tmp_path / "tensorboard").touch()
    else:
        monkeypatch.setattr(RecordWriter, "write", refuse_to_write)
    train(trainer_in(tmp_path, log_every=1))
    printed = capsys.readouterr()
    assert files_in(tmp_path) == {"irn.pth"}
    assert "Traceback" not in printed.err
    assert printed.out.count(f"warning: {tmp_path / 'tensorboard/irn'}: ") == 1


def test_images_that_cannot_be_read_are_named_before_the_first_step(tmp_path, capsys):
    rows = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(b"no image")
        rows.append((name, str(path), ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Numbers, "samples", Samples.of(rows))
        with pytest.raises(InputError, match=f"^{tmp_path / 'a.jpg'}: "):
            train(trainer_in(tmp_path))
    assert f"\n{tmp_path / 'b.jpg'}: " in capsys.readouterr().out


def test_too_small_a_shared_memory_is_named_before_the_first_step(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer, "check_shared_memory", lambda *sizes: asked.append(sizes))
    train(trainer_in(tmp_path, crop_size=16))
    assert asked == [(0, 2 * 16 * 16 * 5)]  # workers; two crops of five bytes a pixel


@pytest.mark.parametrize(
    ("images", "processes", "name"), [(15, 1, "--list x.txt"), (16, 3, "--batch_size 16")]
)
def test_a_batch_that_cannot_be_filled_or_shared_is_refused(images, processes, name):
    trainer.check_batch(16, 16, 4, "x.txt")
    with pytest.raises(InputError, match=f"^{name}: "):
        trainer.check_batch(16, images, processes, "x.txt")


@dataclasses.dataclass
class Steps:
    """Two weights of 1 with their optimizer, of which the head learns ten times as fast."""

    backbone: nn.Parameter
    head: nn.Parameter
    optimizer: torch.optim.SGD
    schedule: torch.optim.lr_scheduler.LRScheduler

    def rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]


def make_steps(momentum: float = 0.0, weight_decay: float = 0.0) -> Steps:
    """Ten steps with a rate of 0.1."""
    backbone = nn.Parameter(torch.ones(1))
    head = nn.Parameter(torch.ones(1))
    groups = [
        {"params": [backbone], "lr_scale": 1},
        {"params": [head], "lr_scale": 10, "weight_decay": 0.0},
    ]
    options = dataclasses.replace(OPTIONS, momentum=momentum, weight_decay=weight_decay)
    return Steps(backbone, head, *make_optimizer(groups, options, steps=10))


def float32_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def fp16_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


def test_learning_rates_follow_the_polynomial_in_both_groups():
    steps = make_steps()
    for step in range(12):
        expected = 0.1 * max(0, 1 - step / 10) ** 0.9  # it stays zero after the last step
        assert steps.rates() == pytest.approx([expected, 10 * expected], abs=1e-9)
        steps.optimizer.step()
        steps.schedule.step()


def test_two_steps_by_hand():
    steps = make_steps(momentum=0.5, weight_decay=0.5)
    loss = 2 * steps.backbone + 2 * steps.head
    loss.sum().backward()
    steps.optimizer.step()
    # gradient 2 + decay 0.5 * 1, of the backbone alone; learning rates 0.1 and 1
    assert steps.backbone.item() == pytest.approx(1 - 0.25)
    assert steps.head.item() == pytest.approx(1 - 2)
    steps.optimizer.step()  # gradient 2 + 0.5 * 0.75, momentum 0.5 * 2.5
    assert steps.backbone.item() == pytest.approx(0.75 - 0.1 * (2.375 + 1.25))


@pytest.mark.parametrize(
    ("max_norm", "factor"), [(math.inf, 1.0), (10.0, 1.0), (2.5, 0.5)], ids=str
)
@pytest.mark.parametrize("make_scaler", [float32_scaler, fp16_scaler])
def test_a_step_clips_the_gradient_and_returns_its_norm_of_before(max_norm, factor, make_scaler):
    steps = make_steps()

    def take_step(scaler, norm=math.inf) -> float:
        loss = 3 * steps.backbone + 4 * steps.head
        return optimizer_step(loss.sum(), steps.optimizer, steps.schedule, scaler, norm).item()

    assert take_step(make_scaler(), max_norm) == pytest.approx(5)
    assert steps.backbone.item() == pytest.approx(1 - 0.1 * 3 * factor, abs=1e-6)
    assert steps.head.item() == pytest.approx(1 - 4 * factor, abs=1e-6)
    assert steps.rates()[0] == pytest.approx(0.1 * 0.9**0.9)
    # the gradient of the step before is forgotten
    assert take_step(float32_scaler()) == pytest.approx(5)


def test_a_step_that_overflows_is_left_out_of_weights_and_schedule():
    steps = make_steps()
    scaler = fp16_scaler()
    overflow = torch.inf * steps.backbone + steps.head
    norm = optimizer_step(overflow.sum(), steps.optimizer, steps.schedule, scaler)
    assert not norm.isfinite()
    assert (steps.backbone.item(), steps.head.item()) == (1, 1)
    assert steps.rates()[0] == 0.1
    assert scaler.get_scale() == 512
    loss = steps.backbone + steps.head
    optimizer_step(loss.sum(), steps.optimizer, steps.schedule, scaler)
    assert steps.backbone.item() == pytest.approx(0.9)
    assert steps.rates()[0] == pytest.approx(0.1 * 0.9**0.9)


def test_a_training_ends_with_its_final_checkpoint_alone(tmp_path, capsys):
    job = make_job(tmp_path)
    run = make_trainer(job)
    assert not trainer.is_finished(job, run.context)
    assert train(run) == [1, 2, 3, 4, 5, 6]
    assert files_in(tmp_path) == {"irn.pth"}
    content = checkpoint.read(job.files.final)
    assert content.keys() == {"model", "kind", "arguments", "class_names"}
    assert content["kind"] == "irn"
    assert content["arguments"] == {
        "seed": 15,
        "lr": 0.1,
        "batch_size": 2,
        "scales": [0.5, 1.5],
        "digest": "of the data",
    }
    assert content["class_names"] == ["background", "cat"]
    assert str(job.files.final) in capsys.readouterr().out
    run.context.stack.close()  # as at the end of a command
    assert trainer.is_finished(job, run.context)


class Beside(Context):
    """One of two processes; the other finds no checkpoint."""

    def all_gather_object(self, value: int) -> list[int]:
        return [value, 0]


def test_processes_that_see_different_checkpoints_do_not_start(tmp_path):
    job = make_job(tmp_path)
    beside = Beside(CPU)
    assert not trainer.is_finished(job, beside)
    train(make_trainer(job), stop_after=3)
    with pytest.raises(InputError, match=f"^{job.files.last}: "):
        make_trainer(job, Beside(CPU))
    train(make_trainer(job))
    beside.stack.close()  # as at the end of a command
    with pytest.raises(InputError, match=f"^{job.files.final}: "):
        trainer.is_finished(job, beside)


@pytest.mark.parametrize(
    ("stop_after", "compile_before", "compile_after"),
    [(2, False, True), (3, False, False), (5, True, False)],
)
def test_a_stopped_run_ends_like_a_whole_one_compiled_or_not(
    tmp_path, monkeypatch, stop_after, compile_before, compile_after
):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend="eager"))
    train(trainer_in(tmp_path / "whole"))
    first = trainer_in(tmp_path / "stopped", save_every=1, compile=compile_before)
    assert train(first, stop_after) == list(range(1, stop_after + 1))
    # none of these options must stay the same
    run = trainer_in(tmp_path / "stopped", save_every=7, log_every=1, compile=compile_after)
    assert run.plan.endswith(f" {stop_after}")
    assert train(run) == list(range(stop_after + 1, 7))
    whole = checkpoint.read(tmp_path / "whole/ckpt/irn.pth")
    stopped = checkpoint.read(tmp_path / "stopped/ckpt/irn.pth")
    assert whole["arguments"] == stopped["arguments"]
    assert whole["model"].keys() == stopped["model"].keys() == {"weight", "bias"}
    for name, value in whole["model"].items():
        assert torch.equal(value, stopped["model"][name])


@pytest.mark.parametrize(("save_every", "saved"), [(0, [3, 6]), (2, [2, 3, 4, 6]), (5, [3, 5, 6])])
def test_weights_are_saved_after_every_epoch_and_so_many_steps(
    tmp_path, monkeypatch, save_every, saved
):
    steps = []
    save = checkpoint.save

    def note_and_save(path, content):
        steps.append(content.get("step"))
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", note_and_save)
    train(trainer_in(tmp_path, save_every=save_every))
    assert steps == [*saved, None]  # the final one counts no steps


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(InputError, match=r"^step 3: "):
        train(trainer_in(tmp_path, resume=False, save_every=0), spoil=3)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("stop_after", [3, None], ids=["stopped", "finished"])
@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"lr": 0.2}, {"--lr"}),
        ({"lr": 1.0, "seed": 1, "digest": "other"}, {"--lr", "--seed"}),
        ({"digest": "other"}, set()),
    ],
)
def test_a_run_keeps_its_arguments(tmp_path, stop_after, changes, flags):
    run = trainer_in(tmp_path)
    train(run, stop_after)
    other = make_job(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        if stop_after:
            make_trainer(other)
        else:
            trainer.is_finished(other, run.context)
    files = run.job.files
    assert_is_one_line_about(error.value, files.last if stop_after else files.final)
    named = set()
    for flag in ("--lr", "--seed", "--batch_size"):
        if f"{flag} " in str(error.value):
            named.add(flag)
    assert named == flags


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule", "step"])
def test_a_checkpoint_that_lacks_a_part_is_not_resumed(tmp_path, part):
    run = trainer_in(tmp_path)
    train(run, stop_after=3)
    last = run.job.files.last
    content = checkpoint.read(last)
    del content[part]
    checkpoint.save(last, content)
    with pytest.raises(InputError) as error:
        trainer_in(tmp_path)
    assert_is_one_line_about(error.value, last)


@pytest.mark.parametrize(
    "other", [{"model": nn.Linear(3, 1).state_dict()}, {"arguments": {}}], ids=["network", "origin"]
)
def test_a_checkpoint_of_another_training_is_not_resumed(tmp_path, other):
    run = trainer_in(tmp_path)
    train(run, stop_after=3)
    last = run.job.files.last
    checkpoint.save(last, checkpoint.read(last) | other)
    with pytest.raises(InputError) as error:
        trainer_in(tmp_path)
    assert_is_one_line_about(error.value, last)
