"""Stage 3: score localization maps against the pixel labels.

    python eval_cam.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads RUN_DIR/cam and the masks of --list. Writes RUN_DIR/eval_cam.json, eval_cam.png (IoU of each class) and eval_cam_sheet.png (best and
worst images), and prints a table. Each kind of map is scored with its own background map, or its recipe's, so no threshold is chosen. The
general CAM is also scored over fixed background thresholds; the best one is marked as tuned on ground truth.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.images import read_mask
from data.registry import Sample, open_dataset
from errors import InputError
from tool import cam_file, metrics
from tool.context import cli_main, run_context
from tool.flags import parse_stage, stage_parser

THRESHOLDS = tuple(range(5, 65, 5))  # percent
SWEEP = "cam_background_threshold_percent_tuned_on_ground_truth"
TITLES = {"is_cam": "IS-CAM", "cam": "general CAM"}
LINES = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"}  # of the table, below the classes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, device=False)
    listed = "images with masks: a name (train) or a text file (default: train of voc and coco, the masked ones of a folder)"
    parser.add_argument("--list", help=listed)
    return parse_stage(parser, argv)


def compare(
    sample: Sample, run_dir: Path, kinds: Sequence[str], num_classes: int
) -> tuple[str, dict[str, np.ndarray]]:
    """An image's name, the confusion matrix of each kind of map, and of the general CAM at every threshold."""
    maps = cam_file.load(cam_file.path_of(run_dir, sample.name), num_classes)
    truth = read_mask(sample.mask, num_classes, maps.size)
    matrices = {kind: metrics.confusion(truth, maps.label(kind), num_classes) for kind in kinds}
    if "cam" in kinds:
        strongest, foreground = (
            maps.cam[1:].max(0),
            maps.keys[1:].astype(np.uint8)[maps.cam[1:].argmax(0)],
        )
        for threshold in THRESHOLDS:
            matrices[f"cam>{threshold}"] = metrics.confusion(
                truth, foreground * (strongest > threshold / 100), num_classes
            )
    return sample.name, matrices


def score(totals: dict[str, np.ndarray], class_names: tuple[str, ...]) -> dict:
    """The scores in eval_cam.json."""
    scores = {kind: metrics.summary(totals[kind], class_names) for kind in TITLES if kind in totals}
    if "cam" in totals:
        scores[SWEEP] = {
            str(threshold): metrics.miou(totals[f"cam>{threshold}"]) for threshold in THRESHOLDS
        }
    return scores


def columns_of(content: dict) -> dict[str, dict[str, float | None]]:
    """The IoU of each class for every kind of map that was scored."""
    return {title: content[kind]["iou"] for kind, title in TITLES.items() if kind in content}


def show(content: dict) -> None:
    more = {
        line: [content[kind][key] for kind in TITLES if kind in content]
        for line, key in LINES.items()
    }
    metrics.print_table(
        f"{content['pictures']} images of {content['list']}, IoU", columns_of(content), more
    )
    sweep = content.get(SWEEP)
    if sweep:
        best = max(sweep, key=sweep.get)
        print(
            f"general CAM with a fixed background threshold of {int(best) / 100:.2f}, tuned on ground truth: {sweep[best]:.2f}"
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    list_name = args.list or dataset.spec.eval_list
    samples = dataset.samples(list_name)
    made = cam_file.read_settings(args.run_dir, dataset.class_names)["maps"]
    kinds = [kind for kind in TITLES if kind in made]

    def labels_of(sample: Sample) -> list[np.ndarray]:
        maps = cam_file.load(cam_file.path_of(args.run_dir, sample.name))
        return [
            read_mask(sample.mask, dataset.num_classes, maps.size),
            *(maps.label(kind) for kind in kinds[::-1]),
        ]

    with run_context(args.run_dir) as context:
        work = functools.partial(
            compare, run_dir=args.run_dir, kinds=kinds, num_classes=dataset.num_classes
        )
        totals, scores = metrics.evaluate(work, samples, context, args.num_workers)
        if not context.is_main:
            return
        if not scores:
            raise InputError(
                f"--list {list_name}: its masks hold nothing but 255; use images with labelled pixels"
            )
        content = {**dataset.origin, "list": list_name, "pictures": len(samples)} | score(
            totals, dataset.class_names
        )
        show(content)
        titles = ["ground truth", *(TITLES[kind] for kind in kinds[::-1])]
        metrics.write_report(
            args.run_dir / "eval_cam",
            content,
            columns_of(content),
            scores,
            samples,
            labels_of,
            titles,
        )


if __name__ == "__main__":
    sys.exit(cli_main(main))
