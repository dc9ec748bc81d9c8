"""Make a --dataset folder of what another tool wrote: classes.txt, tags.csv, images/, and masks/ where the source has outlines.

    python import_tags.py SOURCE DIR [--images FOLDER]

SOURCE is a folder that holds a folder of images for each class, as torchvision's ImageFolder reads it; a COCO JSON of instances; a YOLO
folder (images, a .txt for each, and the class names in data.yaml, classes.txt or obj.names); or a CSV (a column of images, then a
column of 0 and 1 for each class). DIR must be new. It gets links to the images; those without a tag are left out.
"""

import collections
import csv
import itertools
import re
import sys
from pathlib import Path

from tqdm import tqdm

from data import annotations
from data.annotations import IMAGE_TYPES, sample_name, to_nfc
from data.images import image_size, orientation, stored_size
from data.registry import TAGS
from errors import InputError
from exchange import archives
from exchange.coco import Outlined, read_coco, write_mask
from tool import outputs
from tool.context import cli_main
from tool.flags import command_parser

AGAIN = "export it again"


def read_folders(folder: Path, images: list[Path]) -> tuple[list[str], list[Outlined]]:
    files = [path.relative_to(folder) for path in images if path.parent != folder]
    names = sorted({file.parts[0] for file in files})
    return names, [
        Outlined(file.as_posix(), None, [[names.index(file.parts[0]) + 1, False, None]])
        for file in files
    ]


def read_csv(source: Path) -> tuple[list[str], list[Outlined]]:
    reader, rows = csv.reader(annotations.read_text(source, AGAIN).splitlines()), []
    names = next(reader, [])[1:]
    for file, *marks in filter(None, reader):
        if len(marks) != len(names) or not {mark.strip() for mark in marks} <= {"0", "1", ""}:
            raise InputError(
                f"{source}, line {reader.line_num}: expected an image, then 0 or 1 for {len(names)} classes; correct it"
            )
        rows.append(
            Outlined(
                file.strip(),
                None,
                [[i, False, None] for i, mark in enumerate(marks, 1) if mark.strip() == "1"],
            )
        )
    return names, rows


def read_yolo(
    names_file: Path, folder: Path, images: list[Path]
) -> tuple[list[str], list[Outlined]]:
    text, rows = (
        re.sub(r"\s#.*", "", annotations.read_text(names_file, "write the class names in it")),
        [],
    )
    if (
        names_file.suffix == ".yaml"
    ):  # names: [a, b], or below it, up to the next key, "- a" or "0: a"
        text = re.split(r"^\w", f"{text}\nnames:".split("names:")[1], maxsplit=1, flags=re.M)[0]
        text = "\n".join(
            re.findall(r"""\s*(?:(?:\d+\s*:|-)\s*)?("[^"]*"|'[^']*'|[^][{},\n]+)""", text)
        )
    names = [name for line in text.splitlines() if (name := line.strip().strip("'\""))]
    for path in images:
        file, instances = path.relative_to(folder).as_posix(), []
        table = (names_file.parent / re.sub("^(.*/)?images/", r"\1labels/", file)).with_suffix(
            ".txt"
        )  # as in ultralytics
        height, width = size = stored_size(image_size(path), orientation(path))
        for number, line in annotations.read_lines(table, AGAIN) if table.is_file() else []:
            try:
                first, *values = map(float, line.split())
                if first not in range(len(names)) or len(values) % 2 or len(values) < 4:
                    raise ValueError
            except ValueError:
                raise InputError(
                    f"{table}, line {number}: is no class of {names_file} with a box or outline; correct it"
                ) from None
            outline = [
                value * side for value, side in zip(values, itertools.cycle((width, height)))
            ]
            instances.append([int(first) + 1, False, [outline] if len(values) > 4 else None])
        rows.append(Outlined(file, size, instances))
    return names, rows


def find_images(
    rows: list[Outlined], images: list[Path], folder: Path, source: Path
) -> dict[str, tuple[Path, Outlined]]:
    """Each row's image by its new name, never one outside of `images`. Raises InputError where it is not there, or is there twice."""
    files, found = collections.defaultdict(list), {}
    for path in images:
        for place in {path.relative_to(folder).as_posix(), path.name, path.stem}:
            files[to_nfc(place)].append(path)
    places = [to_nfc(row.file).replace("\\", "/") for row in rows]
    paths = [files.get(place) or files.get(place.rpartition("/")[2], []) for place in places]
    alike = collections.Counter(one[0].stem for one in paths if one)
    for (path, *more), row in zip((one or [None] for one in paths), rows):
        name = path and sample_name(
            path.name if alike[path.stem] == 1 else "_".join(path.relative_to(folder).parts)
        )
        if more or name is None or name in found:
            raise InputError(
                f"{source}: its image '{row.file}' is not below {folder}, or is there or listed twice; pass --images"
            )
        found[name] = path, row
    return found


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder, FILE.json or FILE.csv")
    parser.add_argument("target", metavar="DIR", type=Path, help="the new folder")
    parser.add_argument(
        "--images",
        type=Path,
        help="folder with the images in it or below it (default: where SOURCE is)",
    )
    args = parser.parse_args(argv)
    source, folder = (
        args.source,
        args.images or (args.source if args.source.is_dir() else args.source.parent),
    )
    images = sorted(
        one
        for one in folder.rglob("*")
        if one.suffix.lower() in IMAGE_TYPES and "/." not in f"/{one.relative_to(folder)}"
    )
    names_file = next(
        (
            source / name
            for name in ("data.yaml", "classes.txt", "obj.names")
            if (source / name).is_file()
        ),
        None,
    )
    if source.is_dir():
        names, rows = (
            read_yolo(names_file, folder, images) if names_file else read_folders(folder, images)
        )
    else:
        names, rows = (
            read_csv(source) if source.suffix.lower() == ".csv" else read_coco(source, AGAIN)
        )
    class_names = annotations.check_class_names(names, source)
    found = find_images([row for row in rows if row.instances], images, folder, source)
    with outputs.atomic_write(args.target) as new:
        (new / "images").mkdir(parents=True)
        for name, (path, row) in tqdm(found.items(), unit="image"):
            (new / f"images/{name}{path.suffix}").symlink_to(path.absolute())
            if all(one[2] for one in row.instances):
                write_mask(new / f"masks/{name}.png", path, row, AGAIN)
        tags = (
            (name, [class_names[i] for i in sorted({one[0] for one in row.instances})])
            for name, (_, row) in found.items()
        )
        archives.write_missing(new / TAGS, annotations.format_tags(tags), overwrite=True)
        archives.write_missing(
            new / "classes.txt", "".join(f"{name}\n" for name in names), overwrite=True
        )
    print(
        f"{args.target}: {len(found):,} images; left out, without a tag: {len(rows) - len(found):,}; next: check_dataset.py"
    )


if __name__ == "__main__":
    sys.exit(cli_main(main))
