"""Stage 7: how well label images fit the pixel labels, be they pseudo labels or, after stage 9, a segmentation network's masks.

    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc
    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val --label_dir runs/voc/seg_pred

Reads RUN_DIR/seg_label (or --label_dir) and the masks of --list. Writes RUN_DIR/eval_seg_label.json, .png (a chart) and _sheet.png (best
and worst pictures), named after the folder of the labels, and prints a table: IoU of each class, and the shares of its union that are false
positive and false negative. Labels of 255 are left out, and their share is told.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

from data.entries import Entries, Entry
from data.images import picture_size, read_mask, read_picture
from data.registry import DATASETS, open_dataset
from errors import InputError
from tool import files, label_file, metrics, report, stage, visualize

COLUMNS = {"IoU": "iou", "false positive": "false_positive", "false negative": "false_negative"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS), device=False)
    parser.add_argument(
        "--list",
        help="pictures with masks: a name (train) or a text file (default: train of voc and coco, the masked ones of a folder)",
    )
    parser.add_argument("--label_dir", type=Path, help="folder of the labels NAME.png (default RUN_DIR/seg_label)")
    args = stage.parse(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    return args


def read_pair(entry: Entry, label_dir: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and label of a picture, (H, W) uint8 each."""
    size = picture_size(entry.picture)
    return read_mask(entry.mask, num_classes, size), read_mask(label_file.path_of(label_dir, entry.name), num_classes, size)


def compare(entry: Entry, label_dir: Path, num_classes: int) -> tuple[str, dict[str, np.ndarray]]:
    """A picture's name, its confusion matrix, and how many of its known pixels (have none, have a) label."""
    truth, label = read_pair(entry, label_dir, num_classes)
    known = truth != metrics.IGNORE
    labelled = int((known & (label != metrics.IGNORE)).sum())
    return entry.name, {
        "label": metrics.confusion(truth, label, num_classes),
        "labelled": np.array([known.sum() - labelled, labelled]),
    }


def show(content: dict) -> None:
    columns = {title: content[key] for title, key in COLUMNS.items()}
    means = [np.mean([value for value in column.values() if value is not None]) for column in columns.values()]
    heading = f"{content['pictures']} pictures of {content['list']}, labels of {content['labels']}"
    report.print_table(heading, columns, {"mean": means})
    print(f"pixel accuracy {content['pixel_accuracy']:.2f}; {content['unlabelled']:.2f} of the pixels have no label and are left out")


def draw_sheet(scores: dict[str, float], entries: Entries, args: argparse.Namespace, num_classes: int, path: Path) -> None:
    by_name, rows = {entry.name: entry for entry in entries}, []
    for name in report.extremes(scores):
        picture = read_picture(by_name[name].picture, upright=False)
        labels = read_pair(by_name[name], args.label_dir, num_classes)
        rows.append((f"{name}\nmIoU {scores[name]:.1f}", [picture, *(visualize.overlay(picture, label) for label in labels)]))
    visualize.contact_sheet(rows, ["picture", "ground truth", "label"], path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    list_name = args.list or dataset.spec.eval_list
    entries = dataset.entries(list_name)
    label_file.check_classes(args.label_dir, dataset.class_names)
    name = f"eval_{args.label_dir.resolve().name}"
    output, chart, sheet = (args.run_dir / f"{name}{end}" for end in (".json", ".png", "_sheet.png"))
    about = {"list": list_name, "labels": str(args.label_dir), "pictures": len(entries), "class_names": list(dataset.class_names)}
    about["stamp"] = report.stamp(path for entry in entries for path in (entry.mask, label_file.path_of(args.label_dir, entry.name)))
    with stage.start(args) as run:
        work = functools.partial(compare, label_dir=args.label_dir, num_classes=dataset.num_classes)
        found = report.evaluate(work, entries, about, output, run, args.num_workers, show)
        if found is None:
            return
        totals, scores = found
        if not scores:
            raise InputError(f"--list {list_name}: no pixel has both a mask and a label; give pictures with labelled pixels")
        without, labelled = totals["labelled"]
        content = (
            about | metrics.summary(totals["label"], dataset.class_names) | {"unlabelled": float(100 * without / (without + labelled))}
        )
        show(content)
        report.draw_chart(
            {title: content[key] for title, key in COLUMNS.items()}, f"{len(entries)} pictures of {Path(list_name).stem}", chart
        )
        draw_sheet(scores, entries, args, dataset.num_classes, sheet)
        files.write_json(output, content)
        print(f"wrote {output}, {chart.name} and {sheet.name}")


if __name__ == "__main__":
    sys.exit(stage.run(main))
