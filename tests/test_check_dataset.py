"""A check of a dataset lists what must be fixed, which is an error, and what is worth knowing."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from common import NAMES, bytes_below, times_below, write_lines
from PIL import Image

import check_dataset
from data.images import IGNORE
from errors import InputError

WIDTH = 24
HEIGHT = 16
SIZE = (WIDTH, HEIGHT)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """16 images, as many as a batch, with masks: a cat on each, and a dog on every fourth."""
    root = tmp_path / "own"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = []
    for i in range(16):
        name = f"p_{i:02d}"
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[4:10, :12] = 1
        mask[0] = IGNORE
        tags = "cat"
        if i % 4 == 0:
            mask[4:10, 12:] = 2
            tags = "cat;dog"
        Image.new("RGB", SIZE, (10 * i, 0, 0)).save(root / f"images/{name}.png")
        Image.fromarray(mask).save(root / f"masks/{name}.png")
        rows.append(f"{name},{tags}")
    write_lines(root / "classes.txt", "cat", "dog")
    write_lines(root / "tags.csv", "name,classes", *rows)
    return root


class Report(NamedTuple):
    notes: list[str]
    problems: list[str]
    printed: str


def check(root: Path, *flags: str, num_workers: int = 0) -> Report:
    """The report on a dataset. Problems end in an error, and nothing is written."""
    before = (times_below(root), bytes_below(root))
    error = ""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            check_dataset.main([str(root), "--num_workers", str(num_workers), *flags])
        except InputError as raised:
            error = str(raised)
    assert (times_below(root), bytes_below(root)) == before
    printed = out.getvalue()
    notes = listed_under("worth knowing", printed)
    problems = listed_under("to fix", printed)
    names_next_command = f"--dataset_root {root}" in printed
    if problems:
        assert error.startswith(f"{root}: ")
        assert not names_next_command
    else:
        assert not error
        assert names_next_command
    return Report(notes, problems, printed)


def listed_under(title: str, printed: str) -> list[str]:
    """The lines under a title, which says how many there are."""
    match = re.search(rf"^{title} \((\d+)\)\n((?:  .*\n)+)", printed, re.MULTILINE)
    if match is None:
        return []
    lines = [line.strip() for line in match[2].splitlines()]
    assert int(match[1]) == len(lines)
    return lines


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    write_lines(path, *lines)


class TestReport:
    def test_counts_images_tags_sizes_and_masks(self, own):
        exif = Image.Exif()
        exif[0x0112] = 6  # shown a quarter turn clockwise, which masks are not
        Image.new("RGB", SIZE, "white").save(own / "images/p_03.png", exif=exif)
        Image.new("L", (7, 5)).save(own / "images/p_01.png")
        Image.new("L", (100, 5)).save(own / "images/p_02.png")
        (own / "masks/p_01.png").unlink()
        (own / "masks/p_02.png").unlink()
        report = check(own)
        assert report.notes == []
        assert report.problems == []
        assert "'folder' dataset, 2 classes" in report.printed
        assert "train on: 16; tags an image: 1.25" in report.printed
        assert "from 7x5 to 100x5" in report.printed
        assert "masks: 14 " in report.printed
        assert re.search(r"^cat +16 +14\ndog +4 +4$", report.printed, re.MULTILINE)

    def test_names_the_next_command_for_a_folder(self, own):
        flags = '--recipe plus --with train_resnet50_SIPE "--max_epochs 12"'
        command = f"bash run_folder.sh --dataset_root {own} {flags}\n"
        assert check(own).printed.endswith(command)

    def test_counts_voc(self, tiny_voc):
        report = check(tiny_voc, "--dataset", "voc")
        unused = [note for note in report.notes if "classes without" in note]
        assert len(unused) == 1
        assert "(18)" in unused[0]
        assert re.search(r"^cat +3 +3$", report.printed, re.MULTILINE)
        assert re.search(r"^dog +6 +6$", report.printed, re.MULTILINE)

    def test_suggests_a_small_batch(self, tiny_voc):
        printed = check(tiny_voc, "--dataset", "voc").printed
        smaller = '--with train_resnet50_SIPE "--batch_size 6" --with train_seg "--batch_size 6"'
        assert printed.endswith(f"bash run_voc.sh --dataset_root {tiny_voc} {smaller}\n")

    def test_is_the_same_from_worker_processes(self, own):
        (own / "images/p_03.png").write_bytes(b"")
        assert check(own, num_workers=2) == check(own)


class Problem(NamedTuple):
    """A change of the dataset, and the start of the problem that it makes."""

    spoil: Callable[[Path], object]
    start: str


PROBLEMS = {
    "a truncated image": Problem(
        lambda root: os.truncate(root / "images/p_03.png", 60), "images/p_03.png"
    ),
    "a missing image": Problem(
        lambda root: (root / "images/p_03.png").unlink(), "tags.csv, line 5"
    ),
    "two images of one name": Problem(
        lambda root: Image.new("RGB", SIZE).save(root / "images/p_03.jpg"), "images: p_03.jpg"
    ),
    "an unknown tag": Problem(
        lambda root: replace_line(root / "tags.csv", 5, "p_03,cat;cow"), "tags.csv, line 5"
    ),
    "no tag table": Problem(lambda root: (root / "tags.csv").unlink(), "tags.csv"),
    "a mask of another size": Problem(
        lambda root: Image.new("L", (HEIGHT, WIDTH)).save(root / "masks/p_03.png"),
        "masks/p_03.png",
    ),
    "a mask of another class": Problem(
        lambda root: Image.new("L", SIZE, 3).save(root / "masks/p_03.png"), "masks/p_03.png"
    ),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_problem_is_listed_once(own, kind):
    PROBLEMS[kind].spoil(own)
    (problem,) = check(own).problems
    assert problem.startswith(f"{own}/{PROBLEMS[kind].start}")
    assert "; " in problem


def test_problems_of_voc_are_all_listed(tiny_voc):
    (tiny_voc / f"Annotations/{NAMES[0]}.xml").unlink()
    write_lines(tiny_voc / f"Annotations/{NAMES[1]}.xml", "<annotation>")
    (tiny_voc / f"JPEGImages/{NAMES[2]}.jpg").write_bytes(b"")
    (tiny_voc / f"JPEGImages/{NAMES[3]}.jpg").unlink()
    Image.new("RGB", (64, 48)).save(tiny_voc / f"SegmentationClass/{NAMES[4]}.png")
    report = check(tiny_voc, "--dataset", "voc")
    assert not any("same" in note for note in report.notes)
    assert len(report.problems) == 5
    for name in NAMES[:5]:
        of_image = [problem for problem in report.problems if name in problem]
        assert len(of_image) == 1


def leave_two_untagged(root: Path) -> None:
    replace_line(root / "tags.csv", 4, "p_02,")
    replace_line(root / "tags.csv", 5, "")


def copy_an_image_twice(root: Path) -> None:
    shutil.copy(root / "images/p_02.png", root / "images/p_05.png")
    shutil.copy(root / "images/p_02.png", root / "images/p_03.png")


def add_six_masks(root: Path) -> None:
    for i in range(6):
        Image.new("L", SIZE).save(root / f"masks/m_{i}.png")


class Note(NamedTuple):
    """A change of the dataset, and of each note that it makes, in order, a part and the end."""

    change: Callable[[Path], object]
    expected: dict[str, str]


NOTES = {
    "two images without a tag": Note(
        leave_two_untagged,
        {
            "images not": "(2): p_02, p_03",
            "masks of none": "(2): p_02, p_03",
            "batch": "--batch_size 14 or less",
        },
    ),
    "equal images": Note(copy_an_image_twice, {"same": "(1): p_02 = p_03 = p_05"}),
    "no masks": Note(lambda root: shutil.rmtree(root / "masks"), {}),
    "an image without a line": Note(
        lambda root: Image.new("RGB", SIZE).save(root / "images/new.webp"),
        {"images not": "(1): new"},
    ),
    "a class without an image": Note(
        lambda root: write_lines(root / "classes.txt", "cat", "dog", "cow"),
        {"classes without": "(1): cow"},
    ),
    "a tag that the mask lacks": Note(
        lambda root: replace_line(root / "tags.csv", 3, "p_01,cat;dog"), {"a tag that": "(1): p_01"}
    ),
    "a class that the tags lack": Note(
        lambda root: replace_line(root / "tags.csv", 2, "p_00,cat"), {"a class in": "(1): p_00"}
    ),
    "many masks without an image": Note(
        add_six_masks, {"masks of none": "(6): m_0, m_1, m_2, m_3, m_4, ..."}
    ),
    "a file of another type": Note(
        lambda root: (root / "images/a.txt").touch(), {"type": "(1): images/a.txt"}
    ),
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_note_names_the_images_and_is_no_error(own, kind):
    case = NOTES[kind]
    case.change(own)
    report = check(own)
    assert report.problems == []
    for note, (part, end) in zip(report.notes, case.expected.items(), strict=True):
        assert part in note
        assert note.endswith(end)
