"""The history of a run: its commands, as far as their results note them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tool import checkpoint, outputs, trainer

from .curves import TRAININGS, TrainingLogs

NO_FLAGS = ("made_by", "class_names", "checkpoint", "digest", "irn")  # noted besides the flags


@dataclass(frozen=True)
class CommandRun:
    """A command that was run."""

    ended: datetime
    took: timedelta | None  # None: unknown
    command: str


def read_history(run_dir: Path, logs: TrainingLogs) -> Iterator[CommandRun]:
    """The commands of a run, in any order; logs: of its trainings."""
    yield from _trainings(run_dir, logs)
    yield from _results(run_dir)
    yield from _evaluations(run_dir)


def _trainings(run_dir: Path, logs: TrainingLogs) -> Iterator[CommandRun]:
    for name, script in TRAININGS.items():
        final = trainer.RunFiles.of(run_dir, name).final
        if final.is_file():
            flags = checkpoint.arguments(checkpoint.read(final))
            times = [event.wall_time for events in logs[name].values() for event in events]
            began = min(times, default=None)
            yield _command_run(script, flags, final.stat().st_mtime, began)


def _results(run_dir: Path) -> Iterator[CommandRun]:
    for path in run_dir.glob(f"*/{outputs.SETTINGS}"):
        settings = outputs.read_json(path)
        script = str(settings.get("made_by"))
        if script != "report":
            ended = max(file.stat().st_mtime for file in path.parent.glob("[!.]*"))
            yield _command_run(script, settings, ended, path.stat().st_mtime)


def _evaluations(run_dir: Path) -> Iterator[CommandRun]:
    for path in run_dir.glob("eval_*.json"):
        evaluation = outputs.read_json(path)
        script = "eval_cam"
        flags = {key: evaluation.get(key) for key in ("dataset", "dataset_root", "list")}
        if "labels" in evaluation:
            script = "eval_seg"
            flags["label_dir"] = evaluation["labels"]
        yield _command_run(script, flags, path.stat().st_mtime, None)


def _command_run(
    script: str, settings: dict[str, Any], ended: float, began: float | None
) -> CommandRun:
    """ended, began: seconds since the epoch; began None: unknown."""
    words = [f"{script}.py"]
    for key, value in settings.items():
        if key in NO_FLAGS or not value or isinstance(value, dict):
            continue
        if isinstance(value, list):
            value = " ".join(map(str, value))
        words.append(f"--{key} {value}")
    took = None
    if began is not None:
        took = timedelta(seconds=max(0, round(ended - began)))
    return CommandRun(datetime.fromtimestamp(ended), took, " ".join(words))
