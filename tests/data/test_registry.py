"""Datasets as values: where the root may be, what a list may look like, how tags are read."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.annotations import read_classes
from data.registry import DATASETS, VOC, Dataset, Sample, Samples, find_root, open_dataset
from errors import InputError

NAMES = [f"2007_{i:06d}" for i in range(6)]
FIRST = NAMES[0]
SECOND = NAMES[1]
VOC_CLASSES = read_classes(VOC.classes)


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


def tagged_classes(dataset: Dataset, samples: Samples) -> list[list[str]]:
    """The names of the classes that each image is tagged with."""
    names = []
    for row in dataset.tags(samples):
        class_ids = np.flatnonzero(row) + 1
        names.append([dataset.class_names[class_id] for class_id in class_ids])
    return names


def assert_refused(start: str | Path, function: Callable, *arguments) -> None:
    with pytest.raises(InputError) as error:
        function(*arguments)
    message = str(error.value)
    assert message.startswith(str(start))
    assert "\n" not in message


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_voc_may_lie_up_to_two_folders_below_the_root(tmp_path, above):
    root = tmp_path / "VOCdevkit/VOC2012"
    touch(root / "JPEGImages/a.jpg")
    dataset = open_dataset("voc", str((root / above).resolve()))
    assert dataset.root == root
    assert dataset.class_names == VOC_CLASSES
    assert dataset.num_classes == 21


@pytest.mark.parametrize("kind", DATASETS)
def test_a_root_without_the_dataset_is_refused(tmp_path, kind):
    assert_refused(f"{tmp_path / 'nowhere'}: ", open_dataset, kind, tmp_path / "nowhere")
    assert find_root(DATASETS[kind], tmp_path) is None


def test_voc_is_read(fixed_voc):
    dataset = open_dataset("voc", fixed_voc)
    samples = dataset.samples("train")
    assert samples.names() == NAMES
    first = Sample(
        FIRST,
        fixed_voc / f"JPEGImages/{FIRST}.jpg",
        fixed_voc / f"SegmentationClass/{FIRST}.png",
    )
    assert samples[0] == first
    tags = dataset.tags(samples)
    assert tagged_classes(dataset, samples[:2]) == [["cat", "dog"], ["dog"]]
    assert np.array_equal(tags[2:4], tags[:2])
    assert np.array_equal(tags[4:], tags[:2])
    assert tags.shape == (6, 20)
    assert tags.dtype == np.float32
    assert tags.max() == 1
    assert np.array_equal(dataset.tags(samples[::-1]), tags[::-1])
    assert dataset.tags(samples[:0]).shape == (0, 20)
    assert dataset.tag_file(FIRST) == fixed_voc / f"Annotations/{FIRST}.xml"


class TestCoco:
    """Its images lie in two folders."""

    TRAIN = "COCO_train2014_000000000009"
    VAL = "COCO_val2014_000000000042"

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        touch(tmp_path / f"train2014/{self.TRAIN}.jpg")
        touch(tmp_path / f"val2014/{self.VAL}.jpg")
        (tmp_path / "train.txt").write_text(f"{self.TRAIN}\n")
        (tmp_path / "val.txt").write_text(f"{self.VAL}\n")
        rows = f"{self.VAL},dog\n{self.TRAIN},bowl;person\n"
        (tmp_path / "tags.csv").write_text(f"name,classes\n{rows}")
        return tmp_path

    def test_is_read(self, root):
        dataset = open_dataset("coco", root)
        samples = dataset.samples("train")
        image = root / f"train2014/{self.TRAIN}.jpg"
        mask = root / f"masks/{self.TRAIN}.png"
        assert list(samples) == [Sample(self.TRAIN, image, mask)]
        (val,) = dataset.samples("val")
        assert val.image == root / f"val2014/{self.VAL}.jpg"
        assert dataset.num_classes == 81
        assert dataset.class_names[1] == "person"
        assert dataset.class_names[-1] == "toothbrush"
        assert tagged_classes(dataset, samples) == [["person", "bowl"]]

    def test_may_lack_a_folder_that_is_not_read(self, root):
        shutil.rmtree(root / "val2014")
        dataset = open_dataset("coco", root)
        assert len(dataset.samples("train")) == 1
        assert_refused(f"{root / 'val.txt'}, line 1: ", dataset.samples, "val")


PATHS = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"
LIST_FORMS = [  # a line of two paths chooses the mask
    (f"\n{SECOND}\n\n  {FIRST} \n\t\n", "SegmentationClass"),
    (f"\ufeff{SECOND}.jpg\r\n{FIRST}.JPG", "SegmentationClass"),
    (PATHS.format(SECOND) + PATHS.format(FIRST), "SegmentationClassAug"),
    (
        f"JPEGImages/{SECOND}.jpg\tSegmentationClassAug/{SECOND}.png\n{FIRST}\n",
        "SegmentationClassAug",
    ),
]


@pytest.mark.parametrize(("content", "mask_folder"), LIST_FORMS)
def test_every_form_of_list_gives_the_names_in_order(fixed_voc, tmp_path, content, mask_folder):
    (tmp_path / "list.txt").write_text(content, newline="")
    samples = open_dataset("voc", fixed_voc).samples(str(tmp_path / "list.txt"))
    assert samples.names() == [SECOND, FIRST]
    assert samples[0].image == fixed_voc / f"JPEGImages/{SECOND}.jpg"
    assert samples[0].mask == fixed_voc / mask_folder / f"{SECOND}.png"


FIRST_IMAGE = f"/JPEGImages/{FIRST}.jpg"
BAD_LINES = [
    "../secret",
    "..",
    f"/JPEGImages/../..{FIRST_IMAGE} /a.png",
    f"{FIRST_IMAGE} ../a.png",
    f"{FIRST}\0",
    FIRST_IMAGE,
    f"/JPEGImages/{FIRST}.png /SegmentationClass/{FIRST}.png",
    f"{FIRST} {SECOND}",
    f"JPEGImages\\{FIRST}.jpg",
    f"{__file__} /a.png",  # a leading slash means the root
]
BAD_LISTS = [  # the content, and the number of the bad line
    *((f"{line}\n", 1) for line in BAD_LINES),
    (f"{FIRST}\n\n{FIRST}\n", 3),
    (f"{FIRST}\n{FIRST_IMAGE} /a.png\n", 2),
    (f"{FIRST}\n2007_999999\n", 2),
]


@pytest.mark.parametrize(("content", "line"), BAD_LISTS)
def test_a_bad_list_is_refused_by_its_line(fixed_voc, tmp_path, content, line):
    path = tmp_path / "list.txt"
    path.write_bytes(content.encode())
    dataset = open_dataset("voc", fixed_voc)
    assert_refused(f"{path}, line {line}: ", dataset.samples, str(path))


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", f"{FIRST}\n".encode("utf-16")], ids=["empty", "blank", "utf-16"]
)
def test_a_list_without_lines_is_refused(fixed_voc, tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    assert_refused(f"{path}: ", open_dataset("voc", fixed_voc).samples, str(path))


@pytest.mark.parametrize(
    "name", ["nothing", "../outside", "../../outside", "below/inside", "/nowhere/train", ""]
)
def test_a_list_that_is_nowhere_is_refused(tiny_voc, monkeypatch, tmp_path, name):
    """A name with a slash is a path, never a list of the dataset."""
    monkeypatch.chdir(tmp_path)
    for file in (
        "outside.txt",
        "ImageSets/outside.txt",
        "ImageSets/Segmentation/below/inside.txt",
        "ImageSets/Segmentation/nowhere/train.txt",
    ):
        touch(tiny_voc / file).write_text(f"{FIRST}\n")
    assert_refused(name, open_dataset("voc", tiny_voc).samples, name)


def test_a_list_of_the_dataset_counts_before_a_file_of_that_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "train").write_text("b\n")
    (folder / "other").write_text("b\n")
    dataset = open_dataset("folder", folder)
    assert dataset.samples("train").names() == ["a", "b", "c"]
    assert dataset.samples("./train").names() == ["b"]
    assert dataset.samples("other").names() == ["b"]


class TestVocsTags:
    @pytest.mark.parametrize(
        "content", [None, "<annotation><object><name>unicorn</name></object></annotation>"]
    )
    def test_a_bad_annotation_is_one_problem_and_the_others_are_read(self, tiny_voc, content):
        path = tiny_voc / f"Annotations/{NAMES[2]}.xml"
        path.unlink()
        if content:
            path.write_text(content)
        dataset = open_dataset("voc", tiny_voc)
        samples = dataset.samples("train")
        tags, (problem,) = dataset.read_tags(samples)
        assert problem.startswith(f"{path}: ")
        assert "\n" not in problem
        assert tags.sum(1).tolist() == [2, 1, 0, 1, 2, 1]
        assert_refused(path, dataset.tags, samples)

    def test_a_table_counts_before_the_annotations(self, tiny_voc):
        rows = [f"{name},person\n" for name in reversed(NAMES[1:])]
        (tiny_voc / "tags.csv").write_text("".join(rows))
        dataset = open_dataset("voc", tiny_voc)
        samples = dataset.samples("train")
        assert tagged_classes(dataset, samples[1:]) == [["person"] for _ in range(5)]
        assert dataset.tag_file(FIRST) == tiny_voc / "tags.csv"
        assert_refused(f"{tiny_voc / 'tags.csv'}: ", dataset.tags, samples)


def test_vocs_own_mask_counts_before_sbds(tiny_voc):
    touch(tiny_voc / f"SegmentationClassAug/{FIRST}.png")
    touch(tiny_voc / f"SegmentationClassAug/{SECOND}.png")
    (tiny_voc / f"SegmentationClass/{SECOND}.png").unlink()
    samples = open_dataset("voc", tiny_voc).samples("train")
    folders = {sample.name: sample.mask.parent.name for sample in samples}
    assert folders.pop(SECOND) == "SegmentationClassAug"
    assert set(folders.values()) == {"SegmentationClass"}


def test_the_tag_table_makes_lists(folder):
    (folder / "tags.csv").write_text("c,cat;dog\nuntagged,\na,cat\nb,dog\n")
    for name in ("c.png", "b.png", "unknown.png", "a.jpg"):
        touch(folder / "masks" / name)
    dataset = open_dataset("folder", folder)
    spec = dataset.spec
    assert (spec.train_list, spec.eval_list, spec.val_list) == ("tagged", "masked", "masked")
    assert dataset.samples("tagged").names() == ["c", "a", "b"]
    masked = dataset.samples("masked")
    assert masked.names() == ["c", "b"]
    assert masked[1].mask == folder / "masks/b.png"


BAD_TAGS = [  # a list, a tag table, and the bad line
    ("train", "a,cat\nb,dog\n", ""),
    ("train", "a,cat\nb,\nc,cat\n", ""),
    ("train", "a,cow\nb,dog\nc,cat\n", ", line 1"),
    ("train", None, ""),
    ("tagged", "name,classes\n", ""),
    ("masked", "a,cat\n", ""),
    ("tagged", "a,cat\nnowhere,dog\n", ", line 2"),
    ("tagged", "a,cow\nb,dog\n", ", line 1"),
]


@pytest.mark.parametrize(("list_name", "content", "line"), BAD_TAGS)
def test_bad_tags_are_refused(folder, list_name, content, line):
    path = folder / "tags.csv"
    path.unlink()
    if content:
        path.write_text(content)
    dataset = open_dataset("folder", folder)
    assert_refused(f"{path}{line}: ", lambda: dataset.tags(dataset.samples(list_name)))


@pytest.mark.parametrize(
    "name", ["one two", "a.b", "caf\u00e9", "cafe\u0301", "name", "1", "photo.jpg", "{0}"]
)
@pytest.mark.parametrize("list_name", ["tagged", "train"])
def test_an_image_may_have_any_name_and_lie_in_the_root(folder, name, list_name):
    shutil.rmtree(folder / "images")
    path = touch(folder / f"{name}.PNG")
    (folder / "tags.csv").write_text(f"{name}.PNG,dog\n", encoding="utf-8")
    (folder / "train.txt").write_text(f"{name}.PNG\n", encoding="utf-8")
    dataset = open_dataset("folder", folder)
    samples = dataset.samples(list_name)
    assert [sample.image for sample in samples] == [path]
    assert tagged_classes(dataset, samples) == [["dog"]]


class TestProblems:
    """All problems of a dataset come in order."""

    @pytest.fixture
    def dataset(self, folder: Path) -> Dataset:
        for file in ("images/a.png", "masks/a.png", "masks/a.PNG"):
            touch(folder / file)
        (folder / "train.txt").write_text("a\nnowhere\n../b\nb\na\nc/d\nc\n")
        (folder / "tags.csv").write_text("a,cow\nb,dog\n")
        return open_dataset("folder", folder)

    @staticmethod
    def places(problems: list[str]) -> list[str]:
        """The file of each problem, and its line if there is one."""
        return [problem.split(":")[0] for problem in problems]

    def test_of_a_list(self, dataset, folder):
        samples, problems = dataset.read_samples("train")
        assert samples.names() == ["a", "b", "c"]
        train = folder / "train.txt"
        assert self.places(problems) == [
            str(folder / "images"),
            str(folder / "masks"),
            f"{train}, line 2",
            f"{train}, line 3",
            f"{train}, line 5",
            f"{train}, line 6",
        ]
        assert_refused(folder / "images", dataset.samples, "train")

    def test_of_tags(self, dataset, folder):
        samples, _ = dataset.read_samples("train")
        tags, problems = dataset.read_tags(samples)
        assert tags.tolist() == [[0, 0], [0, 1], [0, 0]]
        table = str(folder / "tags.csv")
        assert self.places(problems) == [f"{table}, line 1", table, table]

    def test_of_a_list_that_the_tags_make(self, dataset, folder):
        _, problems = dataset.read_samples("tagged")
        assert f"{folder / 'tags.csv'}, line 1" in self.places(problems)


def test_a_digest_tells_images_classes_and_tags_apart(folder):
    dataset = open_dataset("folder", folder)
    samples = dataset.samples("train")
    digest = dataset.digest(samples, b"labels")
    # a fixed value: checkpoints hold it, and only resume if it is the same
    assert digest == "a69ce78ed9652dafd15fc5d571b87b04a270eae13b1722a1c0a03c21c5b8cfa2"
    renamed = replace(dataset, class_names=("background", "cat", "fox"))
    others = {
        dataset.digest(samples, b"others"),
        dataset.digest(samples[:2], b"labels"),
        dataset.digest(samples[::-1], b"labels"),
        renamed.digest(samples, b"labels"),
    }
    assert len(others | {digest}) == 5


SAMPLE_NAMES = ["a", "b c", "雪", "e\udcff", "a.b"]
ROWS = [(name, f"/root/{name}.jpg", f"masks/{name}.png") for name in SAMPLE_NAMES]
SAMPLES = [Sample(name, Path(image), Path(mask)) for name, image, mask in ROWS]
SLICES = [
    slice(None),
    slice(2),
    slice(1, 4, 2),
    slice(None, None, -1),
    slice(9, 20),
]


class TestSamples:
    def test_are_a_list_of_those_that_were_given(self):
        samples = Samples.of(iter(ROWS))
        assert len(samples) == 5
        assert list(samples) == SAMPLES
        assert [samples[i] for i in range(-5, 0)] == SAMPLES
        assert samples.names() == SAMPLE_NAMES
        name, image, mask = samples[2]
        assert type(name) is str
        assert type(image) is type(mask) is type(Path())

    @pytest.mark.parametrize(("index", "rows"), [(5, ROWS), (-6, ROWS), (0, [])])
    def test_have_no_index_beyond_the_ends(self, index, rows):
        with pytest.raises(IndexError):
            Samples.of(rows)[index]

    @pytest.mark.parametrize("part", SLICES)
    def test_are_sliced_and_sent_to_workers(self, part):
        samples = Samples.of(ROWS)[part]
        assert isinstance(samples, Samples)
        assert list(samples) == SAMPLES[part]
        assert list(pickle.loads(pickle.dumps(samples))) == SAMPLES[part]

    def test_may_be_none(self):
        samples = Samples.of([])[:]
        assert list(samples) == []
        assert list(pickle.loads(pickle.dumps(samples))) == []
        assert list(samples.select([])) == []
        assert list(Samples.of(ROWS).select([])) == []

    @pytest.mark.parametrize("part", SLICES[:-1])
    def test_are_selected(self, part):
        expected = SAMPLES[part]
        samples = Samples.of(ROWS)[part].select([-1, 0, 0])
        assert list(samples) == [expected[-1], expected[0], expected[0]]
