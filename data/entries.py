"""The pictures of a list, held so that many worker processes can share them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One line of a list: a picture's name, the picture and the mask (which need not exist)."""

    name: str
    picture: Path
    mask: Path


class PackedStrings(Sequence[str]):
    """Strings in one buffer.

    A list of Python strings would be copied, page by page, into every worker process that reads it: counting references writes to
    memory. A buffer is only read, so that the processes share it.
    """

    def __init__(self, strings: Iterable[str]):
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([0, *(len(string) for string in encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start = self._ends[: len(self)][index]  # an index beyond the end raises IndexError, a negative one counts from there
        return os.fsdecode(self._bytes[start : self._ends[1:][index]].tobytes())


class Entries(Sequence[Entry]):
    """The pictures of a list, or some of them; each Entry is made when it is asked for."""

    def __init__(self, packed: PackedStrings, index: np.ndarray):
        self._packed, self._index = packed, index

    @classmethod
    def of(cls, entries: Iterable[tuple[str, str, str]]) -> "Entries":
        """From (name, path of the picture, path of the mask) a picture."""
        packed = PackedStrings(map("\0".join, entries))
        return cls(packed, np.arange(len(packed)))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int | slice) -> "Entry | Entries":
        if isinstance(index, slice):
            return self.select(index)
        name, picture, mask = self._packed[self._index[index]].split("\0")
        return Entry(name, Path(picture), Path(mask))

    def select(self, index: slice | Sequence[int]) -> "Entries":
        """The entries at these places."""
        return Entries(self._packed, self._index[index if isinstance(index, slice) else np.asarray(index, int)])

    def where(self, keep: Callable[[Entry], bool]) -> "Entries":
        """The entries that `keep` says yes to."""
        return self.select([i for i, entry in enumerate(self) if keep(entry)])

    def names(self) -> Iterator[str]:
        return (self._packed[i].split("\0", 1)[0] for i in self._index)
