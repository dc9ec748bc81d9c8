"""A check of a dataset: what must be fixed is listed and ends in an error, what is worth knowing is listed and does not."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from common import NAMES, bytes_below, times_below, write_lines
from PIL import Image

import check_dataset
from errors import InputError

SIZE = (24, 16)  # width and height


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """16 images, as many as a batch: a cat on each, a dog as well on every fourth, and masks that show them."""
    root = tmp_path / "own"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(16):
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[4:10, :12], mask[4:10, 12:], mask[0] = 1, 2 * (i % 4 == 0), 255
        Image.new("RGB", SIZE, (10 * i, 0, 0)).save(root / f"images/p_{i:02d}.png")
        Image.fromarray(mask).save(root / f"masks/p_{i:02d}.png")
    write_lines(root / "classes.txt", "cat", "dog")
    write_lines(
        root / "tags.csv",
        "name,classes",
        *(f"p_{i:02d},cat{';dog' * (i % 4 == 0)}" for i in range(16)),
    )
    return root


def check(root: Path, *flags, num_workers: int = 0) -> tuple[list[str], list[str], str]:
    """The notes, the problems, which end in an error, and all that was printed. Nothing is written."""
    before, error, out = (times_below(root), bytes_below(root)), "", io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            check_dataset.main([str(root), "--num_workers", str(num_workers), *flags])
        except InputError as caught:
            error = str(caught)
    assert (times_below(root), bytes_below(root)) == before
    found = {"worth knowing": [], "to fix": []}
    for title, count, lines in re.findall(
        r"^(worth knowing|to fix) \((\d+)\)\n((?:  .*\n)+)", out.getvalue(), re.MULTILINE
    ):
        found[title] = [line.strip() for line in lines.splitlines()]
        assert int(count) == len(found[title])
    assert (
        error.startswith(f"{root}: ")
        == bool(found["to fix"])
        == (f"--dataset_root {root}" not in out.getvalue())
    )
    return *found.values(), out.getvalue()


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [line]
    write_lines(path, *lines)


def test_the_report_counts_images_tags_sizes_and_masks(own):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise, which masks are not
    Image.new("RGB", SIZE, "white").save(own / "images/p_03.png", exif=exif)
    Image.new("L", (7, 5)).save(own / "images/p_01.png")
    Image.new("L", (100, 5)).save(own / "images/p_02.png")
    for i in (1, 2):
        (own / f"masks/p_0{i}.png").unlink()
    notes, problems, printed = check(own)
    assert (notes, problems) == ([], [])
    for part in (
        "'folder' dataset, 2 classes",
        "train on: 16; tags an image: 1.25",
        "from 7x5 to 100x5",
        "masks: 14 ",
    ):
        assert part in printed
    assert re.search(r"^cat +16 +14\ndog +4 +4$", printed, re.MULTILINE)
    assert printed.endswith(
        f'bash run_folder.sh --dataset_root {own} --recipe plus --with train_resnet50_SIPE "--max_epochs 12"\n'
    )


def test_worker_processes_report_the_same(own):
    (own / "images/p_03.png").write_bytes(b"")
    assert check(own, num_workers=2) == check(own)


SPOILED = {
    "a truncated image": (
        lambda root: os.truncate(root / "images/p_03.png", 60),
        "images/p_03.png",
    ),
    "a missing image": (lambda root: (root / "images/p_03.png").unlink(), "tags.csv, line 5"),
    "two images of one name": (
        lambda root: Image.new("RGB", SIZE).save(root / "images/p_03.jpg"),
        "images: p_03.jpg",
    ),
    "an unknown tag": (
        lambda root: replace_line(root / "tags.csv", 5, "p_03,cat;cow"),
        "tags.csv, line 5",
    ),
    "no tag table": (lambda root: (root / "tags.csv").unlink(), "tags.csv"),
    "a mask of another size": (
        lambda root: Image.new("L", SIZE[::-1]).save(root / "masks/p_03.png"),
        "masks/p_03.png",
    ),
    "a mask of another class": (
        lambda root: Image.new("L", SIZE, 3).save(root / "masks/p_03.png"),
        "masks/p_03.png",
    ),
}


@pytest.mark.parametrize(("spoil", "file"), SPOILED.values(), ids=SPOILED)
def test_a_problem_is_listed_once(own, spoil, file):
    spoil(own)
    _, (problem,), _ = check(own)
    assert problem.startswith(f"{own}/{file}") and "; " in problem


NOTED: dict[
    str, tuple[Callable[[Path], object], dict[str, str]]
] = {  # change, and of each note a part and its end
    "two images without a tag": (
        lambda root: (
            replace_line(root / "tags.csv", 4, "p_02,") or replace_line(root / "tags.csv", 5, "")
        ),
        {
            "images not": "(2): p_02, p_03",
            "masks of none": "(2): p_02, p_03",
            "batch": "--batch_size 14 or less",
        },
    ),
    "equal images": (
        lambda root: [
            shutil.copy(root / "images/p_02.png", root / f"images/p_0{i}.png") for i in (5, 3)
        ],
        {"same": "(1): p_02 = p_03 = p_05"},
    ),
    "no masks": (lambda root: shutil.rmtree(root / "masks"), {}),
    "an image without a line": (
        lambda root: Image.new("RGB", SIZE).save(root / "images/new.webp"),
        {"images not": "(1): new"},
    ),
    "a class without an image": (
        lambda root: replace_line(root / "classes.txt", 3, "cow"),
        {"classes without": "(1): cow"},
    ),
    "a tag that the mask lacks": (
        lambda root: replace_line(root / "tags.csv", 3, "p_01,cat;dog"),
        {"a tag that": "(1): p_01"},
    ),
    "a class that the tags lack": (
        lambda root: replace_line(root / "tags.csv", 2, "p_00,cat"),
        {"a class in": "(1): p_00"},
    ),
    "many masks without an image": (
        lambda root: [Image.new("L", SIZE).save(root / f"masks/m_{i}.png") for i in range(6)],
        {"masks of none": "(6): m_0, m_1, m_2, m_3, m_4, ..."},
    ),
    "a file of another type": (
        lambda root: (root / "images/a.txt").touch(),
        {"type": "(1): images/a.txt"},
    ),
}


@pytest.mark.parametrize(("change", "expected"), NOTED.values(), ids=NOTED)
def test_a_note_names_the_images_and_is_no_error(own, change, expected):
    change(own)
    notes, problems, _ = check(own)
    assert problems == [] and len(notes) == len(expected)
    for note, (part, end) in zip(notes, expected.items()):
        assert part in note and note.endswith(end)


def test_a_small_batch_is_suggested(tiny_voc):
    notes, _, printed = check(tiny_voc, "--dataset", "voc")
    assert any("classes without" in note and "(18)" in note for note in notes)
    assert re.search(r"^cat +3 +3$", printed, re.MULTILINE) and re.search(
        r"^dog +6 +6$", printed, re.MULTILINE
    )
    smaller = ' --with train_resnet50_SIPE "--batch_size 6" --with train_seg "--batch_size 6"'
    assert printed.endswith(f"bash run_voc.sh --dataset_root {tiny_voc}{smaller}\n")


def test_problems_of_voc_are_all_listed(tiny_voc):
    (tiny_voc / f"Annotations/{NAMES[0]}.xml").unlink()
    write_lines(tiny_voc / f"Annotations/{NAMES[1]}.xml", "<annotation>")
    (tiny_voc / f"JPEGImages/{NAMES[2]}.jpg").write_bytes(b"")
    (tiny_voc / f"JPEGImages/{NAMES[3]}.jpg").unlink()
    Image.new("RGB", (64, 48)).save(tiny_voc / f"SegmentationClass/{NAMES[4]}.png")
    notes, problems, _ = check(tiny_voc, "--dataset", "voc")
    assert not any("same" in note for note in notes)
    assert len(problems) == 5
    assert all(sum(name in problem for problem in problems) == 1 for name in NAMES[:5])
