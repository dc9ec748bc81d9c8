"""Datasets as values: what tells one kind from another is a DatasetSpec; how they are read is the same for all."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import InputError

from . import tables
from .entries import Entries
from .tables import Complain, refuse

HERE = Path(__file__).parent
TAGS = "tags.csv"  # the tag table below every root
TAGGED, MASKED = "tagged", "masked"  # lists that need no file


@dataclass(frozen=True)
class DatasetSpec:
    """A kind of dataset. Paths are relative to its root; {} stands for a picture's or a list's name, .* for any type of picture."""

    name: str
    roots: tuple[str, ...]  # where its root may lie below the folder that is given
    marker: str  # what every root holds
    classes: str | Path  # class names, one a line, without the background
    pictures: tuple[str, ...]  # the first that exists counts
    masks: tuple[str, ...]  # that evaluation reads; the first that exists counts
    list_file: str
    train_list: str  # what training and CAMs use by default
    eval_list: str  # what the evaluation of maps and pseudo labels uses by default
    val_list: str  # what the segmentation network is tried on by default
    advice: str  # how to get it, for someone who lacks it
    annotation: str | None = None  # holds a picture's tags where there is no tag table


VOC = DatasetSpec(
    name="voc",
    roots=("", "VOC2012", "VOCdevkit/VOC2012"),
    marker="JPEGImages",
    classes=HERE / "voc_classes.txt",
    pictures=("JPEGImages/{}.jpg",),
    masks=("SegmentationClass/{}.png", "SegmentationClassAug/{}.png"),
    list_file="ImageSets/Segmentation/{}.txt",
    train_list="train_aug",
    eval_list="train",
    val_list="val",
    annotation="Annotations/{}.xml",
    advice="python data/prepare_voc.py --root DIR unpacks VOCtrainval_11-May-2012.tar from DIR, with --download also from the net",
)

COCO = DatasetSpec(
    name="coco",
    roots=("",),
    marker="train2014",
    classes=HERE / "coco_classes.txt",
    pictures=("train2014/{}.jpg", "val2014/{}.jpg"),
    masks=("masks/{}.png",),
    list_file="{}.txt",
    train_list="train",
    eval_list="train",
    val_list="val",
    advice="unpack train2014.zip, val2014.zip and annotations_trainval2014.zip into one folder, "
    "and let python data/prepare_coco.py --root DIR prepare it",
)

FOLDER = DatasetSpec(
    name="folder",
    roots=("",),
    marker="classes.txt",
    classes="classes.txt",
    pictures=("images/{}.*", "{}.*"),
    masks=("masks/{}.png",),
    list_file="{}.txt",
    train_list=TAGGED,
    eval_list=MASKED,
    val_list=MASKED,
    advice="write classes.txt (one class a line) and tags.csv (name,class;class), and put the pictures into images/",
)

DATASETS = {spec.name: spec for spec in (VOC, COCO, FOLDER)}


def open_dataset(name: str, root: str | Path) -> "Dataset":
    """The dataset of a kind (a key of DATASETS) at a root. Raises InputError where the root does not hold it."""
    spec, root = DATASETS[name], Path(root)
    below = find_root(spec, root)
    if below is None:
        elsewhere = f", nor in {' or '.join(spec.roots[1:])} below it" if spec.roots[1:] else ""
        raise InputError(f"{root}: there is no {spec.marker} here{elsewhere}, so this is no '{name}' dataset; {spec.advice}")
    return Dataset(spec, below, tables.read_classes(below / spec.classes))


def find_root(spec: DatasetSpec, root: Path) -> Path | None:
    """Where a dataset lies at or below a folder; None where there is none."""
    return next((root / folder for folder in spec.roots if os.path.exists(root / folder / spec.marker)), None)


@dataclass(frozen=True)
class Dataset:
    """A DatasetSpec at a root."""

    spec: DatasetSpec
    root: Path
    class_names: tuple[str, ...]  # background first

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.class_names)

    def entries(self, list_name: str, complain: Complain = refuse) -> Entries:
        """The pictures of a list: the name of one of the dataset's own, the path of a text file, or what needs no file: "tagged", all
        that have a tag in the tag table, and "masked", those of them that have a mask.

        A line is a picture's name, or a picture's and a mask's path under the root (/JPEGImages/x.jpg /SegmentationClassAug/x.png).
        Complains of a name twice, a path that leaves the root, a missing picture; raises InputError for a missing or empty list.
        """
        pictures, masks = (tables.find_files(self.root, patterns, complain) for patterns in (self.spec.pictures, self.spec.masks))

        def found() -> Iterator[tuple[str, str, str]]:
            seen = set()
            for where, line in self._lines(list_name, masks, complain):
                entry = self._entry(line, where, pictures, masks, complain)
                if entry and entry[0] in seen:
                    complain(f"{where}: {entry[0]} stands twice; keep one of the lines")
                elif entry:
                    seen.add(entry[0])
                    yield entry

        return Entries.of(found())

    def labels(self, entries: Entries, complain: Complain = refuse) -> np.ndarray:
        """Image-level labels (len(entries), K-1) float32 0/1. Complains of a picture without a tag, and of tags that are no classes."""
        if not self._has_table:
            return np.array([self._annotated(name, complain) for name in entries.names()], np.float32)
        return self.tag_table(complain).labels_of(entries.names(), self.root / TAGS, complain)

    def tag_table(self, complain: Complain = refuse) -> tables.TagTable:
        """All that the tag table holds. Raises InputError where there is none."""
        return tables.read_tags(self.root / TAGS, self.class_names, complain)

    def digest(self, entries: Entries, labels: bytes) -> str:
        """Tells one set of pictures, tags and classes from another: the SHA-256 of their names and of what stands for the labels."""
        names = "\n".join([*self.class_names, "", *entries.names()])
        return hashlib.sha256(names.encode() + labels).hexdigest()

    @property
    def _has_table(self) -> bool:
        return self.spec.annotation is None or os.path.isfile(self.root / TAGS)

    def _annotated(self, name: str, complain: Complain) -> np.ndarray:
        """(K-1,) uint8 0/1, the classes in a picture's annotation."""
        path, tags = self.root / self.spec.annotation.format(name), set()
        try:
            tags = tables.read_annotation(path)
            if not tags:
                raise InputError(f"{path}: picture {name} has no tag; tag it or take it off the list")
        except InputError as error:
            complain(str(error))
        return tables.label_of(tags, self.class_names, str(path), complain)

    def _lines(self, list_name: str, masks: dict[str, str], complain: Complain) -> list[tuple[str, str]]:
        """(where it stands, line) of a list."""
        if list_name in (TAGGED, MASKED):
            table, path = self.tag_table(complain), self.root / TAGS
            lines = [(f"{path}, line {table.line[row]}", name) for name, row in table.row.items() if table.labels[row].any()]
            if not lines:
                raise InputError(f"{path}: no picture has a tag; {self.spec.advice}")
            lines = [(where, name) for where, name in lines if list_name == TAGGED or name in masks]
            if not lines:
                raise InputError(
                    f"{self.root / self.spec.masks[0].format('*')}: no tagged picture has a mask, so nothing can be evaluated; add some"
                )
            return lines
        path = self._list_path(list_name)
        lines = [(f"{path}, line {number}", line) for number, line in tables.read_lines(path, "give --list another one")]
        if not lines:
            raise InputError(f"{path}: the list is empty; write one picture name a line")
        return lines

    def _list_path(self, list_name: str) -> Path:
        own = self.root / self.spec.list_file.format(list_name)
        if not list_name.startswith("/") and ".." not in list_name and os.path.isfile(own):
            return own
        if os.path.isfile(list_name):
            return Path(list_name)
        looked_for = list_name if "/" in list_name else f"{own}, or a file {list_name}"
        raise InputError(f"{looked_for}: there is no such list; give --list a name or a text file")

    def _entry(
        self, line: str, where: str, pictures: dict[str, str], masks: dict[str, str], complain: Complain
    ) -> tuple[str, str, str] | None:
        fields = line.split()
        is_pair = len(fields) == 2 and all("/" in field for field in fields)
        leaving = next((field for field in (fields if is_pair else [line]) if tables.leaves_folder(field)), None)
        if leaving:
            return complain(f"{where}: {leaving} leaves the dataset's folder; write plain picture names")
        if is_pair:
            picture, mask = (os.path.join(self.root, field.lstrip("/")) for field in fields)
            name, is_there = tables.plain_name(os.path.basename(picture)), os.path.isfile(picture)
        elif "/" in line:
            return complain(f"{where}: expected a picture name, or a picture's and a mask's path, not '{line}'; correct the line")
        else:
            name = line if line in pictures else tables.plain_name(line)
            picture, mask = (
                files.get(name) or os.path.join(self.root, usual.format(name))
                for files, usual in ((pictures, self.spec.pictures[0]), (masks, self.spec.masks[0]))
            )
            is_there = name in pictures
        if not is_there:
            types = f" ({', '.join(tables.PICTURE_TYPES)})" if picture.endswith(".*") else ""
            return complain(f"{where}: there is no picture {picture.removesuffix('.*')}{types}; correct the list or the dataset root")
        return name, picture, mask
