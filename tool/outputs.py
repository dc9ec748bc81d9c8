"""What a stage writes: whole files only, and one rule for what is already done.

A folder of results holds settings.json: the stage that made it, its settings, the SHA-256 of its checkpoint. A file in it is up to date
if it exists and is not older than the files that it was made from.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from errors import InputError

if TYPE_CHECKING:
    from .context import Context

SETTINGS = "settings.json"
LATER_SETTINGS = {"recipe": "sipe"}  # what folders without them were made with
RESULTS = (".npz", ".png", ".jpg", ".json")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; it becomes `path` when the block ends without an error.

    Raises InputError where the disk refuses (full, read-only, no permission).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder or fix the disk") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_writable(folder: Path) -> None:
    """Make a folder; raises InputError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


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
        raise InputError(f"{path}: cannot be read ({error}); delete it and run the stage that writes it again") from None


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file. Raises InputError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); train first or correct the path") from None


def is_up_to_date(path: Path, *sources: Path) -> bool:
    """Whether a file exists and is not older than any of its sources, as make decides."""
    try:
        written = path.stat().st_mtime_ns
        return all(written >= source.stat().st_mtime_ns for source in sources)
    except OSError:
        return False


def prepare_output_dir(folder: Path, stage: str, settings: dict[str, Any], context: "Context", overwrite: bool) -> None:
    """Note in FOLDER/settings.json which stage fills the folder and how.

    overwrite: delete the results in the folder. Raises InputError for a folder with other settings, and for one that holds files but no
    settings.json of this stage: that is somebody else's, and nothing in it is deleted.
    """
    make_writable(folder)
    path, settings = folder / SETTINGS, {"made_by": stage, **settings}
    before = read_json(path) if path.is_file() else {}
    ours = {SETTINGS} if "made_by" in before else set()  # somebody else's program may have a settings.json, too
    is_empty = all(file.name in ours or file.suffix == ".tmp" or file.name.startswith(".") for file in folder.iterdir())
    if before.get("made_by") != stage and not is_empty:
        raise InputError(f"{folder}: holds files that {stage}.py did not write; choose another folder, or move them away")
    changed = [name for name in settings if before.get(name, LATER_SETTINGS.get(name)) != settings[name]]
    if changed and not is_empty and not overwrite:
        raise InputError(f"{path}: its files were made with another {' and '.join(changed)}; choose another folder, or use --overwrite")
    context.barrier()  # all have looked before anybody writes or deletes
    if context.is_main and (changed or overwrite):
        if overwrite and not is_empty:
            _delete_results(folder)
        write_json(path, settings)
    context.barrier()


def _delete_results(folder: Path) -> None:
    """Delete the results of a stage, settings.json last: without it the folder would be somebody else's."""
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name == SETTINGS):
            if path.suffix in RESULTS:
                path.unlink()
    except OSError as error:
        raise InputError(f"{folder}: its files cannot be deleted ({error.strerror}); choose another folder") from None


def unfinished(entries: Sequence[Any], is_done: Callable[[Any], bool], context: "Context") -> list[int]:
    """The indices of this process's share of the entries that are not done; prints how many there are."""
    todo = [i for i in context.shard(range(len(entries))) if not is_done(entries[i])]
    context.print(f"{len(entries)} pictures, {sum(context.all_gather_object(len(todo)))} of them to do, on {context.device}")
    return todo


class _Calls(TorchDataset):
    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def parallel_map(function: Callable[[Any], Any], items: Sequence[Any], num_workers: int) -> DataLoader:
    """Call a function on every item in worker processes (0: in this one); results come as they are ready, in any order.

    A killed worker ends the command with an error, where a multiprocessing pool would wait forever.
    """
    workers = min(num_workers, len(items))
    return DataLoader(_Calls(function, items), batch_size=None, num_workers=workers, collate_fn=_identity, in_order=workers == 0)


def _identity(value: Any) -> Any:
    return value
