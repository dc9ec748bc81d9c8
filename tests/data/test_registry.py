"""Datasets as values: where the root may be, what a list may look like, how tags become labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from common import VOC_CLASSES
from PIL import Image

from data.registry import Dataset, open_dataset
from errors import InputError

NAMES = [f"2007_{i:06d}" for i in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of a person's own: a cat, a dog, and both."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 3)).save(tmp_path / f"images/{name}.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "tags.csv").write_text("name,classes\na,cat\nb,dog\nc,cat;dog\n")
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    return tmp_path


def names_in(dataset: Dataset, content: str | bytes, path: Path) -> list[str]:
    """The names that the dataset reads from a list of this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [entry.name for entry in dataset.entries(str(path))]


def annotate(root: Path, name: str, *tags: str) -> None:
    objects = "".join(f"<object><name>{tag}</name><part><name>head</name></part></object>" for tag in tags)
    (root / f"Annotations/{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>")


def assert_refused(content: str | bytes, dataset: Dataset, path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        names_in(dataset, content, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_voc_is_found_at_its_root_and_up_to_two_folders_above(tmp_path, above):
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    dataset = open_dataset("voc", str((root / above).resolve()))
    assert dataset.root == root
    assert dataset.class_names == VOC_CLASSES
    assert dataset.num_classes == 21


def test_a_folder_without_voc_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"no VOC 2012 here.*VOCtrainval_11-May-2012\.tar") as error:
        open_dataset("voc", tmp_path / "nowhere")
    assert str(error.value).startswith(f"{tmp_path / 'nowhere'}: ")


def test_own_list_is_taken_by_name(tiny_voc):
    entries = open_dataset("voc", tiny_voc).entries("train")
    assert [entry.name for entry in entries] == NAMES
    assert entries[0].picture == tiny_voc / f"JPEGImages/{NAMES[0]}.jpg"
    assert entries[0].mask == tiny_voc / f"SegmentationClass/{NAMES[0]}.png"


def test_default_lists_exist_in_every_dataset(tiny_voc, folder):
    for dataset in (open_dataset("voc", tiny_voc), open_dataset("folder", folder)):
        assert dataset.entries(dataset.spec.train_list)
        assert dataset.entries(dataset.spec.eval_list)


@pytest.mark.parametrize(
    "content",
    [
        f"{NAMES[1]}\n{NAMES[0]}\n",
        f"{NAMES[1]}\n{NAMES[0]}",
        f"\n{NAMES[1]}\n\n  {NAMES[0]} \n\t\n",
        f"{NAMES[1]}\r\n{NAMES[0]}\r\n",
        b"\xef\xbb\xbf" + f"{NAMES[1]}\r\n{NAMES[0]}".encode(),
        "".join(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in (NAMES[1], NAMES[0])),
        f"JPEGImages/{NAMES[1]}.jpg\tSegmentationClassAug/{NAMES[1]}.png\n{NAMES[0]}\n",
    ],
    ids=["plain", "no last newline", "blank lines", "CRLF", "BOM", "two paths", "mixed"],
)
def test_every_form_of_list_gives_the_names_in_order(tiny_voc, tmp_path, content):
    assert names_in(open_dataset("voc", tiny_voc), content, tmp_path / "list.txt") == [NAMES[1], NAMES[0]]


def test_a_line_of_two_paths_chooses_the_mask(tiny_voc, tmp_path):
    (tmp_path / "list.txt").write_text(f"/JPEGImages/{NAMES[0]}.jpg /SegmentationClassAug/{NAMES[0]}.png\n")
    (entry,) = open_dataset("voc", tiny_voc).entries(str(tmp_path / "list.txt"))
    assert entry.picture == tiny_voc / f"JPEGImages/{NAMES[0]}.jpg"
    assert entry.mask == tiny_voc / f"SegmentationClassAug/{NAMES[0]}.png"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "the list is empty"),
        ("\n \n", "the list is empty"),
        (f"{NAMES[0]}\n\n{NAMES[0]}\n", f"line 3: {NAMES[0]} stands twice"),
        (f"{NAMES[0]}\n/JPEGImages/{NAMES[0]}.jpg /a.png\n", f"line 2: {NAMES[0]} stands twice"),
        ("../secret\n", r"line 1: \.\./secret leaves"),
        (f"/JPEGImages/../../{NAMES[0]}.jpg /a.png\n", "line 1: .* leaves"),
        (f"/JPEGImages/{NAMES[0]}.jpg /../a.png\n", "line 1: .* leaves"),
        (f"JPEGImages\\{NAMES[0]}.jpg\n", "line 1: .* leaves"),
        (f"JPEGImages/{NAMES[0]}.jpg\n", "line 1: expected a picture name"),
        (f"{NAMES[0]} {NAMES[1]} {NAMES[2]}\n", "line 1: there is no picture"),
        (f"{NAMES[0]}\n2007_999999\n", r"line 2: there is no picture .*2007_999999\.jpg"),
        (f"{NAMES[0]}\n".encode("utf-16"), "cannot be read"),
    ],
)
def test_a_bad_list_is_refused_by_its_line(tiny_voc, tmp_path, content, match):
    assert_refused(content, open_dataset("voc", tiny_voc), tmp_path / "list.txt", match)


@pytest.mark.parametrize("name", ["nothing", "../train", "/nowhere/train.txt", ""])
def test_a_list_that_is_nowhere_is_refused(tiny_voc, name):
    with pytest.raises(InputError, match="there is no such list"):
        open_dataset("voc", tiny_voc).entries(name)


