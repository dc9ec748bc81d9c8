"""Read and write the text files of a dataset: class names, lists, the tag table, VOC's annotations.

Readers of many rows return (rows, problems), a line of text for each problem, so that a check can
print all of them.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from errors import InputError

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_CLASSES = 254  # besides the background and the ignore label 255

# line breaks and other characters that no name contains
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")


def rows_or_raise(result: tuple[Any, list[str]]) -> Any:
    """The rows of a reader's (rows, problems). Raises InputError for the first problem."""
    rows, problems = result
    if problems:
        raise InputError(problems[0])
    return rows


def to_nfc(text: str) -> str:
    """Text in Unicode's composed form, in which what looks the same is the same."""
    return unicodedata.normalize("NFC", text)


def sample_name(text: str, types: tuple[str, ...] = IMAGE_TYPES) -> str:
    """An image's name as the whole project spells it: without the extension of an image, in NFC."""
    name = to_nfc(text.strip())
    stem, extension = os.path.splitext(name)
    if extension.lower() in types:
        return stem
    return name


def escapes_folder(text: str) -> bool:
    """Whether a name or a relative path may lead out of its folder, on this system or another."""
    has_parent = ".." in text and ".." in PurePosixPath(text).parts
    return has_parent or "\\" in text or "\0" in text


def read_text(path: Path, cure: str) -> str:
    """The content of a UTF-8 text file, with or without BOM.

    Raises InputError, which ends in `cure`, if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); {cure}") from None


def read_lines(path: Path, cure: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers.

    Raises InputError as `read_text` does.
    """
    lines = []
    for number, line in enumerate(read_text(path, cure).splitlines(), 1):
        text = to_nfc(line.strip())
        if text:
            lines.append((number, text))
    return lines


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names of a text file, one per line, after the background.

    Raises InputError for an unreadable file or unusable names.
    """
    lines = read_lines(path, "write one class name per line, without 'background'")
    return check_class_names((name for _, name in lines), path)


def check_class_names(lines: Iterable[str], path: Path) -> tuple[str, ...]:
    """Class names from the file at `path`, in NFC, after the background.

    Raises InputError for unusable names.
    """
    names = [to_nfc(line.strip()) for line in lines]
    seen = set()
    for name in names:
        if name and name in seen:
            raise InputError(f"{path}: class '{name}' occurs twice; keep one of the lines")
        seen.add(name)
    all_usable = all(_is_usable_class(name) for name in names)
    if not all_usable or not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(
            f"{path}: write 1 to {MAX_CLASSES} class names, one per line, "
            "without 'background' and semicolons"
        )
    return ("background", *names)


def _is_usable_class(name: str) -> bool:
    if name.lower() in ("", "background"):
        return False
    return ";" not in name and not _CONTROL.search(name)


class TagTable(NamedTuple):
    """The image-level tags of many images."""

    row: dict[str, int]  # an image's name -> its row
    line: list[int]  # the line of each row in the file
    tags: np.ndarray  # (rows, K-1) uint8 0/1

    def tags_of(self, names: Iterable[str], path: Path) -> tuple[np.ndarray, list[str]]:
        """The tags (N, K-1) float32 0/1 of N images, from the table at `path`.

        An image without a tag is a problem.
        """
        names = list(names)
        no_tags = np.zeros((1, self.tags.shape[1]), np.uint8)
        all_tags = np.concatenate([self.tags, no_tags])
        rows = [self.row.get(name, -1) for name in names]  # the last row has no tags
        tags = all_tags[rows]
        untagged = np.flatnonzero(~tags.any(1))
        problems = [
            f"{path}: image {names[i]} has no tag; tag it or leave it out" for i in untagged
        ]
        return tags.astype(np.float32), problems


def read_tag_table(path: Path, class_names: tuple[str, ...]) -> tuple[TagTable, list[str]]:
    """Read a tag table: CSV lines name,class;class, with or without the header name,classes.

    Names may have the extension of an image. Problems are malformed rows, names that occur twice or
    leave the folder, and unknown tags. Raises InputError if the file cannot be read.
    """
    row = {}
    line = []
    tags = []
    problems = []
    for number, fields in _read_csv(path):
        is_header = not row and fields[0].lower() == "name"
        if is_header:
            continue
        where = f"{path}, line {number}"
        name = sample_name(fields[0])
        if not _is_tag_row(name, fields):
            text = _CONTROL.sub(" ", ",".join(fields))
            problems.append(f"{where}: expected name,class;class, not '{text}'; correct it")
        elif name in row:
            problems.append(
                f"{where}: {name} occurs twice; keep one of the lines, "
                "and give images different names"
            )
        else:
            row_tags, unknown = encode_tags(_split_tags(fields[1:]), class_names, where)
            row[name] = len(row)
            line.append(number)
            tags.append(row_tags)
            problems += unknown
    table = np.array(tags, np.uint8).reshape(len(tags), len(class_names) - 1)
    return TagTable(row, line, table), problems


def _read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line number and the fields of each row that is not empty, without empty last fields."""
    text = read_text(path, "write name,class;class lines in UTF-8")
    reader = csv.reader(io.StringIO(text), strict=True)  # an open quote is an error
    try:
        for row in reader:
            fields = [to_nfc(field.strip()) for field in row]
            while fields and not fields[-1]:  # spreadsheets pad rows with commas
                fields.pop()
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: cannot be read ({error}); "
            "write name,class;class lines"
        ) from None


