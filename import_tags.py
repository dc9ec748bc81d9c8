"""Make a --dataset folder of what another tool wrote: classes.txt, tags.csv, images/, and masks/ where the source has outlines.

    python import_tags.py SOURCE DIR [--images FOLDER]

SOURCE is a folder that holds a folder of pictures for each class, as torchvision's ImageFolder reads it; a COCO JSON of instances; a YOLO
folder (pictures, a .txt for each, and the class names in data.yaml, classes.txt or obj.names); or a CSV (a column of pictures, then a
column of 0 and 1 for each class). DIR must be new. It gets links to the pictures; those without a tag are left out.
"""

import collections
import csv
import itertools
import re
import sys
from pathlib import Path

from tqdm import tqdm

from data import annotations, images
from data.annotations import PICTURE_TYPES, composed, plain_name
from data.registry import TAGS
from errors import InputError
from tool import outputs, prepare
from tool.context import cli_main, command_parser
from tool.instances import Outlined, read_coco, write_mask

AGAIN = "export it again"


def read_folders(folder: Path, pictures: list[Path]) -> tuple[list[str], list[Outlined]]:
    files = [path.relative_to(folder) for path in pictures if path.parent != folder]
    names = sorted({file.parts[0] for file in files})
    return names, [Outlined(file.as_posix(), None, [[names.index(file.parts[0]) + 1, False, None]]) for file in files]


def read_csv(source: Path) -> tuple[list[str], list[Outlined]]:
    reader, rows = csv.reader(annotations.read_text(source, AGAIN).splitlines()), []
    names = next(reader, [])[1:]
    for file, *marks in filter(None, reader):
        if len(marks) != len(names) or not {mark.strip() for mark in marks} <= {"0", "1", ""}:
            raise InputError(f"{source}, line {reader.line_num}: expected a picture, then 0 or 1 for {len(names)} classes; correct it")
        rows.append(Outlined(file.strip(), None, [[i, False, None] for i, mark in enumerate(marks, 1) if mark.strip() == "1"]))
    return names, rows


def read_yolo(names_file: Path, folder: Path, pictures: list[Path]) -> tuple[list[str], list[Outlined]]:
    text, rows = re.sub(r"\s#.*", "", annotations.read_text(names_file, "write the class names in it")), []
    if names_file.suffix == ".yaml":  # names: [a, b], or below it, up to the next key, "- a" or "0: a"
        text = re.split(r"^\w", f"{text}\nnames:".split("names:")[1], maxsplit=1, flags=re.M)[0]
        text = "\n".join(re.findall(r"""\s*(?:(?:\d+\s*:|-)\s*)?("[^"]*"|'[^']*'|[^][{},\n]+)""", text))
    names = [name for line in text.splitlines() if (name := line.strip().strip("'\""))]
    for path in pictures:
        file, instances = path.relative_to(folder).as_posix(), []
        table = (names_file.parent / re.sub("^(.*/)?images/", r"\1labels/", file)).with_suffix(".txt")  # as in ultralytics
        height, width = size = images.stored_size(images.picture_size(path), images.orientation(path))
        for number, line in annotations.read_lines(table, AGAIN) if table.is_file() else []:
            try:
                first, *values = map(float, line.split())
                if first not in range(len(names)) or len(values) % 2 or len(values) < 4:
                    raise ValueError
            except ValueError:
                raise InputError(f"{table}, line {number}: is no class of {names_file} with a box or outline; correct it") from None
            outline = [value * side for value, side in zip(values, itertools.cycle((width, height)))]
            instances.append([int(first) + 1, False, [outline] if len(values) > 4 else None])
        rows.append(Outlined(file, size, instances))
    return names, rows


def find_pictures(rows: list[Outlined], pictures: list[Path], folder: Path, source: Path) -> dict[str, tuple[Path, Outlined]]:
    """Each row's picture by its new name, never one outside of `pictures`. Raises InputError where it is not there, or is there twice."""
    files, found = collections.defaultdict(list), {}
    for path in pictures:
        for place in {path.relative_to(folder).as_posix(), path.name, path.stem}:
            files[composed(place)].append(path)
    places = [composed(row.file).replace("\\", "/") for row in rows]
    paths = [files.get(place) or files.get(place.rpartition("/")[2], []) for place in places]
    alike = collections.Counter(one[0].stem for one in paths if one)
    for (path, *more), row in zip((one or [None] for one in paths), rows):
        name = path and plain_name(path.name if alike[path.stem] == 1 else "_".join(path.relative_to(folder).parts))
        if more or name is None or name in found:
            raise InputError(f"{source}: its picture '{row.file}' is not below {folder}, or is there or listed twice; pass --images")
        found[name] = path, row
    return found


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder, FILE.json or FILE.csv")
    parser.add_argument("target", metavar="DIR", type=Path, help="the new folder")
    parser.add_argument("--images", type=Path, help="folder with the pictures in it or below it (default: where SOURCE is)")
    args = parser.parse_args(argv)
    source, folder = args.source, args.images or (args.source if args.source.is_dir() else args.source.parent)
    pictures = sorted(one for one in folder.rglob("*") if one.suffix.lower() in PICTURE_TYPES and "/." not in f"/{one.relative_to(folder)}")
    names_file = next((source / name for name in ("data.yaml", "classes.txt", "obj.names") if (source / name).is_file()), None)
    if source.is_dir():
        names, rows = read_yolo(names_file, folder, pictures) if names_file else read_folders(folder, pictures)
    else:
        names, rows = read_csv(source) if source.suffix.lower() == ".csv" else read_coco(source, AGAIN)
    class_names = annotations.check_class_names(names, source)
    found = find_pictures([row for row in rows if row.instances], pictures, folder, source)
    with outputs.atomic_write(args.target) as new:
        (new / "images").mkdir(parents=True)
        for name, (path, row) in tqdm(found.items(), unit="picture"):
            (new / f"images/{name}{path.suffix}").symlink_to(path.absolute())
            if all(one[2] for one in row.instances):
                write_mask(new / f"masks/{name}.png", path, row, AGAIN)
        tags = ((name, [class_names[i] for i in sorted({one[0] for one in row.instances})]) for name, (_, row) in found.items())
        prepare.write_missing(new / TAGS, annotations.format_tags(tags), overwrite=True)
        prepare.write_missing(new / "classes.txt", "".join(f"{name}\n" for name in names), overwrite=True)
    print(f"{args.target}: {len(found):,} pictures; left out, without a tag: {len(rows) - len(found):,}; next: check_dataset.py")


if __name__ == "__main__":
    sys.exit(cli_main(main))
