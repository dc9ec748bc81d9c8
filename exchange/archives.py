"""Prepare a dataset from its official archives: download, unpack without trust, write what is missing, count what is there."""

import argparse
import http.client
import lzma
import os
import shlex
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from errors import InputError
from tool.flags import add_switch, add_workers, command_parser
from tool.outputs import atomic_write

TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20  # bytes that are read at a time
MAX_LINES = 10  # problems that are printed one by one
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


def prepare_parser(doc: str, max_workers: int | None) -> argparse.ArgumentParser:
    """A parser with the flags of all commands that prepare a dataset; max_workers: as in `add_workers`."""
    parser = command_parser(doc)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of the dataset, or of its archives"
    )
    add_switch(parser, "--overwrite", "replace lists, tags and masks that are there")
    add_workers(parser, max_workers)
    return parser


def download(url: str, path: Path, md5: str) -> None:
    """Download a file unless it is there; a stopped download leaves PATH.part and is resumed.

    Raises InputError if the server cannot be reached or the connection ends, and, after deleting the file, for another MD5 sum.
    """
    if path.is_file():
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download_rest(url, part)
    except (http.client.HTTPException, OSError) as error:
        raise InputError(
            f"{url}: cannot be downloaded ({error}); run the same command to resume, or pass a file of yours"
        ) from None
    if calculate_md5(str(part)) != md5:
        part.unlink()
        raise InputError(
            f"{url}: the downloaded file has another MD5 sum than {md5} and was deleted; run the same command again"
        )
    part.replace(path)


def _download_rest(url: str, part: Path) -> None:
    size = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # the part is complete
            return
        raise
    with response:
        size = (
            size if response.status == http.client.PARTIAL_CONTENT else 0
        )  # a server without ranges sends all of it
        total = size + int(response.headers["Content-Length"] or 0)
        bar = tqdm.wrapattr(
            response, "read", total=total, initial=size, desc=part.stem, unit="B", unit_scale=True
        )
        with open(part, "ab" if size else "wb") as file, bar as source:
            shutil.copyfileobj(source, file, BLOCK)
    if part.stat().st_size < total:
        raise OSError("the connection ended too early")


def check_md5(path: Path, md5: str) -> None:
    """Raise InputError if a file is unreadable or has another MD5 sum."""
    try:
        actual = calculate_md5(str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    if actual != md5:
        raise InputError(
            f"{path}: not the official file, its MD5 sum is {actual} instead of {md5}; get it again, or use --no-checksum"
        )


def unpack(path: Path, root: Path, wanted: Callable[[str], Any]) -> None:
    """Unpack the members that are `wanted` (a predicate of their names) below `root`; files that are there are kept.

    Raises InputError before anything is written for a truncated archive, for one without a wanted member, and for any member that is a
    link or a device or would lie outside of root; and for a zip member with a wrong checksum, which is not written.
    """
    try:
        with _open(path) as (sizes, special, read):
            unsafe = special + [
                name for name in sizes if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir
            ]
            if unsafe:
                raise InputError(
                    f"{path}: its member {unsafe[0]} is a link, a device, or outside of {root}; get the official archive"
                )
            todo, others = {name: size for name, size in sizes.items() if wanted(name)}, []
            if not todo:
                raise InputError(
                    f"{path}: holds none of the files that are needed; use the official archive"
                )
            for name, size in tqdm(todo.items(), desc=path.name, unit="file"):
                target = root / name
                if target.exists():
                    others += [name] * (target.stat().st_size != size)
                else:
                    with (
                        read(name) as source,
                        atomic_write(target) as temporary,
                        open(temporary, "wb") as file,
                    ):
                        shutil.copyfileobj(source, file)
    except DAMAGE as error:
        reason = (
            (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        )  # tarfile lists every format that it tried
        raise InputError(
            f"{path}: cannot be read as a tar or zip archive ({reason}); correct the path or get it again"
        ) from None
    print_problems(
        f"files in {root} that are kept, though {path.name} holds them in another size", others
    )


@contextmanager
def _open(path: Path) -> Iterator[tuple[dict[str, int], list[str], Callable[[str], IO[bytes]]]]:
    """The sizes of an archive's members by name, without folders; the names of links and devices; a function that opens a member."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {
                os.path.normpath(one.filename): one
                for one in archive.infolist()
                if not one.is_dir()
            }
            special = [
                name
                for name, one in members.items()
                if stat.S_IFMT(one.external_attr >> 16) not in (0, stat.S_IFREG)
            ]
            yield (
                {name: one.file_size for name, one in members.items()},
                special,
                lambda name: archive.open(members[name]),
            )
    else:
        with tarfile.open(path) as archive:
            members = {os.path.normpath(one.name): one for one in archive if not one.isdir()}
            archive.fileobj.seek(archive.offset)  # tarfile takes a damaged header for the end
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends in the middle")
            while archive.fileobj.read(BLOCK):  # to the end, where gzip's checksum is
                pass
            special = [name for name, one in members.items() if not one.isreg()]
            yield (
                {name: one.size for name, one in members.items()},
                special,
                lambda name: archive.extractfile(members[name]),
            )


def write_missing(path: Path, text: str, overwrite: bool) -> list[str]:
    """Write a text file unless it is there; one that is kept with other content is returned as a problem."""
    if path.is_file() and not overwrite:
        is_same = path.read_bytes() == text.encode()
        return (
            []
            if is_same
            else [
                f"{path}: kept, though it would now get other content; delete it, or use --overwrite"
            ]
        )
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode())
    return []


def print_counts(rows: Sequence[tuple[str, int, int]]) -> bool:
    """Print a table of (what, expected number, number found); returns whether nothing is missing."""
    print(f"\n{'':<34}{'expected':>10}{'found':>10}")
    for what, expected, found in rows:
        verdict = (
            "OK"
            if found == expected
            else f"{expected - found:,} missing"
            if found < expected
            else f"{found - expected:,} more"
        )
        print(f"{what:<34}{expected:>10,}{found:>10,}  {verdict}")
    return all(expected <= found for _, expected, found in rows)


def print_problems(title: str, lines: Sequence[str]) -> None:
    """Print the first lines under a title with their number; nothing if there are none."""
    if lines:
        more = [f"and {len(lines) - MAX_LINES:,} more"] if len(lines) > MAX_LINES else []
        print(f"\n{title} ({len(lines):,})", *lines[:MAX_LINES], *more, sep="\n  ")


def finish(root: Path, kind: str, title: str, is_whole: bool, problems: Sequence[str]) -> None:
    """Print the problems and the next command. Raises InputError if there are problems, or if the dataset is not whole."""
    print_problems("problems", problems)
    if problems or not is_whole:
        raise InputError(
            f"{root}: prepared, but it is not all of {title} (see above); add what is missing, or use this part"
        )
    print(f"\n{root} is ready: bash run_{kind}.sh --dataset_root {shlex.quote(str(root))}")