def _is_tag_row(name: str, fields: list[str]) -> bool:
    """Whether the fields of a row are a usable name and, perhaps, tags."""
    has_semicolons_for_commas = len(fields) == 1 and ";" in name
    if not name or len(fields) > 2 or has_semicolons_for_commas:
        return False
    if "/" in name or escapes_folder(name):
        return False
    return not any(_CONTROL.search(field) for field in fields)


def _split_tags(fields: list[str]) -> set[str]:
    """The tags of a row's second field, if it has one."""
    tags = {tag.strip() for field in fields for tag in field.split(";")}
    return tags - {""}


def format_tags(rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The text of a tag table, from the name and the tags of each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "classes"))
    for name, tags in rows:
        writer.writerow((name, ";".join(tags)))
    return text.getvalue()


def encode_tags(
    tags: set[str], class_names: tuple[str, ...], where: str
) -> tuple[np.ndarray, list[str]]:
    """The (K-1,) uint8 0/1 of a set of tags; a tag that is no class is a problem."""
    unknown = sorted(tags.difference(class_names[1:]))
    problems = [
        f"{where}: tag '{tag}' is not a class of the dataset; correct the tag or the class list"
        for tag in unknown
    ]
    encoded = np.array([name in tags for name in class_names[1:]], np.uint8)
    return encoded, problems


def read_annotation(path: Path) -> set[str]:
    """The names of the objects in a VOC annotation.

    Raises InputError if it is missing or unreadable.
    """
    try:
        tree = ElementTree.parse(path)
    except OSError:
        raise InputError(
            f"{path}: missing, so the image has no tag; add it or remove the image from the list"
        ) from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        # the last two: an unknown encoding
        raise InputError(f"{path}: not a readable annotation ({error}); replace it") from None
    names = set()
    for element in tree.iterfind("object/name"):
        if element.text:
            names.add(element.text.strip())
    return names


def find_files(root: Path, patterns: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The files that match some patterns, by image name; two files of one name are a problem.

    patterns: FOLDER/{}.extension, in lower or upper case; {}.* matches every type of image. Earlier
    patterns win, and the root itself counts only if they match nothing. Hidden files do not count.
    Lists each folder once. Raises InputError for a folder that cannot be read.
    """
    paths: dict[str, str] = {}
    problems = []
    for pattern in patterns:
        listing = _list_files(root, pattern)
        folder = listing.folder
        if paths and folder == root:
            continue
        files: dict[str, str] = {}
        for file in listing.matching:
            stem, _ = os.path.splitext(file)
            name = to_nfc(stem)
            if name in files:
                problems.append(
                    f"{folder}: {files[name]} and {file} have the same name; rename one of them"
                )
            files[name] = file
        matches = {name: os.path.join(folder, file) for name, file in files.items()}
        paths = matches | paths
    return paths, problems


def find_others(root: Path, patterns: Iterable[str]) -> list[str]:
    """The files of other types in the folders that `find_files` searches.

    The root itself does not count, as it holds other things too.
    """
    files = []
    for pattern in patterns:
        listing = _list_files(root, pattern)
        if listing.folder != root:
            files += [f"{listing.folder.name}/{file}" for file in listing.others]
    return files


class _Listing(NamedTuple):
    """The visible files of a folder, sorted by name."""

    folder: Path
    matching: list[str]
    others: list[str]


def _list_files(root: Path, pattern: str) -> _Listing:
    """The visible files of a pattern's folder: those that match the pattern, and the others."""
    folder = (root / pattern).parent
    extension = Path(pattern).name.removeprefix("{}")
    extensions = IMAGE_TYPES if extension == ".*" else (extension,)
    matching = []
    others = []
    for file in _visible_files(folder):
        if os.path.splitext(file)[1].lower() in extensions:
            matching.append(file)
        else:
            others.append(file)
    return _Listing(folder, matching, others)


def _visible_files(folder: Path) -> list[str]:
    """The sorted names of the files in a folder that are not hidden; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            visible = (entry for entry in entries if not entry.name.startswith("."))
            return sorted(entry.name for entry in visible if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror}); correct the dataset root"
        ) from None
