"""COCO 2014 from its annotations: masks drawn by hand and by pycocotools, tags, lists, and what is wrong with the files."""

import contextlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from common import bytes_below, files_below, times_below
from PIL import Image

import prepare_coco
from data.registry import open_dataset
from errors import InputError

# pycocotools is older than numpy 2, which warns and works all the same
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

CLASSES = prepare_coco.CLASSES
NEVER_USED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # COCO names 90 categories and annotates 80
CATEGORY_IDS = dict(
    zip(CLASSES[1:], (number for number in range(1, 91) if number not in NEVER_USED))
)
HEIGHT, WIDTH = 8, 12


def box(name: str, left: int, top: int, right: int, bottom: int) -> dict:
    """An instance that fills a rectangle, as a polygon; right and bottom lie outside."""
    return {
        "category": name,
        "iscrowd": 0,
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
    }


def crowd(name: str, *counts: int) -> dict:
    """A region as a run-length code: how many pixels are off, on, off, ... column by column."""
    return {
        "category": name,
        "iscrowd": 1,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": list(counts)},
    }


IMAGES = {
    "train": {
        "t_1": [box("dog", 4, 2, 10, 6), box("cat", 0, 0, 8, 6), crowd("person", 48, 16, 32)],
        "t_2": [crowd("toothbrush", 8, 16, 72)],
        "t_3": [box("cup", 2, 2, 6, 4), box("book", 2, 2, 6, 6), box("fork", 2, 4, 6, 6)],
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
    "t_1": ["cccccccc....", "cccccccc....", *["ccccdddddd.."] * 4, *["......pp...."] * 2],
    "t_2": [".tt........."] * 8,
    "t_3": [
        "............",
        "............",
        *["..uuuu......"] * 2,
        *["..ffff......"] * 2,
        "............",
        "............",
    ],
    "v_1": ["vvvvvvvvvvvv"] * 8,
}
TAGS = [
    "name,classes",
    "t_1,person;cat;dog",
    "t_2,toothbrush",
    "t_3,cup;fork;book",
    "v_1,tv",
]  # the book is hidden
MASKS = {f"masks/{name}.png" for name in DRAWN}
PRODUCED = MASKS | {"train.txt", "val.txt", "tags.csv"}
TWO_BOXES = [
    *box("dog", 0, 0, 2, 2)["segmentation"],
    *box("dog", 8, 0, 10, 2)["segmentation"],
    [3, 3, 4, 4],
]
OUTSIDE = [[100, 100, 120, 100, 120, 120]]
FIELDS = [
    *(("images", key) for key in ("id", "file_name", "height", "width")),
    ("categories", "id"),
    ("categories", "name"),
]
FIELDS += [("annotations", key) for key in ("image_id", "category_id")]
VALUES = [
    ("annotations", "category_id", 12),
    ("images", "height", float("nan")),
    ("categories", "name", "wizard"),
]
VALUES += [
    ("images", "file_name", name) for name in ("../secret.jpg", r"..\secret.jpg", "more/t_1.jpg", 7)
]
CHANGES = {
    **{
        f"{part} without {key}": lambda content, part=part, key=key: content[part][0].pop(key)
        for part, key in FIELDS
    },
    **{
        f"{key} {value}": lambda content, part=part, new={key: value}: content[part][0].update(new)
        for part, key, value in VALUES
    },
    **{
        f"no {part}": lambda content, part=part: content.pop(part)
        for part in ("images", "annotations", "categories")
    },
    "a category more": lambda content: content["categories"].append({"id": 91, "name": "wizard"}),
    "an image a number": lambda content: content.update(images=[5]),
}
OTHER = [None, b"", b"[]", b"null", b'{"images": [', b"\xff\xfe{}", b"[" * 100_000]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Five images of 12x8 in COCO's layout, which are taken for the whole of it."""
    monkeypatch.setattr(prepare_coco, "SPLITS", {"train": (4, 3, 3), "val": (1, 1, 1)})
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, images in IMAGES.items():
        (root / f"{split}2014").mkdir()
        ids, content = {name: 100 + i for i, name in enumerate(images)}, {"annotations": []}
        for name, instances in images.items():
            Image.new("RGB", (WIDTH, HEIGHT), "grey").save(root / f"{split}2014/{name}.jpg")
            for one in instances:
                about = {
                    "image_id": ids[name],
                    "category_id": CATEGORY_IDS[one["category"]],
                    "iscrowd": one["iscrowd"],
                }
                content["annotations"].append(about | {"segmentation": one["segmentation"]})
        content["images"] = [
            {"id": ids[name], "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
            for name in images
        ]
        content["categories"] = [
            {"id": number, "name": name} for name, number in reversed(CATEGORY_IDS.items())
        ]
        json_of(root, split).write_text(json.dumps(content))
    return root


def json_of(root: Path, split: str = "train") -> Path:
    return root / f"annotations/instances_{split}2014.json"


def change(root: Path, how: Callable[[dict], object]) -> None:
    """Change the training annotation."""
    content = json.loads(json_of(root).read_text())
    how(content)
    json_of(root).write_text(json.dumps(content))


def run(root: Path, *flags, num_workers: int = 0) -> tuple[list[str], str, str]:
    """The problems, all that was printed, and the error, if any."""
    error, out = "", io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            prepare_coco.main(["--root", str(root), "--num_workers", str(num_workers), *flags])
        except InputError as caught:
            error = str(caught)
    assert "\n" not in error
    return (
        [line.strip() for line in out.getvalue().partition("\nproblems (")[2].splitlines()[1:]],
        out.getvalue(),
        error,
    )


def mask(root: Path, name: str) -> np.ndarray:
    with Image.open(root / f"masks/{name}.png") as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_masks_lists_and_tags_are_as_worked_by_hand(root):
    before = files_below(root)
    _, printed, error = run(root, num_workers=2)
    assert files_below(root) - before == PRODUCED
    for name in DRAWN:
        expected = [[CLASSES.index(LETTERS[letter]) for letter in line] for line in DRAWN[name]]
        np.testing.assert_array_equal(mask(root, name), expected, name)
    assert [(root / f"{split}.txt").read_text() for split in IMAGES] == ["t_1\nt_2\nt_3\n", "v_1\n"]
    assert (root / "tags.csv").read_text().splitlines() == TAGS
    assert (
        re.findall(r"(\d+) +(\d+)  (.*)", printed)
        == [(str(n), str(n), "OK") for n in (4, 3, 3, 1, 1, 1)]
        and not error
    )
    dataset = open_dataset("coco", root)
    assert dataset.tags(dataset.samples("train")).sum() == 7


@pytest.mark.parametrize(
    "lost", [set(), PRODUCED, {"masks/t_2.png"}, {"tags.csv", "val.txt"}], ids=len
)
def test_a_second_run_writes_only_what_is_missing(root, lost):
    printed, times, content = run(root), times_below(root), bytes_below(root)
    for name in lost:
        (root / name).unlink()
    assert run(root) == printed
    assert bytes_below(root) == content
    assert {name for name, time in times_below(root).items() if time != times[name]} == lost


def test_other_files_are_kept_and_replaced_by_overwrite(root):
    run(root)
    content = bytes_below(root)
    Image.new("P", (WIDTH, HEIGHT), 3).save(root / "masks/t_2.png")
    for name in ("train.txt", "val.txt", "tags.csv"):
        (root / name).write_text("mine\n")
    mine = bytes_below(root)
    assert [problem.split(": ")[0] for problem in run(root)[0]] == [
        f"{root}/{name}" for name in ("train.txt", "val.txt", "tags.csv")
    ]
    assert bytes_below(root) == mine
    run(root, "--overwrite")
    assert bytes_below(root) == content


def test_without_val_only_the_training_half_is_prepared(root):
    shutil.rmtree(root / "val2014")
    assert "val.txt" in run(root)[1]
    assert (
        not (root / "val.txt").exists()
        and (root / "tags.csv").read_text().splitlines() == TAGS[:-1]
    )


def test_zips_are_unpacked_once(root):
    (root / "annotations/captions.json").touch()  # not needed
    for file, folder in prepare_coco.ZIPS.items():
        with zipfile.ZipFile(root / file, "w") as archive:
            for path in (root / folder.split("/")[0]).iterdir():
                archive.write(path, path.relative_to(root))
        shutil.rmtree(root / folder.split("/")[0])
    run(root)
    assert files_below(root) >= PRODUCED and not (root / "annotations/captions.json").exists()
    times = times_below(root)
    run(root)
    assert times_below(root) == times


def test_an_image_that_occurs_twice_is_a_problem(root):
    change(root, lambda content: content["images"].append({**content["images"][0], "id": 1}))
    assert [
        problem.startswith(f"{json_of(root)}: ") and "t_1" in problem for problem in run(root)[0]
    ] == [True]


def test_a_root_without_images_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert run(path)[2].startswith(f"{path}: ")
    assert list(tmp_path.iterdir()) == []


def segmentation(value: object) -> Callable[[Path], None]:
    return lambda root: change(
        root, lambda content: content["annotations"][0].update(segmentation=value)
    )


POLYGONS = [
    *([[0, 0, far, 0, 4, 4]] for far in (float("nan"), 1e9, 10**400)),
    [[0, 0, 4, 0, 4, 4, 0]],
    [0, 0, 4, 0, 4, 4],
    None,
]
CODES = [
    [48, 16],
    [100, -20, 16],
    [48.5, 47.5],
    "PPYo0>",
]  # a sum that is too small, a negative count, fractions, a packed code
SPOILED = {
    "missing": lambda root: (root / "train2014/t_1.jpg").unlink(),
    "turned": lambda root: Image.new("RGB", (HEIGHT, WIDTH)).save(root / "train2014/t_1.jpg"),
    "not an image": lambda root: (root / "train2014/t_1.jpg").write_bytes(b"<html>404</html>"),
    **{f"polygon {i}": segmentation(value) for i, value in enumerate(POLYGONS)},
    **{
        f"code {counts}": segmentation({"size": [HEIGHT, WIDTH], "counts": counts})
        for counts in CODES
    },
    "turned code": segmentation({"size": [WIDTH, HEIGHT], "counts": [48, 48]}),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_an_image_that_cannot_be_drawn_is_named_and_the_others_are_prepared(root, spoil):
    spoil(root)
    (problem,), _, error = run(root)
    assert problem.startswith(f"{root}/train2014/t_1.jpg: ") and error.startswith(f"{root}: ")
    assert (
        files_below(root) >= PRODUCED - {"masks/t_1.png"} and not (root / "masks/t_1.png").exists()
    )
    assert (root / "train.txt").read_text().split() == ["t_2", "t_3"]
    assert (root / "tags.csv").read_text().splitlines() == [TAGS[0], *TAGS[2:]]


@pytest.mark.parametrize(
    ("value", "pixels"), [([], 0), ([[0, 0, 4, 4]], 0), (OUTSIDE, 0), (TWO_BOXES, 8)]
)
def test_an_instance_is_a_tag_whatever_is_drawn_of_it(root, value, pixels):
    segmentation(value)(root)
    run(root)
    assert (mask(root, "t_1") == CLASSES.index("dog")).sum() == pixels
    assert (root / "tags.csv").read_text().splitlines() == TAGS


@pytest.mark.parametrize("how", CHANGES.values(), ids=CHANGES)
def test_an_annotation_of_another_form_is_named_and_nothing_is_written(root, how):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "secret.jpg")
    change(root, how)
    before = times_below(root)
    assert run(root)[2].startswith(f"{json_of(root)}: ")
    assert times_below(root) == before


@pytest.mark.parametrize("content", OTHER, ids=lambda text: repr(text)[:12])
def test_a_file_of_something_else_is_named(root, content):
    json_of(root).write_bytes(content) if content is not None else json_of(root).unlink()
    assert run(root)[2].startswith(f"{json_of(root)}: ")
