"""Masks for other tools: COCO instances or YOLO segmentation, as CVAT, Label Studio, FiftyOne and ultralytics import them.

    python export_masks.py --dataset folder --dataset_root my_pictures --run_dir runs/mine --format coco

Reads RUN_DIR/seg_label (or --label_dir) and the pictures of --list. Writes RUN_DIR/coco.json: an annotation for each connected part of a
class, with area, box, the pixels as run lengths (or --polygons), and their mean probability as its score where NAME.npz lies beside the
mask (--save_prob of the stages). Or RUN_DIR/yolo: data.yaml, labels/NAME.txt with a polygon a part, links to the pictures. All is upright,
as these tools show pictures. The background and the pixels of 255 have no annotation. How well polygons cover the masks is printed.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from data.images import orientation, picture_size, read_mask, to_upright_frame
from data.registry import Entry, open_dataset
from tool import label_file, outputs
from tool.context import cli_main, non_negative_float, parse_stage, run_context, stage_parser
from tool.instances import encode, find_parts, outline, run_lengths

Exported = tuple[Entry, tuple[int, int], list[dict[str, Any]], np.ndarray]  # a picture, its upright (H, W), what `annotate` found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, device=False)
    parser.add_argument("--list", help="pictures: a list's name or a text file (default: the training list)")
    parser.add_argument("--label_dir", type=Path, help="folder of the masks NAME.png (default RUN_DIR/seg_label)")
    parser.add_argument("--format", choices=["coco", "yolo"], required=True, help="what to write")
    parser.add_argument("--output", type=Path, help="file of coco or folder of yolo (default RUN_DIR/coco.json or RUN_DIR/yolo)")
    polygons = "polygons, at most this many pixels from a part's border; 0: exact (default: run lengths for coco, 0.5 for yolo)"
    parser.add_argument("--polygons", metavar="PIXELS", type=non_negative_float, help=polygons)
    args = parse_stage(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    args.output = args.output or args.run_dir / {"coco": "coco.json", "yolo": "yolo"}[args.format]
    args.polygons = 0.5 if args.format == "yolo" and args.polygons is None else args.polygons
    return args


def annotate(entry: Entry, args: argparse.Namespace, num_classes: int) -> Exported:
    """The annotations of a picture, and (2,) the pixels in which its parts and their polygons agree, and which either has."""
    turn, found, overlap = orientation(entry.picture), [], np.zeros(2, int)
    stored = read_mask(label_file.path_of(args.label_dir, entry.name), num_classes, picture_size(entry.picture))
    label, probability = to_upright_frame(stored, turn), label_file.load_probability(args.label_dir, entry.name, stored)
    for class_id, part in find_parts(label):
        one = {"category_id": class_id, "iscrowd": 0, "area": int(part.sum()), "bbox": [*cv2.boundingRect(part)]}
        one["segmentation"] = run_lengths(part) if args.polygons is None else [outline(part, args.polygons)]
        drawn = coco_mask.decode(encode(one["segmentation"], label.shape))
        overlap += np.count_nonzero(part & drawn), np.count_nonzero(part | drawn)
        if class_id in probability:
            one["score"] = round(float(to_upright_frame(probability[class_id], turn)[part == 1].mean(dtype=float)), 4)
        found.append(one)
    return entry, label.shape, found, overlap


def write_coco(path: Path, exported: list[Exported], names: tuple[str, ...]) -> None:
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)]}
    for i, (entry, (height, width), annotations, _) in enumerate(exported, 1):
        content["images"].append({"id": i, "file_name": entry.picture.name, "height": height, "width": width})
        for one in annotations:
            content["annotations"].append({"id": len(content["annotations"]) + 1, "image_id": i} | one)
    outputs.write_text(path, json.dumps(content))


def write_yolo(folder: Path, exported: list[Exported], names: tuple[str, ...]) -> None:
    for entry, (height, width), annotations, _ in exported:
        polygons = [(one["category_id"] - 1, np.reshape(one["segmentation"], (-1, 2)) / (width, height)) for one in annotations]
        lines = [" ".join([str(number), *(f"{value:.6f}" for value in polygon.flat)]) for number, polygon in polygons]
        outputs.link(entry.picture, folder / f"images/{entry.name}{entry.picture.suffix}")
        outputs.write_text(folder / f"labels/{entry.name}.txt", "".join(f"{line}\n" for line in lines))
    numbered = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(names))
    outputs.write_text(folder / "data.yaml", f"path: {json.dumps(str(folder.resolve()))}\ntrain: images\nval: images\nnames:\n{numbered}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(args.list or dataset.spec.train_list)
    label_file.check_folder(args.label_dir, dataset.class_names)
    with run_context(args) as context:
        if args.format == "yolo":
            outputs.prepare_output_dir(args.output, "export_masks", {"label_dir": str(args.label_dir.resolve())}, context, None)
        work = functools.partial(annotate, args=args, num_classes=dataset.num_classes)
        found = {one[0].name: one for one in tqdm(outputs.parallel_map(work, entries, args.num_workers), desc="masks", unit="picture")}
        exported = [found[name] for name in entries.names()]
        {"coco": write_coco, "yolo": write_yolo}[args.format](args.output, exported, dataset.class_names[1:])
    parts, (common, union) = sum(len(one[2]) for one in exported), np.sum([one[3] for one in exported], 0)
    print(f"wrote {args.output}: {parts:,} parts in {len(exported):,} pictures, IoU with the masks {common / max(union, 1):.4f}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
