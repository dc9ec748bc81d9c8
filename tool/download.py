"""Download large files: with a bar, in as many goes as it takes, and checked."""

import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from errors import InputError

_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20


def fetch(url: str, path: Path, md5: str) -> None:
    """Download to `path`, unless it is there; goes on from PATH.part, which a stopped download leaves.

    Raises InputError where the server cannot be reached or stops in the middle, and, with the file deleted, for another MD5 sum.
    """
    if path.is_file():
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch_rest(url, part)
    except (http.client.HTTPException, OSError) as error:
        have = part.stat().st_size / 1e6 if part.is_file() else 0
        raise InputError(
            f"{url}: cannot be downloaded ({error}); the same command goes on from {have:.0f} MB, or give the path of a file got elsewhere"
        ) from None
    try:
        check_md5(part, md5)
    except InputError:
        part.unlink()
        raise InputError(f"{url}: what came has another MD5 sum than {md5} and is deleted; try again, or give the file's path") from None
    part.replace(path)


def check_md5(path: Path, md5: str) -> None:
    """Raises InputError where the file has another MD5 sum."""
    try:
        found = calculate_md5(str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    if found != md5:
        raise InputError(f"{path}: is not the official file: its MD5 sum is {found}, not {md5}; get it again, or see --no-checksum")


def _fetch_rest(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it is there
            return
        raise
    with response:
        resumes = response.status == http.client.PARTIAL_CONTENT
        have = have if resumes else 0
        rest = response.headers.get("Content-Length")
        total = have + int(rest) if rest else None
        with (
            open(part, "ab" if resumes else "wb") as file,
            tqdm.wrapattr(response, "read", total=total, initial=have, desc=part.stem, unit="B", unit_scale=True) as source,
        ):
            shutil.copyfileobj(source, file, _BLOCK)
        if total is not None and part.stat().st_size < total:
            raise OSError("the connection ended too early")
