"""COCO 2014 from its annotations: masks that pycocotools agrees with, tags, lists, and what is wrong with the files is told."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from common import bytes_below, call, cut_in_half, files_below, times_below
from PIL import Image
from pycocotools.coco import COCO

from data import prepare_coco
from data.registry import open_dataset
from errors import InputError

# pycocotools is older than numpy 2, which says so and works all the same
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
CLASSES = (ROOT / "data/coco_classes.txt").read_text().splitlines()
NEVER_USED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # COCO names 90 categories and annotates 80
CATEGORY_IDS = dict(zip(CLASSES, (number for number in range(1, 91) if number not in NEVER_USED)))
SPLITS = (prepare_coco.Split("train", "train2014", 4, 3), prepare_coco.Split("val", "val2014", 1, 1))
HEIGHT, WIDTH = 8, 12


def box(name: str, left: int, top: int, right: int, bottom: int) -> dict:
    """An instance that fills a rectangle, as a polygon; right and bottom lie outside."""
    return {"category": name, "iscrowd": 0, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}


def crowd(name: str, *counts: int) -> dict:
    """A region as a run-length code: how many pixels are off, on, off, ... column by column."""
    return {"category": name, "iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": list(counts)}}


PICTURES = {
    "train2014": {
        "t_1": [box("dog", 4, 2, 10, 6), box("cat", 0, 0, 8, 6), crowd("person", 48, 16, 32)],
        "t_2": [crowd("toothbrush", 8, 16, 72)],
        "t_3": [box("cup", 2, 2, 6, 4), box("book", 2, 2, 6, 6), box("fork", 2, 4, 6, 6)],
        "t_4": [],
    },
    "val2014": {"v_1": [box("tv", 0, 0, 12, 8)]},
}
LETTERS = {".": "background", "c": "cat", "d": "dog", "p": "person", "t": "toothbrush", "u": "cup", "f": "fork", "v": "tv"}
DRAWN = {
    "t_1": ["cccccccc....", "cccccccc....", *["ccccdddddd.."] * 4, *["......pp...."] * 2],
    "t_2": [".tt........."] * 8,
    "t_3": ["............", "............", *["..uuuu......"] * 2, *["..ffff......"] * 2, "............", "............"],
    "v_1": ["vvvvvvvvvvvv"] * 8,
}


def annotation(pictures: dict[str, list[dict]]) -> dict:
    """COCO's form of some pictures with their instances."""
    ids = {name: 100 + i for i, name in enumerate(pictures)}
    instances = [(name, one) for name, found in pictures.items() for one in found]
    return {
        "images": [{"id": ids[name], "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH} for name in pictures],
        "annotations": [
            {"id": i, "image_id": ids[name], "category_id": CATEGORY_IDS[one["category"]]}
            | {key: one[key] for key in ("iscrowd", "segmentation")}
            for i, (name, one) in enumerate(instances, 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in CATEGORY_IDS.items()],
    }


def json_of(root: Path, folder: str = "train2014") -> Path:
    return root / f"annotations/instances_{folder}.json"


def change(root: Path, how: Callable[[dict], None]) -> None:
    """Change the training annotation."""
    content = json.loads(json_of(root).read_text())
    how(content)
    json_of(root).write_text(json.dumps(content))


def read(root: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(root / f"masks/{name}.png"))


def worked(name: str) -> np.ndarray:
    """The mask of a picture as it is drawn by hand above."""
    ids = {letter: 0 if what == "background" else CLASSES.index(what) + 1 for letter, what in LETTERS.items()}
    return np.array([[ids[letter] for letter in line] for line in DRAWN[name]])


def prepare(root: Path, num_workers: int = 0) -> str:
    return call(prepare_coco.main, "--root", root, "--num_workers", num_workers)


def prepare_in_part(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Prepare a root that lacks something, and return what was printed."""
    with pytest.raises(InputError, match="prepared, but it is not all of COCO 2014") as caught:
        prepare_coco.main(["--root", str(root), "--num_workers", "0"])
    assert "\n" not in str(caught.value)
    return capsys.readouterr().out


def assert_refused(root: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        prepare(root)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pictures of 12x8 in COCO's layout, which are taken for the whole of it."""
    monkeypatch.setattr(prepare_coco, "SPLITS", SPLITS)
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for folder, pictures in PICTURES.items():
        (root / folder).mkdir()
        for name in pictures:
            Image.new("RGB", (WIDTH, HEIGHT), "grey").save(root / folder / f"{name}.jpg")
        json_of(root, folder).write_text(json.dumps(annotation(pictures)))
    return root


class TestDrawn:
    def test_the_masks_are_as_worked_by_hand(self, drawn):
        prepare(drawn)
        assert {path.stem for path in (drawn / "masks").iterdir()} == DRAWN.keys()
        for name in DRAWN:
            np.testing.assert_array_equal(read(drawn, name), worked(name), name)

    def test_lists_hold_the_pictures_with_an_instance(self, drawn):
        prepare(drawn)
        assert (drawn / "train.txt").read_text() == "t_1\nt_2\nt_3\n"
        assert (drawn / "val.txt").read_text() == "v_1\n"

    def test_a_crowd_and_a_hidden_instance_are_tags(self, drawn):
        prepare(drawn)
        lines = ["name,classes", "t_1,person;cat;dog", "t_2,toothbrush", "t_3,cup;fork;book", "v_1,tv"]
        assert (drawn / "tags.csv").read_text().splitlines() == lines
        assert CLASSES.index("book") + 1 not in read(drawn, "t_3")

    def test_the_dataset_opens_with_its_own_lists(self, drawn):
        prepare(drawn)
        dataset = open_dataset("coco", drawn)
        for list_name in ("train", "val"):
            entries = dataset.entries(list_name)
            assert dataset.labels(entries).shape == (len(entries), 80)
            assert all(entry.picture.is_file() and entry.mask.is_file() for entry in entries)

    def test_the_table_says_ok_and_what_comes_next(self, drawn):
        printed = prepare(drawn)
        assert re.findall(r"(\d+) +(\d+)  (.*)", printed) == [(str(n), str(n), "OK") for n in (4, 3, 3, 1, 1, 1)]
        assert f"bash run_coco.sh --dataset_root {drawn}" in printed
        assert "problems" not in printed

    def test_other_counts_than_the_published_ones_are_told(self, drawn, monkeypatch, capsys):
        monkeypatch.setattr(prepare_coco, "SPLITS", (SPLITS[0]._replace(pictures=6), SPLITS[1]._replace(with_instance=0)))
        printed = prepare_in_part(drawn, capsys)
        assert "2 missing" in printed
        assert printed.count("1 more") == 2
        assert files_below(drawn) >= {"train.txt", "val.txt", "tags.csv", *(f"masks/{name}.png" for name in DRAWN)}

    def test_worker_processes_write_the_same_files(self, drawn, tmp_path):
        shutil.copytree(drawn, tmp_path / "other")
        prepare(drawn, 0)
        prepare(tmp_path / "other", 2)
        assert bytes_below(drawn) == bytes_below(tmp_path / "other")

    def test_nothing_temporary_is_left(self, drawn):
        before = files_below(drawn)
        prepare(drawn)
        lists = {"train.txt", "val.txt", "tags.csv", "prepared.json"}
        assert files_below(drawn) - before == lists | {f"masks/{name}.png" for name in DRAWN}

    def test_without_the_validation_half_the_training_half_is_prepared(self, drawn):
        shutil.rmtree(drawn / "val2014")
        printed = prepare(drawn)
        assert "val.txt is not made" in printed
        assert not (drawn / "val.txt").exists()
        assert (drawn / "tags.csv").read_text().count("\n") == 4

    def test_an_instance_outside_of_the_picture_is_a_tag_without_a_pixel(self, drawn):
        change(drawn, lambda content: content["annotations"][0].update(box("dog", 100, 100, 120, 120)))
        prepare(drawn)
        assert CLASSES.index("dog") + 1 not in read(drawn, "t_1")
        assert "t_1,person;cat;dog" in (drawn / "tags.csv").read_text()

    def test_an_instance_of_two_polygons_is_drawn_whole(self, drawn):
        both = [*box("dog", 0, 0, 2, 2)["segmentation"], *box("dog", 8, 0, 10, 2)["segmentation"]]
        change(drawn, lambda content: content["annotations"][0].update(segmentation=both))
        prepare(drawn)
        assert np.argwhere(read(drawn, "t_1") == CLASSES.index("dog") + 1).tolist() == [[y, x] for y in (0, 1) for x in (0, 1, 8, 9)]


class TestAgain:
    def test_a_second_run_changes_no_mask_and_no_byte(self, drawn):
        prepare(drawn)
        times, content = times_below(drawn / "masks"), bytes_below(drawn)
        assert "is ready" in prepare(drawn)
        assert times_below(drawn / "masks") == times
        assert bytes_below(drawn) == content

    def test_a_lost_mask_is_made_again_and_no_other(self, drawn):
        prepare(drawn)
        times, content = times_below(drawn / "masks"), bytes_below(drawn)
        (drawn / "masks/t_1.png").unlink()
        prepare(drawn)
        assert bytes_below(drawn) == content
        assert {name for name, when in times_below(drawn / "masks").items() if when != times[name]} == {"t_1.png"}

    def test_a_newer_annotation_makes_its_masks_again(self, drawn):
        prepare(drawn)
        before = times_below(drawn / "masks")
        change(drawn, lambda content: content["annotations"][0].update(category_id=CATEGORY_IDS["horse"]))
        os.utime(json_of(drawn), (time.time() + 1,) * 2)  # clocks of file systems are coarse
        prepare(drawn)
        expected = np.where(worked("t_1") == CLASSES.index("dog") + 1, CLASSES.index("horse") + 1, worked("t_1"))
        np.testing.assert_array_equal(read(drawn, "t_1"), expected)
        assert times_below(drawn / "masks")["v_1.png"] == before["v_1.png"]


def zip_up(root: Path, name: str, folder: str, *more: str) -> Path:
    """Put a folder of the root into a zip of the root instead."""
    with zipfile.ZipFile(root / name, "w") as archive:
        for path in sorted((root / folder).iterdir()):
            archive.write(path, path.relative_to(root))
        for member in more:
            archive.writestr(member, "evil")
    shutil.rmtree(root / folder)
    return root / name


class TestZips:
    def test_are_unpacked_once(self, drawn):
        for name, folder in (("train2014.zip", "train2014"), ("val2014.zip", "val2014"), ("annotations_trainval2014.zip", "annotations")):
            zip_up(drawn, name, folder)
        prepare(drawn)
        np.testing.assert_array_equal(read(drawn, "t_1"), worked("t_1"))
        before = {name: when for name, when in times_below(drawn).items() if "/" in name}
        prepare(drawn)
        assert {name: when for name, when in times_below(drawn).items() if "/" in name} == before

    @pytest.mark.parametrize("member", ["../evil", "train2014/../../evil", "/evil"])
    def test_a_member_that_leaves_the_root_is_refused_before_anything_is_written(self, drawn, member):
        zip_up(drawn, "train2014.zip", "train2014", member)
        before = times_below(drawn.parent)
        assert_refused(drawn, r"train2014\.zip: its member .*evil would lie outside")
        assert times_below(drawn.parent) == before

    def test_a_cut_one_is_refused_before_anything_is_written(self, drawn):
        cut_in_half(zip_up(drawn, "train2014.zip", "train2014"))
        before = times_below(drawn)
        assert_refused(drawn, r"train2014\.zip: is damaged, cut")
        assert times_below(drawn) == before

    def test_one_of_something_else_is_refused(self, drawn):
        zip_up(drawn, "annotations_trainval2014.zip", "val2014")
        assert_refused(drawn, r"annotations_trainval2014\.zip: holds nothing of what belongs here")


class TestBadPictures:
    """One picture is told of, the others are prepared."""

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda path: path.unlink(), "is annotated but not there"),
            (lambda path: Image.new("RGB", (HEIGHT, WIDTH)).save(path), "is not as large as its annotation says, 12x8"),
            (lambda path: path.write_bytes(b"<html>404</html>"), "not a readable picture"),
            (lambda path: path.write_bytes(b""), "not a readable picture"),
        ],
        ids=["missing", "turned", "not a picture", "empty"],
    )
    def test_is_told_and_the_rest_is_prepared(self, drawn, capsys, spoil, told):
        spoil(drawn / "train2014/t_1.jpg")
        printed = prepare_in_part(drawn, capsys)
        assert "problems (1)" in printed
        assert re.search(rf"{re.escape(str(drawn / 'train2014/t_1.jpg'))}: {told}", printed)
        assert {path.stem for path in (drawn / "masks").iterdir()} == DRAWN.keys() - {"t_1"}
        assert open_dataset("coco", drawn).tag_table().row.keys() >= {"t_2", "t_3", "v_1"}

    def test_only_the_first_ten_problems_are_told_one_by_one(self, drawn, capsys):
        many = {f"t_{i}": [box("cat", 0, 0, 4, 4)] for i in range(10, 22)}
        json_of(drawn).write_text(json.dumps(annotation(many)))
        printed = prepare_in_part(drawn, capsys)
        assert "problems (12)" in printed
        assert printed.count("is annotated but not there") == 10
        assert "and 2 more" in printed


HUGE = 10**400
SEGMENTATIONS = {
    "five numbers": [[0, 0, 4, 0, 4]],
    "seven numbers": [[0, 0, 4, 0, 4, 4, 0]],
    "not a number": [[0, 0, float("nan"), 0, 4, 4]],
    "infinite": [[0, 0, float("inf"), 0, 4, 4]],
    "far away": [[0, 0, 1e9, 0, 4, 4]],
    "too large for a float": [[0, 0, HUGE, 0, 4, 4]],
    "words": [["a", "b", "c", "d", "e", "f"]],
    "flat": [0, 0, 4, 0, 4, 4],
    "second polygon odd": [[0, 0, 4, 0, 4, 4], [1, 2, 3]],
    "null": None,
    "text": "abc",
    "sum too small": {"size": [HEIGHT, WIDTH], "counts": [48, 16]},
    "sum too large": {"size": [HEIGHT, WIDTH], "counts": [48, 480]},
    "negative count": {"size": [HEIGHT, WIDTH], "counts": [100, -20, 16]},
    "counts that are no whole numbers": {"size": [HEIGHT, WIDTH], "counts": [48.5, 47.5]},
    "turned": {"size": [WIDTH, HEIGHT], "counts": [48, 48]},
    "no size": {"counts": [48, 48]},
    "no counts": {"size": [HEIGHT, WIDTH]},
    "packed": {"size": [HEIGHT, WIDTH], "counts": "PPYo0"},
}


@pytest.mark.parametrize("segmentation", SEGMENTATIONS.values(), ids=SEGMENTATIONS)
def test_a_segmentation_that_cannot_be_drawn_is_told_and_the_rest_is_prepared(drawn, capsys, segmentation):
    change(drawn, lambda content: content["annotations"][0].update(segmentation=segmentation))
    printed = prepare_in_part(drawn, capsys)
    assert "problems (1)" in printed
    assert f"{drawn / 'train2014/t_1.jpg'}: its annotation cannot be drawn" in printed
    assert {path.stem for path in (drawn / "masks").iterdir()} == DRAWN.keys() - {"t_1"}
    assert (drawn / "train.txt").read_text().split() == ["t_2", "t_3"]


@pytest.mark.parametrize("segmentation", [[], [[]], [[0, 0, 4, 4]]], ids=str)
def test_an_instance_without_area_shows_nothing_and_is_a_tag_all_the_same(drawn, segmentation):
    change(drawn, lambda content: content["annotations"][0].update(segmentation=segmentation))
    prepare(drawn)
    dog = CLASSES.index("dog") + 1
    assert dog in worked("t_1") and dog not in read(drawn, "t_1")
    dataset = open_dataset("coco", drawn)
    entries = dataset.entries("train")
    assert dataset.labels(entries)[list(entries.names()).index("t_1"), dog - 1] == 1


def test_a_short_polygon_beside_a_good_one_changes_nothing(drawn):
    change(drawn, lambda content: content["annotations"][0]["segmentation"].append([3, 3, 4, 4]))
    prepare(drawn)
    assert np.array_equal(read(drawn, "t_1"), worked("t_1"))


class TestSomebodyElsesFiles:
    @pytest.mark.parametrize("name", ["train.txt", "val.txt", "tags.csv"])
    def test_are_never_replaced(self, drawn, name):
        (drawn / name).write_text("mine\n")
        assert_refused(drawn, f"{name}: is to be written, but a file of another content and origin is there")
        assert (drawn / name).read_text() == "mine\n"

    def test_masks_are_kept_and_compared(self, drawn, tmp_path, capsys):
        shutil.copytree(drawn, tmp_path / "other")
        prepare(tmp_path / "other")
        (drawn / "masks").mkdir()
        shutil.copy(tmp_path / "other/masks/t_1.png", drawn / "masks")
        Image.new("L", (WIDTH, HEIGHT), 3).save(drawn / "masks/t_2.png")
        kept = bytes_below(drawn / "masks")
        printed = prepare_in_part(drawn, capsys)
        assert "problems (1)" in printed and "t_2.png: shows something else than its source says" in printed
        assert kept.items() <= bytes_below(drawn / "masks").items()
        assert {path.stem for path in (drawn / "masks").iterdir()} == set(DRAWN)


def without(part: str, key: str) -> Callable[[dict], None]:
    return lambda content: content[part][0].pop(key)


def with_value(part: str, key: str, value: object) -> Callable[[dict], None]:
    return lambda content: content[part][0].update({key: value})


CHANGES = {
    **{f"image without {key}": without("images", key) for key in ("id", "file_name", "height", "width")},
    **{f"instance without {key}": without("annotations", key) for key in ("id", "image_id", "category_id", "iscrowd", "segmentation")},
    **{f"category without {key}": without("categories", key) for key in ("id", "name")},
    "unknown category": with_value("annotations", "category_id", 12),
    "category that is a list": with_value("annotations", "category_id", [1]),
    "file name that leaves": with_value("images", "file_name", "../secret.jpg"),
    "file name in a folder": with_value("images", "file_name", "more/t_1.jpg"),
    "file name with a backslash": with_value("images", "file_name", r"..\secret.jpg"),
    "file name that is a number": with_value("images", "file_name", 7),
    "height in words": with_value("images", "height", "tall"),
    "height not a number": with_value("images", "height", float("nan")),
    "infinite height": with_value("images", "height", float("inf")),
    "category renamed": with_value("categories", "name", "wizard"),
    "category too few": lambda content: content["categories"].pop(),
    "category too many": lambda content: content["categories"].append({"id": 91, "name": "wizard"}),
    "no categories": lambda content: content.pop("categories"),
    "images that are a number": lambda content: content.update(images=5),
    "an image that is a number": lambda content: content.update(images=[5]),
    "instances that are null": lambda content: content.update(annotations=None),
}


class TestBadAnnotations:
    @pytest.mark.parametrize("how", CHANGES.values(), ids=CHANGES)
    def test_ends_in_one_line(self, drawn, how):
        change(drawn, how)
        before = times_below(drawn)
        assert_refused(drawn, rf"{re.escape(str(json_of(drawn)))}: ")
        assert times_below(drawn) == before

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"7", b"null", b'{"images": [', b"\xff\xfe{}", b"[" * 100_000], ids=lambda content: repr(content[:12])
    )
    def test_a_file_of_something_else_ends_in_one_line(self, drawn, content):
        json_of(drawn).write_bytes(content)
        assert_refused(drawn, rf"{re.escape(str(json_of(drawn)))}: ")
        assert not (drawn / "masks").exists()

    def test_one_without_images_is_told_in_the_table(self, drawn, capsys):
        change(drawn, lambda content: content.pop("images"))
        assert re.search(r"train2014, annotated +4 +0  4 missing", prepare_in_part(drawn, capsys))

    def test_a_cut_one_ends_in_one_line(self, drawn):
        cut_in_half(json_of(drawn))
        assert_refused(drawn, r"instances_train2014\.json: not a readable instance annotation")

    def test_a_missing_one_ends_in_one_line(self, drawn):
        json_of(drawn).unlink()
        assert_refused(drawn, r"instances_train2014\.json: there is no such file; unpack annotations_trainval2014\.zip")

    def test_a_picture_outside_of_the_folder_is_never_read_or_written(self, drawn):
        Image.new("RGB", (WIDTH, HEIGHT)).save(drawn / "secret.jpg")
        change(drawn, with_value("images", "file_name", "../secret.jpg"))
        assert_refused(drawn, "would lie outside of train2014")
        assert not (drawn / "secret.png").exists()


