"""Datasets as values: a DatasetSpec says what is special about one kind; all are read alike."""

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

# lists that need no file
TAGGED = "tagged"  # all images with a tag in the tag table
MASKED = "masked"  # those of them with a mask


@dataclass(frozen=True)
class DatasetSpec:
    """A kind of dataset.

    Paths are relative to its root; {} stands for the name of an image or a list, .* for any type of
    image.
    """

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
    advice=(
        "python prepare_voc.py --root DIR unpacks VOCtrainval_11-May-2012.tar in DIR, "
        "and with --download downloads it first"
    ),
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
    advice=(
        "unpack train2014.zip, val2014.zip and annotations_trainval2014.zip into one folder, "
        "then run python prepare_coco.py --root DIR"
    ),
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
    advice=(
        "write classes.txt (one class per line) and tags.csv (name,class;class), "
        "and put the images into images/"
    ),
)

DATASETS = {spec.name: spec for spec in (VOC, COCO, FOLDER)}


class Sample(NamedTuple):
    """An image of a list.

    Its mask is the true one, which evaluation reads. It need not exist.
    """

    name: str
    image: Path
    mask: Path


class Samples(Sequence[Sample]):
    """The images of a list.

    It holds three numpy arrays of strings, which forked workers share, as reading them counts no
    references.
    """

    def __init__(self, columns: Iterable[np.ndarray]):
        self._columns = tuple(columns)  # names, images, masks

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str]]) -> "Samples":
        """From (name, path of the image, path of the mask) of each image."""
        rows = list(rows)
        names = [name for name, _, _ in rows]
        images = [image for _, image, _ in rows]
        masks = [mask for _, _, mask in rows]
        return cls(np.array(column, str) for column in (names, images, masks))

    def __len__(self) -> int:
        names = self._columns[0]
        return len(names)

    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(column[index] for column in self._columns)
        name, image, mask = (column.item(index) for column in self._columns)
        return Sample(name, Path(image), Path(mask))

    def select(self, indices: Sequence[int]) -> "Samples":
        """The samples at these indices, in this order."""
        indices = np.asarray(indices, int)
        return Samples(column[indices] for column in self._columns)

    def names(self) -> list[str]:
        names = self._columns[0]
        return names.tolist()


class _Files(NamedTuple):
    """The strings of a Sample: paths are made of them one at a time, as a list may have many."""

    name: str
    image: str
    mask: str


class _ListLine(NamedTuple):
    where: str  # file and line number
    text: str


def open_dataset(name: str, root: str | Path) -> "Dataset":
    """The dataset of a kind (a key of DATASETS) at a root. Raises InputError if it is not there."""
    spec = DATASETS[name]
    root = Path(root)
    below = find_root(spec, root)
    if below is None:
        raise InputError(
            f"{root}: holds no '{name}' dataset, as there is no {spec.marker}; {spec.advice}"
        )
    return Dataset(spec, below, annotations.read_classes(below / spec.classes))


