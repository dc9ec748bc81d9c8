"""Make a --dataset folder of what another tool wrote: classes.txt, tags.csv, images/, and masks/ where the source has outlines.

    python import_tags.py SOURCE DIR [--images FOLDER]

SOURCE is one of

- a folder that holds a folder of pictures for each class, as torchvision's ImageFolder reads it
- a COCO JSON of instances, as CVAT, Label Studio, Roboflow and FiftyOne export it
- a YOLO folder: pictures, a .txt for each, and the class names in data.yaml, classes.txt or obj.names
- a CSV: a column of pictures, then a column of 0 and 1 for each class

DIR gets links to the pictures. Those without a tag are left out. To resume, run the same command.
"""

import argparse
import csv
import io
import itertools
import re
import sys
from pathlib import Path

from tqdm import tqdm

from data import annotations, images
from data.annotations import composed
from data.registry import TAGGED, TAGS, open_dataset
from errors import InputError
from tool import outputs, prepare
from tool.context import add_workers, cli_main, command_parser, run_context
from tool.instances import Outlined, read_coco, write_mask

YOLO_NAMES = ("data.yaml", "classes.txt", "obj.names")
MARKS = {"": 0, "0": 0, "false": 0, "1": 1, "true": 1}  # in a CSV
AGAIN = "export it again"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder, FILE.json or FILE.csv")
    parser.add_argument("run_dir", metavar="DIR", type=Path, help="the new folder")
    parser.add_argument("--images", type=Path, help="folder with the pictures in it or below it (default: where SOURCE is)")
    add_workers(parser, max_workers=None)
    return parser.parse_args(argv)


def read_folders(source: Path, pictures: list[Path]) -> tuple[list[str], list[Outlined]]:
    files = [path.relative_to(source) for path in pictures if path.parent != source]
    names = sorted({file.parts[0] for file in files})
    return names, [Outlined(file.as_posix(), None, [[names.index(file.parts[0]) + 1, False, None]]) for file in files]


def read_csv(source: Path) -> tuple[list[str], list[Outlined]]:
    reader, rows = csv.reader(io.StringIO(annotations.read_text(source, AGAIN)), strict=True), []
    try:
        _, *names = next(reader, [""])
        for file, *fields in filter(None, reader):
            marks = [MARKS.get(field.strip().lower()) for field in fields]
            if len(marks) != len(names) or None in marks:
                raise csv.Error(f"expected a picture, then 0 or 1 for each of {len(names)} classes")
            rows.append(Outlined(file.strip(), None, [[i, False, None] for i, mark in enumerate(marks, 1) if mark]))
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num}: cannot be read ({error}); correct it") from None
    return names, rows


def read_yolo_names(path: Path) -> list[str]:
    """Class names, one per line; in a .yaml, those in or below `names:`, numbered or not."""
    text = annotations.read_text(path, "write the class names in it")
    if path.suffix == ".yaml":
        text = re.split(r"^\w", f"{text}\nnames:".split("names:")[1], maxsplit=1, flags=re.M)[0]  # up to the next key
        inline = re.search(r"[\[{](.*?)[\]}]", text, re.S)
        text = inline[1].replace(",", "\n") if inline else text
    lines = (re.sub(r"^\s*(-|\d+\s*:)?|\s#.*", "", line) for line in text.splitlines())
    return [name for line in lines if (name := line.strip().strip("'\""))]


def read_yolo(source: Path, names_file: Path, pictures: list[Path]) -> tuple[list[str], list[Outlined]]:
    names, rows = read_yolo_names(names_file), []
    for path in pictures:
        *above, file = path.relative_to(source).parts
        if "images" in above:  # as in ultralytics: the last such folder has one for the labels beside it
            above[-1 - above[::-1].index("images")] = "labels"
        table, instances = source.joinpath(*above, file).with_suffix(".txt"), []
        height, width = size = images.stored_size(images.picture_size(path), images.orientation(path))
        for number, line in annotations.read_lines(table, AGAIN) if table.is_file() else []:
            try:
                first, *values = map(float, line.split())
                if first not in range(len(names)) or len(values) % 2 or len(values) < 4:
                    raise ValueError
            except ValueError:
                wanted = f"one of {len(names)} classes, then x y width height or x y x y x y ..."
                raise InputError(f"{table}, line {number}: expected {wanted}, not '{line}'; correct it or {names_file}") from None
            outline = [value * side for value, side in zip(values, itertools.cycle((width, height)))]
            instances.append([int(first) + 1, False, [outline] if len(values) > 4 else None])
        rows.append(Outlined(path.relative_to(source).as_posix(), size, instances))
    return names, rows


