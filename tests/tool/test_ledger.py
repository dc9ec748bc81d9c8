"""What a command may replace in a folder that is not its own."""

import numpy as np
import pytest
from PIL import Image

from errors import InputError
from tool import label_file
from tool.ledger import Ledger, place

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


def test_a_folder_is_owned_that_was_empty_or_was_adopted(tmp_path):
    label_file.save(tmp_path / "theirs/a.png", LABEL)
    assert not Ledger(tmp_path).owns("theirs")
    assert Ledger(tmp_path).owns("ours")
    Ledger(tmp_path).adopt("ours")
    label_file.save(tmp_path / "ours/a.png", LABEL)
    assert Ledger(tmp_path).owns("ours")


def test_a_damaged_note_ends_in_one_line(tmp_path):
    (tmp_path / "prepared.json").write_text("{")
    with pytest.raises(InputError, match=r"prepared\.json: cannot be read"):
        Ledger(tmp_path)


class TestPlace:
    def test_own_labels_are_replaced(self, tmp_path):
        label_file.save(tmp_path / "a.png", LABEL)
        assert place(tmp_path / "a.png", LABEL + 1, is_own=True) is None
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), LABEL + 1)

    def test_a_missing_or_cut_label_is_written(self, tmp_path):
        (tmp_path / "b.png").write_bytes(b"cut")
        for name in ("a.png", "b.png"):
            assert place(tmp_path / name, LABEL, is_own=False) is None
            assert np.array_equal(np.asarray(Image.open(tmp_path / name)), LABEL)

    @pytest.mark.parametrize(
        "image", [Image.new("L", (2, 2)), Image.new("L", (3, 2)), Image.new("RGB", (2, 2))], ids=["other", "size", "colours"]
    )
    def test_somebody_elses_label_stays_and_is_told_where_it_differs(self, tmp_path, image):
        image.save(tmp_path / "a.png")
        before = (tmp_path / "a.png").read_bytes()
        assert "a.png: shows something else than its source says" in place(tmp_path / "a.png", LABEL, is_own=False)
        assert (tmp_path / "a.png").read_bytes() == before

    def test_the_same_label_of_somebody_else_is_fine(self, tmp_path):
        Image.fromarray(LABEL).save(tmp_path / "a.png")
        assert place(tmp_path / "a.png", LABEL, is_own=False) is None
