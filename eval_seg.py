"""Stage 7: score label images against the pixel labels: pseudo labels or, after stage 9, a segmentation network's masks.

    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc
    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val --label_dir runs/voc/seg_pred

Reads RUN_DIR/seg_label (or --label_dir) and the masks of --list. Writes RUN_DIR/eval_seg_label.json, .png (a chart) and _sheet.png (best
and worst images), named after the folder of the labels, and prints a table: IoU of each class, and the shares of its union that are false
positive and false negative. Labels of 255 are left out; the table says how many.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

from data.images import IGNORE, image_size, read_mask
from data.registry import Sample, open_dataset
from errors import InputError
from tool import label_file, metrics
from tool.context import cli_main, run_context
from tool.flags import parse_stage, stage_parser

COLUMNS = {"IoU": "iou", "false positive": "false_positive", "false negative": "false_negative"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, device=False)
    listed = "images with masks: a name (train) or a text file (default: train of voc and coco, the masked ones of a folder)"
    parser.add_argument("--list", help=listed)
    parser.add_argument(
        "--label_dir", type=Path, help="folder of the labels NAME.png (default RUN_DIR/seg_label)"
    )
    args = parse_stage(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    return args


def read_pair(sample: Sample, label_dir: Path, num_classes: int) -> list[np.ndarray]:
    """Truth and label of an image, (H, W) uint8 each."""
    size = image_size(sample.image)
    return [
        read_mask(path, num_classes, size)
        for path in (sample.mask, label_file.path_of(label_dir, sample.name))
    ]


def compare(sample: Sample, label_dir: Path, num_classes: int) -> tuple[str, dict[str, np.ndarray]]:
    """An image's name, its confusion matrix, and how many known pixels are unlabelled and labelled."""
    truth, label = read_pair(sample, label_dir, num_classes)
    known = truth != IGNORE
    labelled = int((known & (label != IGNORE)).sum())
    return sample.name, {
        "label": metrics.confusion(truth, label, num_classes),
        "labelled": np.array([known.sum() - labelled, labelled]),
    }


def columns_of(content: dict) -> dict[str, dict[str, float | None]]:
    """IoU, false positives and false negatives of each class."""
    return {title: content[key] for title, key in COLUMNS.items()}


def show(content: dict) -> None:
    columns = columns_of(content)
    means = [
        np.mean([value for value in column.values() if value is not None])
        for column in columns.values()
    ]
    heading = f"{content['pictures']} images of {content['list']}, labels of {content['labels']}"
    metrics.print_table(heading, columns, {"mean": means})
    print(
        f"pixel accuracy {content['pixel_accuracy']:.2f}; {content['unlabelled']:.2f} of the pixels have no label and are left out"
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    list_name = args.list or dataset.spec.eval_list
    samples = dataset.samples(list_name)
    label_file.check_folder(args.label_dir, dataset.class_names)
    read = functools.partial(read_pair, label_dir=args.label_dir, num_classes=dataset.num_classes)
    with run_context(args.run_dir) as context:
        work = functools.partial(compare, label_dir=args.label_dir, num_classes=dataset.num_classes)
        totals, scores = metrics.evaluate(work, samples, context, args.num_workers)
        if not context.is_main:
            return
        if not scores:
            raise InputError(
                f"--list {list_name}: no pixel has both a mask and a label; use images with labelled pixels"
            )
        unlabelled, labelled = totals["labelled"]
        content = {
            **dataset.origin,
            "list": list_name,
            "labels": str(args.label_dir),
            "pictures": len(samples),
        }
        content |= {"class_names": list(dataset.class_names)} | metrics.summary(
            totals["label"], dataset.class_names
        )
        content["unlabelled"] = float(100 * unlabelled / (unlabelled + labelled))
        show(content)
        stem = args.run_dir / f"eval_{args.label_dir.resolve().name}"
        metrics.write_report(
            stem, content, columns_of(content), scores, samples, read, ["ground truth", "label"]
        )


if __name__ == "__main__":
    sys.exit(cli_main(main))
