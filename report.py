"""A page to look at: what was run, its scores and curves, and every image with its maps and masks.

    python report.py --run_dir runs/voc               # writes runs/voc/report/index.html
    python report.py --run_dir runs/voc runs/other    # what changed from one run to the other: runs/voc/report_other/index.html

Reads what the stages wrote to RUN_DIR, and the images, tags and masks of the datasets that the evaluations note. Images need no masks.
Any browser opens the page, without a server or a network. It is written anew each time.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np
import torch
from tqdm import tqdm

from data.images import orientation, read_image, read_mask, stored_size, to_upright_frame
from data.registry import DATASETS, Dataset, Sample, Samples, open_dataset
from data.transforms import shrink
from errors import InputError
from tool import cam_file, checkpoint, label_file, metrics, outputs, trainer, visualize, workers
from tool.context import cli_main, run_context
from tool.flags import add_workers, command_parser, positive_int

PAGE = Path(__file__).parent / "report"
SIDE, HEAT_SIDE, POINTS = (
    480,
    120,
    300,
)  # pixels of the longer side of images, and of heat maps, which are smooth; points of a curve
MAPS = {"cam": "general CAM", "is_cam": "IS-CAM"}
LABELS = {
    "make_ir_labels": "inter-pixel labels",
    "make_seg_labels": "labels",
    "infer_seg": "segmentation network",
}
REFINED = {"irn": "IRN labels", "crf": "CRF labels"}
TRAININGS = {"": "train_resnet50_SIPE", "irn": "train_irn", "seg": "train_seg"}
NO_FLAGS = (
    "made_by",
    "class_names",
    "checkpoint",
    "digest",
    "irn",
)  # what results note besides the flags of their command


class Stage(NamedTuple):
    """The maps or label images of a run, and the images that they are of."""

    name: str  # kind of map, or folder of the label images
    title: str
    folder: Path  # the run directory of maps; that of label images
    dataset: Dataset
    samples: Samples
    where: str  # the images, in words
    scores: dict[str, Any] | None  # None: not evaluated


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--run_dir",
        dest="run_dirs",
        type=Path,
        nargs="+",
        required=True,
        help="run, or runs to compare with the first",
    )
    kind = "kind of dataset, for a run without an evaluation, which notes it (default folder)"
    parser.add_argument("--dataset", choices=list(DATASETS), default="folder", help=kind)
    parser.add_argument("--dataset_root", help="folder of this dataset")
    most = "images to show at most, evenly from the lists; scores are those of all (default 5000)"
    parser.add_argument(
        "--max_images", "--max_pictures", type=positive_int, default=5000, help=most
    )
    add_workers(parser)
    args = parser.parse_args(argv)
    args.run_dir = args.run_dirs[0]
    return args


def find_stages(run_dir: Path, args: argparse.Namespace) -> list[Stage]:
    """The maps and labels of a run, in the chain's order. Raises InputError where there are none, or their images are unknown."""
    evaluations = {
        path.stem.removeprefix("eval_"): outputs.read_json(path)
        for path in sorted(run_dir.glob("eval_*.json"))
    }
    settings = {
        path.parent.name: outputs.read_json(path)
        for path in sorted(run_dir.glob(f"*/{outputs.SETTINGS}"))
    }
    given = (
        vars(args)
        if args.dataset_root
        else next((one for one in evaluations.values() if "dataset_root" in one), None)
    )
    if not given:
        raise InputError(
            f"{run_dir}: no evaluation here notes the dataset; evaluate again, or give --dataset and --dataset_root"
        )
    maps, found = settings.get("cam", {}).get("maps", ()), []
    labels = [
        name for maker in LABELS for name in settings if settings[name].get("made_by") == maker
    ]
    for name in [*(kind for kind in MAPS if kind in maps), *labels]:
        is_map, about = name in MAPS, evaluations.get("cam" if name in MAPS else name, {})
        is_scored = "dataset_root" in about and (name in about or not is_map)
        origin, folder = about if is_scored else given, run_dir if is_map else run_dir / name
        dataset = open_dataset(origin["dataset"], origin["dataset_root"])
        (cam_file.read_settings if is_map else label_file.check_folder)(folder, dataset.class_names)
        title = (
            MAPS[name]
            if is_map
            else REFINED.get(settings[name].get("refine"), LABELS[settings[name]["made_by"]])
        )
        title += f", {run_dir.name}" * (len(args.run_dirs) > 1)
        title += f" ({name})" * (title in (stage.title for stage in found))
        list_name = about["list"] if is_scored else dataset.spec.train_list
        samples = dataset.samples(list_name)
        where = f"{len(samples)} images of {dataset.root.name} ({Path(list_name).stem})"
        found.append(
            Stage(
                name,
                title,
                folder,
                dataset,
                samples,
                where,
                about.get(name, about) if is_scored else None,
            )
        )
    if not found:
        raise InputError(
            f"{run_dir}: there are no maps and no labels of a run here; correct --run_dir or run the stages first"
        )
    return found


def first(stages: Sequence[Stage], i: int) -> int | None:
    """Where the same stage of the first run is, for one of the second."""
    return next((j for j in range(i) if stages[j].name == stages[i].name), None)


