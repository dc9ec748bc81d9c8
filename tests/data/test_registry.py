"""Datasets as values: where the root may be, what a list may look like, how tags become labels; and the images of a list."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.annotations import read_classes
from data.registry import DATASETS, VOC, Sample, Samples, find_root, open_dataset
from errors import InputError

NAMES = [f"2007_{i:06d}" for i in range(6)]
VOC_CLASSES = read_classes(VOC.classes)
COCO_NAMES = ["COCO_train2014_000000000009", "COCO_val2014_000000000042"]
LIST_FORMS = [f"\n{NAMES[1]}\n\n  {NAMES[0]} \n\t\n", f"\ufeff{NAMES[1]}.jpg\r\n{NAMES[0]}.JPG"]
LIST_FORMS += [
    "".join(
        f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n"
        for name in (NAMES[1], NAMES[0])
    )
]
LIST_FORMS += [f"JPEGImages/{NAMES[1]}.jpg\tSegmentationClassAug/{NAMES[1]}.png\n{NAMES[0]}\n"]
A_IMAGE = f"/JPEGImages/{NAMES[0]}.jpg"
ONE_LINE = [
    "../secret",
    "..",
    f"/JPEGImages/../..{A_IMAGE} /a.png",
    f"{A_IMAGE} ../a.png",
    f"{NAMES[0]}\0",
]
ONE_LINE += [
    A_IMAGE,
    f"/JPEGImages/{NAMES[0]}.png /SegmentationClass/{NAMES[0]}.png",
    f"{NAMES[0]} {NAMES[1]}",
]
ONE_LINE += [f"JPEGImages\\{NAMES[0]}.jpg", f"{__file__} /a.png"]  # a leading slash means the root
MORE = [
    ("", None),
    ("\n \n", None),
    (f"{NAMES[0]}\n".encode("utf-16"), None),
    (f"{NAMES[0]}\n\n{NAMES[0]}\n", 3),
]
MORE += [(f"{NAMES[0]}\n{A_IMAGE} /a.png\n", 2), (f"{NAMES[0]}\n2007_999999\n", 2)]
BAD_TAGS = [
    ("train", "a,cat\nb,dog\n", ""),
    ("train", "a,cat\nb,\nc,cat\n", ""),
    ("train", "a,cow\nb,dog\nc,cat\n", ", line 1"),
]
BAD_TAGS += [("train", None, ""), ("tagged", "name,classes\n", ""), ("masked", "a,cat\n", "")]
BAD_TAGS += [
    ("tagged", "a,cat\nnowhere,dog\n", ", line 2"),
    ("tagged", "a,cow\nb,dog\n", ", line 1"),
]
ROWS = [
    (name, f"/root/{name}.jpg", f"masks/{name}.png")
    for name in ("a", "b c", "雪", "e\udcff", "a.b")
]
ENTRIES = [Sample(name, Path(image), Path(mask)) for name, image, mask in ROWS]
SLICES = [slice(None), slice(2), slice(1, 4, 2), slice(None, None, -1), slice(9, 20)]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of a person's own: a cat, a dog, and both."""
    for name in ("a", "b", "c"):
        touch(tmp_path / f"images/{name}.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "tags.csv").write_text("name,classes\na,cat\nb,dog\nc,cat;dog\n")
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    return tmp_path


def assert_refused(start: str | Path, function, *arguments) -> None:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert str(error.value).startswith(str(start)) and "\n" not in str(error.value)


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_voc_is_found_at_its_root_and_up_to_two_folders_above(tmp_path, above):
    root = touch(tmp_path / "VOCdevkit/VOC2012/JPEGImages/a.jpg").parents[1]
    dataset = open_dataset("voc", str((root / above).resolve()))
    assert (dataset.root, dataset.class_names, dataset.num_classes) == (root, VOC_CLASSES, 21)


def test_a_root_without_the_dataset_is_refused(tmp_path):
    for kind in DATASETS:
        assert_refused(f"{tmp_path / 'nowhere'}: ", open_dataset, kind, tmp_path / "nowhere")
    assert find_root(VOC, tmp_path) is None


def test_voc_is_read(fixed_voc):
    dataset = open_dataset("voc", fixed_voc)
    samples = dataset.samples("train")
    assert samples.names() == NAMES
    assert samples[0] == (
        NAMES[0],
        fixed_voc / f"JPEGImages/{NAMES[0]}.jpg",
        fixed_voc / f"SegmentationClass/{NAMES[0]}.png",
    )
    labels = dataset.tags(samples)
    cat, dog = VOC_CLASSES.index("cat") - 1, VOC_CLASSES.index("dog") - 1
    assert [np.flatnonzero(row).tolist() for row in labels] == [[cat, dog], [dog]] * 3
    assert (labels.shape, labels.dtype, labels.max()) == ((6, 20), np.float32, 1)
    assert np.array_equal(dataset.tags(samples[::-1]), labels[::-1])
    assert dataset.tags(samples[:0]).shape == (0, 20)
    assert dataset.tag_file(NAMES[0]) == fixed_voc / f"Annotations/{NAMES[0]}.xml"


def test_coco_is_two_folders_of_images(tmp_path):
    for half, name in zip(("train", "val"), COCO_NAMES):
        touch(tmp_path / f"{half}2014/{name}.jpg")
        (tmp_path / f"{half}.txt").write_text(f"{name}\n")
    (tmp_path / "tags.csv").write_text(
        f"name,classes\n{COCO_NAMES[1]},dog\n{COCO_NAMES[0]},bowl;person\n"
    )
    dataset = open_dataset("coco", tmp_path)
    (train,), (val,) = dataset.samples("train"), dataset.samples("val")
    assert train == (
        COCO_NAMES[0],
        tmp_path / f"train2014/{COCO_NAMES[0]}.jpg",
        tmp_path / f"masks/{COCO_NAMES[0]}.png",
    )
    assert val.image == tmp_path / f"val2014/{COCO_NAMES[1]}.jpg"
    assert (dataset.num_classes, dataset.class_names[1], dataset.class_names[-1]) == (
        81,
        "person",
        "toothbrush",
    )
    tags = np.flatnonzero(dataset.tags(dataset.samples("train"))[0]) + 1
    assert [dataset.class_names[i] for i in tags] == ["person", "bowl"]
    shutil.rmtree(tmp_path / "val2014")
    assert len(dataset.samples("train")) == 1
    assert_refused(f"{tmp_path / 'val.txt'}, line 1: ", dataset.samples, "val")


@pytest.mark.parametrize("content", LIST_FORMS)
def test_every_form_of_list_gives_the_names_in_order(fixed_voc, tmp_path, content):
    (tmp_path / "list.txt").write_text(content, newline="")
    samples = open_dataset("voc", fixed_voc).samples(str(tmp_path / "list.txt"))
    assert samples.names() == [NAMES[1], NAMES[0]]
    mask_folder = (
        "SegmentationClassAug" if "Aug" in content else "SegmentationClass"
    )  # a line of two paths chooses the mask
    assert samples[0][1:] == (
        fixed_voc / f"JPEGImages/{NAMES[1]}.jpg",
        fixed_voc / mask_folder / f"{NAMES[1]}.png",
    )


@pytest.mark.parametrize(("content", "line"), [*((f"{line}\n", 1) for line in ONE_LINE), *MORE])
def test_a_bad_list_is_refused_by_its_line(fixed_voc, tmp_path, content, line):
    path = tmp_path / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(
        f"{path}, line {line}: " if line else f"{path}: ",
        open_dataset("voc", fixed_voc).samples,
        str(path),
    )


@pytest.mark.parametrize(
    "name", ["nothing", "../outside", "../../outside", "below/inside", "/nowhere/train", ""]
)
def test_a_list_that_is_nowhere_is_refused(tiny_voc, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    for file in (
        "outside.txt",
        *(
            f"ImageSets/{name}.txt"
            for name in ("outside", "Segmentation/below/inside", "Segmentation/nowhere/train")
        ),
    ):
        touch(tiny_voc / file).write_text(
            f"{NAMES[0]}\n"
        )  # a name with a slash is a path, never a list of the dataset
    assert_refused(name, open_dataset("voc", tiny_voc).samples, name)


def test_a_list_of_the_dataset_counts_before_a_file_of_that_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("train", "other"):
        (folder / name).write_text("b\n")
    dataset = open_dataset("folder", folder)
    assert dataset.samples("train").names() == ["a", "b", "c"]
    assert dataset.samples("other").names() == dataset.samples("./train").names() == ["b"]


@pytest.mark.parametrize(
    "content", [None, "<annotation><object><name>unicorn</name></object></annotation>"]
)
def test_a_bad_annotation_is_one_problem_and_the_others_are_read(tiny_voc, content):
    path = tiny_voc / f"Annotations/{NAMES[2]}.xml"
    path.write_text(content) if content else path.unlink()
    dataset = open_dataset("voc", tiny_voc)
    labels, (problem,) = dataset.read_tags(dataset.samples("train"))
    assert problem.startswith(f"{path}: ") and "\n" not in problem
    assert labels.sum(1).tolist() == [2, 1, 0, 1, 2, 1]
    assert_refused(path, dataset.tags, dataset.samples("train"))


def test_a_table_counts_before_vocs_annotations(tiny_voc):
    (tiny_voc / "tags.csv").write_text("".join(f"{name},person\n" for name in reversed(NAMES[1:])))
    dataset = open_dataset("voc", tiny_voc)
    samples = dataset.samples("train")
    assert dataset.tags(samples[1:]).sum(0)[VOC_CLASSES.index("person") - 1] == 5
    assert dataset.tag_file(NAMES[0]) == tiny_voc / "tags.csv"
    assert_refused(f"{tiny_voc / 'tags.csv'}: ", dataset.tags, samples)


def test_vocs_own_mask_counts_before_sbds(tiny_voc):
    for name in NAMES[:2]:
        touch(tiny_voc / f"SegmentationClassAug/{name}.png")
    (tiny_voc / f"SegmentationClass/{NAMES[1]}.png").unlink()
    masks = [sample.mask.parent.name for sample in open_dataset("voc", tiny_voc).samples("train")]
    assert masks == ["SegmentationClass", "SegmentationClassAug", *["SegmentationClass"] * 4]


def test_the_tag_table_makes_lists(folder):
    (folder / "tags.csv").write_text("c,cat;dog\nuntagged,\na,cat\nb,dog\n")
    for name in ("c.png", "b.png", "unknown.png", "a.jpg"):
        touch(folder / "masks" / name)
    dataset = open_dataset("folder", folder)
    assert (dataset.spec.train_list, dataset.spec.eval_list, dataset.spec.val_list) == (
        "tagged",
        "masked",
        "masked",
    )
    assert dataset.samples("tagged").names() == ["c", "a", "b"]
    assert dataset.samples("masked").names() == ["c", "b"]
    assert dataset.samples("masked")[1].mask == folder / "masks/b.png"


@pytest.mark.parametrize(("list_name", "tags", "where"), BAD_TAGS)
def test_bad_tags_are_refused(folder, list_name, tags, where):
    (folder / "tags.csv").write_text(tags) if tags else (folder / "tags.csv").unlink()
    dataset = open_dataset("folder", folder)
    assert_refused(
        f"{folder / 'tags.csv'}{where}: ", lambda: dataset.tags(dataset.samples(list_name))
    )


@pytest.mark.parametrize(
    "name", ["one two", "a.b", "caf\u00e9", "cafe\u0301", "name", "1", "photo.jpg", "{0}"]
)
def test_an_image_may_have_any_name_and_lie_in_the_root(folder, name):
    shutil.rmtree(folder / "images")
    path = touch(folder / f"{name}.PNG")
    (folder / "tags.csv").write_text(f"{name}.PNG,dog\n", encoding="utf-8")
    (folder / "train.txt").write_text(f"{name}.PNG\n", encoding="utf-8")
    dataset = open_dataset("folder", folder)
    for list_name in ("tagged", "train"):
        samples = dataset.samples(list_name)
        assert [sample.image for sample in samples] == [path]
        assert dataset.tags(samples).tolist() == [[0, 1]]


def test_all_problems_of_a_dataset_come_in_order(folder):
    for file in ("images/a.png", "masks/a.png", "masks/a.PNG"):
        touch(folder / file)
    (folder / "train.txt").write_text("a\nnowhere\n../b\nb\na\nc/d\nc\n")
    (folder / "tags.csv").write_text("a,cow\nb,dog\n")
    dataset = open_dataset("folder", folder)
    samples, problems = dataset.read_samples("train")
    assert samples.names() == ["a", "b", "c"]
    of_list = [f"{folder / 'train.txt'}, line {line}" for line in (2, 3, 5, 6)]
    assert [problem.split(":")[0] for problem in problems] == [
        str(folder / "images"),
        str(folder / "masks"),
        *of_list,
    ]
    labels, problems = dataset.read_tags(samples)
    assert labels.tolist() == [[0, 0], [0, 1], [0, 0]]
    assert [problem.split(":")[0] for problem in problems] == [
        f"{folder / 'tags.csv'}{where}" for where in (", line 1", "", "")
    ]
    assert_refused(folder / "images", dataset.samples, "train")
    _, problems = dataset.read_samples("tagged")
    assert f"{folder / 'tags.csv'}, line 1" in [problem.split(":")[0] for problem in problems]


def test_a_digest_tells_images_classes_and_labels_apart(folder):
    dataset = open_dataset("folder", folder)
    samples = dataset.samples("train")
    # a fixed value: checkpoints hold it, and only resume if it is the same
    assert (
        dataset.digest(samples, b"labels")
        == "a69ce78ed9652dafd15fc5d571b87b04a270eae13b1722a1c0a03c21c5b8cfa2"
    )
    renamed = replace(dataset, class_names=("background", "cat", "fox"))
    others = [
        dataset.digest(samples, b"others"),
        dataset.digest(samples[:2], b"labels"),
        dataset.digest(samples[::-1], b"labels"),
    ]
    assert (
        len({dataset.digest(samples, b"labels"), *others, renamed.digest(samples, b"labels")}) == 5
    )


def test_entries_are_a_list_of_those_that_were_given():
    samples = Samples.of(iter(ROWS))
    assert len(samples) == 5 and list(samples) == [samples[i] for i in range(-5, 0)] == ENTRIES
    assert {type(part) for part in samples[2]} == {str, type(Path())}
    assert samples.names() == [sample.name for sample in ENTRIES]
    for index, of in ((5, samples), (-6, samples), (0, Samples.of([]))):
        with pytest.raises(IndexError):
            of[index]


@pytest.mark.parametrize(("rows", "part"), [*((ROWS, part) for part in SLICES), ([], slice(None))])
def test_entries_are_sliced_selected_and_sent_to_workers(rows, part):
    samples, expected = Samples.of(rows)[part], ENTRIES[: len(rows)][part]
    assert isinstance(samples, Samples)
    assert list(samples) == list(pickle.loads(pickle.dumps(samples))) == expected
    assert list(samples.select([-1, 0, 0] if expected else [])) == [
        expected[i] for i in ([-1, 0, 0] if expected else [])
    ]
