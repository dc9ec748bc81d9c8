"""Tar and zip archives, unpacked without trust."""

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from errors import InputError
from tool.outputs import atomic_write

from .summary import print_problems

BLOCK = 1 << 20  # bytes that are read at a time
DAMAGE = (  # what a damaged archive raises
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


@dataclass(frozen=True)
class _Archive:
    """An open archive; folders are left out.

    Attributes:
        sizes: the bytes of each member by its name.
        special: the names of links and devices.
        open_member: opens a member by its name.
    """

    sizes: dict[str, int]
    special: list[str]
    open_member: Callable[[str], IO[bytes]]


def unpack(path: Path, root: Path, is_wanted: Callable[[str], Any]) -> None:
    """Unpack the members of some names below `root`; files that are there are kept.

    Raises InputError before anything is written if the archive is truncated, has no such member, or
    has any member that is a link or a device or would lie outside of `root`. Also raises it for a
    zip member with a wrong checksum, which is not written.
    """
    try:
        with _open(path) as archive:
            _refuse_unsafe(path, root, archive)
            names = [name for name in archive.sizes if is_wanted(name)]
            if not names:
                raise InputError(
                    f"{path}: holds none of the files that are needed; use the official archive"
                )
            different = _write_missing(archive, root, tqdm(names, desc=path.name, unit="file"))
    except DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read as a tar or zip archive ({_reason(error)});"
            " correct the path or get it again"
        ) from None
    print_problems(
        f"files in {root} that are kept, though {path.name} holds them in another size", different
    )


def _refuse_unsafe(path: Path, root: Path, archive: _Archive) -> None:
    outside = [name for name in archive.sizes if _is_outside(name)]
    unsafe = archive.special + outside
    if unsafe:
        raise InputError(
            f"{path}: its member {unsafe[0]} is a link, a device, or outside of {root};"
            " get the official archive"
        )


def _is_outside(name: str) -> bool:
    """name: normalized, so that it climbs at its beginning only."""
    return os.path.isabs(name) or name.split(os.sep)[0] == os.pardir


def _write_missing(archive: _Archive, root: Path, names: Iterable[str]) -> list[str]:
    """Write the members that are not there; returns those that are there in another size."""
    different = []
    for name in names:
        target = root / name
        if not target.exists():
            with (
                archive.open_member(name) as source,
                atomic_write(target) as temporary,
                open(temporary, "wb") as file,
            ):
                shutil.copyfileobj(source, file)
        elif target.stat().st_size != archive.sizes[name]:
            different.append(name)
    return different


def _reason(error: Exception) -> str:
    """The first line of an error: tarfile lists every format that it tried."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(":")


@contextmanager
def _open(path: Path) -> Iterator[_Archive]:
    """Open a zip or tar archive. Raises one of DAMAGE if it cannot be read to its end."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _list_zip(archive)
    else:
        with tarfile.open(path) as archive:
            yield _list_tar(archive)


def _list_zip(archive: zipfile.ZipFile) -> _Archive:
    members = {}
    for member in archive.infolist():
        if not member.is_dir():
            members[os.path.normpath(member.filename)] = member
    special = []
    for name, member in members.items():
        file_type = stat.S_IFMT(member.external_attr >> 16)  # of Unix; 0: not noted
        if file_type not in (0, stat.S_IFREG):
            special.append(name)
    sizes = {name: member.file_size for name, member in members.items()}
    return _Archive(sizes, special, lambda name: archive.open(members[name]))


def _list_tar(archive: tarfile.TarFile) -> _Archive:
    members = {}
    for member in archive:
        if not member.isdir():
            members[os.path.normpath(member.name)] = member
    _read_to_end(archive)
    special = [name for name, member in members.items() if not member.isreg()]
    sizes = {name: member.size for name, member in members.items()}
    return _Archive(sizes, special, lambda name: archive.extractfile(members[name]))


def _read_to_end(archive: tarfile.TarFile) -> None:
    """Raise one of DAMAGE if a tar archive does not go on to its end mark, or gzip's checksum."""
    archive.fileobj.seek(archive.offset)  # tarfile takes a damaged header for the end
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends in the middle")
    while archive.fileobj.read(BLOCK):  # gzip checks its sum when it is read to its end
        pass
