"""Datasets as values: where the root may be, what a list may look like, how tags become labels."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from common import VOC_CLASSES
from PIL import Image

from data.registry import DATASETS, Dataset, DatasetSpec, open_dataset
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


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two pictures, one from each half of COCO, prepared."""
    for file in (
        "train2014/COCO_train2014_000000000009.jpg",
        "val2014/COCO_val2014_000000000042.jpg",
        "masks/COCO_train2014_000000000009.png",
    ):
        touch(tmp_path / file)
    (tmp_path / "train.txt").write_text("COCO_train2014_000000000009\n")
    (tmp_path / "val.txt").write_text("COCO_val2014_000000000042\n")
    (tmp_path / "tags.csv").write_text("name,classes\nCOCO_val2014_000000000042,dog\nCOCO_train2014_000000000009,bowl;person\n")
    return tmp_path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


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
    with pytest.raises(
        InputError, match=r"no JPEGImages here, nor in VOC2012 or .* no 'voc' dataset; .*VOCtrainval_11-May-2012\.tar"
    ) as error:
        open_dataset("voc", tmp_path / "nowhere")
    assert str(error.value).startswith(f"{tmp_path / 'nowhere'}: ")


def test_own_list_is_taken_by_name(tiny_voc):
    entries = open_dataset("voc", tiny_voc).entries("train")
    assert [entry.name for entry in entries] == NAMES
    assert entries[0].picture == tiny_voc / f"JPEGImages/{NAMES[0]}.jpg"
    assert entries[0].mask == tiny_voc / f"SegmentationClass/{NAMES[0]}.png"


def test_default_lists_exist_in_every_dataset(tiny_voc, folder):
    touch(folder / "masks/b.png")
    for dataset in (open_dataset("voc", tiny_voc), open_dataset("folder", folder)):
        assert dataset.entries(dataset.spec.train_list)
        assert dataset.entries(dataset.spec.eval_list)
        assert dataset.entries(dataset.spec.val_list)


@pytest.mark.parametrize(
    ("kind", "root", "name", "pictures"),
    [
        ("voc", "tiny_voc", "val", [NAMES[4]]),
        ("coco", "coco", "val", ["COCO_val2014_000000000042"]),
        ("folder", "folder", "masked", ["b"]),
    ],
)
def test_segmentation_is_tried_on_pictures_that_have_masks(request, kind, root, name, pictures):
    root = request.getfixturevalue(root)
    if kind == "voc":
        (root / "ImageSets/Segmentation/val.txt").write_text(f"{NAMES[4]}\n")
    touch(root / "masks/b.png")
    dataset = open_dataset(kind, root)
    assert dataset.spec.val_list == name
    assert list(dataset.entries(dataset.spec.val_list).names()) == pictures


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
    with pytest.raises(InputError, match=r"1 to 254 class names|class 'cat' stands twice") as error:
        open_dataset("folder", folder)
    assert str(error.value).startswith(f"{folder / 'classes.txt'}: ")


def test_a_folder_without_classes_says_what_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"there is no classes\.txt here, so this is no 'folder' dataset; .*tags\.csv"):
        open_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ("a,cat\nb,dog\n", r"/tags\.csv: picture c has no tag"),
        ("a,cat\nb,\nc,cat\n", r"/tags\.csv: picture b has no tag"),
        ("a,cow\nb,dog\nc,cat\n", r"/tags\.csv, line 1: tag 'cow' is not a class"),
    ],
)
def test_bad_tags_are_refused_by_the_pictures_name_or_its_line(folder, tags, match):
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
    renamed = replace(dataset, class_names=("background", "cat", "fox"))
    digests = [
        dataset.digest(entries, b"labels"),
        dataset.digest(entries, b"other labels"),
        dataset.digest(entries[:2], b"labels"),
        dataset.digest(entries[::-1], b"labels"),
        renamed.digest(entries, b"labels"),
    ]
    assert len(set(digests)) == 5
    assert digests[0] == open_dataset("folder", folder).digest(dataset.entries("train"), b"labels")


