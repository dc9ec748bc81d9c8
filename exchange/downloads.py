"""Official files: downloaded, resumed if that was stopped, and checked."""

import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from errors import InputError

TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20  # bytes that are read at a time


def download(url: str, path: Path, md5: str) -> None:
    """Download a file unless it is there; a stopped download leaves PATH.part and is resumed.

    Raises InputError if the server cannot be reached or the connection ends, and, after deleting
    the file, for another MD5 sum.
    """
    if path.is_file():
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download_rest(url, part)
    except (http.client.HTTPException, OSError) as error:
        raise InputError(
            f"{url}: cannot be downloaded ({error});"
            " run the same command to resume, or pass a file of yours"
        ) from None
    if calculate_md5(str(part)) != md5:
        part.unlink()
        raise InputError(
            f"{url}: the downloaded file has another MD5 sum than {md5} and was deleted;"
            " run the same command again"
        )
    part.replace(path)


def _download_rest(url: str, part: Path) -> None:
    """Append to a part what it lacks. Raises OSError or HTTPException if it stays incomplete."""
    request = urllib.request.Request(url)
    size = 0
    if part.is_file():
        size = part.stat().st_size
    if size > 0:
        request.add_header("Range", f"bytes={size}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # the part is complete
            return
        raise
    with response:
        mode = "ab"
        if response.status != http.client.PARTIAL_CONTENT:  # a server without ranges sends it all
            size = 0
            mode = "wb"
        total = size + int(response.headers["Content-Length"] or 0)
        progress = tqdm.wrapattr(
            response, "read", total=total, initial=size, desc=part.stem, unit="B", unit_scale=True
        )
        with open(part, mode) as file, progress as source:
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
            f"{path}: not the official file, its MD5 sum is {actual} instead of {md5};"
            " get it again, or use --no-checksum"
        )
