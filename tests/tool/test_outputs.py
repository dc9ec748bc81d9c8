"""What a stage writes: files that are whole or absent, and folders of one making."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from errors import InputError
from tool import outputs
from tool.context import Context

SETTINGS = {"scales": [1.0, 0.5], "map": "is_cam"}
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
CPU = torch.device("cpu")


class OneOfTwo(Context):
    """One of several processes, which waits for nobody."""

    def barrier(self) -> None:
        pass

    def all_gather_object(self, value: int) -> list[int]:
        return [value, 2]


def assert_refused(call: Callable, path: Path) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert_is_one_line_about(error.value, path)


def assert_is_one_line_about(error: InputError, *paths: Path) -> None:
    text = str(error)
    assert text.startswith(tuple(f"{path}: " for path in paths))
    assert "\n" not in text


def contents(folder: Path) -> dict[str, str]:
    """The text of each visible file in a folder."""
    texts = {}
    for path in folder.iterdir():
        if not path.name.startswith("."):
            texts[path.name] = path.read_text()
    return texts


def interrupt(*arguments) -> None:
    raise KeyboardInterrupt


class TestFiles:
    def test_a_file_appears_when_the_block_ends_and_replaces_the_old_one(self, tmp_path):
        path = tmp_path / "new/folder/a.txt"
        # a killed command left this folder
        (tmp_path / "new/folder/a.txt.tmp/left").mkdir(parents=True)
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
        with pytest.raises(raised) as caught, outputs.atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise error
        assert contents(tmp_path) == {"a.txt": "old"}
        if raised is InputError:
            assert_is_one_line_about(caught.value, path)
            assert "No space left" in str(caught.value)

    def test_a_folder_is_made_if_it_can_be_written(self, tmp_path):
        outputs.make_writable(tmp_path / "runs/voc")
        assert contents(tmp_path / "runs/voc") == {}

    @pytest.mark.parametrize("below", ["file", "file/below"])
    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path, below):
        (tmp_path / "file").write_text("mine")
        folder = tmp_path / below
        assert_refused(lambda: outputs.make_writable(folder), folder)
        path = tmp_path / "file/a.json"
        assert_refused(lambda: outputs.write_json(path, {}), path)
        assert (tmp_path / "file").read_text() == "mine"

    def test_json_comes_back_in_ascii_whatever_the_locale(self, tmp_path):
        content = {"miou": 58.88, "none": None, "name": "Zürich"}
        outputs.write_json(tmp_path / "b.json", content)
        assert outputs.read_json(tmp_path / "b.json") == content
        assert (tmp_path / "b.json").read_bytes().isascii()

    @pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe", b"3", b"[1]", b"null"])
    def test_a_missing_or_damaged_json_is_refused(self, tmp_path, content):
        path = tmp_path / "a.json"
        if content is not None:
            path.write_bytes(content)
        assert_refused(lambda: outputs.read_json(path), path)

    def test_the_sha256_of_a_file(self, tmp_path):
        (tmp_path / "a").write_bytes(b"")
        assert outputs.sha256(tmp_path / "a") == EMPTY_SHA256
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
        times = [written, *sources]
        paths = [tmp_path / str(number) for number in range(len(times))]
        for path, time in zip(paths, times):
            if time is not None:
                path.touch()
                os.utime(path, ns=(time, time))
        assert outputs.is_up_to_date(*paths) is expected


def settings_text(settings: dict, stage: str = "make_cam") -> str:
    return json.dumps({"made_by": stage, **settings}, indent=1) + "\n"


MADE = {"settings.json": settings_text(SETTINGS)}
CHANGED = {"settings.json": settings_text({"map": "cam"})}
PREDICTED = {"settings.json": settings_text(SETTINGS, "predict")}
RESULTS = {"a.npz": "", "b.png": "", "b_overlay.jpg": "", "areas.json": ""}
NOTES = {"notes.txt": "mine"}


def prepare(folder: Path, settings: dict, overwrite: bool, context: Context | None = None) -> None:
    context = context or Context(CPU)
    outputs.prepare_output_dir(folder, "make_cam", settings, context, overwrite)


def write_all(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


class TestPrepareOutputDir:
    def test_a_folder_is_made_with_the_settings(self, tmp_path):
        prepare(tmp_path / "cam", SETTINGS, overwrite=False)
        assert contents(tmp_path / "cam") == MADE

    @pytest.mark.parametrize(
        ("before", "settings", "overwrite", "after"),
        [
            ({}, SETTINGS, False, MADE),
            ({"c.npz.tmp": ""}, SETTINGS, False, {**MADE, "c.npz.tmp": ""}),
            ({**MADE, **RESULTS}, SETTINGS, False, {**MADE, **RESULTS}),
            ({**MADE, **RESULTS, **NOTES}, SETTINGS, True, {**MADE, **NOTES}),
            ({**MADE, **RESULTS, **NOTES}, {"map": "cam"}, True, {**CHANGED, **NOTES}),
            (MADE, {"map": "cam"}, False, CHANGED),  # settings without results bind nobody
            (PREDICTED, SETTINGS, False, MADE),
        ],
    )
    def test_a_folder_has_one_maker_and_its_settings(
        self, tmp_path, before, settings, overwrite, after
    ):
        write_all(tmp_path, before)
        prepare(tmp_path, settings, overwrite)
        assert contents(tmp_path) == after

    @pytest.mark.parametrize(
        ("before", "settings", "overwrite"),
        [
            ({**MADE, **RESULTS}, {"map": "cam"}, False),
            ({**MADE, **RESULTS}, {**SETTINGS, "beta": 10}, False),
            ({**PREDICTED, **RESULTS}, SETTINGS, True),
            ({"settings.json": "{}"}, SETTINGS, True),
            (RESULTS, SETTINGS, False),
            (NOTES, SETTINGS, True),
            ({"settings.json": '{"map"', **RESULTS}, SETTINGS, True),
        ],
    )
    def test_another_makers_folder_and_other_settings_are_refused_and_stay(
        self, tmp_path, before, settings, overwrite
    ):
        write_all(tmp_path, before)
        with pytest.raises(InputError) as error:
            prepare(tmp_path, settings, overwrite)
        assert_is_one_line_about(error.value, tmp_path, tmp_path / "settings.json")
        assert contents(tmp_path) == before

    def test_only_the_main_process_writes_and_deletes(self, tmp_path):
        prepare(tmp_path, SETTINGS, False, OneOfTwo(CPU, 1, 2))
        assert contents(tmp_path) == {}
        prepare(tmp_path, SETTINGS, False, OneOfTwo(CPU, 0, 2))
        assert contents(tmp_path) == MADE
        (tmp_path / "a.npz").touch()
        prepare(tmp_path, SETTINGS, True, OneOfTwo(CPU, 1, 2))
        assert contents(tmp_path).keys() == {"settings.json", "a.npz"}

    def test_a_command_that_was_killed_while_overwriting_can_be_repeated(
        self, tmp_path, monkeypatch
    ):
        write_all(tmp_path, {**MADE, **RESULTS, **NOTES})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(outputs, "write_json", interrupt)
            prepare(tmp_path, {"map": "cam"}, overwrite=True)
        prepare(tmp_path, {"map": "cam"}, overwrite=True)
        assert contents(tmp_path) == {**CHANGED, **NOTES}

    def test_what_another_command_writes_before_the_lock_is_ours_is_seen(
        self, tmp_path, monkeypatch
    ):
        def write(path, context):
            write_all(tmp_path, {**MADE, **RESULTS})

        monkeypatch.setattr(outputs, "lock", write)
        with pytest.raises(InputError, match=f"^{tmp_path / 'settings.json'}: "):
            prepare(tmp_path, {"map": "cam"}, overwrite=False)

    def test_results_that_cannot_be_deleted_keep_their_settings(self, tmp_path):
        write_all(tmp_path, MADE)
        (tmp_path / "c.npz").mkdir()
        with pytest.raises(InputError, match=f"^{tmp_path}: "):
            prepare(tmp_path, {"map": "cam"}, overwrite=True)
        assert (tmp_path / "settings.json").read_text() == MADE["settings.json"]


@pytest.mark.parametrize(("free", "warns"), [(4999, True), (5000, False)])
def test_too_little_space_is_named_at_the_start(tmp_path, capsys, monkeypatch, free, warns):
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    outputs.check_space(tmp_path / "new", 5000, Context(CPU))
    assert ("warning: " in capsys.readouterr().out) == warns


class TestLock:
    def test_a_second_command_is_refused_until_the_first_one_ends(self, tmp_path):
        first = Context(CPU)
        second = Context(CPU)
        outputs.lock(tmp_path / "run/a", first)
        outputs.lock(tmp_path / "run/a", OneOfTwo(CPU, 1, 2))  # the first one's other process
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
        owner = f"{ended.pid} {socket.gethostname()} yesterday"
        (tmp_path / ".a.owner").write_text(owner)
        held = FileLock(tmp_path / ".a.lock", thread_local=False)
        held.acquire()
        monkeypatch.setattr(outputs, "EXIT_SECONDS", 0.1)
        with pytest.raises(InputError, match=f"process {ended.pid} on "):
            outputs.lock(tmp_path / "a", Context(CPU))
        monkeypatch.setattr(outputs, "EXIT_SECONDS", 30)
        threading.Timer(0.3, held.release).start()
        with contextlib.closing(Context(CPU).stack):
            outputs.lock(tmp_path / "a", Context(CPU))
