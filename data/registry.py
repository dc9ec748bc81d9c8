"""Datasets as values: a DatasetSpec says what one kind has of its own; all kinds are read in the same way."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import InputError

from . import annotations
from .annotations import TagTable, rows_or_raise

HERE = Path(__file__).parent
TAGS = "tags.csv"  # the tag table in every root
TAGGED, MASKED = "tagged", "masked"  # lists that need no file


@dataclass(frozen=True)
class DatasetSpec:
    """A kind of dataset. Paths are relative to its root; {} stands for the name of an image or a list, .* for any type of image."""

    name: str
    roots: tuple[str, ...]  # where its root may lie below the folder that is given
    marker: str  # what every root holds
    classes: str | Path  # class names, one per line, without the background
    images: tuple[str, ...]  # the first that exists counts
    masks: tuple[str, ...]  # that evaluation reads; the first that exists counts
    list_file: str
    train_list: str  # default of training and CAMs
    eval_list: str  # default of the evaluation of maps and pseudo labels
    val_list: str  # default of the evaluation of the segmentation network
    advice: str  # how to get the dataset
    annotation: str | None = None  # holds an image's tags if there is no tag table


VOC = DatasetSpec(
    name="voc",
    roots=("", "VOC2012", "VOCdevkit/VOC2012"),
    marker="JPEGImages",
    classes=HERE / "voc_classes.txt",
    images=("JPEGImages/{}.jpg",),
    masks=("SegmentationClass/{}.png", "SegmentationClassAug/{}.png"),
    list_file="ImageSets/Segmentation/{}.txt",
    train_list="train_aug",
    eval_list="train",
    val_list="val",
    annotation="Annotations/{}.xml",
    advice="python prepare_voc.py --root DIR unpacks VOCtrainval_11-May-2012.tar in DIR, and with --download downloads it first",
)

COCO = DatasetSpec(
    name="coco",
    roots=("",),
    marker="train2014",
    classes=HERE / "coco_classes.txt",
    images=("train2014/{}.jpg", "val2014/{}.jpg"),
    masks=("masks/{}.png",),
    list_file="{}.txt",
    train_list="train",
    eval_list="train",
    val_list="val",
    advice="unpack train2014.zip, val2014.zip and annotations_trainval2014.zip into one folder, then run python prepare_coco.py --root DIR",
)

FOLDER = DatasetSpec(
    name="folder",
    roots=("",),
    marker="classes.txt",
    classes="classes.txt",
    images=("images/{}.*", "{}.*"),
    masks=("masks/{}.png",),
    list_file="{}.txt",
    train_list=TAGGED,
    eval_list=MASKED,
    val_list=MASKED,
    advice="write classes.txt (one class per line) and tags.csv (name,class;class), and put the images into images/",
)

DATASETS = {spec.name: spec for spec in (VOC, COCO, FOLDER)}


class Sample(NamedTuple):
    """An image of a list: its name, its file, and the file of its true mask, which need not exist."""

    name: str
    image: Path
    mask: Path


class Samples(Sequence[Sample]):
    """The images of a list: three numpy arrays of strings, which forked workers share, as reading them counts no references."""

    def __init__(self, columns: Iterable[np.ndarray]):
        self._columns = tuple(columns)  # names, images, masks

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str]]) -> "Samples":
        """From (name, path of the image, path of the mask) of each image."""
        rows = list(rows)
        return cls(np.array([row[i] for row in rows], str) for i in range(3))

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(column[index] for column in self._columns)
        name, image, mask = (column.item(index) for column in self._columns)
        return Sample(name, Path(image), Path(mask))

    def select(self, indices: Sequence[int]) -> "Samples":
        """The samples at these indices, in this order."""
        return Samples(column[np.asarray(indices, int)] for column in self._columns)

    def names(self) -> list[str]:
        return self._columns[0].tolist()


def open_dataset(name: str, root: str | Path) -> "Dataset":
    """The dataset of a kind (a key of DATASETS) at a root. Raises InputError if it is not there."""
    spec, root = DATASETS[name], Path(root)
    below = find_root(spec, root)
    if below is None:
        raise InputError(
            f"{root}: holds no '{name}' dataset, as there is no {spec.marker}; {spec.advice}"
        )
    return Dataset(spec, below, annotations.read_classes(below / spec.classes))


def find_root(spec: DatasetSpec, root: Path) -> Path | None:
    """The root of a dataset in a folder or below it; None if there is none."""
    return next(
        (root / folder for folder in spec.roots if os.path.exists(root / folder / spec.marker)),
        None,
    )


@dataclass(frozen=True)
class Dataset:
    """A DatasetSpec at a root."""

    spec: DatasetSpec
    root: Path
    class_names: tuple[str, ...]  # background first

    @property
    def num_classes(self) -> int:
        """K, with the background."""
        return len(self.class_names)

    @property
    def origin(self) -> dict[str, str]:
        """The flags --dataset and --dataset_root that open it from any folder."""
        return {"dataset": self.spec.name, "dataset_root": str(self.root.resolve())}

    def samples(self, list_name: str) -> Samples:
        """The images of a list. Raises InputError for the first problem that `read_samples` finds."""
        return rows_or_raise(self.read_samples(list_name))

    def read_samples(self, list_name: str) -> tuple[Samples, list[str]]:
        """Read a list: one of the dataset's own by its name, any text file by its path, or "tagged" (all images with a tag in the tag
        table) or "masked" (those of them with a mask).

        A line is an image's name, or the paths of an image and its mask below the root (/JPEGImages/x.jpg /SegmentationClassAug/x.png).
        Problems are names that occur twice, paths that leave the root, missing images. Raises InputError for a missing or empty list.
        """
        images, problems = annotations.find_files(self.root, self.spec.images)
        masks, of_masks = annotations.find_files(self.root, self.spec.masks)
        lines, of_lines = self._read_lines(list_name, masks)
        problems += of_masks + of_lines
        rows: dict[str, tuple[str, str, str]] = {}
        for where, line in lines:
            try:
                name, image, mask = self._find_files(line, images, masks)
                if name in rows:
                    raise InputError(f"{name} occurs twice; keep one of the lines")
                rows[name] = (name, image, mask)
            except InputError as error:
                problems.append(f"{where}: {error}")
        return Samples.of(rows.values()), problems

    def tags(self, samples: Samples) -> np.ndarray:
        """Image-level labels (N, K-1) float32 0/1. Raises InputError for the first problem that `read_tags` finds."""
        return rows_or_raise(self.read_tags(samples))

    def read_tags(self, samples: Samples) -> tuple[np.ndarray, list[str]]:
        """Read the image-level labels (N, K-1) float32 0/1; problems are images without a tag, and tags that are no classes."""
        if self._has_table:
            table, problems = self.tag_table()
            labels, untagged = table.tags_of(samples.names(), self.root / TAGS)
            return labels, problems + untagged
        labels, problems = np.zeros((len(samples), self.num_classes - 1), np.float32), []
        for i, name in enumerate(samples.names()):
            path = self.tag_file(name)
            try:
                labels[i], unknown = annotations.encode_tags(
                    annotations.read_annotation(path), self.class_names, str(path)
                )
                problems += unknown
                if not unknown and not labels[i].any():
                    problems.append(
                        f"{path}: image {name} has no tag; tag it or remove it from the list"
                    )
            except InputError as error:
                problems.append(str(error))
        return labels, problems

    def tag_table(self) -> tuple[TagTable, list[str]]:
        """The whole tag table, and its problems. Raises InputError if there is none."""
        return annotations.read_tag_table(self.root / TAGS, self.class_names)

    def tag_file(self, name: str) -> Path:
        """The file that holds an image's tags."""
        return self.root / (TAGS if self._has_table else self.spec.annotation.format(name))

    def digest(self, samples: Samples, labels: bytes) -> str:
        """SHA-256 of the class names, the images' names and their labels: it differs if one of them does."""
        names = "\n".join([*self.class_names, "", *samples.names()])
        return hashlib.sha256(names.encode() + labels).hexdigest()

    @property
    def _has_table(self) -> bool:
        return self.spec.annotation is None or os.path.isfile(self.root / TAGS)

    def _read_lines(
        self, list_name: str, masks: dict[str, str]
    ) -> tuple[list[tuple[str, str]], list[str]]:
        """(file and line number, text) of the lines of a list, and the problems of the tag table if they come from it."""
        if list_name not in (TAGGED, MASKED):
            own = self.root / self.spec.list_file.format(list_name)
            path = own if "/" not in list_name and os.path.isfile(own) else Path(list_name)
            lines = annotations.read_lines(
                path, f"give --list a text file, or the name of a list such as {own}"
            )
            if not lines:
                raise InputError(f"{path}: the list is empty; write one image name per line")
            return [(f"{path}, line {number}", line) for number, line in lines], []
        (table, problems), path = self.tag_table(), self.root / TAGS
        tagged = [
            (f"{path}, line {table.line[row]}", name)
            for name, row in table.row.items()
            if table.tags[row].any()
        ]
        lines = [(where, name) for where, name in tagged if list_name == TAGGED or name in masks]
        if not lines:
            wanted = (
                f"a tag and a mask ({self.root / self.spec.masks[0].format('*')})"
                if tagged
                else "a tag"
            )
            raise InputError(f"{path}: no image has {wanted}; {self.spec.advice}")
        return lines, problems

    def _find_files(
        self, line: str, images: dict[str, str], masks: dict[str, str]
    ) -> tuple[str, str, str]:
        """(name, path of the image, path of the mask) for a line of a list. Raises InputError, without the line number."""
        fields = line.split()
        is_pair = len(fields) == 2 and all("/" in field for field in fields)
        if any(annotations.escapes_folder(text) for text in (fields if is_pair else [line])):
            raise InputError(f"{line} leaves the dataset's folder; write plain image names")
        if is_pair:
            image, mask = (os.path.join(self.root, field.lstrip("/")) for field in fields)
            name, exists = annotations.sample_name(os.path.basename(image)), os.path.isfile(image)
        elif "/" in line:
            raise InputError(
                f"expected an image name, or the paths of an image and a mask, not '{line}'; correct the line"
            )
        else:
            name = line if line in images else annotations.sample_name(line)
            image = images.get(name) or os.path.join(self.root, self.spec.images[0].format(name))
            mask = masks.get(name) or os.path.join(self.root, self.spec.masks[0].format(name))
            exists = name in images
        if not exists:
            raise InputError(f"there is no image {image}; correct the list or the dataset root")
        return name, image, mask
