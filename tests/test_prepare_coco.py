"""COCO 2014 from its annotations: masks, tags and lists worked by hand, and wrong files."""

import contextlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import bytes_below, files_below, times_below
from PIL import Image

import prepare_coco
from data.registry import open_dataset
from errors import InputError
from prepare_coco import SplitSize

# pycocotools is older than numpy 2, which warns and works all the same
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

CLASSES = prepare_coco.CLASSES
NEVER_USED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # COCO names 90 categories and annotates 80
USED = [number for number in range(1, 91) if number not in NEVER_USED]
CATEGORY_IDS = dict(zip(CLASSES[1:], USED))
HEIGHT = 8
WIDTH = 12


@dataclass(frozen=True)
class Thing:
    """An instance of a class."""

    name: str
    segmentation: Any
    is_crowd: bool = False


def box(name: str, left: int, top: int, right: int, bottom: int) -> Thing:
    """An instance that fills a rectangle, as a polygon; right and bottom lie outside."""
    return Thing(name, [rectangle(left, top, right, bottom)])


def rectangle(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def crowd(name: str, *counts: int) -> Thing:
    """A region as a run-length code: how many pixels are off, on, off, ... column by column."""
    return Thing(name, {"size": [HEIGHT, WIDTH], "counts": list(counts)}, is_crowd=True)


IMAGES = {
    "train": {
        "t_1": [
            box("dog", 4, 2, 10, 6),
            box("cat", 0, 0, 8, 6),
            crowd("person", 48, 16, 32),
        ],
        "t_2": [crowd("toothbrush", 8, 16, 72)],
        "t_3": [
            box("cup", 2, 2, 6, 4),
            box("book", 2, 2, 6, 6),
            box("fork", 2, 4, 6, 6),
        ],
        "t_4": [],
    },
    "val": {"v_1": [box("tv", 0, 0, 12, 8)]},
}
LETTERS = {
    ".": "background",
    "c": "cat",
    "d": "dog",
    "p": "person",
    "t": "toothbrush",
    "u": "cup",
    "f": "fork",
    "v": "tv",
}
DRAWN = {
    "t_1": """
        cccccccc....
        cccccccc....
        ccccdddddd..
        ccccdddddd..
        ccccdddddd..
        ccccdddddd..
        ......pp....
        ......pp....
    """,
    "t_2": """
        .tt.........
        .tt.........
        .tt.........
        .tt.........
        .tt.........
        .tt.........
        .tt.........
        .tt.........
    """,
    "t_3": """
        ............
        ............
        ..uuuu......
        ..uuuu......
        ..ffff......
        ..ffff......
        ............
        ............
    """,
    "v_1": """
        vvvvvvvvvvvv
        vvvvvvvvvvvv
        vvvvvvvvvvvv
        vvvvvvvvvvvv
        vvvvvvvvvvvv
        vvvvvvvvvvvv
        vvvvvvvvvvvv
        vvvvvvvvvvvv
    """,
}
TAGS = [
    "name,classes",
    "t_1,person;cat;dog",
    "t_2,toothbrush",
    "t_3,cup;fork;book",  # the book is hidden
    "v_1,tv",
]
TEXTS = ("train.txt", "val.txt", "tags.csv")
MASKS = {f"masks/{name}.png" for name in DRAWN}
PRODUCED = MASKS | set(TEXTS)


def drawn_mask(name: str) -> list[list[int]]:
    """The class ids that a mask should have."""
    rows = []
    for line in DRAWN[name].split():
        rows.append([CLASSES.index(LETTERS[letter]) for letter in line])
    return rows


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Five images of 12x8 in COCO's layout, which are taken for the whole of it."""
    sizes = {"train": SplitSize(4, 3, 3), "val": SplitSize(1, 1, 1)}
    monkeypatch.setattr(prepare_coco, "SPLITS", sizes)
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, images in IMAGES.items():
        folder = root / f"{split}2014"
        folder.mkdir()
        for name in images:
            Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / f"{name}.jpg")
        json_of(root, split).write_text(json.dumps(annotation_of(images)))
    return root


