"""Make a --dataset folder of what another tool wrote.

    python import_tags.py SOURCE DIR [--images FOLDER]

SOURCE is a folder that holds a folder of images for each class, as torchvision's ImageFolder reads
it; a COCO JSON of instances; a YOLO folder (images, a .txt for each, and the class names in
data.yaml, classes.txt or obj.names); or a CSV (a column of images, then a column of 0 and 1 for
each class). DIR must be new. It gets classes.txt, tags.csv, links to the images in images/, and
masks/ if the source has outlines; images without a tag are left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.annotations import check_class_names, format_tags
from data.registry import TAGS
from exchange.coco import read_coco, write_mask
from exchange.csv_table import read_csv
from exchange.folders import ImportedImage, find_annotated, list_images, read_folders
from exchange.instances import EXPORT_AGAIN, Annotations
from exchange.summary import write_text
from exchange.yolo import find_names_file, read_yolo
from tool.context import cli_main
from tool.flags import command_parser
from tool.outputs import atomic_write


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder, FILE.json or FILE.csv")
    parser.add_argument("target", metavar="DIR", type=Path, help="the new folder")
    parser.add_argument(
        "--images",
        type=Path,
        help="folder with the images in it or below it (default: where SOURCE is)",
    )
    args = parser.parse_args(argv)
    if args.images is None:
        args.images = args.source if args.source.is_dir() else args.source.parent
    return args


def read_source(source: Path, folder: Path, images: Sequence[Path]) -> Annotations:
    """Read a source in its format; images: those below `folder`."""
    if source.is_dir():
        names_file = find_names_file(source)
        if names_file is None:
            return read_folders(folder, images)
        return read_yolo(names_file, folder, images)
    if source.suffix.lower() == ".csv":
        return read_csv(source)
    return read_coco(source, EXPORT_AGAIN)


def add_image(root: Path, image: ImportedImage) -> None:
    """Link an image into the new dataset, and draw its mask if all of its instances have one."""
    link = root / f"images/{image.name}{image.path.suffix}"
    link.symlink_to(image.path.absolute())
    if image.annotated.is_outlined:
        write_mask(root / f"masks/{image.name}.png", image.path, image.annotated, EXPORT_AGAIN)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    images = list_images(args.images)
    annotations = read_source(args.source, args.images, images)
    class_names = check_class_names(annotations.class_names, args.source)
    tagged = [image for image in annotations.images if image.instances]
    imported = find_annotated(tagged, images, args.images, args.source)
    with atomic_write(args.target) as new:
        (new / "images").mkdir(parents=True)
        tags = {}
        for image in tqdm(imported, unit="image"):
            add_image(new, image)
            class_ids = sorted(image.annotated.class_ids)
            tags[image.name] = [class_names[class_id] for class_id in class_ids]
        write_text(new / TAGS, format_tags(tags.items()))
        write_text(new / "classes.txt", "".join(f"{name}\n" for name in annotations.class_names))
    left_out = len(annotations.images) - len(imported)
    print(
        f"{args.target}: {len(imported):,} images; left out, without a tag: {left_out:,};"
        " next: check_dataset.py"
    )


if __name__ == "__main__":
    sys.exit(cli_main(main))
