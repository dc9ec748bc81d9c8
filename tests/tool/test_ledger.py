"""What a command may replace in a folder that is not its own."""

import numpy as np
import pytest
from common import stop_after
from PIL import Image

from errors import InputError
from tool import files, label_file
from tool.ledger import Ledger, is_made, place

LABEL = np.array([[0, 1], [2, 255]], np.uint8)


def test_its_own_file_is_written_and_replaced(tmp_path):
    Ledger(tmp_path).write("a.txt", "one\n")
    Ledger(tmp_path).write("a.txt", "two\n")
    assert (tmp_path / "a.txt").read_bytes() == b"two\n"


def test_the_same_content_is_left_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    before = (tmp_path / "a.txt").stat().st_mtime_ns
    Ledger(tmp_path).write("a.txt", "one\n")
    assert (tmp_path / "a.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("first", [None, "one\n"], ids=["never written", "changed since"])
def test_somebody_elses_file_is_never_replaced(tmp_path, first):
    if first:
        Ledger(tmp_path).write("a.txt", first)
    (tmp_path / "a.txt").write_text("mine\n")
    with pytest.raises(InputError, match=r"a\.txt: is to be written, but .*; move it away and run again"):
        Ledger(tmp_path).write("a.txt", "two\n")
    assert (tmp_path / "a.txt").read_text() == "mine\n"


def test_a_run_that_is_stopped_before_it_writes_is_not_locked_out(tmp_path, monkeypatch):
    Ledger(tmp_path).write("a.txt", "one\n")
    with monkeypatch.context() as patch:
        stop_after(patch, files, "atomic_write", 1)  # the note is written, the file is not
        with pytest.raises(KeyboardInterrupt):
            Ledger(tmp_path).write("a.txt", "two\n")
    assert (tmp_path / "a.txt").read_text() == "one\n"
    Ledger(tmp_path).write("a.txt", "three\n")
    assert (tmp_path / "a.txt").read_text() == "three\n"


def test_somebody_elses_file_of_the_same_content_stays_somebody_elses(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    Ledger(tmp_path).write("a.txt", "one\n")
    assert not Ledger(tmp_path).made("a.txt")
    with pytest.raises(InputError, match="move it away"):
        Ledger(tmp_path).write("a.txt", "two\n")


@pytest.mark.parametrize("content", ["{", '{"files": 3}', '{"files": {}}'])
def test_another_note_ends_in_one_line(tmp_path, content):
    (tmp_path / "prepared.json").write_text(content)
    with pytest.raises(InputError, match=r"prepared\.json: .*; "):
        Ledger(tmp_path)


class TestPlace:
    def test_own_labels_are_replaced(self, tmp_path):
        for label in (LABEL, LABEL + 1):
            assert place(tmp_path / "a.png", label, "me") is None
            assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), label)
        assert is_made(tmp_path / "a.png", "me") and not is_made(tmp_path / "a.png", "you")

    def test_a_cut_label_of_its_own_is_made_again(self, tmp_path):
        place(tmp_path / "a.png", LABEL, "me")
        (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-8])
        assert not is_made(tmp_path / "a.png", "me")
        assert place(tmp_path / "a.png", LABEL, "me") is None
        assert is_made(tmp_path / "a.png", "me")

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: Image.new("L", (2, 2)).save(path),
            lambda path: Image.new("L", (3, 2)).save(path),
            lambda path: Image.new("RGB", (2, 2)).save(path),
            lambda path: label_file.save(path, LABEL + 1, "you"),
            lambda path: path.write_bytes(b"text"),
            lambda path: path.write_bytes(b"junkIEND\xaeB`\x82"),
        ],
        ids=["other", "size", "colours", "another maker", "text", "junk"],
    )
    def test_somebody_elses_file_stays_and_is_told_where_it_differs(self, tmp_path, spoil):
        spoil(tmp_path / "a.png")
        before = (tmp_path / "a.png").read_bytes()
        assert "a.png: shows something else than its source says" in place(tmp_path / "a.png", LABEL, "me")
        assert (tmp_path / "a.png").read_bytes() == before

    def test_the_same_label_of_somebody_else_is_fine(self, tmp_path):
        Image.fromarray(LABEL).save(tmp_path / "a.png")
        before = (tmp_path / "a.png").read_bytes()
        assert place(tmp_path / "a.png", LABEL, "me") is None
        assert (tmp_path / "a.png").read_bytes() == before
