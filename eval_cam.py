"""Stage 3: score localization maps against the pixel labels.

    python eval_cam.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads RUN_DIR/cam and the masks of --list. Writes RUN_DIR/eval_cam.json, eval_cam.png (IoU of each
class) and eval_cam_sheet.png (best and worst images), and prints a table. Each kind of map is
scored with its own background map, or its recipe's, so no threshold is chosen. The general CAM is
also scored over fixed background thresholds; the best one is marked as tuned on ground truth.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.images import read_mask
from data.registry import Sample, open_dataset
from errors import InputError
from tool import cam_file, metrics
from tool.context import cli_main, run_context
from tool.flags import parse_stage, stage_parser
from tool.metrics import Columns, ImageCounts

THRESHOLDS = tuple(range(5, 65, 5))  # percent
SWEEP = "cam_background_threshold_percent_tuned_on_ground_truth"
TITLES = {"is_cam": "IS-CAM", "cam": "general CAM"}
FOOTER = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"}  # of the table, below the classes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, device=False)
    parser.add_argument(
        "--list",
        help="images with masks: a name (train) or a text file "
        "(default: train of voc and coco, the masked ones of a folder)",
    )
    return parse_stage(parser, argv)


def compare(sample: Sample, run_dir: Path, kinds: Sequence[str], num_classes: int) -> ImageCounts:
    """The confusion matrix of each kind of map, and of the general CAM at every threshold."""
    maps = cam_file.load(cam_file.path_of(run_dir, sample.name), num_classes)
    truth = read_mask(sample.mask, num_classes, maps.size)
    matrices = {kind: metrics.confusion(truth, maps.label(kind), num_classes) for kind in kinds}
    if "cam" in kinds:
        matrices |= sweep_thresholds(maps, truth, num_classes)
    return ImageCounts(sample.name, matrices)


def sweep_thresholds(
    maps: cam_file.CamFile, truth: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """The confusion matrices of the general CAM over fixed background thresholds."""
    foreground = maps.cam[1:]
    class_ids = maps.keys[1:].astype(np.uint8)
    best_class = class_ids[foreground.argmax(0)]
    activation = foreground.max(0)
    matrices = {}
    for threshold in THRESHOLDS:
        prediction = best_class * (activation > threshold / 100)
        matrices[sweep_kind(threshold)] = metrics.confusion(truth, prediction, num_classes)
    return matrices


def sweep_kind(threshold: int) -> str:
    return f"cam>{threshold}"


def score(totals: dict[str, np.ndarray], class_names: tuple[str, ...]) -> dict[str, Any]:
    """The scores in eval_cam.json."""
    scores = {kind: metrics.summary(totals[kind], class_names) for kind in TITLES if kind in totals}
    if "cam" in totals:
        scores[SWEEP] = {
            str(threshold): metrics.miou(totals[sweep_kind(threshold)]) for threshold in THRESHOLDS
        }
    return scores


def columns_of(content: dict[str, Any]) -> Columns:
    """The IoU of each class for every kind of map that was scored."""
    return {title: content[kind]["iou"] for kind, title in TITLES.items() if kind in content}


def print_scores(content: dict[str, Any]) -> None:
    scored = [content[kind] for kind in TITLES if kind in content]
    footer = {}
    for line, key in FOOTER.items():
        footer[line] = [scores[key] for scores in scored]
    heading = f"{content['pictures']} images of {content['list']}, IoU"
    metrics.print_table(heading, columns_of(content), footer)
    sweep = content.get(SWEEP)
    if sweep:
        best = max(sweep, key=sweep.get)
        print(
            f"general CAM with a fixed background threshold of {int(best) / 100:.2f}, "
            f"tuned on ground truth: {sweep[best]:.2f}"
        )


def read_masks(
    sample: Sample, run_dir: Path, kinds: Sequence[str], num_classes: int
) -> list[np.ndarray]:
    """The true mask of an image, and the mask of each kind of map, (H, W) uint8 each."""
    maps = cam_file.load(cam_file.path_of(run_dir, sample.name))
    truth = read_mask(sample.mask, num_classes, maps.size)
    return [truth, *(maps.label(kind) for kind in kinds)]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    list_name = args.list or dataset.spec.eval_list
    samples = dataset.samples(list_name)
    settings = cam_file.read_settings(args.run_dir, dataset.class_names)
    kinds = [kind for kind in TITLES if kind in settings["maps"]]
    source = {"run_dir": args.run_dir, "num_classes": dataset.num_classes}

    with run_context(args.run_dir) as context:
        compare_sample = functools.partial(compare, kinds=kinds, **source)
        evaluation = metrics.evaluate(compare_sample, samples, context, args.num_workers)
        if not context.is_main:
            return
        if not evaluation.scores:
            raise InputError(
                f"--list {list_name}: its masks hold nothing but 255; "
                "use images with labelled pixels"
            )
        content = {**dataset.origin, "list": list_name, "pictures": len(samples)}
        content |= score(evaluation.totals, dataset.class_names)
        print_scores(content)

        shown = kinds[::-1]  # the general CAM first, as it is made first
        sheet = metrics.ExtremesSheet(
            samples=samples,
            scores=evaluation.scores,
            titles=["ground truth", *(TITLES[kind] for kind in shown)],
            read_masks=functools.partial(read_masks, kinds=shown, **source),
        )
        metrics.write_report(args.run_dir / "eval_cam", content, columns_of(content), sheet)


if __name__ == "__main__":
    sys.exit(cli_main(main))
