"""What every evaluation shares: summed confusion matrices, a table, and the pictures that are worth a look."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import files, metrics, outputs, visualize
from .stage import Stage

EXTREMES = 4  # pictures on a contact sheet that did best, and as many that did worst


def stamp(paths: Iterable[Path]) -> str:
    """Changes with the size or time of any of the files, so that equal stamps mean equal scores."""
    digest = hashlib.sha256()
    for path in paths:
        facts = path.stat() if os.path.isfile(path) else None
        digest.update(f"{path.resolve()} {facts and (facts.st_size, facts.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def add_up(results: Iterable[tuple[str, dict[str, np.ndarray]]], run: Stage) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """From (name, confusion matrix of each kind) a picture: the sums, and each picture's mIoU of its first kind, of all processes.

    The sums are empty where there was no picture at all.
    """
    totals, scores = {}, {}
    for name, found in results:
        totals = {kind: totals.get(kind, 0) + matrix for kind, matrix in found.items()}
        score = metrics.miou(next(iter(found.values())))
        if score is not None:
            scores[name] = score
    parts = run.gather((totals, scores))
    kinds = dict.fromkeys(kind for part, _ in parts for kind in part)
    totals = {kind: sum(part[kind] for part, _ in parts if part) for kind in kinds}
    return totals, {name: value for _, part in parts for name, value in part.items()}


def evaluate(
    work: Callable[[Any], tuple[str, dict[str, np.ndarray]]],
    entries: Sequence[Any],
    about: dict[str, Any],
    output: Path,
    run: Stage,
    num_workers: int,
    show: Callable[[dict], None],
) -> tuple[dict[str, np.ndarray], dict[str, float]] | None:
    """What `add_up` makes of work(entry) of every entry, in the main process.

    None in the other processes, and where `output` holds the scores of just this (`about`): then they are shown.
    """
    before = files.read_json(output) if output.is_file() else {}
    if about.items() <= before.items():
        if run.is_main:
            show(before)
        run.say(f"{output} is complete")
        return None
    results = outputs.in_parallel(work, run.shard(entries), num_workers)
    found = add_up(tqdm(results, desc="evaluation", unit="picture", disable=not run.is_main), run)
    return found if run.is_main else None


def print_table(heading: str, columns: dict[str, dict[str, float | None]], more: dict[str, Sequence[float | None]]) -> None:
    """Print one line a class (column title -> class name -> value in percent), and more lines with a value a column."""
    print(f"\n{heading}")
    print(f"{'%':<18}" + "".join(f"{title:>18}" for title in columns))
    lines = [(name, [column[name] for column in columns.values()]) for name in next(iter(columns.values()))]
    for line, values in [*lines, *more.items()]:
        print(f"{line:<18}" + "".join(f"{'-' if value is None else format(value, '.2f'):>18}" for value in values))


def draw_chart(columns: dict[str, dict[str, float | None]], title: str, path: Path) -> None:
    """Write a PNG with one group of bars a class."""
    series = {name: [np.nan if value is None else value for value in column.values()] for name, column in columns.items()}
    visualize.bar_chart(series, list(next(iter(columns.values()))), title, path)


def extremes(scores: dict[str, float]) -> list[str]:
    """The names of the best and the worst pictures, in order."""
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return ranked if len(ranked) <= 2 * EXTREMES else ranked[:EXTREMES] + ranked[-EXTREMES:]