def annotation_of(images: dict[str, list[Thing]]) -> dict[str, list]:
    """The annotation of some images, as COCO writes it; categories stand in any order."""
    content = {"images": [], "annotations": [], "categories": []}
    for image_id, (name, things) in enumerate(images.items(), 100):
        content["images"].append(
            {"id": image_id, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        )
        for thing in things:
            content["annotations"].append(
                {
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[thing.name],
                    "iscrowd": int(thing.is_crowd),
                    "segmentation": thing.segmentation,
                }
            )
    for name, category_id in reversed(CATEGORY_IDS.items()):
        content["categories"].append({"id": category_id, "name": name})
    return content


def json_of(root: Path, split: str = "train") -> Path:
    return root / f"annotations/instances_{split}2014.json"


def change(root: Path, how: Callable[[dict], object]) -> None:
    """Change the training annotation."""
    content = json.loads(json_of(root).read_text())
    how(content)
    json_of(root).write_text(json.dumps(content))


@dataclass(frozen=True)
class Run:
    """What a run printed, and its error in one line, if any."""

    printed: str
    error: str

    @property
    def problems(self) -> list[str]:
        after = self.printed.partition("\nproblems (")[2]
        return [line.strip() for line in after.splitlines()[1:]]


def run(root: Path, *flags, num_workers: int = 0) -> Run:
    error = ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            prepare_coco.main(["--root", str(root), "--num_workers", str(num_workers), *flags])
        except InputError as caught:
            error = str(caught)
    assert "\n" not in error
    return Run(printed.getvalue(), error)


def mask_of(root: Path, name: str) -> np.ndarray:
    with Image.open(root / f"masks/{name}.png") as image:
        assert image.mode == "P"
        return np.asarray(image)


def table_of(root: Path) -> list[str]:
    return (root / "tags.csv").read_text().splitlines()


def test_masks_lists_and_tags_are_as_worked_by_hand(root):
    before = files_below(root)
    result = run(root, num_workers=2)
    assert result.error == ""
    assert files_below(root) - before == PRODUCED
    for name in DRAWN:
        np.testing.assert_array_equal(mask_of(root, name), drawn_mask(name), name)
    assert (root / "train.txt").read_text() == "t_1\nt_2\nt_3\n"
    assert (root / "val.txt").read_text() == "v_1\n"
    assert table_of(root) == TAGS
    counts = re.findall(r"(\d+) +(\d+)  (.*)", result.printed)
    assert counts == [(number, number, "OK") for number in "433111"]


def test_the_dataset_reads_it(root):
    run(root)
    dataset = open_dataset("coco", root)
    assert dataset.tags(dataset.samples("train")).sum() == 7


@pytest.mark.parametrize(
    "lost", [set(), PRODUCED, {"masks/t_2.png"}, {"tags.csv", "val.txt"}], ids=len
)
def test_a_second_run_writes_only_what_is_missing(root, lost):
    first = run(root)
    times = times_below(root)
    content = bytes_below(root)
    for name in lost:
        (root / name).unlink()
    assert run(root) == first
    assert bytes_below(root) == content
    assert {name for name, time in times_below(root).items() if time != times[name]} == lost


def test_other_files_are_kept_and_replaced_by_overwrite(root):
    run(root)
    content = bytes_below(root)
    Image.new("P", (WIDTH, HEIGHT), 3).save(root / "masks/t_2.png")
    for name in TEXTS:
        (root / name).write_text("mine\n")
    mine = bytes_below(root)
    files = [problem.split(": ")[0] for problem in run(root).problems]
    assert files == [f"{root}/{name}" for name in TEXTS]
    assert bytes_below(root) == mine
    run(root, "--overwrite")
    assert bytes_below(root) == content


def test_without_val_only_the_training_half_is_prepared(root):
    shutil.rmtree(root / "val2014")
    assert "val.txt" in run(root).printed
    assert not (root / "val.txt").exists()
    assert table_of(root) == TAGS[:-1]


def test_zips_are_unpacked_once(root):
    (root / "annotations/captions.json").touch()  # not needed
    for file, beginning in prepare_coco.ZIPS.items():
        folder = root / beginning.split("/")[0]
        with zipfile.ZipFile(root / file, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, path.relative_to(root))
        shutil.rmtree(folder)
    run(root)
    assert files_below(root) >= PRODUCED
    assert not (root / "annotations/captions.json").exists()
    times = times_below(root)
    run(root)
    assert times_below(root) == times


def test_an_image_that_occurs_twice_is_a_problem(root):
    change(root, lambda content: content["images"].append({**content["images"][0], "id": 1}))
    (problem,) = run(root).problems
    assert problem.startswith(f"{json_of(root)}: ")
    assert "t_1" in problem


def test_a_root_without_images_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert run(path).error.startswith(f"{path}: ")
    assert list(tmp_path.iterdir()) == []


def outline(value: object) -> Callable[[Path], None]:
    """Give the first instance, t_1's dog, another segmentation."""

    def spoil(root: Path) -> None:
        change(root, lambda content: content["annotations"][0].update(segmentation=value))

    return spoil


def code(counts: object) -> Callable[[Path], None]:
    return outline({"size": [HEIGHT, WIDTH], "counts": counts})


def image_of(root: Path) -> Path:
    return root / "train2014/t_1.jpg"


SPOILED = {
    "missing": lambda root: image_of(root).unlink(),
    "turned": lambda root: Image.new("RGB", (HEIGHT, WIDTH)).save(image_of(root)),
    "not an image": lambda root: image_of(root).write_bytes(b"<html>404</html>"),
    "polygon with nan": outline([[0, 0, float("nan"), 0, 4, 4]]),
    "polygon far away": outline([[0, 0, 1e9, 0, 4, 4]]),
    "polygon beyond floats": outline([[0, 0, 10**400, 0, 4, 4]]),
    "polygon without a last y": outline([[0, 0, 4, 0, 4, 4, 0]]),
    "polygon in no list": outline([0, 0, 4, 0, 4, 4]),
    "no segmentation": outline(None),
    "code with too small a sum": code([48, 16]),
    "code with a negative count": code([100, -20, 16]),
    "code with fractions": code([48.5, 47.5]),
    "packed code of another sum": code("PPYo0>"),
    "turned code": outline({"size": [WIDTH, HEIGHT], "counts": [48, 48]}),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_an_image_that_cannot_be_drawn_is_named_and_the_others_are_prepared(root, spoil):
    spoil(root)
    result = run(root)
    (problem,) = result.problems
    assert problem.startswith(f"{image_of(root)}: ")
    assert result.error.startswith(f"{root}: ")
    assert files_below(root) & PRODUCED == PRODUCED - {"masks/t_1.png"}
    assert (root / "train.txt").read_text().split() == ["t_2", "t_3"]
    assert table_of(root) == [TAGS[0], *TAGS[2:]]


TWO_BOXES = [rectangle(0, 0, 2, 2), rectangle(8, 0, 10, 2)]
DRAWN_PIXELS = {  # of a dog with these polygons
    "no polygon": ([], 0),
    "a line": ([[0, 0, 4, 4]], 0),
    "outside": ([[100, 100, 120, 100, 120, 120]], 0),
    "two boxes and a line": ([*TWO_BOXES, [3, 3, 4, 4]], 8),
}


@pytest.mark.parametrize(("polygons", "pixels"), DRAWN_PIXELS.values(), ids=DRAWN_PIXELS)
def test_an_instance_is_a_tag_whatever_is_drawn_of_it(root, polygons, pixels):
    outline(polygons)(root)
    run(root)
    assert (mask_of(root, "t_1") == CLASSES.index("dog")).sum() == pixels
    assert table_of(root) == TAGS


FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id"),
}
VALUES = [
    ("annotations", "category_id", 12),
    ("images", "height", float("nan")),
    ("categories", "name", "wizard"),
    ("images", "file_name", "../secret.jpg"),
    ("images", "file_name", r"..\secret.jpg"),
    ("images", "file_name", "more/t_1.jpg"),
    ("images", "file_name", 7),
]


def remove_field(part: str, key: str) -> Callable[[dict], object]:
    """Remove a field of the first object."""
    return lambda content: content[part][0].pop(key)


def set_field(part: str, key: str, value: object) -> Callable[[dict], object]:
    return lambda content: content[part][0].update({key: value})


def remove_part(part: str) -> Callable[[dict], object]:
    return lambda content: content.pop(part)


CHANGES = {
    "a category more": lambda content: content["categories"].append({"id": 91, "name": "wizard"}),
    "an image a number": lambda content: content.update(images=[5]),
}
for part, keys in FIELDS.items():
    CHANGES[f"no {part}"] = remove_part(part)
    for key in keys:
        CHANGES[f"{part} without {key}"] = remove_field(part, key)
for part, key, value in VALUES:
    CHANGES[f"{key} {value}"] = set_field(part, key, value)


@pytest.mark.parametrize("how", CHANGES.values(), ids=CHANGES)
def test_an_annotation_of_another_form_is_named_and_nothing_is_written(root, how):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "secret.jpg")
    change(root, how)
    before = times_below(root)
    assert run(root).error.startswith(f"{json_of(root)}: ")
    assert times_below(root) == before


OTHER = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "cut": b'{"images": [',
    "not UTF-8": b"\xff\xfe{}",
    "nested too deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("content", OTHER.values(), ids=OTHER)
def test_a_file_of_something_else_is_named(root, content):
    json_of(root).write_bytes(content)
    assert run(root).error.startswith(f"{json_of(root)}: ")


def test_a_missing_annotation_is_named(root):
    json_of(root).unlink()
    assert run(root).error.startswith(f"{json_of(root)}: ")
