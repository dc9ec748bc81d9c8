"""What a stage writes: files that are whole or absent, folders of one making, work done once whatever the number of workers."""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from data.datasets import UnreadableSample
from data.registry import Samples
from errors import InputError, SkippedError
from tool import outputs, workers
from tool.context import Context, cli_main
from tool.results import Results

SETTINGS = {"scales": [1.0, 0.5], "map": "is_cam"}


class OneOfTwo(Context):
    """One of several processes, which waits for nobody."""

    def barrier(self) -> None:
        pass

    def all_gather_object(self, value: int) -> list[int]:
        return [value, 2]


def assert_refused(call, path: Path) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")
    }


class TestFiles:
    def test_a_file_appears_when_the_block_ends_and_replaces_the_old_one(self, tmp_path):
        path = tmp_path / "new/folder/a.txt"
        (tmp_path / "new/folder/a.txt.tmp/left").mkdir(
            parents=True
        )  # by a killed command that wrote a folder
        for text in ("first", "second"):
            with outputs.atomic_write(path) as temporary:
                temporary.write_text(text)
                assert temporary.parent == path.parent
                assert path.exists() == (text == "second")
            assert contents(path.parent) == {"a.txt": text}

    @pytest.mark.parametrize(
        ("error", "raised"),
        [
            (ValueError("a bug"), ValueError),
            (KeyboardInterrupt(), KeyboardInterrupt),
            (OSError(28, "No space left on device"), InputError),
        ],
    )
    def test_the_old_file_stays_when_the_block_raises(self, tmp_path, error, raised):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(raised) as found, outputs.atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise error
        assert contents(tmp_path) == {"a.txt": "old"}
        assert raised is not InputError or (
            str(found.value).startswith(f"{path}: ") and "No space left" in str(found.value)
        )

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path):
        outputs.make_writable(tmp_path / "runs/voc")
        assert contents(tmp_path / "runs/voc") == {}
        (tmp_path / "file").write_text("kept")
        assert_refused(
            lambda: outputs.write_json(tmp_path / "file/a.json", {}), tmp_path / "file/a.json"
        )
        for folder in (tmp_path / "file", tmp_path / "file/below"):
            assert_refused(lambda: outputs.make_writable(folder), folder)  # noqa: B023
        assert (tmp_path / "file").read_text() == "kept"

    @pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe", b"3", b"[1]", b"null"])
    def test_json_comes_back_and_a_missing_or_damaged_one_is_refused(self, tmp_path, content):
        outputs.write_json(tmp_path / "b.json", {"miou": 58.88, "none": None, "name": "Zürich"})
        assert outputs.read_json(tmp_path / "b.json") == {
            "miou": 58.88,
            "none": None,
            "name": "Zürich",
        }
        assert (tmp_path / "b.json").read_bytes().isascii()  # whatever the locale
        if content is not None:
            (tmp_path / "a.json").write_bytes(content)
        assert_refused(lambda: outputs.read_json(tmp_path / "a.json"), tmp_path / "a.json")

    def test_the_sha256_of_a_file(self, tmp_path):
        (tmp_path / "a").write_bytes(b"")
        assert (
            outputs.sha256(tmp_path / "a")
            == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        )
        assert_refused(lambda: outputs.sha256(tmp_path / "b"), tmp_path / "b")

    @pytest.mark.parametrize(
        ("written", "sources", "expected"),
        [
            (5, [], True),
            (5, [4, 5], True),
            (5, [4, 6], False),
            (5, [6, 4], False),
            (5, [None], False),
            (None, [4], False),
        ],
    )
    def test_a_file_is_up_to_date_if_it_is_not_older_than_its_sources(
        self, tmp_path, written, sources, expected
    ):
        paths = [tmp_path / str(i) for i in range(1 + len(sources))]
        for path, time in zip(paths, [written, *sources]):
            if time is not None:
                path.touch()
                os.utime(path, ns=(time, time))
        assert outputs.is_up_to_date(*paths) is expected


def settings_of(settings: dict, stage: str = "make_cam") -> str:
    return json.dumps({"made_by": stage, **settings}, indent=1) + "\n"


MADE, CHANGED = (
    {"settings.json": settings_of(SETTINGS)},
    {"settings.json": settings_of({"map": "cam"})},
)
RESULTS = {"a.npz": "", "b.png": "", "b_overlay.jpg": "", "areas.json": ""}
NOTES = {"notes.txt": "mine"}


