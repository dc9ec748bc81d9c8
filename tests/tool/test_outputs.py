"""A stage's folder: made in one way only; and its work, done once each whatever the number of workers."""

import argparse
import os
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import InputError
from tool import outputs, stage
from tool.files import read_json

SETTINGS = {"scales": [1.0, 0.5], "map": "is_cam"}

in_workers = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")


class Silent(stage.Stage):
    """One of several processes, which has nobody to wait for."""

    def wait(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cam"


def claim(folder: Path, settings: dict, overwrite: bool = False, rank: int = 0, maker: str = "make_cam") -> None:
    outputs.claim(folder, maker, settings, Silent(torch.device("cpu"), rank, 2, folder.parent), overwrite)


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def filled(folder: Path) -> Path:
    """A claimed folder with two files of the stage's and one of somebody else's."""
    claim(folder, SETTINGS)
    for name in ("a.npz", "b.png", "notes.txt"):
        (folder / name).write_text(name)
    return folder


def test_overwrite_is_a_flag_that_is_off():
    parser = argparse.ArgumentParser()
    outputs.add_flag(parser)
    assert not parser.parse_args([]).overwrite
    assert parser.parse_args(["--overwrite"]).overwrite


def test_the_first_claim_notes_the_settings(folder):
    claim(folder, SETTINGS)
    assert contents(folder) == {"settings.json"}
    assert read_json(folder / "settings.json") == {"made_by": "make_cam", **SETTINGS}


def test_the_same_settings_again_leave_everything_as_it_is(filled):
    before = (filled / "settings.json").stat().st_mtime_ns
    claim(filled, SETTINGS)
    assert contents(filled) == {"settings.json", "a.npz", "b.png", "notes.txt"}
    assert (filled / "settings.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"map": "cam"}, "another map;"), ({"map": "cam", "scales": [1.0]}, "another scales and map;"), ({"beta": 10}, "another beta;")],
)
def test_other_settings_are_refused_by_name(filled, changes, named):
    with pytest.raises(InputError, match=named) as error:
        claim(filled, SETTINGS | changes)
    assert str(error.value).startswith(f"{filled / 'settings.json'}: ")
    assert str(error.value).endswith("use another --run_dir, or --overwrite")
    assert contents(filled) == {"settings.json", "a.npz", "b.png", "notes.txt"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["a.npz", "b.png"])
def test_files_of_unknown_origin_are_refused_and_never_deleted(folder, name, overwrite):
    folder.mkdir()
    (folder / name).touch()
    with pytest.raises(InputError, match=r"settings\.json: does not say that the files beside it are of make_cam\.py"):
        claim(folder, SETTINGS, overwrite)
    assert contents(folder) == {name}


def test_files_of_others_are_no_hindrance(folder):
    folder.mkdir()
    (folder / "notes.txt").touch()
    claim(folder, SETTINGS)
    assert contents(folder) == {"settings.json", "notes.txt"}


@pytest.mark.parametrize("content", ["", '{"map"', "[1]"])
def test_damaged_settings_are_refused_by_name(filled, content):
    (filled / "settings.json").write_text(content)
    with pytest.raises(InputError, match="cannot be read") as error:
        claim(filled, SETTINGS)
    assert str(error.value).startswith(f"{filled / 'settings.json'}: ")


def test_overwrite_throws_away_what_the_stage_made_and_nothing_else(filled):
    claim(filled, {"map": "cam"}, overwrite=True)
    assert contents(filled) == {"settings.json", "notes.txt"}
    claim(filled, {"map": "cam"})


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_files_of_another_stage_are_refused_and_never_deleted(filled, overwrite):
    with pytest.raises(InputError, match=r"are of make_seg_labels\.py; use another folder"):
        claim(filled, SETTINGS, overwrite, maker="make_seg_labels")
    assert contents(filled) == {"settings.json", "a.npz", "b.png", "notes.txt"}


def test_a_claim_that_came_to_nothing_binds_nobody(folder):
    claim(folder, SETTINGS)
    claim(folder, {"map": "cam"})
    assert read_json(folder / "settings.json") == {"made_by": "make_cam", "map": "cam"}


def test_overwrite_of_a_folder_that_is_not_there_is_a_first_claim(folder):
    claim(folder, SETTINGS, overwrite=True)
    assert contents(folder) == {"settings.json"}


def test_what_cannot_be_thrown_away_is_said_and_the_note_stays(filled):
    (filled / "c.npz").mkdir()
    with pytest.raises(InputError, match="cannot be deleted") as error:
        claim(filled, {"map": "cam"}, overwrite=True)
    assert str(error.value).startswith(f"{filled}: ")
    assert (filled / "settings.json").is_file()


def test_only_the_main_process_writes_and_throws_away(folder):
    claim(folder, SETTINGS, rank=1)
    assert not folder.exists()
    claim(folder, SETTINGS)
    (folder / "a.npz").touch()
    claim(folder, SETTINGS, overwrite=True, rank=1)
    assert contents(folder) == {"settings.json", "a.npz"}


def do_all(function, items, num_workers: int) -> list:
    """All results. What an error's frames hold is let go at once: collected later, a loader would wait 5 seconds for each worker."""
    try:
        return list(outputs.in_parallel(function, items, num_workers))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise


def square(item: int) -> dict:
    return {"item": item, "path": Path(str(item)), "values": np.full(2, item**2)}


@in_workers
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_every_item_is_done_once_and_comes_back_as_it_is(num_workers):
    found = do_all(square, range(7), num_workers)
    assert sorted(one["item"] for one in found) == list(range(7))
    for one in found:
        assert one["path"] == Path(str(one["item"]))
        assert isinstance(one["values"], np.ndarray) and one["values"].tolist() == [one["item"] ** 2] * 2


@in_workers
def test_work_is_done_in_the_workers():
    def process(item: int) -> int:
        return os.getpid()

    assert set(do_all(process, range(3), 0)) == {os.getpid()}
    assert os.getpid() not in do_all(process, range(3), 1)


@pytest.mark.parametrize(("items", "num_workers", "started"), [(5, 2, 2), (2, 8, 2), (0, 8, 0)])
def test_no_worker_is_without_an_item(items, num_workers, started):
    assert outputs.in_parallel(square, range(items), num_workers).num_workers == started


@in_workers
@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_items_are_no_work(num_workers):
    assert do_all(square, [], num_workers) == []


def refuse_the_third(item: int) -> int:
    if item == 2:
        raise InputError(f"{item}.jpg: not a readable picture; replace it")
    return item


@in_workers
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_what_the_user_can_mend_reaches_the_stage_as_one_line(num_workers, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_ir_labels.py"])
    assert stage.run(lambda: do_all(refuse_the_third, range(4), num_workers)) == 2
    assert capsys.readouterr().err == "make_ir_labels.py: error: 2.jpg: not a readable picture; replace it\n"


def die(item: int) -> None:
    os._exit(1)


@in_workers
def test_a_worker_that_dies_ends_the_whole():
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        do_all(die, range(4), 1)


def test_files_are_written_in_the_background_and_all_are_there_at_the_end(tmp_path):
    threads = set()

    def write(path: Path, text: str) -> None:
        threads.add(threading.get_ident())
        path.write_text(text)

    with outputs.in_background(write) as later:
        for i in range(50):
            later(tmp_path / str(i), text=f"file {i}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(i): f"file {i}" for i in range(50)}
    assert threading.get_ident() not in threads and len(threads) <= 2


def test_who_is_faster_than_the_disk_waits_for_it():
    doors, called = [threading.Event() for _ in range(6)], []

    def call_all() -> None:
        with outputs.in_background(lambda door: door.wait(), threads=1, most=3) as later:
            for door in doors:
                later(door)
                called.append(door)

    caller = threading.Thread(target=call_all)
    caller.start()
    time.sleep(0.2)
    assert len(called) == 3  # the fourth waits for the first
    for door in doors:
        door.set()
    caller.join(10)
    assert len(called) == 6


@pytest.mark.parametrize("later_calls", [0, 1000])
def test_an_error_in_the_background_ends_the_stage_in_one_line(monkeypatch, capsys, later_calls):
    calls = []

    def write(number: int) -> None:
        calls.append(number)
        if number == 0:
            raise InputError("0.npz: cannot be written (No space left on device); mend the disk")
        time.sleep(0.001)

    def main() -> None:
        with outputs.in_background(write) as later:
            for i in range(1 + later_calls):
                later(i)

    monkeypatch.setattr("sys.argv", ["make_cam.py"])
    assert stage.run(main) == 2
    assert capsys.readouterr().err == "make_cam.py: error: 0.npz: cannot be written (No space left on device); mend the disk\n"
    assert len(calls) <= 1 + min(later_calls, 100)


def test_what_waits_is_written_before_ctrl_c_ends_the_stage(tmp_path):
    def write(path: Path) -> None:
        time.sleep(0.02)
        path.touch()

    with pytest.raises(KeyboardInterrupt), outputs.in_background(write) as later:
        for i in range(5):
            later(tmp_path / str(i))
        raise KeyboardInterrupt
    assert contents(tmp_path) == set("01234")
