"""What a stage writes: whole files, one writer a folder, and one rule for what is already done.

A folder of results holds settings.json: the stage that made it, its settings, and the SHA-256 of
its checkpoint. A file in the folder is up to date if it exists and is not older than the files
that it was made from.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from errors import InputError

if TYPE_CHECKING:
    from .context import Context

SETTINGS = "settings.json"
SIZES = ".sizes.json"
SKIPPED = "skipped.json"
RESULT_TYPES = (".npz", ".png", ".jpg", ".html", ".json", ".mp4")
SETTINGS_BEFORE = {"recipe": "sipe"}  # the values of folders that were made without these settings
EXIT_SECONDS = 30  # that the worker processes of a killed command may take to end
UNKNOWN = "unknown"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it becomes `path` if the block ends without an error.

    The block may make a file or a folder of that name. Raises InputError if there is a folder
    already, or if the disk refuses (full, read-only, no permission).
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
            f"{path}: cannot be written ({error.strerror or error});"
            " choose another folder or fix the disk"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # if it is a folder
        delete_quietly(temporary)


def delete_quietly(path: Path) -> None:
    """Delete a file if it is there and can be deleted."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def make_writable(folder: Path) -> None:
    """Make a folder; raises InputError if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file. Raises InputError if the disk refuses."""
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
    """The SHA-256 of a file. Raises InputError if it cannot be read."""
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


@dataclass(frozen=True)
class FolderState:
    """What a stage finds in the folder that it is about to fill."""

    has_other_settings: bool
    is_empty: bool


def prepare_output_dir(
    folder: Path, stage: str, settings: dict[str, Any], context: "Context", overwrite: bool
) -> None:
    """Note in FOLDER/settings.json which stage fills the folder and how.

    Args:
        settings: what the results depend on besides their sources.
        overwrite: delete the results in the folder.

    Raises InputError for a folder with other settings, for a folder that another command is
    writing to, and for one that holds files but no settings.json of this stage: nothing in a
    folder of unknown origin is ever deleted.
    """
    make_writable(folder)
    settings = {"made_by": stage, **settings}
    _inspect(folder, settings, overwrite)  # a folder of unknown origin does not even get a lock
    lock(folder / SETTINGS, context)
    context.barrier()
    # again, as the lock may have waited for the end of another command
    state = _inspect(folder, settings, overwrite)
    context.barrier()  # every process has inspected the folder before one writes or deletes
    if context.is_main and (state.has_other_settings or overwrite):
        if overwrite and not state.is_empty:
            _delete_results(folder)
        write_json(folder / SETTINGS, settings)
    context.barrier()


def _inspect(folder: Path, settings: dict[str, Any], overwrite: bool) -> FolderState:
    """Compare a folder with the settings of a stage; raises as `prepare_output_dir` does."""
    stage = settings["made_by"]
    path = folder / SETTINGS
    before = read_json(path) if path.is_file() else {}
    # another program may have a settings.json, too
    own_notes = {SETTINGS, SKIPPED} if "made_by" in before else set()
    is_empty = all(_is_no_result(file, own_notes) for file in folder.iterdir())
    if before.get("made_by") != stage and not is_empty:
        raise InputError(
            f"{folder}: holds files that {stage}.py did not write;"
            " choose another folder, or move them away"
        )
    changed = []
    for name, value in settings.items():
        if before.get(name, SETTINGS_BEFORE.get(name)) != value:
            changed.append(name)
    if changed and not is_empty and not overwrite:
        raise InputError(
            f"{path}: its files were made with another {' and '.join(changed)};"
            " choose another folder, or use --overwrite"
        )
    return FolderState(has_other_settings=bool(changed), is_empty=is_empty)


def _is_no_result(file: Path, own_notes: set[str]) -> bool:
    return file.name in own_notes or file.suffix == ".tmp" or file.name.startswith(".")


def _delete_results(folder: Path) -> None:
    """Delete the results of a stage, but not settings.json, which shows whose folder this is."""
    try:
        for path in folder.iterdir():
            if path.suffix in RESULT_TYPES and path.name != SETTINGS:
                path.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: its files cannot be deleted ({error.strerror}); choose another folder"
        ) from None


@dataclass(frozen=True)
class LockOwner:
    """The command that holds a lock, as far as it is known."""

    process: str = UNKNOWN
    host: str = UNKNOWN
    since: str = UNKNOWN

    @classmethod
    def read(cls, path: Path) -> "LockOwner":
        """The owner that a file notes."""
        with contextlib.suppress(OSError):
            fields = path.read_text().split(maxsplit=2)
            if len(fields) == 3:
                return cls(*fields)
        return cls()

    @classmethod
    def this_process(cls) -> "LockOwner":
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(str(os.getpid()), socket.gethostname(), since)

    def write(self, path: Path) -> None:
        path.write_text(f"{self.process} {self.host} {self.since}")

    def may_run(self) -> bool:
        """Whether the command may still run: False only if it ran on this machine and ended."""
        is_here = self.process.isdigit() and self.host == socket.gethostname()
        shows_processes = Path("/proc/self").exists()
        has_ended = not Path(f"/proc/{self.process}").exists()
        return not (is_here and shows_processes and has_ended)


def lock(path: Path, context: "Context") -> None:
    """Keep other commands from writing a file and what belongs to it, until this command ends.

    The processes of one torchrun share the lock. Raises InputError if another command writes.
    """
    if not context.is_main:
        return
    file_lock = FileLock(path.with_name(f".{path.name}.lock"))
    owner_file = path.with_name(f".{path.name}.owner")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(file_lock, owner_file)
        context.stack.callback(file_lock.release)
        context.stack.callback(delete_quietly, owner_file)
        LockOwner.this_process().write(owner_file)
    except Timeout:
        owner = LockOwner.read(owner_file)
        raise InputError(
            f"{path.parent}: another command writes here (process {owner.process} on"
            f" {owner.host}, since {owner.since}); wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be locked ({error.strerror or error}); choose another folder"
        ) from None


def _acquire(file_lock: FileLock, owner_file: Path) -> None:
    """Take a lock at once, or after the worker processes of a killed command have ended."""
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        if LockOwner.read(owner_file).may_run():
            raise
        file_lock.acquire(timeout=EXIT_SECONDS)


def check_space(folder: Path, needed: float, context: "Context") -> None:
    """Print how many bytes a command will write; warn if the disk has fewer."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    context.print(f"disk space: about {needed / 1e9:.2g} GB in {folder}")
    if needed > free:
        context.print(
            f"warning: {folder}: only {free / 1e9:.2g} GB are free;"
            " if the disk gets full, make room and run the same command"
        )
