"""Files that a command writes into a folder of somebody else's: only what it wrote itself is ever replaced."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from errors import InputError

from . import files, label_file


class Ledger:
    """ROOT/prepared.json: the text files that a command wrote there, each with its SHA-256, and the folders that it filled."""

    def __init__(self, root: Path):
        self.root, self.path = root, root / "prepared.json"
        content = files.read_json(self.path) if self.path.is_file() else {}
        self.sums, self.folders = dict(content.get("files", {})), list(content.get("folders", []))

    def write(self, name: str, text: str) -> None:
        """Write a text file. Raises InputError where one of other content is there that is not the command's own."""
        path, content = self.root / name, text.encode()
        if path.is_file() and path.read_bytes() != content and _sum(path.read_bytes()) != self.sums.get(name):
            raise InputError(f"{path}: is to be written, but a file of another content and origin is there; move it away and run again")
        if self.sums.get(name) != _sum(content):
            self.sums[name] = _sum(content)
            self._save()
        if not path.is_file() or path.read_bytes() != content:
            with files.atomic_write(path) as temporary:
                temporary.write_bytes(content)

    def owns(self, name: str) -> bool:
        """Whether the label images in a folder are the command's own: it filled the folder from the start, or may do so now."""
        return name in self.folders or not any((self.root / name).glob("*.png"))

    def adopt(self, name: str) -> None:
        """Note a folder as the command's own."""
        if name not in self.folders:
            self.folders.append(name)
            self._save()

    def _save(self) -> None:
        files.write_json(self.path, {"files": self.sums, "folders": self.folders})


def place(path: Path, label: np.ndarray, is_own: bool) -> str | None:
    """Write a label image (H, W) uint8, unless somebody else's is there; then returns what is wrong with that, or None."""
    if is_own or not label_file.is_whole(path):
        return label_file.save(path, label)
    with Image.open(path) as image:
        is_same = np.array_equal(np.asarray(image), label)
    return None if is_same else f"{path}: shows something else than its source says, and was here before; move it away and run again"


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
