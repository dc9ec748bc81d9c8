"""Files that are either whole or absent."""

import json

import pytest

from errors import InputError
from tool.files import atomic_write, read_json, write_json


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new/folder/a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("some bug"), KeyboardInterrupt(), InputError("some input")])
def test_the_old_file_stays_when_the_block_raises(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "new"


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    with pytest.raises(InputError) as error, atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert str(error.value).startswith(f"{tmp_path / 'a.txt'}: cannot be written (No space left on device); ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line_too(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as error, atomic_write(tmp_path / "file/a.txt"):
        pass
    assert "\n" not in str(error.value)


def test_json_comes_back(tmp_path):
    content = {"miou": 58.88, "none": None, "list": [1, 2], "name": "Zürich"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert json.loads((tmp_path / "a.json").read_bytes().decode("ascii")) == content  # whatever the locale


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_missing_or_damaged_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
