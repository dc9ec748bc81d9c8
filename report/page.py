"""The page itself: its table of classes, the data of its script, and its template."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch

from tool import outputs

from .curves import Curve
from .gallery import ImageView
from .history import CommandRun
from .stages import Stage, baseline_of

TEMPLATES = Path(__file__).parent
VERSIONS = {"python": sys.version.split()[0], "pytorch": torch.__version__}


@dataclass(frozen=True)
class Page:
    """What the template shows."""

    runs: list[str]  # their names
    stages: list[Stage]
    images: list[ImageView]
    curves: Iterable[Curve]
    history: list[CommandRun]


@dataclass(frozen=True)
class ClassColumn:
    """A column of the table of classes."""

    title: str
    unit: str
    values: list[float | None]  # of each class, the background first, in percent


def class_columns(stages: Sequence[Stage], images: Sequence[ImageView]) -> list[ClassColumn]:
    """What changed from one run to the next, then the values of each stage.

    These are IoUs or, for a stage that was not evaluated, mean shares of an image.
    """
    columns: list[ClassColumn] = []
    changes: list[ClassColumn] = []
    for index, stage in enumerate(stages):
        column = _stage_column(index, stage, images)
        columns.append(column)
        baseline = baseline_of(stages, index)
        if baseline is not None and columns[baseline].unit == column.unit:
            values = _differences(columns[baseline].values, column.values)
            changes.append(ClassColumn(stage.title, "change", values))
    return changes + columns


def _stage_column(index: int, stage: Stage, images: Sequence[ImageView]) -> ClassColumn:
    class_names = stage.dataset.class_names
    if stage.scores:
        values = [stage.scores["iou"][name] for name in class_names]
        return ClassColumn(stage.title, "IoU", values)
    views = [image.stages[index] for image in images if index in image.stages]
    totals = dict.fromkeys(range(1, len(class_names)), 0)
    for view in views:
        for area in view.classes:
            totals[area.class_id] += area.share
    means = [total / max(len(views), 1) for total in totals.values()]
    return ClassColumn(stage.title, "share of pixels", [None, *means])


def _differences(
    before: Sequence[float | None], after: Sequence[float | None]
) -> list[float | None]:
    differences: list[float | None] = []
    for old, new in zip(before, after):
        if old is None or new is None:
            differences.append(None)
        else:
            differences.append(new - old)
    return differences


def script_data(stages: Sequence[Stage], images: Sequence[ImageView]) -> str:
    """What the page's script shows, as JSON that cannot end the element that it stands in."""
    stage_rows = []
    for index, stage in enumerate(stages):
        stage_rows.append({"title": stage.title, "baseline": baseline_of(stages, index)})
    content = {
        "classes": stages[0].dataset.class_names,
        "stages": stage_rows,
        "images": [dataclasses.asdict(image) for image in images],
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def write_page(path: Path, page: Page) -> None:
    """Write the page with its script and style in one HTML file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(
        runs=page.runs,
        stages=page.stages,
        class_names=page.stages[0].dataset.class_names,
        columns=class_columns(page.stages, page.images),
        curves=page.curves,
        history=page.history,
        versions=VERSIONS,
        data=script_data(page.stages, page.images),
    )
    with outputs.atomic_write(path) as temporary:
        # a file name need not be text
        temporary.write_bytes(html.encode(errors="backslashreplace"))
