"""What a stage writes: whole files only, one writer a folder, and one rule for what is already done.

A folder of results holds settings.json: the stage that made it, its settings, the SHA-256 of its checkpoint. A file in it is up to date
if it exists, is not older than the files that it was made from, and its image has as many bytes as .sizes.json notes.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from errors import InputError

if TYPE_CHECKING:
    from .context import Context

SETTINGS, SIZES, SKIPPED = "settings.json", ".sizes.json", "skipped.json"
LATER_SETTINGS = {"recipe": "sipe"}  # what folders without them were made with
DYING = 30  # seconds that the worker processes of a killed command may take to end
RESULTS = (".npz", ".png", ".jpg", ".html", ".json", ".mp4")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` for a file or folder; it becomes `path` when the block ends without an error.

    Raises InputError where there is a folder already, and where the disk refuses (full, read-only, no permission).
    """
    temporary = path.with_name(path.name + ".tmp")
    if path.is_dir():
        raise InputError(
            f"{path}: cannot be written (a folder is there); delete it or choose another one"
        )
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # a folder that a killed command left
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another folder or fix the disk"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # a folder
        _delete(temporary)


def make_writable(folder: Path) -> None:
    """Make a folder; raises InputError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file. Raises InputError where the disk refuses."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for a missing or damaged one."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); delete it and run the stage that writes it again"
        ) from None


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file. Raises InputError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); train first or correct the path"
        ) from None


def is_up_to_date(path: Path, *sources: Path) -> bool:
    """Whether a file exists and is not older than any of its sources, as make decides."""
    try:
        written = path.stat().st_mtime_ns
        return all(written >= source.stat().st_mtime_ns for source in sources)
    except OSError:
        return False


def prepare_output_dir(
    folder: Path, stage: str, settings: dict[str, Any], context: "Context", overwrite: bool
) -> None:
    """Note in FOLDER/settings.json which stage fills the folder and how.

    overwrite: delete the results in the folder. Raises InputError for a folder with other settings, and for one that holds files but no
    settings.json of this stage: that is somebody else's, and nothing in it is deleted; and where another command is writing to it.
    """
    make_writable(folder)
    settings = {"made_by": stage, **settings}
    _look(folder, settings, overwrite)  # somebody else's folder does not even get a lock
    lock(folder / SETTINGS, context)
    context.barrier()
    is_changed, is_empty = _look(
        folder, settings, overwrite
    )  # again, as the lock may have waited for another command's end
    context.barrier()  # all have looked before anybody writes or deletes
    if context.is_main and (is_changed or overwrite):
        if overwrite and not is_empty:
            _delete_results(folder)
        write_json(folder / SETTINGS, settings)
    context.barrier()


def _look(folder: Path, settings: dict[str, Any], overwrite: bool) -> tuple[bool, bool]:
    """Whether the folder notes other settings than these, and whether it is empty. Raises InputError as `prepare_output_dir` does."""
    path, stage = folder / SETTINGS, settings["made_by"]
    before = read_json(path) if path.is_file() else {}
    ours = (
        {SETTINGS, SKIPPED} if "made_by" in before else set()
    )  # somebody else's program may have a settings.json, too
    is_empty = all(
        file.name in ours or file.suffix == ".tmp" or file.name.startswith(".")
        for file in folder.iterdir()
    )
    if before.get("made_by") != stage and not is_empty:
        raise InputError(
            f"{folder}: holds files that {stage}.py did not write; choose another folder, or move them away"
        )
    changed = [
        name for name in settings if before.get(name, LATER_SETTINGS.get(name)) != settings[name]
    ]
    if changed and not is_empty and not overwrite:
        raise InputError(
            f"{path}: its files were made with another {' and '.join(changed)}; choose another folder, or use --overwrite"
        )
    return bool(changed), is_empty


def _delete_results(folder: Path) -> None:
    """Delete the results of a stage but for settings.json: without it the folder would be somebody else's."""
    try:
        for path in folder.iterdir():
            if path.suffix in RESULTS and path.name != SETTINGS:
                path.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: its files cannot be deleted ({error.strerror}); choose another folder"
        ) from None


def lock(path: Path, context: "Context") -> None:
    """Keep other commands from writing a file and what belongs to it, until this one ends. Raises InputError where one is writing."""
    if not context.is_main:  # the processes of one torchrun share it
        return
    held, owner = (
        FileLock(path.with_name(f".{path.name}.lock")),
        path.with_name(f".{path.name}.owner"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout:
            if _is_alive(owner):
                raise
            held.acquire(timeout=DYING)
        context.stack.callback(held.release)
        context.stack.callback(_delete, owner)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner.write_text(f"{os.getpid()} {socket.gethostname()} {since}")
    except Timeout:
        pid, host, since = _owner(owner)
        who = f"process {pid} on {host}, since {since}"
        raise InputError(
            f"{path.parent}: another command writes here ({who}); wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be locked ({error.strerror or error}); choose another folder"
        ) from None


def _owner(path: Path) -> list[str]:
    """Process id, host and start of the command that holds a lock, as far as they are known."""
    with contextlib.suppress(OSError):
        noted = path.read_text().split(maxsplit=2)
        if len(noted) == 3:
            return noted
    return ["unknown"] * 3


def _is_alive(owner: Path) -> bool:
    """Whether the owner of a lock may still run: False only for a process of this machine that has ended."""
    pid, host, _ = _owner(owner)
    return not (
        pid.isdigit()
        and host == socket.gethostname()
        and not Path(f"/proc/{pid}").exists()
        and Path("/proc/self").exists()
    )


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def check_space(folder: Path, needed: float, context: "Context") -> None:
    """Print how many bytes a command will write to a folder, with a warning if the disk has fewer."""
    free = shutil.disk_usage(
        next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ).free
    context.print(f"disk space: about {needed / 1e9:.2g} GB in {folder}")
    if needed > free:
        context.print(
            f"warning: {folder}: only {free / 1e9:.2g} GB are free; if the disk gets full, make room and run the same command"
        )
