"""Stage 3: how well localization maps fit the pixel labels.

    python eval_cam.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads RUN_DIR/cam and the masks of --list. Writes RUN_DIR/eval_cam.json, eval_cam.png (IoU of each class) and eval_cam_sheet.png (best and
worst pictures), and prints a table. Each kind of map is scored with its own background map, so that no threshold is chosen; the general
CAM also over fixed background thresholds, the best of which is marked as tuned on ground truth.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from data.images import read_mask, read_picture
from data.registry import DATASETS, Dataset, Entry, open_dataset
from errors import InputError
from tool import cam_file, files, metrics, stage, visualize

THRESHOLDS = tuple(range(5, 65, 5))  # percent
SWEEP = "cam_background_threshold_percent_tuned_on_ground_truth"
TITLES = {"is_cam": "IS-CAM", "cam": "general CAM"}
SHEET_ROWS = 4  # best, and as many worst


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS), device=False)
    parser.add_argument("--list", help="pictures with masks: a name (train) or a text file (default: the dataset's official training list)")
    return stage.parse(parser, argv)


class Confusions(TorchDataset):
    """For every picture: its index and the confusion matrix of each kind of map, and of the general CAM at every threshold."""

    def __init__(self, dataset: Dataset, entries: Sequence[Entry], run: stage.Stage):
        self.dataset, self.entries, self.run = dataset, entries, run

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[int, dict[str, np.ndarray]]:
        entry, classes = self.entries[index], self.dataset.num_classes
        path = cam_file.path_of(self.run.run_dir, entry.name)
        maps = cam_file.load(path)
        if maps.is_cam is None and maps.cam is None:
            raise InputError(f"{path}: holds no maps; delete it and run make_cam.py again")
        if maps.keys.max() >= classes:
            raise InputError(
                f"{path}: holds class {maps.keys.max()}, the dataset has 0..{classes - 1}; use the --dataset that it was made with"
            )
        truth = read_mask(entry.mask, classes, maps.size)
        found = {kind: metrics.confusion(truth, maps.label(kind), classes) for kind in TITLES if getattr(maps, kind) is not None}
        if maps.cam is not None:
            strongest, foreground = maps.cam[1:].max(0), maps.keys[1:][maps.cam[1:].argmax(0)]
            for threshold in THRESHOLDS:
                found[f"cam>{threshold}"] = metrics.confusion(truth, np.where(strongest > threshold / 100, foreground, 0), classes)
        return index, found


def evaluate(dataset: Dataset, entries: list[Entry], run: stage.Stage, num_workers: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The summed confusion matrices, and every picture's own mIoU of its first kind of map, from all processes."""
    mine = run.shard(entries)
    loader = DataLoader(Confusions(dataset, mine, run), batch_size=None, num_workers=num_workers)
    totals, scores = {}, {}
    for index, found in tqdm(loader, desc="evaluation", unit="picture", disable=not run.is_main):
        found = {kind: matrix.numpy() for kind, matrix in found.items()}  # the loader made tensors of them
        if totals and found.keys() != totals.keys():
            raise InputError(f"{run.run_dir / 'cam'}: some files hold other kinds of map than the rest; run make_cam.py --overwrite")
        totals = {kind: totals.get(kind, 0) + matrix for kind, matrix in found.items()}
        score = metrics.miou(next(iter(found.values())))
        if score is not None:
            scores[mine[index].name] = score
    parts = run.gather((totals, scores))
    kinds = dict.fromkeys(kind for part, _ in parts for kind in part)
    return {kind: sum(part[kind] for part, _ in parts if part) for kind in kinds}, {
        name: value for _, part in parts for name, value in part.items()
    }


def report(totals: dict[str, np.ndarray], class_names: tuple[str, ...]) -> dict:
    """The scores in eval_cam.json."""
    scores = {kind: metrics.summary(totals[kind], class_names) for kind in TITLES if kind in totals}
    if "cam" in totals:
        scores[SWEEP] = {str(threshold): metrics.miou(totals[f"cam>{threshold}"]) for threshold in THRESHOLDS}
    return scores


def check_maps(dataset: Dataset, run_dir: Path) -> None:
    """Raise InputError where there are no maps, or maps of other classes than the dataset's."""
    settings = run_dir / "cam/settings.json"
    if not os.path.isdir(settings.parent):
        raise InputError(f"{settings.parent}: there are no maps; correct --run_dir or run make_cam.py first")
    if settings.is_file() and files.read_json(settings).get("class_names") != list(dataset.class_names):
        raise InputError(f"{settings}: the maps are of other classes than the dataset's; use the --dataset that they were made with")