def find_pictures(rows: list[Outlined], pictures: list[Path], folder: Path, source: Path) -> dict[str, tuple[Path, Outlined]]:
    """The pictures with a tag by their new names. Whatever the source calls them, nothing outside of `pictures` can be reached.

    Where two have the same name, all are named after their folders, too. Raises InputError where this does not help, and for a picture
    that is not there.
    """
    files: dict[str, Path | None] = {}  # by path below the folder, by file name and by name; None: several
    for path in pictures:
        files |= {name: None if name in files else path for name in {composed(path.name), annotations.plain_name(path.name)}}
    files |= {composed(path.relative_to(folder).as_posix()): path for path in pictures}
    by_place = (composed(row.file).replace("\\", "/") for row in rows)
    found = [files.get(file) or files.get(file.rpartition("/")[2]) for file in by_place]
    if None in found:
        raise InputError(f"{source}: its picture '{rows[found.index(None)].file}' is not below {folder}, or several are; pass --images")
    is_unique = len({annotations.plain_name(path.name) for path in found}) == len(found)
    names = [annotations.plain_name(path.name if is_unique else "_".join(path.relative_to(folder).parts)) for path in found]
    if len({*names}) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"{source}: picture {twice} occurs twice; keep one, and give pictures different names")
    return {name: (path, row) for name, path, row in zip(names, found, rows) if row.instances}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    source, root = args.source, args.run_dir
    folder = args.images or (source if source.is_dir() else source.parent)
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in annotations.PICTURE_TYPES)
    pictures = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    names_file = next((source / name for name in YOLO_NAMES if (source / name).is_file()), None)
    if source.is_dir():
        names, rows = read_yolo(source, names_file, pictures) if names_file else read_folders(source, pictures)
    elif source.suffix.lower() in (".json", ".csv"):
        names, rows = read_csv(source) if source.suffix.lower() == ".csv" else read_coco(source, AGAIN)
    else:
        raise InputError(f"{source}: is no folder, FILE.json or FILE.csv; see --help")
    class_names, found = annotations.check_class_names(names, source), find_pictures(rows, pictures, folder, source)

    jobs = [(root / f"masks/{name}.png", *both) for name, both in found.items() if all(one[2] for one in both[1].instances)]
    tags = {name: [class_names[i] for i in sorted({one[0] for one in row.instances})] for name, (_, row) in found.items()}
    with run_context(args) as context:
        outputs.prepare_output_dir(root, "import_tags", {"source": str(source.resolve())}, context, None)
        for name, (path, _) in found.items():
            outputs.link(path, root / f"images/{name}{path.suffix}")
        todo = [job for job in jobs if not outputs.is_up_to_date(job[0], job[1], source)]
        for _ in tqdm(outputs.parallel_map(draw, todo, args.num_workers), desc="masks", unit="picture"):
            pass
        for file, text in (("classes.txt", "".join(f"{name}\n" for name in names)), (TAGS, annotations.format_tags(tags.items()))):
            if prepare.write_missing(root / file, text, overwrite=False):
                raise InputError(f"{root / file}: is not what {source} says now; delete it to have it written again")
    count = len(open_dataset("folder", root).entries(TAGGED))
    print(f"{root}: {count:,} pictures, {len(names)} classes, {len(jobs):,} masks; left out, without a tag: {len(rows) - count:,} pictures")
    print(f"next: python check_dataset.py {root}")


def draw(job: tuple[Path, Path, Outlined]) -> None:
    mask, picture, row = job
    write_mask(mask, picture, row, AGAIN, images.orientation(picture))


if __name__ == "__main__":
    sys.exit(cli_main(main))
