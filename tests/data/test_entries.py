"""The pictures of a list: the same as a Python list of them, but held so that reading them copies no memory."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from data.entries import Entries, Entry, PackedStrings

STRINGS = ["", "a", "café", "caf\u0065\u0301", "雪", "one, two", "\udcff\udc80.jpg", "a\nb", "x" * 1000, ""]
ROWS = [(name, f"/root/{name}.jpg", f"masks/{name}.png") for name in ("a", "b c", "雪", "e\udcff", "a.b")]
ENTRIES = [Entry(name, Path(picture), Path(mask)) for name, picture, mask in ROWS]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def entries() -> Entries:
    return Entries.of(ROWS)


@pytest.mark.parametrize("strings", [[], [""], ["a"], ["", ""], STRINGS], ids=len)
def test_packed_strings_are_the_strings(strings):
    packed = PackedStrings(iter(strings))
    assert len(packed) == len(strings)
    assert list(packed) == strings
    assert [packed[i - len(strings)] for i in range(len(strings))] == strings
    assert all(string in packed for string in strings) and "nothing" not in packed


@pytest.mark.parametrize("index", [len(STRINGS), -len(STRINGS) - 1, 10**6])
def test_packed_strings_end(index):
    with pytest.raises(IndexError):
        PackedStrings(STRINGS)[index]
    with pytest.raises(IndexError):
        PackedStrings([])[0]


def test_entries_are_those_that_were_given(entries):
    assert len(entries) == len(ENTRIES)
    assert list(entries) == list(Entries.of(iter(ROWS))) == ENTRIES
    assert isinstance(entries[0].picture, Path) and isinstance(entries[0].mask, Path)
    assert list(reversed(entries)) == ENTRIES[::-1]
    assert ENTRIES[2] in entries and entries.index(ENTRIES[2]) == 2


@pytest.mark.parametrize("index", range(-5, 5))
def test_an_index_is_that_of_a_list(entries, index):
    assert entries[index] == ENTRIES[index]


@pytest.mark.parametrize("index", [5, -6, 100])
def test_an_index_beyond_the_end_is_none(entries, index):
    with pytest.raises(IndexError):
        entries[index]
    with pytest.raises(IndexError):
        entries[:3][3]


@pytest.mark.parametrize(
    "part", [slice(None), slice(2), slice(-2, None), slice(1, 4, 2), slice(None, None, -1), slice(4, 1, -2), slice(9, 20)]
)
def test_a_slice_is_that_of_a_list(entries, part):
    assert isinstance(entries[part], Entries)
    assert list(entries[part]) == list(entries.select(part)) == ENTRIES[part]
    assert list(entries[part][1:]) == ENTRIES[part][1:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_nth_entry_is_the_share_of_a_process(entries, world_size):
    shares = [list(entries[rank::world_size]) for rank in range(world_size)]
    assert shares == [ENTRIES[rank::world_size] for rank in range(world_size)]


@pytest.mark.parametrize("index", [[], [3], [4, 0, 0, -1], (2, 1)])
def test_a_selection_is_in_the_order_asked_for(entries, index):
    assert list(entries.select(index)) == [ENTRIES[i] for i in index]
    assert list(entries[::-1].select(index)) == [ENTRIES[::-1][i] for i in index]


def test_only_the_entries_that_are_wanted_are_kept(entries):
    assert list(entries[::-1].where(lambda entry: entry.name in ("a", "雪"))) == [ENTRIES[2], ENTRIES[0]]
    assert list(entries.where(lambda entry: False)) == []
    assert list(entries.where(lambda entry: True)) == ENTRIES


def test_names_are_those_of_the_entries(entries):
    assert list(entries.names()) == [entry.name for entry in ENTRIES]
    assert list(entries[3:0:-2].names()) == [ENTRIES[3].name, ENTRIES[1].name]


def test_no_entries_are_an_empty_list():
    empty = Entries.of([])
    assert len(empty) == 0 and not empty
    assert list(empty) == list(empty.names()) == list(empty[::2]) == list(empty.select([])) == list(empty.where(bool)) == []
    with pytest.raises(IndexError):
        empty[0]


def test_entries_reach_another_process_whole(entries):
    assert list(pickle.loads(pickle.dumps(entries[::-2]))) == ENTRIES[::-2]
    assert list(pickle.loads(pickle.dumps(PackedStrings(STRINGS)))) == STRINGS


IN_A_WORKER = """
import os, re
from pathlib import Path
from data.entries import Entries

def private_kilobytes():
    return int(re.search(r"Private_Dirty:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])

def read_all(entries):
    for _ in range(2):
        for i in range(len(entries)):
            name, picture, mask = entries[i]

entries = Entries.of((f"{i:06d}", f"/root/images/{i:06d}.jpg", f"/root/masks/{i:06d}.png") for i in range(20_000))
for kind in (Entries, list):
    entries = entries if kind is Entries else list(entries)
    if not os.fork():
        read_all(entries[:100])
        before = private_kilobytes()
        read_all(entries)
        print(private_kilobytes() - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell a process's private memory")
def test_reading_entries_copies_no_memory_into_a_worker():
    """In a small process of its own, because a Path looks for its parts among all strings that the process has interned."""
    done = subprocess.run([sys.executable, "-c", IN_A_WORKER], cwd=ROOT, capture_output=True, text=True, check=True)
    in_packed, in_list = map(int, done.stdout.split())
    assert in_packed < 2000 < 5000 < in_list
