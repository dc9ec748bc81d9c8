"""Stage 7: score pseudo labels or, after stage 9, a network's masks against the pixel labels.

    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc
    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc \\
        --list val --label_dir runs/voc/seg_pred

Reads RUN_DIR/seg_label (or --label_dir) and the masks of --list. Writes, named after the folder of
the labels, RUN_DIR/eval_seg_label.json, .png (a chart) and _sheet.png (best and worst images), and
prints a table: IoU of each class, and the shares of its union that are false positive and false
negative. Labels of 255 are left out; the table says how many.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data.images import IGNORE, image_size, read_mask
from data.registry import Sample, open_dataset
from errors import InputError
from tool import label_file, metrics
from tool.context import cli_main, run_context
from tool.flags import parse_stage, stage_parser
from tool.metrics import Columns, ImageCounts

COLUMNS = {"IoU": "iou", "false positive": "false_positive", "false negative": "false_negative"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, device=False)
    parser.add_argument(
        "--list",
        help="images with masks: a name (train) or a text file "
        "(default: train of voc and coco, the masked ones of a folder)",
    )
    parser.add_argument(
        "--label_dir", type=Path, help="folder of the labels NAME.png (default RUN_DIR/seg_label)"
    )
    args = parse_stage(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    return args


def read_masks(sample: Sample, label_dir: Path, num_classes: int) -> list[np.ndarray]:
    """The true mask of an image and its label, (H, W) uint8 each."""
    size = image_size(sample.image)
    truth = read_mask(sample.mask, num_classes, size)
    label = read_mask(label_file.path_of(label_dir, sample.name), num_classes, size)
    return [truth, label]


def compare(sample: Sample, label_dir: Path, num_classes: int) -> ImageCounts:
    """The confusion matrix of an image.

    Also how many of the pixels with a truth have no label, and how many have one: (2,) int64.
    """
    truth, label = read_masks(sample, label_dir, num_classes)
    has_truth = truth != IGNORE
    has_label = has_truth & (label != IGNORE)
    labelled = has_label.sum()
    unlabelled = has_truth.sum() - labelled
    matrices = {
        "label": metrics.confusion(truth, label, num_classes),
        "labelled": np.array([unlabelled, labelled]),
    }
    return ImageCounts(sample.name, matrices)


def score(totals: dict[str, np.ndarray], class_names: tuple[str, ...]) -> dict[str, Any]:
    """The scores in the JSON file."""
    unlabelled, labelled = totals["labelled"]
    scores = {"class_names": list(class_names)}
    scores |= metrics.summary(totals["label"], class_names)
    scores["unlabelled"] = float(100 * unlabelled / (unlabelled + labelled))
    return scores


def columns_of(content: dict[str, Any]) -> Columns:
    """IoU, false positives and false negatives of each class."""
    return {title: content[key] for title, key in COLUMNS.items()}


def print_scores(content: dict[str, Any]) -> None:
    columns = columns_of(content)
    means = []
    for column in columns.values():
        values = [value for value in column.values() if value is not None]
        means.append(np.mean(values))
    heading = f"{content['pictures']} images of {content['list']}, labels of {content['labels']}"
    metrics.print_table(heading, columns, {"mean": means})
    print(
        f"pixel accuracy {content['pixel_accuracy']:.2f}; "
        f"{content['unlabelled']:.2f} of the pixels have no label and are left out"
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    list_name = args.list or dataset.spec.eval_list
    samples = dataset.samples(list_name)
    label_file.check_folder(args.label_dir, dataset.class_names)
    source = {"label_dir": args.label_dir, "num_classes": dataset.num_classes}

    with run_context(args.run_dir) as context:
        compare_sample = functools.partial(compare, **source)
        evaluation = metrics.evaluate(compare_sample, samples, context, args.num_workers)
        if not context.is_main:
            return
        if not evaluation.scores:
            raise InputError(
                f"--list {list_name}: no pixel has both a mask and a label; "
                "use images with labelled pixels"
            )
        content = {
            **dataset.origin,
            "list": list_name,
            "labels": str(args.label_dir),
            "pictures": len(samples),
        }
        content |= score(evaluation.totals, dataset.class_names)
        print_scores(content)

        sheet = metrics.ExtremesSheet(
            samples=samples,
            scores=evaluation.scores,
            titles=["ground truth", "label"],
            read_masks=functools.partial(read_masks, **source),
        )
        stem = args.run_dir / f"eval_{args.label_dir.resolve().name}"
        metrics.write_report(stem, content, columns_of(content), sheet)


if __name__ == "__main__":
    sys.exit(cli_main(main))