def test_coco_is_two_folders_of_pictures_with_lists_and_tags_beside_them(coco):
    dataset = open_dataset("coco", coco)
    assert (dataset.num_classes, dataset.class_names[:3], dataset.class_names[-1]) == (
        81,
        ("background", "person", "bicycle"),
        "toothbrush",
    )
    (train,), (val,) = dataset.entries("train"), dataset.entries("val")
    name = "COCO_train2014_000000000009"
    assert train == (name, coco / f"train2014/{name}.jpg", coco / f"masks/{name}.png")
    assert val.picture == coco / "val2014/COCO_val2014_000000000042.jpg"
    tags = [dataset.class_names[1 + i] for i in np.flatnonzero(dataset.labels(dataset.entries("train"))[0])]
    assert tags == ["person", "bowl"]


def test_coco_without_its_other_half_is_coco(coco):
    (coco / "val2014/COCO_val2014_000000000042.jpg").unlink()
    (coco / "val2014").rmdir()
    dataset = open_dataset("coco", coco)
    assert len(dataset.entries(dataset.spec.train_list)) == 1
    with pytest.raises(InputError, match=r"val\.txt, line 1: there is no picture"):
        dataset.entries("val")


@pytest.mark.parametrize(
    ("kind", "match"), [("coco", r"no train2014 here, .*train2014\.zip.*prepare_coco\.py"), ("folder", "write classes.txt")]
)
def test_a_root_without_the_dataset_says_how_to_get_it(tmp_path, kind, match):
    with pytest.raises(InputError, match=match) as error:
        open_dataset(kind, tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


def test_without_a_list_all_pictures_with_a_tag_count(folder):
    (folder / "train.txt").unlink()
    (folder / "tags.csv").write_text("c,cat;dog\nuntagged,\na,cat\n")
    dataset = open_dataset("folder", folder)
    assert list(dataset.entries("tagged").names()) == ["c", "a"]
    assert dataset.labels(dataset.entries("tagged")).tolist() == [[1, 1], [1, 0]]


def test_without_a_list_all_pictures_with_a_tag_and_a_mask_are_evaluated(folder):
    for name in ("c", "b", "unknown"):
        touch(folder / f"masks/{name}.png")
    touch(folder / "masks/a.jpg")
    entries = open_dataset("folder", folder).entries("masked")
    assert list(entries.names()) == ["b", "c"]
    assert entries[1].mask == folder / "masks/c.png"


@pytest.mark.parametrize(
    ("list_name", "tags", "match"),
    [
        ("tagged", "name,classes\n", r"tags\.csv: no picture has a tag; "),
        ("tagged", "a,\nb,\n", r"tags\.csv: no picture has a tag; "),
        ("masked", "a,\n", r"tags\.csv: no picture has a tag; "),
        ("masked", "a,cat\n", r"masks/\*\.png: no tagged picture has a mask.*; "),
        ("tagged", "a,cat\nnowhere,dog\n", r"tags\.csv, line 2: there is no picture .*/images/nowhere \(\.jpg, "),
    ],
)
def test_tags_that_make_no_list_are_refused(folder, list_name, tags, match):
    (folder / "tags.csv").write_text(tags)
    with pytest.raises(InputError, match=match) as error:
        open_dataset("folder", folder).entries(list_name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["images/", ""])
@pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "png", "bmp", "webp", "tif", "TIFF"])
def test_pictures_of_any_type_lie_in_images_or_beside_the_tags(folder, place, ending):
    shutil.rmtree(folder / "images")
    path = touch(folder / f"{place}new.{ending}")
    (folder / "tags.csv").write_text(f"new.{ending},dog\n")
    (entry,) = open_dataset("folder", folder).entries("tagged")
    assert (entry.name, entry.picture, entry.mask) == ("new", path, folder / "masks/new.png")


def test_a_picture_in_images_counts_before_one_beside_it(folder):
    touch(folder / "a.png")
    assert open_dataset("folder", folder).entries("train")[0].picture == folder / "images/a.jpg"


def test_two_pictures_of_one_name_are_refused(folder):
    touch(folder / "images/a.png")
    with pytest.raises(InputError, match=r"/images: a\.jpg and a\.png have one name; rename"):
        open_dataset("folder", folder).entries("train")


