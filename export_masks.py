"""Masks for other tools: COCO instances or YOLO segmentation, as CVAT, Label Studio, FiftyOne and ultralytics import them.

    python export_masks.py --dataset folder --dataset_root my_images --run_dir runs/mine --format coco

Reads RUN_DIR/seg_label (or --label_dir) and the images of --list. Writes RUN_DIR/coco.json: an annotation for each connected part of a
class but the background and 255, upright: area, box, pixels as run lengths (or --polygons), and their mean probability as score where the
stages wrote NAME.npz (--save_prob). Or RUN_DIR/yolo: data.yaml, labels/NAME.txt with a polygon a part, links to the images.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from data.images import IGNORE, image_size, orientation, read_mask, to_upright_frame
from data.registry import Sample, open_dataset
from exchange import archives
from tool import label_file, outputs, workers
from tool.context import cli_main
from tool.flags import add_switch, parse_stage, stage_parser


def outline(part: np.ndarray) -> list[float]:
    """The polygon x, y, x, y, ... of a connected part (H, W) 0/1, from its first point to each hole, around it and back."""
    contours, (tree,) = cv2.findContours(
        part.repeat(2, 0).repeat(2, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    outer, *holes = (
        contours[i] for i in np.argsort(tree[:, 3], kind="stable")
    )  # only holes have a parent
    points = [outer, *(step for hole in holes for step in (outer[:1], hole, hole[:1])), outer[:1]]
    return (
        np.concatenate(points).ravel() / 2 + 0.25
    ).tolist()  # inside of the border, so that COCO's rule draws the part itself


def annotate(
    sample: Sample, folder: Path, as_polygons: bool, num_classes: int
) -> tuple[Sample, tuple[int, int], list[dict[str, Any]]]:
    """An image, its upright (H, W), and an annotation for each connected part of each class in its mask."""
    turn, size, found = orientation(sample.image), image_size(sample.image), []
    label = to_upright_frame(
        read_mask(label_file.path_of(folder, sample.name), num_classes, size), turn
    )
    probability = label_file.read_probability(folder, sample.name, size)
    for class_id in sorted({*np.unique(label).tolist()} - {0, IGNORE}):
        count, numbers = cv2.connectedComponents((label == class_id).astype(np.uint8))
        for part in ((numbers == number).astype(np.uint8) for number in range(1, count)):
            code = coco_mask.encode(np.asfortranarray(part))
            one = {
                "category_id": class_id,
                "iscrowd": 0,
                "area": int(part.sum()),
                "bbox": coco_mask.toBbox(code).tolist(),
            }
            one["segmentation"] = (
                [outline(part)] if as_polygons else code | {"counts": code["counts"].decode()}
            )
            if class_id in probability:
                one["score"] = round(
                    float(
                        to_upright_frame(probability[class_id], turn)[part == 1].mean(dtype=float)
                    ),
                    4,
                )
            found.append(one)
    return sample, label.shape, found


def write_coco(path: Path, exported: list[tuple], names: tuple[str, ...]) -> None:
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }
    for i, (sample, (height, width), found) in enumerate(exported, 1):
        content["images"].append(
            {"id": i, "file_name": sample.image.name, "height": height, "width": width}
        )
        content["annotations"] += (
            {"id": number, "image_id": i} | one
            for number, one in enumerate(found, len(content["annotations"]) + 1)
        )
    archives.write_missing(path, json.dumps(content), overwrite=True)


def write_yolo(folder: Path, exported: list[tuple], names: tuple[str, ...]) -> None:
    with outputs.atomic_write(folder) as new:
        (new / "images").mkdir(parents=True)
        for sample, size, found in exported:
            (new / f"images/{sample.name}{sample.image.suffix}").symlink_to(sample.image.absolute())
            shares = (
                (one, (np.reshape(one["segmentation"], (-1, 2)) / size[::-1]).flat) for one in found
            )
            lines = (
                " ".join([str(one["category_id"] - 1), *(f"{value:.6f}" for value in values)])
                for one, values in shares
            )
            archives.write_missing(
                new / f"labels/{sample.name}.txt",
                "".join(f"{line}\n" for line in lines),
                overwrite=True,
            )
        about = {
            "path": str(folder.resolve()),
            "train": "images",
            "val": "images",
            "names": list(names),
        }
        archives.write_missing(
            new / "data.yaml",
            "".join(
                f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in about.items()
            ),
            overwrite=True,
        )


def main(argv: list[str] | None = None) -> None:
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
    dataset, folder = (
        open_dataset(args.dataset, args.dataset_root),
        args.label_dir or args.run_dir / "seg_label",
    )
    samples = dataset.samples(args.list or dataset.spec.train_list)
    label_file.check_folder(folder, dataset.class_names)
    write, name = {"coco": (write_coco, "coco.json"), "yolo": (write_yolo, "yolo")}[args.format]
    as_polygons, target = args.polygons or args.format == "yolo", args.output or args.run_dir / name
    work = functools.partial(
        annotate, folder=folder, as_polygons=as_polygons, num_classes=dataset.num_classes
    )
    exported = sorted(
        tqdm(workers.parallel_map(work, samples, args.num_workers), unit="image"),
        key=lambda one: one[0].name,
    )
    write(target, exported, dataset.class_names[1:])
    print(
        f"wrote {target}: {sum(len(one[2]) for one in exported):,} parts in {len(exported):,} images"
    )


if __name__ == "__main__":
    sys.exit(cli_main(main))
