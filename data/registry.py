"""Datasets as values: class names, where pictures, masks and lists lie, and how the image-level tags are read."""

import csv
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from errors import InputError

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class DatasetSpec:
    """A kind of dataset. Paths are relative to its root; {} stands for a picture's or a list's name."""

    name: str
    class_names: tuple[str, ...]  # background first
    picture: str
    mask: str  # the masks that evaluation reads
    list_file: str
    train_list: str  # what training and CAMs use by default
    eval_list: str  # what evaluation uses by default
    read_tags: Callable[["Dataset", list[str]], list[set[str]]]
    advice: str  # how to get it, for someone who lacks it


@dataclass(frozen=True)
class Entry:
    """One line of a list: a picture's name, the picture and the mask (which need not exist)."""

    name: str
    picture: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """A DatasetSpec at a root."""

    spec: DatasetSpec
    root: Path

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.spec.class_names

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.spec.class_names)

    def entries(self, list_name: str) -> list[Entry]:
        """The pictures of a list: the name of one of the dataset's own lists, or the path of a text file.

        A line is a picture's name, or a picture's and a mask's path under the root (/JPEGImages/x.jpg /SegmentationClassAug/x.png).
        Raises InputError for a missing or empty list, a name twice, a path that leaves the root, or a missing picture.
        """
        path = self._list_path(list_name)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: the list cannot be read ({error}); give --list another one") from None
        numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        if not numbered:
            raise InputError(f"{path}: the list is empty; write one picture name a line")
        entries, seen = [], set()
        for number, line in numbered:
            entry = self._entry(line, f"{path}, line {number}")
            if entry.name in seen:
                raise InputError(f"{path}, line {number}: {entry.name} stands twice; keep one of the lines")
            if not os.path.isfile(entry.picture):
                raise InputError(f"{path}, line {number}: there is no picture {entry.picture}; correct the list or the dataset root")
            seen.add(entry.name)
            entries.append(entry)
        return entries

    def labels(self, entries: list[Entry]) -> np.ndarray:
        """Image-level labels (len(entries), K-1) float32 0/1. Raises InputError for a picture without a tag."""
        labels = np.zeros((len(entries), self.num_classes - 1), np.float32)
        column = {name: i for i, name in enumerate(self.class_names[1:])}
        for row, entry, tags in zip(labels, entries, self.spec.read_tags(self, [e.name for e in entries])):
            unknown = tags - column.keys()
            if unknown:
                raise InputError(f"{entry.name}: tag '{min(unknown)}' is not a class of the dataset; correct the tag or the class list")
            if not tags:
                raise InputError(f"{entry.name}: has no tag; tag it or take it off the list")
            row[[column[tag] for tag in tags]] = 1
        return labels

    def digest(self, entries: list[Entry], labels: bytes) -> str:
        """Tells one set of pictures, tags and classes from another: the SHA-256 of their names and of what stands for the labels."""
        names = "\n".join([*self.class_names, "", *(entry.name for entry in entries)])
        return hashlib.sha256(names.encode() + labels).hexdigest()

    def _list_path(self, list_name: str) -> Path:
        own = self.root / self.spec.list_file.format(list_name)
        if not list_name.startswith("/") and ".." not in list_name and os.path.isfile(own):
            return own
        if os.path.isfile(list_name):
            return Path(list_name)
        raise InputError(f"{own}: there is no such list, nor a file {list_name}; give --list a name or a text file")

    def _entry(self, line: str, where: str) -> Entry:
        fields = line.split()
        is_pair = len(fields) == 2 and all("/" in field for field in fields)
        for field in fields if is_pair else [line]:
            if ".." in PurePosixPath(field).parts or "\\" in field or "\0" in field:
                raise InputError(f"{where}: {field} leaves the dataset's folder; write plain picture names")
        if is_pair:
            picture, mask = (self.root / field.lstrip("/") for field in fields)
            return Entry(picture.stem, picture, mask)
        if "/" in line:
            raise InputError(f"{where}: expected a picture name, or a picture's and a mask's path, not '{line}'; correct the line")
        return Entry(line, self.root / self.spec.picture.format(line), self.root / self.spec.mask.format(line))


def open_dataset(name: str, root: str | Path) -> Dataset:
    """The dataset of a kind (a key of DATASETS) at a root. Raises InputError where the root does not hold it."""
    root = Path(root)
    return DATASETS[name](root)


def _open_voc(root: Path) -> Dataset:
    below = next((p for p in (root, root / "VOC2012", root / "VOCdevkit/VOC2012") if os.path.isdir(p / "JPEGImages")), None)
    if below is None:
        raise InputError(f"{root}: no VOC 2012 here (looked for JPEGImages in it, in VOC2012 and in VOCdevkit/VOC2012); {VOC.advice}")
    return Dataset(VOC, below)


def _voc_tags(dataset: Dataset, names: list[str]) -> list[set[str]]:
    """The object names of each picture's annotation."""
    tags = []
    for name in names:
        path = dataset.root / "Annotations" / f"{name}.xml"
        try:
            tags.append({element.text.strip() for element in ElementTree.parse(path).iterfind("object/name") if element.text})
        except OSError:
            raise InputError(
                f"{path}: the picture's annotation is missing, so it has no tag; add it or take the picture off the list"
            ) from None
        except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding that nobody knows
            raise InputError(f"{path}: not a readable annotation ({error}); replace it") from None
    return tags


VOC = DatasetSpec(
    name="voc",
    class_names=VOC_CLASSES,
    picture="JPEGImages/{}.jpg",
    mask="SegmentationClass/{}.png",
    list_file="ImageSets/Segmentation/{}.txt",
    train_list="train_aug",
    eval_list="train",
    read_tags=_voc_tags,
    advice="unpack VOCtrainval_11-May-2012.tar there, and make ImageSets/Segmentation/train_aug.txt as README says",
)


def _open_folder(root: Path) -> Dataset:
    """A person's own pictures: images/, classes.txt (one a line, without background), tags.csv (name,class;class), masks/."""
    path = root / "classes.txt"
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {FOLDER.advice}") from None
    if not names or len(set(names)) < len(names) or "background" in names or len(names) > 254:
        raise InputError(f"{path}: write 1 to 254 different class names, one a line, without 'background'")
    return Dataset(replace(FOLDER, class_names=("background", *names)), root)


def _folder_tags(dataset: Dataset, names: list[str]) -> list[set[str]]:
    path = dataset.root / "tags.csv"
    rows = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                if len(row) != 2 or row[0].strip() in rows:
                    raise InputError(
                        f"{path}, line {number}: expected name,class;class with each name once, not '{','.join(row)}'; correct it"
                    )
                rows[row[0].strip()] = {tag.strip() for tag in row[1].split(";") if tag.strip()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {FOLDER.advice}") from None
    return [rows.get(name, set()) for name in names]


FOLDER = DatasetSpec(
    name="folder",
    class_names=("background",),
    picture="images/{}.jpg",
    mask="masks/{}.png",
    list_file="{}.txt",
    train_list="train",
    eval_list="train",
    read_tags=_folder_tags,
    advice="it needs images/, classes.txt, tags.csv (name,class;class) and train.txt (one name a line)",
)

DATASETS: dict[str, Callable[[Path], Dataset]] = {"voc": _open_voc, "folder": _open_folder}