@pytest.mark.parametrize("name", ["one two", "a.b", "caf\u00e9", "cafe\u0301", "name", "1", "photo.jpg"])
def test_a_picture_may_have_any_name(folder, name):
    path = touch(folder / f"images/{name}.png")
    (folder / "tags.csv").write_text(f"{name}.png,dog\n", encoding="utf-8")
    (folder / "train.txt").write_text(f"{name}.png\n", encoding="utf-8")
    dataset = open_dataset("folder", folder)
    for list_name in ("tagged", "train"):
        entries = dataset.entries(list_name)
        assert [entry.picture for entry in entries] == [path]
        assert dataset.labels(entries).tolist() == [[0, 1]]


def test_voc_takes_its_tags_from_a_table_where_there_is_one(tiny_voc):
    dataset = open_dataset("voc", tiny_voc)
    annotated = dataset.labels(dataset.entries("train"))
    for path in (tiny_voc / "Annotations").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"\.xml: the picture's annotation is missing"):
        dataset.labels(dataset.entries("train"))
    (tiny_voc / "tags.csv").write_text("".join(f"{name},{('cat;dog', 'dog')[i % 2]}\n" for i, name in reversed([*enumerate(NAMES)])))
    assert np.array_equal(dataset.labels(dataset.entries("train")), annotated)


def test_a_table_counts_before_vocs_annotations(tiny_voc):
    (tiny_voc / "tags.csv").write_text("".join(f"{name},person\n" for name in NAMES[1:]))
    dataset = open_dataset("voc", tiny_voc)
    assert dataset.labels(dataset.entries("train")[1:]).sum(0)[VOC_CLASSES.index("person") - 1] == 5
    with pytest.raises(InputError, match=rf"/tags\.csv: picture {NAMES[0]} has no tag"):
        dataset.labels(dataset.entries("train"))


def test_vocs_own_mask_counts_before_sbds(tiny_voc):
    for name in NAMES[:2]:
        touch(tiny_voc / f"SegmentationClassAug/{name}.png")
    for name in NAMES[1:3]:
        (tiny_voc / f"SegmentationClass/{name}.png").unlink()
    masks = [entry.mask.relative_to(tiny_voc).parent.name for entry in open_dataset("voc", tiny_voc).entries("train")]
    assert masks == ["SegmentationClass", "SegmentationClassAug", *["SegmentationClass"] * 4]


def test_all_problems_of_a_dataset_can_be_collected(folder):
    touch(folder / "images/a.png")
    (folder / "train.txt").write_text("a\nnowhere\n../b\nb\na\nc/d\nc\n")
    (folder / "tags.csv").write_text("a,cow\nb,dog\n")
    problems, dataset = [], open_dataset("folder", folder)
    entries = dataset.entries("train", problems.append)
    assert list(entries.names()) == ["a", "b", "c"]
    assert dataset.labels(entries, problems.append).tolist() == [[0, 0], [0, 1], [0, 0]]
    wanted = ["have one name", "line 2: there is no", "line 3: ../b leaves", "line 5: a stands twice", "line 6: expected a picture name"]
    wanted += ["line 1: tag 'cow'", "picture a has no tag", "picture c has no tag"]
    assert len(problems) == len(wanted)
    assert all(part in problem and "\n" not in problem for part, problem in zip(wanted, problems))


def test_kinds_of_datasets_differ_in_a_value_alone(tiny_voc, folder, coco):
    roots = {"voc": tiny_voc, "folder": folder, "coco": coco}
    assert roots.keys() == DATASETS.keys()
    assert {type(open_dataset(name, root)) for name, root in roots.items()} == {Dataset}
    assert not Dataset.__subclasses__() and not DatasetSpec.__subclasses__()
    values = [getattr(spec, field.name) for spec in DATASETS.values() for field in fields(spec)]
    assert {type(value) for value in values} <= {str, tuple, type(Path()), type(None)}
    assert all(isinstance(part, str) for value in values if isinstance(value, tuple) for part in value)
