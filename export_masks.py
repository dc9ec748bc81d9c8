"""Masks for other tools, as CVAT, Label Studio, FiftyOne and ultralytics import them.

    python export_masks.py --dataset folder --dataset_root my_images --run_dir runs/mine \\
        --format coco

Reads RUN_DIR/seg_label (or --label_dir) and the images of --list. Writes COCO instances to
RUN_DIR/coco.json: an annotation for each connected part of a class but the background and 255,
upright: area, box, pixels as run lengths (or --polygons), and their mean probability as score where
the stages wrote NAME.npz (--save_prob). Or YOLO segmentation to RUN_DIR/yolo: data.yaml,
labels/NAME.txt with a polygon a part, links to the images.
"""

import argparse
import functools
import sys
from pathlib import Path

from tqdm import tqdm

from data.registry import open_dataset
from exchange.coco import find_parts, write_coco
from exchange.yolo import write_yolo
from tool import label_file
from tool.context import cli_main
from tool.flags import add_switch, parse_stage, stage_parser
from tool.workers import parallel_map


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, device=False)
    parser.add_argument(
        "--list", help="images: a list's name or a text file (default: the training list)"
    )
    parser.add_argument(
        "--label_dir", type=Path, help="folder of the masks NAME.png (default RUN_DIR/seg_label)"
    )
    parser.add_argument("--format", choices=["coco", "yolo"], required=True, help="what to write")
    parser.add_argument(
        "--output",
        type=Path,
        help="file of coco, new folder of yolo (default RUN_DIR/coco.json or RUN_DIR/yolo)",
    )
    add_switch(parser, "--polygons", "polygons instead of run lengths in coco")
    args = parse_stage(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    default_name = {"coco": "coco.json", "yolo": "yolo"}[args.format]
    args.output = args.output or args.run_dir / default_name
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.train_list)
    label_file.check_folder(args.label_dir, dataset.class_names)
    read_parts = functools.partial(
        find_parts,
        folder=args.label_dir,
        num_classes=dataset.num_classes,
        as_polygons=args.polygons or args.format == "yolo",
    )
    results = parallel_map(read_parts, samples, args.num_workers)
    masks = sorted(tqdm(results, unit="image"), key=lambda mask: mask.sample.name)
    write = {"coco": write_coco, "yolo": write_yolo}[args.format]
    write(args.output, masks, dataset.class_names[1:])
    num_parts = sum(len(mask.parts) for mask in masks)
    print(f"wrote {args.output}: {num_parts:,} parts in {len(masks):,} images")


if __name__ == "__main__":
    sys.exit(cli_main(main))
