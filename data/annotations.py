"""Read and write the text files of a dataset: class names, lists, the tag table, VOC's annotations.

Readers of many rows return (rows, problems), a line of text for each problem, so that a check can print all of them.
"""

import csv
import functools
import io
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from errors import InputError

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_CLASSES = 254  # besides the background and the ignore label 255

to_nfc = functools.partial(
    unicodedata.normalize, "NFC"
)  # to Unicode's to_nfc form: what looks the same is the same
_CONTROL = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]"
)  # line breaks and other characters that no name contains


def rows_or_raise(result: tuple[Any, list[str]]) -> Any:
    """The rows of a reader's (rows, problems). Raises InputError for the first problem."""
    rows, problems = result
    if problems:
        raise InputError(problems[0])
    return rows


def sample_name(text: str, types: tuple[str, ...] = IMAGE_TYPES) -> str:
    """An image's name as the whole project spells it: without the extension of an image, in Unicode's to_nfc form."""
    name = to_nfc(text.strip())
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in types else name


def escapes_folder(text: str) -> bool:
    """Whether a name or a relative path may lead out of its folder, on this system or another."""
    return (".." in text and ".." in PurePosixPath(text).parts) or "\\" in text or "\0" in text


def read_text(path: Path, cure: str) -> str:
    """The content of a UTF-8 text file, with or without BOM. Raises InputError, which ends in `cure`, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); {cure}"
        ) from None


def read_lines(path: Path, cure: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers. Raises InputError as `read_text` does."""
    return [
        (number, to_nfc(line.strip()))
        for number, line in enumerate(read_text(path, cure).splitlines(), 1)
        if line.strip()
    ]


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names of a text file, one per line, after the background. Raises InputError for an unreadable file or unusable names."""
    return check_class_names(
        (
            line
            for _, line in read_lines(path, "write one class name per line, without 'background'")
        ),
        path,
    )


def check_class_names(lines: Iterable[str], path: Path) -> tuple[str, ...]:
    """Class names from a file, after the background, in Unicode's to_nfc form. Raises InputError for unusable names."""
    names = [to_nfc(line.strip()) for line in lines]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice:
        raise InputError(f"{path}: class '{twice}' occurs twice; keep one of the lines")
    is_bad = [
        name.lower() in ("", "background") or ";" in name or _CONTROL.search(name) for name in names
    ]
    if not 1 <= len(names) <= MAX_CLASSES or any(is_bad):
        raise InputError(
            f"{path}: write 1 to {MAX_CLASSES} class names, one per line, without 'background' and semicolons"
        )
    return ("background", *names)


class TagTable(NamedTuple):
    """The image-level tags of many images."""

    row: dict[str, int]  # an image's name -> its row
    line: list[int]  # the line of each row in the file
    tags: np.ndarray  # (rows, K-1) uint8 0/1

    def tags_of(self, names: Iterable[str], path: Path) -> tuple[np.ndarray, list[str]]:
        """Image-level labels (N, K-1) float32 0/1 of N images, from the table at `path`; an image without a tag is a problem."""
        names = list(names)
        none = np.zeros((1, self.tags.shape[1]), np.uint8)
        labels = np.concatenate([self.tags, none])[[self.row.get(name, -1) for name in names]]
        untagged = [
            f"{path}: image {names[i]} has no tag; tag it or leave it out"
            for i in np.flatnonzero(~labels.any(1))
        ]
        return labels.astype(np.float32), untagged