class TestPlace:
    def test_a_root_that_is_not_there(self, tmp_path):
        assert_refused(tmp_path / "nowhere", "nowhere: there is no such folder")
        assert not (tmp_path / "nowhere").exists()

    def test_a_root_without_pictures(self, tmp_path):
        assert_refused(tmp_path, r"holds neither train2014/ nor train2014\.zip")
        assert files_below(tmp_path) == set()


@pytest.mark.parametrize("script", ["prepare_coco", "check_dataset"])
@pytest.mark.parametrize("by", ["path", "module"])
def test_help_is_printed_however_the_script_is_called(script, by):
    how = [f"data/{script}.py"] if by == "path" else ["-m", f"data.{script}"]
    done = subprocess.run([sys.executable, *how, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python data/{script}.py" in done.stdout
    assert "--num_workers" in done.stdout


@pytest.fixture(scope="module")
def subset(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Real pictures of COCO, prepared: the root, and both annotation files as they are."""
    source, root = shared / "coco_subset", tmp_path_factory.mktemp("coco")
    if not source.is_dir():
        pytest.skip(f"no {source}")
    for path in source.iterdir():
        (root / path.name).symlink_to(path)
    contents = {name: json.loads(json_of(source, f"{name}2014").read_text()) for name in ("train", "val")}
    few = [
        prepare_coco.Split(name, f"{name}2014", len(one["images"]), len({instance["image_id"] for instance in one["annotations"]}))
        for name, one in contents.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_coco, "SPLITS", tuple(few))
        printed = prepare(root)
    yield SimpleNamespace(root=root, contents=contents, printed=printed)
    shutil.rmtree(root)


@pytest.mark.parametrize("half", ["train", "val"])
class TestRealPictures:
    def test_lists_hold_the_pictures_with_an_instance(self, subset, half):
        content = subset.contents[half]
        annotated = {instance["image_id"] for instance in content["annotations"]}
        expected = sorted(Path(image["file_name"]).stem for image in content["images"] if image["id"] in annotated)
        assert (subset.root / f"{half}.txt").read_text().split("\n") == [*expected, ""]
        assert subset.printed.count("OK") == 6

    def test_tag_vectors_are_the_categories_of_the_instances_in_order_of_their_ids(self, subset, half):
        content, dataset = subset.contents[half], open_dataset("coco", subset.root)
        column = {number: i for i, number in enumerate(sorted(category["id"] for category in content["categories"]))}
        names = {category["id"]: category["name"] for category in content["categories"]}
        assert dataset.class_names == ("background", *(names[number] for number in column))
        shown = defaultdict(set)
        for instance in content["annotations"]:
            shown[instance["image_id"]].add(column[instance["category_id"]])
        expected = {Path(image["file_name"]).stem: shown[image["id"]] for image in content["images"] if shown[image["id"]]}
        entries = dataset.entries(half)
        labels = dataset.labels(entries)
        assert labels.shape == (len(expected), 80)
        assert {entry.name: set(np.flatnonzero(row)) for entry, row in zip(entries, labels)} == expected

    def test_masks_agree_with_pycocotools_in_every_pixel(self, subset, half, capsys):
        api = COCO(str(json_of(subset.root, f"{half}2014")))
        capsys.readouterr()
        class_id = {number: i for i, number in enumerate(sorted(api.getCatIds()), 1)}
        for number in api.getImgIds():
            about = api.loadImgs(number)[0]
            mask = read(subset.root, Path(about["file_name"]).stem)
            with Image.open(subset.root / f"{half}2014" / about["file_name"]) as picture:
                assert mask.shape == picture.size[::-1]
            instances = api.loadAnns(api.getAnnIds(number))
            ids = np.array([class_id[one["category_id"]] for one in instances])
            covers = np.array([api.annToMask(one) for one in instances], bool)
            # the size of the smallest instance at each pixel; crowds count as larger than all
            sizes = covers.sum((1, 2)) + np.array([one["iscrowd"] for one in instances]) * 10**9
            sizes = np.where(covers, sizes[:, None, None], np.inf)
            on_top = covers & (sizes == sizes.min(0))
            is_one_of_them = (on_top & (mask == ids[:, None, None])).any(0)
            np.testing.assert_array_equal(mask != 0, covers.any(0), about["file_name"])
            assert is_one_of_them[mask != 0].all(), about["file_name"]