class TestPrepareOutputDir:
    @pytest.mark.parametrize(
        ("before", "settings", "overwrite", "after"),  # after None: refused, and nothing changes
        [
            (None, SETTINGS, False, MADE),
            ({}, SETTINGS, False, MADE),
            ({"c.npz.tmp": ""}, SETTINGS, False, {**MADE, "c.npz.tmp": ""}),
            ({**MADE, **RESULTS}, SETTINGS, False, {**MADE, **RESULTS}),
            ({**MADE, **RESULTS, **NOTES}, SETTINGS, True, {**MADE, **NOTES}),
            ({**MADE, **RESULTS}, {"map": "cam"}, False, None),
            ({**MADE, **RESULTS}, {**SETTINGS, "beta": 10}, False, None),
            ({**MADE, **RESULTS, **NOTES}, {"map": "cam"}, True, {**CHANGED, **NOTES}),
            (MADE, {"map": "cam"}, False, CHANGED),  # settings without results bind nobody
            ({"settings.json": settings_of(SETTINGS, "predict"), **RESULTS}, SETTINGS, True, None),
            ({"settings.json": settings_of(SETTINGS, "predict")}, SETTINGS, False, MADE),
            ({"settings.json": "{}"}, SETTINGS, True, None),
            (RESULTS, SETTINGS, False, None),
            (NOTES, SETTINGS, True, None),
            ({"settings.json": '{"map"', **RESULTS}, SETTINGS, True, None),
        ],
    )
    def test_a_folder_has_one_maker_and_its_settings(
        self, tmp_path, before, settings, overwrite, after
    ):
        folder, context = tmp_path / "cam", Context(torch.device("cpu"))
        if before is not None:
            folder.mkdir()
        for name, text in (before or {}).items():
            (folder / name).write_text(text)
        with pytest.raises(InputError) if after is None else contextlib.nullcontext() as error:
            outputs.prepare_output_dir(folder, "make_cam", settings, context, overwrite)
        assert contents(folder) == (before if after is None else after)
        if after is None:
            assert str(error.value).startswith(
                (f"{folder}: ", f"{folder / 'settings.json'}: ")
            ) and "\n" not in str(error.value)

    def test_only_the_main_process_writes_and_deletes(self, tmp_path):
        for rank, expected in ((1, set()), (0, {"settings.json"})):
            outputs.prepare_output_dir(
                tmp_path, "make_cam", SETTINGS, OneOfTwo(torch.device("cpu"), rank, 2), False
            )
            assert contents(tmp_path).keys() == expected
        (tmp_path / "a.npz").touch()
        outputs.prepare_output_dir(
            tmp_path, "make_cam", SETTINGS, OneOfTwo(torch.device("cpu"), 1, 2), True
        )
        assert contents(tmp_path).keys() == {"settings.json", "a.npz"}

    def test_a_command_that_was_killed_while_overwriting_can_be_repeated(
        self, tmp_path, monkeypatch
    ):
        for name, text in {**MADE, **RESULTS, **NOTES}.items():
            (tmp_path / name).write_text(text)
        overwrite = [tmp_path, "make_cam", {"map": "cam"}]
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                outputs, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            outputs.prepare_output_dir(*overwrite, Context(torch.device("cpu")), True)
        outputs.prepare_output_dir(*overwrite, Context(torch.device("cpu")), True)
        assert contents(tmp_path) == {**CHANGED, **NOTES}

    def test_what_another_command_writes_before_the_lock_is_ours_is_seen(
        self, tmp_path, monkeypatch
    ):
        def write(path, context):
            for name, text in {**MADE, **RESULTS}.items():
                (tmp_path / name).write_text(text)

        monkeypatch.setattr(outputs, "lock", write)
        with pytest.raises(InputError, match=f"^{tmp_path / 'settings.json'}: "):
            outputs.prepare_output_dir(
                tmp_path, "make_cam", {"map": "cam"}, Context(torch.device("cpu")), False
            )

    def test_results_that_cannot_be_deleted_keep_their_settings(self, tmp_path):
        (tmp_path / "settings.json").write_text(MADE["settings.json"])
        (tmp_path / "c.npz").mkdir()
        with pytest.raises(InputError, match=f"^{tmp_path}: "):
            outputs.prepare_output_dir(
                tmp_path, "make_cam", {"map": "cam"}, Context(torch.device("cpu")), True
            )
        assert (tmp_path / "settings.json").read_text() == MADE["settings.json"]


FLAGS = argparse.Namespace(overwrite=False, strict=False)


def test_unfinished_is_this_processs_share_of_what_is_not_done(tmp_path, capsys):
    results = Results(tmp_path, "make_cam", SETTINGS, OneOfTwo(torch.device("cpu"), 0, 2), FLAGS)
    samples = Samples.of((name, str(tmp_path / name), "") for name in "abcdef")
    assert results.unfinished(samples, lambda sample: sample.name in "bcf", kilobytes=1) == [
        0,
        4,
    ]  # of a, c and e
    assert capsys.readouterr().out.startswith("6 images, 4 of them")  # two are the other process's


