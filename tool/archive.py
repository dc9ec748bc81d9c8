"""Unpack archives that somebody else made, without trusting them."""

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from errors import InputError

from . import inventory
from .files import atomic_write

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)


def unpack(path: Path, root: Path, wanted: Callable[[str], Any]) -> None:
    """Unpack the wanted files of a tar or zip below `root`; each is whole or absent, and one that is there is kept.

    Those that are kept and are not as large as in the archive are told.

    wanted: says of a member's name whether it is needed. Raises InputError, before anything is written, for a file that is cut or no
    archive, for one without a wanted member, and for one with any member that would lie outside of root or is neither file nor folder;
    and, at the member of a zip that is damaged, for its wrong checksum.
    """
    try:
        with _open(path) as (sizes, read):
            for name in sizes:
                if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
                    raise InputError(f"{path}: its member {name} would lie outside of {root}; get the archive from its source")
            todo, others = {name: size for name, size in sizes.items() if wanted(name)}, []
            if not todo:
                raise InputError(f"{path}: holds nothing of what belongs here; give the official archive")
            with tqdm(total=sum(todo.values()), desc=path.name, unit="B", unit_scale=True) as bar:
                for name, size in todo.items():
                    target = root / name
                    if target.exists():
                        others += [name] * (target.stat().st_size != size)
                    else:
                        with read(name) as source, atomic_write(target) as temporary, open(temporary, "wb") as file:
                            shutil.copyfileobj(source, file)
                    bar.update(size)
        inventory.print_list(f"files below {root} that are not as large as in {path.name}, and are kept", others)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such archive; correct the path") from None
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")  # tarfile tells of every format that it tried
        raise InputError(f"{path}: is damaged, cut, or no tar or zip archive ({reason}); get it again") from None


@contextmanager
def _open(path: Path) -> Iterator[tuple[dict[str, int], Callable[[str], AbstractContextManager[IO[bytes]]]]]:
    """The sizes of an archive's files by name, and how to read one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {os.path.normpath(one.filename): one for one in archive.infolist() if not one.is_dir()}
            _refuse(path, (name for name, one in members.items() if stat.S_IFMT(one.external_attr >> 16) not in (0, stat.S_IFREG)))
            yield {name: one.file_size for name, one in members.items()}, lambda name: archive.open(members[name])
    else:
        with tarfile.open(path) as archive:
            members = {os.path.normpath(one.name): one for one in archive.getmembers() if not one.isdir()}
            _read_to_end(archive)
            _refuse(path, (name for name, one in members.items() if not one.isreg()))
            yield {name: one.size for name, one in members.items()}, lambda name: archive.extractfile(members[name])


def _read_to_end(archive: tarfile.TarFile) -> None:
    """Raises ReadError where tarfile stopped at a damaged header, and OSError where gzip's checksum does not fit."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends in the middle")
    while archive.fileobj.read(1 << 20):
        pass


def _refuse(path: Path, special: Iterator[str]) -> None:
    name = next(special, None)
    if name is not None:
        raise InputError(f"{path}: its member {name} is a link or a device, not a file; get the archive from its source")