def gather(stages: Sequence[Stage], most: int) -> list[tuple[int, Sample, list[int], list[int]]]:
    """At most so many images of the stages: number, sample, tags, stages. The same name in another dataset is another image."""
    found: dict[tuple[Path, str], tuple[Sample, list[int]]] = {}
    for i, stage in enumerate(stages):
        for sample in stage.samples:
            found.setdefault((stage.dataset.root, sample.name), (sample, []))[1].append(i)
    keys, tags = list(found)[:: -(-len(found) // most)], {}
    for root, dataset in {stage.dataset.root: stage.dataset for stage in stages}.items():
        samples = Samples.of(tuple(map(str, found[key][0])) for key in keys if key[0] == root)
        labels, _ = dataset.read_tags(samples)  # images without a tag are welcome
        tags |= {
            (root, name): (np.flatnonzero(row) + 1).tolist()
            for name, row in zip(samples.names(), labels)
        }
    return [(number, found[key][0], tags[key], found[key][1]) for number, key in enumerate(keys)]


def look_at(
    item: tuple[int, Sample, list[int], list[int]], stages: Sequence[Stage], folder: Path
) -> dict[str, Any]:
    """Write an image of `gather`, its masks and heat maps; returns what the page's script shows of it (shares, scores in percent)."""
    number, sample, tags, used = item
    image, turn = read_image(sample.image), orientation(sample.image)
    size, num_classes, small = (
        stored_size(image.shape[:2], turn),
        stages[0].dataset.num_classes,
        shrink(image, SIDE),
    )
    truth = read_mask(sample.mask, num_classes, size) if sample.mask.is_file() else None
    labels, about, maps = {}, {}, None

    def draw(name: object, label: np.ndarray) -> list[list[float]]:
        (height, width), label = small.shape[:2], to_upright_frame(label, turn)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        visualize.save(folder / f"{number}_{name}.png", visualize.mask_layer(label))
        places = visualize.name_places(label).items()
        return [
            [key, round(100 * (label == key).mean(), 1), 100 * x // width, 100 * y // height]
            for key, (x, y) in places
        ]

    paths = {
        i: (cam_file if stages[i].name in MAPS else label_file).path_of(
            stages[i].folder, sample.name
        )
        for i in used
    }
    for i, path in ((i, path) for i, path in paths.items() if path.is_file()):
        name, is_map = stages[i].name, stages[i].name in MAPS
        if is_map and (maps is None or maps.path != path):
            maps = cam_file.load(path, num_classes, size)
        labels[i] = maps.label(name) if is_map else read_mask(path, num_classes, size)
        miou = (
            None
            if truth is None
            else metrics.miou(metrics.confusion(truth, labels[i], num_classes))
        )
        about[i] = {
            "miou": miou and round(miou, 1),
            "classes": draw(i, labels[i]),
            "heat": maps.keys[1:].tolist() if is_map else [],
        }
        for key, activation in zip(about[i]["heat"], maps.maps(name)[1:] if is_map else ()):
            heat = shrink((255 * to_upright_frame(activation, turn)).astype(np.uint8), HEAT_SIDE)
            visualize.save(folder / f"{number}_{i}_{key}.png", visualize.heat_layer(heat / 255))
        if first(stages, i) in labels:
            about[i]["changed"] = round(100 * (labels[i] != labels[first(stages, i)]).mean(), 1)
    visualize.save(folder / f"{number}.jpg", small)
    compared = [
        label for i, label in labels.items() if first(stages, i) is None and stages[i].name != "cam"
    ]
    differ = (
        round(100 * np.any([label != compared[0] for label in compared], 0).mean(), 1)
        if len(compared) > 1
        else None
    )
    known = {
        "number": number,
        "name": sample.name,
        "size": image.shape[1::-1],
        "tags": tags,
        "stages": about,
        "disagreement": differ,
    }
    return known if truth is None else known | {"truth": draw("t", truth)}


def class_columns(
    stages: Sequence[Stage], images: Sequence[dict[str, Any]]
) -> list[tuple[str, str, list[float | None]]]:
    """Title, unit and values of classes: what changed, IoU in each stage, or the mean share of an image where there is no truth."""
    names, columns, changes = stages[0].dataset.class_names, [], []
    for i, stage in enumerate(stages):
        seen = [
            dict(row[:2] for row in image["stages"][i]["classes"])
            for image in images
            if i in image["stages"]
        ]
        shares = [
            None,
            *(
                sum(one.get(key, 0) for one in seen) / max(len(seen), 1)
                for key in range(1, len(names))
            ),
        ]
        values, unit = (
            ([stage.scores["iou"][name] for name in names], "IoU")
            if stage.scores
            else (shares, "share of pixels")
        )
        columns.append((stage.title, unit, values))
        j = first(stages, i)
        if j is not None and columns[j][1] == unit:
            pairs = zip(columns[j][2], values)
            changes.append(
                (
                    stage.title,
                    "change",
                    [None if None in pair else pair[1] - pair[0] for pair in pairs],
                )
            )
    return changes + columns


def curves(logs: Sequence[dict[str, trainer.Scalars]]) -> Iterator[dict[str, Any]]:
    """Each value that a training logged: for every run the points of a line in a field of 100 x 100."""
    for name, training in TRAININGS.items():
        for tag in dict.fromkeys(
            tag for log in logs for tag in log[name] if tag not in ("train/lr", "train/images/s")
        ):
            lines = [
                [
                    (one.step, one.value)
                    for one in log[name].get(tag, ())
                    if math.isfinite(one.value)
                ]
                for log in logs
            ]
            lines = [line[:: 1 + len(line) // POINTS] for line in lines]
            if values := [value for line in lines for _, value in line]:
                low, high, steps = (
                    min(values),
                    max(values),
                    max(step for line in lines for step, _ in line),
                )
                points = [
                    [
                        (100 * step / steps, 100 * (high - value) / (high - low or 1))
                        for step, value in line
                    ]
                    for line in lines
                ]
                points = [" ".join(f"{x:.1f},{y:.1f}" for x, y in line) for line in points]
                yield {
                    "title": f"{training}: {tag.split('/', 1)[-1]}",
                    "low": low,
                    "high": high,
                    "steps": steps,
                    "lines": points,
                }


def history(
    run_dir: Path, logs: dict[str, trainer.Scalars]
) -> Iterator[tuple[datetime, timedelta | None, str]]:
    """What was run: when it ended, how long it took if that is known, and its command as far as its results note it."""
    rows: list[tuple[str, dict[str, Any], float, float | None]] = []
    for name, script in TRAININGS.items():
        final = trainer.RunFiles.of(run_dir, name).final
        if final.is_file():
            began = min(
                (one.wall_time for events in logs[name].values() for one in events), default=None
            )
            rows.append(
                (script, checkpoint.arguments(checkpoint.read(final)), final.stat().st_mtime, began)
            )
    for path in run_dir.glob(f"*/{outputs.SETTINGS}"):
        about, ended = (
            outputs.read_json(path),
            max(file.stat().st_mtime for file in path.parent.glob("[!.]*")),
        )
        rows.append((str(about.get("made_by")), about, ended, path.stat().st_mtime))
    for path in run_dir.glob("eval_*.json"):
        about = outputs.read_json(path)
        flags = {key: about.get(key) for key in ("dataset", "dataset_root", "list")} | {
            "label_dir": about.get("labels")
        }
        rows.append(
            ("eval_seg" if "labels" in about else "eval_cam", flags, path.stat().st_mtime, None)
        )
    for script, about, ended, began in rows:
        flags = {
            key: value
            for key, value in about.items()
            if key not in NO_FLAGS and value and not isinstance(value, dict)
        }
        words = [
            f"--{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in flags.items()
        ]
        took = None if began is None else timedelta(seconds=max(0, round(ended - began)))
        if script != "report":
            yield datetime.fromtimestamp(ended), took, " ".join([f"{script}.py", *words])


def script_data(stages: Sequence[Stage], images: Sequence[dict[str, Any]]) -> str:
    """What the page's script shows, as JSON that cannot end the element that it stands in."""
    about = [{"title": stage.title, "first": first(stages, i)} for i, stage in enumerate(stages)]
    content = {"classes": stages[0].dataset.class_names, "stages": about, "images": images}
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    names = [run_dir.resolve().name for run_dir in args.run_dirs]
    stages = [stage for run_dir in args.run_dirs for stage in find_stages(run_dir, args)]
    if any(stage.dataset.class_names != stages[0].dataset.class_names for stage in stages):
        raise InputError(
            f"{args.run_dirs[-1]}: has other classes than {args.run_dir}; compare runs of one dataset"
        )
    items, folder = gather(stages, args.max_images), args.run_dir / "_".join(["report", *names[1:]])
    with run_context(args.run_dir) as context:
        outputs.prepare_output_dir(folder, "report", {}, context, overwrite=True)
        results = workers.parallel_map(
            functools.partial(look_at, stages=stages, folder=folder), items, args.num_workers
        )
        images = sorted(
            tqdm(results, desc="report", unit="image", total=len(items)),
            key=lambda image: image["number"],
        )
        logs = [
            {
                name: trainer.read_scalars(trainer.RunFiles.of(run_dir, name).logs)
                for name in TRAININGS
            }
            for run_dir in args.run_dirs
        ]
        content = {
            "runs": names,
            "stages": stages,
            "columns": class_columns(stages, images),
            "curves": curves(logs),
        }
        content["history"] = sorted(
            (row for run, log in zip(args.run_dirs, logs) for row in history(run, log)),
            key=lambda row: row[0],
        )
        content |= {
            "data": script_data(stages, images),
            "versions": [sys.version.split()[0], torch.__version__],
        }
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(PAGE),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        with outputs.atomic_write(folder / "index.html") as temporary:
            page = environment.get_template("page.html").render(content)
            temporary.write_bytes(
                page.encode(errors="backslashreplace")
            )  # a file name need not be text
        context.print(f"wrote {folder / 'index.html'}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
