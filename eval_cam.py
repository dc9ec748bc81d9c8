"""Stage 3: how well localization maps fit the pixel labels.

    python eval_cam.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads RUN_DIR/cam and the masks of --list. Writes RUN_DIR/eval_cam.json, eval_cam.png (IoU of each class) and eval_cam_sheet.png (best and
worst pictures), and prints a table. Each kind of map is scored with its own background map, so that no threshold is chosen; the general
CAM also over fixed background thresholds, the best of which is marked as tuned on ground truth.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.entries import Entries, Entry
from data.images import read_mask, read_picture
from data.registry import DATASETS, open_dataset
from errors import InputError
from tool import cam_file, files, metrics, report, stage, visualize

THRESHOLDS = tuple(range(5, 65, 5))  # percent
SWEEP = "cam_background_threshold_percent_tuned_on_ground_truth"
TITLES = {"is_cam": "IS-CAM", "cam": "general CAM"}
LINES = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"}  # of the table, below the classes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS), device=False)
    parser.add_argument(
        "--list",
        help="pictures with masks: a name (train) or a text file (default: train of voc and coco, the masked ones of a folder)",
    )
    return stage.parse(parser, argv)


def compare(entry: Entry, run_dir: Path, kinds: Sequence[str], num_classes: int) -> tuple[str, dict[str, np.ndarray]]:
    """A picture's name, the confusion matrix of each kind of map, and of the general CAM at every threshold."""
    maps = cam_file.load(cam_file.path_of(run_dir, entry.name), num_classes)
    truth = read_mask(entry.mask, num_classes, maps.size)
    found = {kind: metrics.confusion(truth, maps.label(kind), num_classes) for kind in kinds}
    if "cam" in kinds:
        strongest, foreground = maps.cam[1:].max(0), maps.keys[1:].astype(np.uint8)[maps.cam[1:].argmax(0)]
        for threshold in THRESHOLDS:
            found[f"cam>{threshold}"] = metrics.confusion(truth, foreground * (strongest > threshold / 100), num_classes)
    return entry.name, found


def score(totals: dict[str, np.ndarray], class_names: tuple[str, ...]) -> dict:
    """The scores in eval_cam.json."""
    scores = {kind: metrics.summary(totals[kind], class_names) for kind in TITLES if kind in totals}
    if "cam" in totals:
        scores[SWEEP] = {str(threshold): metrics.miou(totals[f"cam>{threshold}"]) for threshold in THRESHOLDS}
    return scores


def columns_of(content: dict) -> dict[str, dict[str, float | None]]:
    """The IoU of each class for every kind of map that was scored."""
    return {title: content[kind]["iou"] for kind, title in TITLES.items() if kind in content}


def show(content: dict) -> None:
    more = {line: [content[kind][key] for kind in TITLES if kind in content] for line, key in LINES.items()}
    report.print_table(f"{content['pictures']} pictures of {content['list']}, IoU", columns_of(content), more)
    sweep = content.get(SWEEP)
    if sweep:
        best = max(sweep, key=sweep.get)
        print(f"general CAM with a fixed background threshold of {int(best) / 100:.2f}, tuned on ground truth: {sweep[best]:.2f}")


def draw_sheet(scores: dict[str, float], entries: Entries, run_dir: Path, kinds: Sequence[str], num_classes: int) -> None:
    """The best and the worst pictures: picture, ground truth, labels from the general CAM and from the IS-CAM."""
    by_name, rows = {entry.name: entry for entry in entries}, []
    for name in report.extremes(scores):
        picture = read_picture(by_name[name].picture, upright=False)
        maps = cam_file.load(cam_file.path_of(run_dir, name))
        labels = [read_mask(by_name[name].mask, num_classes, maps.size), *(maps.label(kind) for kind in kinds)]
        rows.append((f"{name}\nmIoU {scores[name]:.1f}", [picture, *(visualize.overlay(picture, label) for label in labels)]))
    columns = ["picture", "ground truth", *(TITLES[kind] for kind in kinds)]
    visualize.contact_sheet(rows, columns, run_dir / "eval_cam_sheet.png")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    list_name = args.list or dataset.spec.eval_list
    entries = dataset.entries(list_name)
    kept = cam_file.settings(args.run_dir, dataset.class_names)["maps"]
    kinds = [kind for kind in TITLES if kind in kept]
    stamp = report.stamp(path for entry in entries for path in (entry.mask, cam_file.path_of(args.run_dir, entry.name)))
    about, output = {"list": list_name, "pictures": len(entries), "stamp": stamp}, args.run_dir / "eval_cam.json"
    with stage.start(args) as run:
        work = functools.partial(compare, run_dir=args.run_dir, kinds=kinds, num_classes=dataset.num_classes)
        found = report.evaluate(work, entries, about, output, run, args.num_workers, show)
        if found is None:
            return
        totals, scores = found
        if not scores:
            raise InputError(f"--list {list_name}: its masks hold nothing but 255; give pictures with labelled pixels")
        content = about | score(totals, dataset.class_names)
        show(content)
        report.draw_chart(columns_of(content), f"{len(entries)} pictures of {Path(list_name).stem}", run.run_dir / "eval_cam.png")
        draw_sheet(scores, entries, args.run_dir, kinds[::-1], dataset.num_classes)
        files.write_json(output, content)
        print(f"wrote {output}, eval_cam.png and eval_cam_sheet.png")


if __name__ == "__main__":
    sys.exit(stage.run(main))