def test_an_image_replaced_by_one_that_cannot_be_read_stays_to_do(tmp_path):
    """Its result is the former image's, and newer than it."""
    image, samples = tmp_path / "a.jpg", Samples.of([("a", str(tmp_path / "a.jpg"), "")])
    for content, todo in ((b"good", []), (b"damaged", [0]), (b"damaged", [0])):
        image.write_bytes(content)
        with Context(torch.device("cpu")).stack as stack:
            context = Context(torch.device("cpu"), stack=stack)
            results = Results(tmp_path / "cam", "make_cam", SETTINGS, context, FLAGS)
            assert results.unfinished(samples, lambda sample: True, kilobytes=1) == todo
            assert not list(
                results.readable(
                    [
                        UnreadableSample(sample, "a.jpg: is damaged")
                        for sample in samples.select(todo)
                    ]
                )
            )
            with pytest.raises(SkippedError) if todo else contextlib.nullcontext():
                results.finish()


@pytest.mark.parametrize(("free", "warns"), [(4999, True), (5000, False)])
def test_too_little_space_is_told_at_the_start(tmp_path, capsys, monkeypatch, free, warns):
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda path: argparse.Namespace(free=free))
    outputs.check_space(tmp_path / "new", 5000, Context(torch.device("cpu")))
    assert ("warning: " in capsys.readouterr().out) == warns


class TestLock:
    def test_a_second_command_is_refused_until_the_first_one_ends(self, tmp_path):
        first, second = Context(torch.device("cpu")), Context(torch.device("cpu"))
        outputs.lock(tmp_path / "run/a", first)
        outputs.lock(
            tmp_path / "run/a", OneOfTwo(torch.device("cpu"), 1, 2)
        )  # the first one's other process
        outputs.lock(tmp_path / "run/b", second)
        with pytest.raises(InputError, match=f"^{tmp_path / 'run'}: .*process {os.getpid()} on "):
            outputs.lock(tmp_path / "run/a", second)
        first.stack.close()
        outputs.lock(tmp_path / "run/a", second)

    def test_a_killed_command_is_waited_for_only_as_long_as_its_workers_live(
        self, tmp_path, monkeypatch
    ):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        (tmp_path / ".a.owner").write_text(f"{ended.pid} {socket.gethostname()} yesterday")
        held = FileLock(tmp_path / ".a.lock", thread_local=False)
        held.acquire()
        monkeypatch.setattr(outputs, "DYING", 0.1)
        with pytest.raises(InputError, match=f"process {ended.pid} on "):
            outputs.lock(tmp_path / "a", Context(torch.device("cpu")))
        monkeypatch.setattr(outputs, "DYING", 30)
        threading.Timer(0.3, held.release).start()
        outputs.lock(tmp_path / "a", Context(torch.device("cpu")))


in_workers = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)


def do_all(function, items, num_workers: int) -> list:
    """All results. What an error's frames hold is let go at once: collected later, a loader would wait 5 seconds for each worker."""
    try:
        return list(workers.parallel_map(function, items, num_workers))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise


def square(item: int) -> dict:
    return {"item": item, "process": os.getpid(), "values": np.full(2, item**2)}


@in_workers
@pytest.mark.parametrize(("items", "num_workers"), [(7, 0), (7, 2), (2, 8), (0, 0), (0, 2)])
def test_every_item_is_done_once_in_the_workers_and_comes_back_as_it_is(items, num_workers):
    assert workers.parallel_map(square, range(items), num_workers).num_workers == min(
        items, num_workers
    )
    results = do_all(square, range(items), num_workers)
    assert sorted(result["item"] for result in results) == list(range(items))
    assert all((result["process"] == os.getpid()) == (num_workers == 0) for result in results)
    assert all(
        isinstance(result["values"], np.ndarray)
        and result["values"].tolist() == [result["item"] ** 2] * 2
        for result in results
    )


def refuse_the_third(item: int) -> int:
    if item == 2:
        raise InputError(f"{item}.jpg: not a readable image; replace it")
    return item


def die(item: int) -> None:
    os._exit(1)


@in_workers
@pytest.mark.parametrize(
    ("function", "num_workers"), [(refuse_the_third, 0), (refuse_the_third, 1), (die, 1)]
)
def test_an_error_and_a_dead_worker_reach_the_user_as_one_line(
    function, num_workers, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["make_ir_labels.py"])
    assert cli_main(lambda: do_all(function, range(4), num_workers)) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and (
        function is die or printed.endswith(": error: 2.jpg: not a readable image; replace it\n")
    )
