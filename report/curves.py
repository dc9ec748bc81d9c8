"""The curves of the trainings, from what they logged for TensorBoard."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tool import trainer
from tool.trainer import Scalars

TRAININGS = {"": "train_resnet50_SIPE", "irn": "train_irn", "seg": "train_seg"}  # name -> script
NOT_SHOWN = ("train/lr", "train/images/s")
MAX_POINTS = 300  # of a line

TrainingLogs = dict[str, Scalars]  # name of a training -> what it logged
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A value that a training logged, with a line for each run in a field of 100 x 100."""

    title: str
    low: float  # smallest value
    high: float  # largest value
    steps: int  # the last step
    lines: list[str]  # "x,y x,y ..." each, as SVG's polyline takes them


def read_logs(run_dir: Path) -> TrainingLogs:
    """What each training of a run logged; empty for a training that was not run."""
    logs = {}
    for name in TRAININGS:
        logs[name] = trainer.read_scalars(trainer.RunFiles.of(run_dir, name).logs)
    return logs


def draw_curves(logs: Sequence[TrainingLogs]) -> Iterator[Curve]:
    """A curve for each value that the trainings logged; logs: of each run."""
    for name, script in TRAININGS.items():
        for tag in _tags_of(name, logs):
            lines = [_points_of(log[name], tag) for log in logs]
            if any(lines):
                title = f"{script}: {tag.split('/', 1)[-1]}"
                yield _draw_curve(title, lines)


def _tags_of(name: str, logs: Sequence[TrainingLogs]) -> list[str]:
    """The names of the values that a training logged in any run, in their order."""
    tags: dict[str, None] = {}
    for log in logs:
        tags |= dict.fromkeys(log[name])
    return [tag for tag in tags if tag not in NOT_SHOWN]


def _points_of(scalars: Scalars, tag: str) -> list[Point]:
    """At most MAX_POINTS (step, value) of what a run logged under a name."""
    points = []
    for event in scalars.get(tag, ()):
        if math.isfinite(event.value):
            points.append((event.step, event.value))
    every = 1 + len(points) // MAX_POINTS
    return points[::every]


def _draw_curve(title: str, lines: Sequence[Sequence[Point]]) -> Curve:
    """Scale lines of (step, value), of which some have points, to the field."""
    points = [point for line in lines for point in line]
    values = [value for _, value in points]
    low = min(values)
    high = max(values)
    last_step = max(step for step, _ in points)
    height = high - low or 1

    drawn = []
    for line in lines:
        pairs = []
        for step, value in line:
            x = 100 * step / last_step
            y = 100 * (high - value) / height
            pairs.append(f"{x:.1f},{y:.1f}")
        drawn.append(" ".join(pairs))
    return Curve(title, low, high, last_step, drawn)