def test_labels_are_zero_or_one_in_class_order(tiny_voc):
    dataset = open_dataset("voc", tiny_voc)
    labels = dataset.labels(dataset.entries("train"))
    assert (labels.shape, labels.dtype) == ((6, 20), np.float32)
    cat, dog = VOC_CLASSES.index("cat") - 1, VOC_CLASSES.index("dog") - 1
    assert [np.flatnonzero(row).tolist() for row in labels] == [[cat, dog], [dog]] * 3
    assert set(np.unique(labels)) == {0, 1}


def test_labels_follow_the_entries_and_not_the_list(tiny_voc):
    dataset = open_dataset("voc", tiny_voc)
    entries = dataset.entries("train")
    assert np.array_equal(dataset.labels(entries[::-1]), dataset.labels(entries)[::-1])


def test_an_object_twice_is_one_tag_and_its_parts_are_none(tiny_voc):
    annotate(tiny_voc, NAMES[0], "cat", "cat", " dog ")
    dataset = open_dataset("voc", tiny_voc)
    assert dataset.labels(dataset.entries("train")[:1]).sum() == 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("<annotation><object><name>unicorn</name></object></annotation>", "tag 'unicorn' is not a class"),
        ("<annotation><object><name>background</name></object></annotation>", "tag 'background' is not a class"),
        ("<annotation></annotation>", "has no tag"),
        ("<annotation><object><name>cat</na", "not a readable annotation"),
        ("", "not a readable annotation"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "not a readable annotation"),
        ("<?xml version='1.0' encoding='gbk'?><annotation/>", "not a readable annotation"),
    ],
)
def test_a_bad_annotation_is_refused_by_its_name(tiny_voc, content, match):
    (tiny_voc / f"Annotations/{NAMES[2]}.xml").write_text(content)
    dataset = open_dataset("voc", tiny_voc)
    with pytest.raises(InputError, match=match) as error:
        dataset.labels(dataset.entries("train"))
    assert NAMES[2] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_annotation_is_refused_by_its_path(tiny_voc):
    (tiny_voc / f"Annotations/{NAMES[2]}.xml").unlink()
    dataset = open_dataset("voc", tiny_voc)
    with pytest.raises(InputError, match=rf"{NAMES[2]}\.xml: the picture's annotation is missing"):
        dataset.labels(dataset.entries("train"))


def test_a_folder_of_ones_own_has_its_classes_and_tags(folder):
    dataset = open_dataset("folder", folder)
    assert dataset.class_names == ("background", "cat", "dog")
    assert dataset.num_classes == 3
    entries = dataset.entries("train")
    assert entries[0].picture == folder / "images/a.jpg"
    assert entries[0].mask == folder / "masks/a.png"
    assert dataset.labels(entries).tolist() == [[1, 0], [0, 1], [1, 1]]


def test_class_order_is_the_order_of_the_file(folder):
    (folder / "classes.txt").write_bytes(b"\xef\xbb\xbfdog\r\n\r\n cat \r\n")
    dataset = open_dataset("folder", folder)
    assert dataset.class_names == ("background", "dog", "cat")
    assert dataset.labels(dataset.entries("train")).tolist() == [[0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfname,classes\r\na, cat\r\nb,dog;dog\r\nc,cat; dog;\r\n",
        b'"a","cat"\n"b","dog"\n"c","cat;dog"\n',
        b"c,dog;cat\n\nb,dog\na,cat\nunlisted,cat\n",
    ],
    ids=["spaces, BOM and CRLF", "quotes and no header", "another order"],
)
def test_every_form_of_tags_gives_the_same_labels(folder, content):
    (folder / "tags.csv").write_bytes(content)
    dataset = open_dataset("folder", folder)
    assert dataset.labels(dataset.entries("train")).tolist() == [[1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("content", ["", "\n\n", "cat\ncat\n", "background\ncat\n", "\n".join(f"class{i}" for i in range(255))])
def test_bad_class_files_are_refused(folder, content):
    (folder / "classes.txt").write_text(content)
    with pytest.raises(InputError, match="1 to 254 different class names") as error:
        open_dataset("folder", folder)
    assert str(error.value).startswith(f"{folder / 'classes.txt'}: ")


def test_a_folder_without_classes_says_what_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"classes\.txt: cannot be read.*tags\.csv"):
        open_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ("a,cat\nb,dog\n", "^c: has no tag"),
        ("a,cat\nb,\nc,cat\n", "^b: has no tag"),
        ("a,cow\nb,dog\nc,cat\n", "^a: tag 'cow' is not a class"),
    ],
)
def test_bad_tags_are_refused_by_the_pictures_name(folder, tags, match):
    (folder / "tags.csv").write_text(tags)
    dataset = open_dataset("folder", folder)
    with pytest.raises(InputError, match=match):
        dataset.labels(dataset.entries("train"))


def test_missing_tags_are_refused_by_their_path(folder):
    (folder / "tags.csv").unlink()
    dataset = open_dataset("folder", folder)
    with pytest.raises(InputError, match=r"tags\.csv: cannot be read"):
        dataset.labels(dataset.entries("train"))


def test_digest_tells_pictures_classes_and_labels_apart(folder):
    dataset = open_dataset("folder", folder)
    entries = dataset.entries("train")
    renamed = replace(dataset, spec=replace(dataset.spec, class_names=("background", "cat", "fox")))
    digests = [
        dataset.digest(entries, b"labels"),
        dataset.digest(entries, b"other labels"),
        dataset.digest(entries[:2], b"labels"),
        dataset.digest(entries[::-1], b"labels"),
        renamed.digest(entries, b"labels"),
    ]
    assert len(set(digests)) == 5
    assert digests[0] == open_dataset("folder", folder).digest(dataset.entries("train"), b"labels")