def find_root(spec: DatasetSpec, root: Path) -> Path | None:
    """The root of a dataset in a folder or below it; None if there is none."""
    for below in spec.roots:
        if os.path.exists(root / below / spec.marker):
            return root / below
    return None


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
        """The images of a list. Raises InputError for the first problem of `read_samples`."""
        return rows_or_raise(self.read_samples(list_name))

    def read_samples(self, list_name: str) -> tuple[Samples, list[str]]:
        """Read a list of images.

        list_name: one of the dataset's own lists, the path of any text file, "tagged" (all images
        with a tag in the tag table) or "masked" (those of them with a mask).
        A line is an image's name, or the paths of an image and its mask below the root
        (/JPEGImages/x.jpg /SegmentationClassAug/x.png).

        Problems are names that occur twice, paths that leave the root, missing images.
        Raises InputError for a missing or empty list.
        """
        images, problems = annotations.find_files(self.root, self.spec.images)
        masks, of_masks = annotations.find_files(self.root, self.spec.masks)
        problems += of_masks
        if list_name in (TAGGED, MASKED):
            lines, of_lines = self._lines_of_tag_table(list_name, masks)
            problems += of_lines
        else:
            lines = self._lines_of_file(list_name)
        rows: dict[str, _Files] = {}
        for line in lines:
            try:
                files = self._find_files(line.text, images, masks)
            except InputError as error:
                problems.append(f"{line.where}: {error}")
                continue
            if files.name in rows:
                problems.append(f"{line.where}: {files.name} occurs twice; keep one of the lines")
            else:
                rows[files.name] = files
        return Samples.of(rows.values()), problems

    def tags(self, samples: Samples) -> np.ndarray:
        """The tags (N, K-1) float32 0/1. Raises InputError for the first problem of `read_tags`."""
        return rows_or_raise(self.read_tags(samples))

    def read_tags(self, samples: Samples) -> tuple[np.ndarray, list[str]]:
        """Read the image-level tags, (N, K-1) float32 0/1.

        Problems are images without a tag, and tags that are no classes.
        """
        if self._has_table:
            table, problems = self.tag_table()
            tags, untagged = table.tags_of(samples.names(), self.root / TAGS)
            return tags, problems + untagged
        tags = np.zeros((len(samples), self.num_classes - 1), np.float32)
        problems = []
        for i, name in enumerate(samples.names()):
            try:
                tags[i], of_image = self._read_annotation(name)
                problems += of_image
            except InputError as error:
                problems.append(str(error))
        return tags, problems

    def tag_table(self) -> tuple[TagTable, list[str]]:
        """The whole tag table, and its problems. Raises InputError if there is none."""
        return annotations.read_tag_table(self.root / TAGS, self.class_names)

    def tag_file(self, name: str) -> Path:
        """The file that holds an image's tags."""
        if self._has_table:
            return self.root / TAGS
        return self.root / self.spec.annotation.format(name)

    def digest(self, samples: Samples, truth: bytes) -> str:
        """SHA-256 of the names of classes and images, and of what a network learns of the images.

        truth: the bytes of their tags or targets.
        """
        names = "\n".join([*self.class_names, "", *samples.names()])
        return hashlib.sha256(names.encode() + truth).hexdigest()

    @property
    def _has_table(self) -> bool:
        return self.spec.annotation is None or os.path.isfile(self.root / TAGS)

    def _read_annotation(self, name: str) -> tuple[np.ndarray, list[str]]:
        """The tags (K-1,) of an image from its annotation, and their problems.

        Raises InputError if it cannot be read.
        """
        path = self.tag_file(name)
        objects = annotations.read_annotation(path)
        tags, problems = annotations.encode_tags(objects, self.class_names, str(path))
        if not problems and not tags.any():
            problems = [f"{path}: image {name} has no tag; tag it or remove it from the list"]
        return tags, problems

    def _lines_of_file(self, list_name: str) -> list[_ListLine]:
        """The lines of one of the dataset's lists, or else of a text file."""
        own = self.root / self.spec.list_file.format(list_name)
        path = Path(list_name)
        if "/" not in list_name and os.path.isfile(own):
            path = own
        lines = annotations.read_lines(
            path, f"give --list a text file, or the name of a list such as {own}"
        )
        if not lines:
            raise InputError(f"{path}: the list is empty; write one image name per line")
        return [_ListLine(f"{path}, line {number}", text) for number, text in lines]

    def _lines_of_tag_table(
        self, list_name: str, masks: dict[str, str]
    ) -> tuple[list[_ListLine], list[str]]:
        """The images of the list "tagged" or "masked" as lines, and the tag table's problems."""
        table, problems = self.tag_table()
        path = self.root / TAGS
        tagged = []
        for name, row in table.row.items():
            if table.tags[row].any():
                tagged.append(_ListLine(f"{path}, line {table.line[row]}", name))
        if not tagged:
            raise InputError(f"{path}: no image has a tag; {self.spec.advice}")
        if list_name == TAGGED:
            return tagged, problems
        masked = [line for line in tagged if line.text in masks]
        if not masked:
            mask = self.root / self.spec.masks[0].format("*")
            raise InputError(f"{path}: no image has a tag and a mask ({mask}); {self.spec.advice}")
        return masked, problems

    def _find_files(self, line: str, images: dict[str, str], masks: dict[str, str]) -> _Files:
        """The files of a line of a list. Raises InputError, without the line number."""
        fields = line.split()
        is_pair = len(fields) == 2 and all("/" in field for field in fields)
        paths = fields if is_pair else [line]
        if any(annotations.escapes_folder(path) for path in paths):
            raise InputError(f"{line} leaves the dataset's folder; write plain image names")
        if is_pair:
            files = self._files_of_pair(*fields)
            exists = os.path.isfile(files.image)
        else:
            files = self._files_of_name(line, images, masks)
            exists = files.name in images
        if not exists:
            raise InputError(
                f"there is no image {files.image}; correct the list or the dataset root"
            )
        return files

    def _files_of_pair(self, image: str, mask: str) -> _Files:
        """The files at the paths of an image and its mask below the root."""
        name = annotations.sample_name(os.path.basename(image))
        image = os.path.join(self.root, image.lstrip("/"))
        mask = os.path.join(self.root, mask.lstrip("/"))
        return _Files(name, image, mask)

    def _files_of_name(self, line: str, images: dict[str, str], masks: dict[str, str]) -> _Files:
        """The files of the image that a line names."""
        if "/" in line:
            raise InputError(
                "expected an image name, or the paths of an image and a mask, "
                f"not '{line}'; correct the line"
            )
        name = line if line in images else annotations.sample_name(line)
        image = images.get(name) or self._usual_path(self.spec.images, name)
        mask = masks.get(name) or self._usual_path(self.spec.masks, name)
        return _Files(name, image, mask)

    def _usual_path(self, patterns: tuple[str, ...], name: str) -> str:
        """Where an image or a mask would lie that does not exist."""
        return os.path.join(self.root, patterns[0].format(name))
