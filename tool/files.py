"""Files that are either whole or absent."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errors import InputError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, beside `path`; it becomes `path` when the block ends without an error.

    Raises InputError where the disk refuses (full, read-only, no permission).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder or mend the disk") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_up_to_date(path: Path, source: Path) -> bool:
    """Whether a file is there, and not older than the one that it is made from."""
    try:
        return path.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except OSError:
        return False


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all. Raises InputError where the disk refuses."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for a missing or damaged one."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it and run the stage that writes it again") from None
