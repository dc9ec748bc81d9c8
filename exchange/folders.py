"""Folders of images: those of each class, and the images that an annotation names."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.annotations import IMAGE_TYPES, sample_name, to_nfc
from errors import InputError

from .instances import AnnotatedImage, Annotations, Instance


def list_images(folder: Path) -> list[Path]:
    """The images in a folder or below it, sorted; hidden files and folders are left out."""
    images = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if path.suffix.lower() in IMAGE_TYPES and not is_hidden:
            images.append(path)
    return images


def read_folders(folder: Path, images: Sequence[Path]) -> Annotations:
    """Images in a folder for each class; those directly in `folder` have no class."""
    files = [path.relative_to(folder) for path in images if path.parent != folder]
    class_names = sorted({file.parts[0] for file in files})
    annotated = []
    for file in files:
        class_id = class_names.index(file.parts[0]) + 1
        annotated.append(AnnotatedImage(file.as_posix(), None, [Instance(class_id)]))
    return Annotations(class_names, annotated)


@dataclass(frozen=True)
class ImportedImage:
    """An annotated image that is there, and its new name."""

    name: str
    path: Path
    annotated: AnnotatedImage


def find_annotated(
    annotated: Sequence[AnnotatedImage], images: Sequence[Path], folder: Path, source: Path
) -> list[ImportedImage]:
    """Find each annotated image among `images`, which lie below `folder`, by its path or name.

    Images of the same name in several folders are named by their paths. Raises InputError, which
    names the `source`, for an annotated image that is not there, or is there or listed twice.
    """
    paths_of = _index(images, folder)
    matches = [_match(image.file, paths_of) for image in annotated]
    stems = collections.Counter(paths[0].stem for paths in matches if paths)
    imported: dict[str, ImportedImage] = {}
    for image, paths in zip(annotated, matches):
        name = None
        if len(paths) == 1:
            (path,) = paths
            name = _new_name(path, folder, is_unique=stems[path.stem] == 1)
        if name is None or name in imported:
            raise InputError(
                f"{source}: its image '{image.file}' is not below {folder}, or is there or listed"
                " twice; pass --images"
            )
        imported[name] = ImportedImage(name, path, image)
    return list(imported.values())


def _index(images: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """The images by all that an annotation may call them: path below the folder, name, stem."""
    paths_of = collections.defaultdict(list)
    for path in images:
        aliases = {path.relative_to(folder).as_posix(), path.name, path.stem}
        for alias in aliases:
            paths_of[to_nfc(alias)].append(path)
    return paths_of


def _match(file: str, paths_of: dict[str, list[Path]]) -> list[Path]:
    """The images that an annotation's path names: by the whole of it, or else by its last part."""
    file = to_nfc(file).replace("\\", "/")
    file_name = file.rpartition("/")[2]
    return paths_of.get(file) or paths_of.get(file_name, [])


def _new_name(path: Path, folder: Path, is_unique: bool) -> str:
    if is_unique:
        return sample_name(path.name)
    return sample_name("_".join(path.relative_to(folder).parts))