def describe(entries: list[Entry], list_name: str, run_dir: Path) -> dict:
    """What is scored; `stamp` changes with every mask and CAM file, so that equal descriptions mean equal scores."""
    stamp = hashlib.sha256()
    for entry in entries:
        for path in (entry.mask, cam_file.path_of(run_dir, entry.name)):
            facts = path.stat() if os.path.isfile(path) else None
            stamp.update(f"{path.resolve()} {facts and (facts.st_size, facts.st_mtime_ns)}\n".encode())
    return {"list": list_name, "pictures": len(entries), "stamp": stamp.hexdigest()}


def print_table(content: dict, dataset: Dataset) -> None:
    kinds = [kind for kind in TITLES if kind in content]
    print(f"\n{content['pictures']} pictures of {content['list']}")
    print(f"{'IoU, %':<18}" + "".join(f"{TITLES[kind]:>14}" for kind in kinds))
    rows = [(name, [content[kind]["iou"][name] for kind in kinds]) for name in dataset.class_names]
    rows += [("mIoU", [content[kind]["miou"] for kind in kinds]), ("pixel accuracy", [content[kind]["pixel_accuracy"] for kind in kinds])]
    for name, values in rows:
        print(f"{name:<18}" + "".join(f"{'-' if value is None else format(value, '.2f'):>14}" for value in values))
    sweep = content.get(SWEEP)
    if sweep:
        best = max(sweep, key=sweep.get)
        print(f"general CAM with a fixed background threshold of {int(best) / 100:.2f}, tuned on ground truth: {sweep[best]:.2f}")


def draw_sheet(scores: dict[str, float], entries: list[Entry], run: stage.Stage, num_classes: int) -> None:
    """The best and the worst pictures: picture, ground truth, labels from the general CAM and from the IS-CAM."""
    ranked = sorted(scores, key=scores.get, reverse=True)
    shown = ranked if len(ranked) <= 2 * SHEET_ROWS else ranked[:SHEET_ROWS] + ranked[-SHEET_ROWS:]
    by_name, rows, columns = {entry.name: entry for entry in entries}, [], []
    for name in shown:
        picture = read_picture(by_name[name].picture, upright=False)
        maps = cam_file.load(cam_file.path_of(run.run_dir, name))
        labels = {"ground truth": read_mask(by_name[name].mask, num_classes, maps.size)}
        labels |= {TITLES[kind]: maps.label(kind) for kind in ("cam", "is_cam") if getattr(maps, kind) is not None}
        columns = ["picture", *labels]
        rows.append(
            (
                f"{name}\nmIoU {scores[name]:.1f}",
                [picture, *(visualize.overlay(picture, label) for label in labels.values())],
            )
        )
    visualize.contact_sheet(rows, columns, run.run_dir / "eval_cam_sheet.png")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    list_name = args.list or dataset.spec.eval_list
    entries = dataset.entries(list_name)
    check_maps(dataset, args.run_dir)
    about, output = describe(entries, list_name, args.run_dir), args.run_dir / "eval_cam.json"
    with stage.start(args) as run:
        before = files.read_json(output) if output.is_file() else {}
        if about.items() <= before.items():
            if run.is_main:
                print_table(before, dataset)
            return run.say(f"{output} is complete")
        totals, scores = evaluate(dataset, entries, run, args.num_workers)
        if not run.is_main:
            return
        if not scores:
            raise InputError(f"--list {list_name}: its masks hold nothing but 255; give pictures with labelled pixels")
        content = about | report(totals, dataset.class_names)
        print_table(content, dataset)
        series = {TITLES[kind]: [content[kind]["iou"][name] for name in dataset.class_names] for kind in TITLES if kind in content}
        visualize.bar_chart(
            {label: [np.nan if v is None else v for v in values] for label, values in series.items()},
            dataset.class_names,
            f"{len(entries)} pictures of {Path(list_name).stem}",
            run.run_dir / "eval_cam.png",
        )
        draw_sheet(scores, entries, run, dataset.num_classes)
        files.write_json(output, content)
        print(f"wrote {output}, eval_cam.png and eval_cam_sheet.png")


if __name__ == "__main__":
    sys.exit(stage.run(main))
