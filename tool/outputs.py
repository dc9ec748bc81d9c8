"""The folder that a stage fills with one file a picture: made in one way only, and by many processes at a time."""

import argparse
import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from errors import InputError

from . import files, stage


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Give a stage that claims a folder the flag --overwrite."""
    parser.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="throw away all files of this stage that are there and make them again (default off)",
    )


def claim(folder: Path, maker: str, settings: dict[str, Any], run: stage.Stage, overwrite: bool) -> None:
    """Note in FOLDER/settings.json which stage makes its files and how; files of other settings must not mix with them.

    overwrite: throw away the files that are there. Raises InputError where they are of other settings, or where the note does not
    say that they are this stage's: these are never deleted.
    """
    path, settings = folder / "settings.json", {"made_by": maker, **settings}
    before, is_empty = files.read_json(path) if path.is_file() else {}, not any(_contents(folder))
    if before.get("made_by") != maker and not is_empty:
        raise InputError(f"{path}: does not say that the files beside it are of {maker}.py; use another folder, or move them away")
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed and not is_empty and not overwrite:
        raise InputError(f"{path}: the files there are of another {' and '.join(changed)}; use another --run_dir, or --overwrite")
    run.wait()  # nobody writes or deletes before all have looked
    if run.is_main and overwrite:
        _empty(folder)
    if run.is_main and (changed or overwrite):
        files.write_json(path, settings)
    run.wait()


def _contents(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*") if path.suffix in (".npz", ".png"))


def _empty(folder: Path) -> None:
    try:
        for path in [*_contents(folder), *folder.glob("settings.json")]:  # the note last: without it they are nobody's
            path.unlink()
    except OSError as error:
        raise InputError(f"{folder}: its files cannot be deleted ({error.strerror}); use another --run_dir") from None


class _Calls(TorchDataset):
    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any], num_workers: int) -> DataLoader:
    """Call a function on every item in worker processes (0: in this one); results come as they are ready, in any order.

    A worker that dies ends the whole with an error, instead of leaving it waiting.
    """
    workers = min(num_workers, len(items))
    return DataLoader(_Calls(function, items), batch_size=None, num_workers=workers, collate_fn=_as_it_is, in_order=workers == 0)


def _as_it_is(value: Any) -> Any:
    return value


@contextlib.contextmanager
def in_background(function: Callable[..., None], threads: int = 2, most: int = 32) -> Iterator[Callable[..., None]]:
    """Yield a stand-in for a function that writes a file: it returns at once, and the file is written by a thread.

    An error there is raised by a later call, or at the end of the block. Where `most` files wait, a call waits for the first of them.
    However the block ends, the files that wait are written first.
    """
    waiting = collections.deque()

    def call(*args: Any, **kwargs: Any) -> None:
        waiting.append(pool.submit(function, *args, **kwargs))
        while waiting and (waiting[0].done() or len(waiting) > most):
            waiting.popleft().result()

    with ThreadPoolExecutor(threads) as pool:
        yield call
    for written in waiting:
        written.result()
