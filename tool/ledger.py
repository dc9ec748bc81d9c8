"""Files that a command writes into a folder of somebody else's: only what it wrote itself is ever replaced."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from errors import InputError

from . import files, label_file


class Ledger:
    """ROOT/prepared.json: the SHA-256 of everything that a command wrote to its text files there."""

    def __init__(self, root: Path):
        self.root, self.path = root, root / "prepared.json"
        self.sums: dict[str, list[str]] = files.read_json(self.path) if self.path.is_file() else {}
        if not all(isinstance(sums, list) for sums in self.sums.values()):
            raise InputError(f"{self.path}: is not the note of files that this command writes; move it away")

    def made(self, name: str) -> bool:
        """Whether the command itself wrote what is in the file."""
        return _sum((self.root / name).read_bytes()) in self.sums.get(name, [])

    def write(self, name: str, text: str) -> None:
        """Write a text file. Raises InputError where one of other content is there that is not the command's own."""
        path, content = self.root / name, text.encode()
        if path.is_file() and path.read_bytes() == content:
            return
        if path.is_file() and not self.made(name):
            raise InputError(f"{path}: is to be written, but a file of another content and origin is there; move it away and run again")
        if _sum(content) not in self.sums.get(name, []):  # noted first: a run that is stopped in between knows both
            self.sums[name] = [*self.sums.get(name, []), _sum(content)]
            files.write_json(self.path, self.sums)
        with files.atomic_write(path) as temporary:
            temporary.write_bytes(content)


def is_made(path: Path, maker: str) -> bool:
    """Whether a whole label image of this command lies there."""
    return label_file.is_whole(path) and label_file.maker_of(path) == maker


def place(path: Path, label: np.ndarray, maker: str) -> str | None:
    """Write a label image (H, W) uint8, unless somebody else's is there; then return what is wrong with that, or None."""
    if not path.exists() or label_file.maker_of(path) == maker:
        label_file.save(path, label, maker)
        return None
    try:
        with Image.open(path) as image:
            is_same = np.array_equal(np.asarray(image), label)
    except label_file.UNREADABLE:
        is_same = False
    return None if is_same else f"{path}: shows something else than its source says, and was here before; move it away and run again"


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
