"""The text files of every dataset, each with one reader: class names, lists of pictures, the tag table, VOC's annotations."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from errors import InputError

PICTURE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MOST_CLASSES = 254  # besides the background and the ignore label 255

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")  # line breaks and other things that no name has

Complain = Callable[[str], None]  # takes a problem in one line; what it is about is then left out


def refuse(problem: str) -> None:
    """The complaint that ends a command."""
    raise InputError(problem)


def plain_name(text: str) -> str:
    """A picture's name as all of the project spells it: without the ending of its file type, in Unicode's composed form."""
    name = composed(text.strip())
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in PICTURE_TYPES else name


def composed(text: str) -> str:
    """Text in Unicode's composed form: what looks the same is the same, wherever it was typed."""
    return unicodedata.normalize("NFC", text)


def leaves_folder(text: str) -> bool:
    """Whether a name or a relative path could lie outside of its folder, here or on another system."""
    return (".." in text and ".." in PurePosixPath(text).parts) or "\\" in text or "\0" in text


def read_lines(path: Path, cure: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number; UTF-8 with or without BOM, any line ends.

    Raises InputError, which ends in `cure`, where it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); {cure}") from None
    return [(number, composed(line.strip())) for number, line in enumerate(lines, 1) if line.strip()]


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names of a text file, one a line, with the background put first. Raises InputError for names that cannot serve."""
    names = [line for _, line in read_lines(path, "write one class name a line, without 'background'")]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice:
        raise InputError(f"{path}: class '{twice}' stands twice; keep one of the lines")
    if not 1 <= len(names) <= MOST_CLASSES or any(name.lower() == "background" or ";" in name for name in names):
        raise InputError(f"{path}: write 1 to {MOST_CLASSES} class names, one a line, without 'background' and semicolons")
    return ("background", *names)


class TagTable(NamedTuple):
    """The image-level tags of many pictures."""

    row: dict[str, int]  # a picture's name -> its row
    line: list[int]  # where each row stands in the file
    labels: np.ndarray  # (rows, K-1) uint8 0/1

    def labels_of(self, names: Iterable[str], path: Path, complain: Complain = refuse) -> np.ndarray:
        """Image-level labels (names, K-1) float32 0/1 of some pictures, from the table at `path`. Complains of one without a tag."""
        names = list(names)
        none = np.zeros((1, self.labels.shape[1]), np.uint8)
        labels = np.concatenate([self.labels, none])[[self.row.get(name, -1) for name in names]]
        for i in np.flatnonzero(~labels.any(1)):
            complain(f"{path}: picture {names[i]} has no tag; tag it or leave it out")
        return labels.astype(np.float32)


def read_tags(path: Path, class_names: tuple[str, ...], complain: Complain = refuse) -> TagTable:
    """The tag table of a dataset: a CSV of name,class;class, with or without the heading name,classes.

    A name may end in its file type. Complains of rows of another form, of names that stand twice or leave the folder, and of tags
    that are no classes; raises InputError where the file cannot be read.
    """
    row, line, labels = {}, [], []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)  # strict: a quote that is not closed would swallow the rest
            for fields in reader:
                where, fields = f"{path}, line {reader.line_num}", [composed(field.strip()) for field in fields]
                while fields and not fields[-1]:  # spreadsheets fill up with commas
                    fields.pop()
                if not fields or (not row and fields[0].lower() == "name"):
                    continue
                name, text = plain_name(fields[0]), ",".join(fields)
                if len(fields) == 1 and ";" in name:
                    complain(f"{where}: its columns are separated by semicolons; save the table with commas between name and classes")
                elif not name or len(fields) > 2 or "/" in name or leaves_folder(name) or _CONTROL.search(text):
                    complain(f"{where}: expected name,class;class, not '{_CONTROL.sub(' ', text)}'; correct it")
                elif name in row:
                    complain(f"{where}: {name} stands twice; keep one of the lines, and give pictures different names")
                else:
                    tags = {tag.strip() for tag in "".join(fields[1:]).split(";")} - {""}
                    row[name] = len(labels)
                    line.append(reader.line_num)
                    labels.append(label_of(tags, class_names, where, complain))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: cannot be read ({error}); write name,class;class lines") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); write name,class;class lines in UTF-8") from None
    return TagTable(row, line, np.array(labels, np.uint8).reshape(len(labels), len(class_names) - 1))


def format_tags(rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The text of a tag table, from (name, tags) a picture."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("name", "classes"), *((name, ";".join(tags)) for name, tags in rows)])
    return text.getvalue()


def label_of(tags: set[str], class_names: tuple[str, ...], where: str, complain: Complain = refuse) -> np.ndarray:
    """(K-1,) uint8 0/1, the classes in a set of tags; complains of tags that are none."""
    for unknown in sorted(tags.difference(class_names[1:])):
        complain(f"{where}: tag '{unknown}' is not a class of the dataset; correct the tag or the class list")
    return np.array([name in tags for name in class_names[1:]], np.uint8)


def read_annotation(path: Path) -> set[str]:
    """The names of the objects in a VOC annotation. Raises InputError for a missing or unreadable one."""
    try:
        return {element.text.strip() for element in ElementTree.parse(path).iterfind("object/name") if element.text}
    except OSError:
        raise InputError(
            f"{path}: the picture's annotation is missing, so it has no tag; add it or take the picture off the list"
        ) from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding that nobody knows
        raise InputError(f"{path}: not a readable annotation ({error}); replace it") from None


def find_files(root: Path, patterns: Iterable[str], complain: Complain = refuse) -> dict[str, str]:
    """All files of some patterns, by picture name; a folder is listed once, instead of asking for one file after the other.

    patterns: FOLDER/{}.ending in small or capital letters, where .* stands for every type of picture; earlier ones win, and the root itself
    counts only where they find nothing. Hidden files do not count. Complains of two files of one name.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        folder, wanted = os.path.split(root / pattern)
        if found and Path(folder) == root:
            continue
        wanted, here = wanted.removeprefix("{}"), {}
        for file in _files_in(folder):
            stem, ending = os.path.splitext(file)
            if ending.lower() in endings_of(wanted):
                name = composed(stem)
                if name in here:
                    complain(f"{folder}: {here[name]} and {file} have one name; rename one of them")
                here[name] = file
        found = {name: os.path.join(folder, file) for name, file in here.items()} | found
    return found


def find_others(root: Path, patterns: Iterable[str]) -> list[str]:
    """The files that lie where `find_files` looks and are of no type that it reads; not in the root, which holds other things."""
    found = []
    for pattern in patterns:
        folder, wanted = os.path.split(root / pattern)
        if Path(folder) != root:
            files = [file for file in _files_in(folder) if os.path.splitext(file)[1].lower() not in endings_of(wanted.removeprefix("{}"))]
            found += [os.path.join(os.path.basename(folder), file) for file in files]
    return found


def endings_of(wanted: str) -> tuple[str, ...]:
    """The endings of file names that a pattern's ending stands for."""
    return PICTURE_TYPES if wanted == ".*" else (wanted,)


def _files_in(folder: str) -> Iterator[str]:
    """The names of the files in a folder, in order and without hidden ones; none where there is no such folder."""
    try:
        with os.scandir(folder or ".") as found:
            return iter(sorted(one.name for one in found if not one.name.startswith(".") and one.is_file()))
    except (FileNotFoundError, NotADirectoryError):
        return iter(())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); correct the dataset root") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