def read_tag_table(path: Path, class_names: tuple[str, ...]) -> tuple[TagTable, list[str]]:
    """Read a tag table: a CSV file of name,class;class lines, with or without the header name,classes.

    Names may have the extension of an image. Problems are malformed rows, names that occur twice or leave the folder, and unknown tags.
    Raises InputError if the file cannot be read.
    """
    row, line, labels, problems = {}, [], [], []
    reader = csv.reader(
        io.StringIO(read_text(path, "write name,class;class lines in UTF-8")), strict=True
    )  # an open quote is an error
    try:
        for fields in reader:
            where, fields = (
                f"{path}, line {reader.line_num}",
                [to_nfc(field.strip()) for field in fields],
            )
            while fields and not fields[-1]:  # spreadsheets pad rows with commas
                fields.pop()
            if not fields or (not row and fields[0].lower() == "name"):
                continue
            name, text = sample_name(fields[0]), ",".join(fields)
            is_pair = len(fields) <= 2 and not (
                len(fields) == 1 and ";" in name
            )  # the latter: columns separated by semicolons
            if (
                not name
                or not is_pair
                or "/" in name
                or escapes_folder(name)
                or _CONTROL.search(text)
            ):
                problems.append(
                    f"{where}: expected name,class;class, not '{_CONTROL.sub(' ', text)}'; correct it"
                )
            elif name in row:
                problems.append(
                    f"{where}: {name} occurs twice; keep one of the lines, and give images different names"
                )
            else:
                label, unknown = encode_tags(
                    {tag.strip() for tag in "".join(fields[1:]).split(";")} - {""},
                    class_names,
                    where,
                )
                row[name] = len(labels)
                line.append(reader.line_num)
                labels.append(label)
                problems += unknown
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: cannot be read ({error}); write name,class;class lines"
        ) from None
    return TagTable(
        row, line, np.array(labels, np.uint8).reshape(len(labels), len(class_names) - 1)
    ), problems


def format_tags(rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The text of a tag table, from the name and the tags of each image."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [("name", "classes"), *((name, ";".join(tags)) for name, tags in rows)]
    )
    return text.getvalue()


def encode_tags(
    tags: set[str], class_names: tuple[str, ...], where: str
) -> tuple[np.ndarray, list[str]]:
    """The label (K-1,) uint8 0/1 of a set of tags; a tag that is no class is a problem."""
    unknown = sorted(tags.difference(class_names[1:]))
    problems = [
        f"{where}: tag '{tag}' is not a class of the dataset; correct the tag or the class list"
        for tag in unknown
    ]
    return np.array([name in tags for name in class_names[1:]], np.uint8), problems


def read_annotation(path: Path) -> set[str]:
    """The names of the objects in a VOC annotation. Raises InputError if it is missing or unreadable."""
    try:
        return {
            element.text.strip()
            for element in ElementTree.parse(path).iterfind("object/name")
            if element.text
        }
    except OSError:
        raise InputError(
            f"{path}: missing, so the image has no tag; add it or remove the image from the list"
        ) from None
    except (
        ElementTree.ParseError,
        LookupError,
        ValueError,
    ) as error:  # the last two: an unknown encoding
        raise InputError(f"{path}: not a readable annotation ({error}); replace it") from None


def find_files(root: Path, patterns: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The files that match some patterns, by image name; two files of one name are a problem. Lists each folder once.

    patterns: FOLDER/{}.extension, in lower or upper case, where .* stands for every type of image. Earlier ones win, and the root itself
    counts only if they match nothing. Hidden files do not count. Raises InputError for a folder that cannot be read.
    """
    result, problems = {}, []
    for pattern in patterns:
        folder, matching, _ = _list_files(root, pattern)
        if result and folder == root:
            continue
        here: dict[str, str] = {}
        for file in matching:
            name = to_nfc(os.path.splitext(file)[0])
            if name in here:
                problems.append(
                    f"{folder}: {here[name]} and {file} have the same name; rename one of them"
                )
            here[name] = file
        result = {name: os.path.join(folder, file) for name, file in here.items()} | result
    return result, problems


def find_others(root: Path, patterns: Iterable[str]) -> list[str]:
    """The files of other types in the folders that `find_files` searches, except in the root, which holds other things too."""
    listed = [_list_files(root, pattern) for pattern in patterns]
    return [
        f"{folder.name}/{file}" for folder, _, others in listed if folder != root for file in others
    ]


def _list_files(root: Path, pattern: str) -> tuple[Path, list[str], list[str]]:
    """The folder of a pattern, and the names of its visible files, sorted: those that match, and the others."""
    folder, ending = (root / pattern).parent, Path(pattern).name.removeprefix("{}")
    endings = IMAGE_TYPES if ending == ".*" else (ending,)
    try:
        with os.scandir(folder) as samples:
            files = sorted(
                sample.name
                for sample in samples
                if not sample.name.startswith(".") and sample.is_file()
            )
    except (FileNotFoundError, NotADirectoryError):
        files = []
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror}); correct the dataset root"
        ) from None
    matching, others = [], []
    for file in files:
        (matching if os.path.splitext(file)[1].lower() in endings else others).append(file)
    return folder, matching, others
