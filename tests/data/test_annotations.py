"""The text files of a dataset: every form is read, and every bad one is named by file and line."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data import annotations
from data.annotations import IMAGE_TYPES, find_files, read_tag_table, rows_or_raise
from errors import InputError

CLASSES = ("background", "cat", "dog", "potted plant")
COMPOSED = unicodedata.normalize("NFC", "café")
DECOMPOSED = unicodedata.normalize("NFD", "café")


def write(path: Path, content: str | bytes | None) -> Path:
    """A file of this content; None: no file."""
    if isinstance(content, str):
        content = content.encode()
    if content is not None:
        path.write_bytes(content)
    return path


def tree(root: Path, *files: str) -> Path:
    """A folder with these empty files."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def read_table(path: Path, content: str | bytes) -> tuple[dict[str, list[str]], list[str]]:
    """What a tag table of this content says, as names of classes, and its problems."""
    table, problems = read_tag_table(write(path, content), CLASSES)
    assert table.tags.shape == (len(table.row), len(CLASSES) - 1)
    assert table.tags.dtype == np.uint8
    tags = {}
    for name, row in table.row.items():
        class_ids = np.flatnonzero(table.tags[row]) + 1
        tags[name] = [CLASSES[class_id] for class_id in class_ids]
    return tags, problems


def assert_refused(path: Path, read, *arguments) -> None:
    with pytest.raises(InputError) as error:
        read(path, *arguments)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message


EXTENSIONS = (*IMAGE_TYPES, ".JPG", ".Png")
SPELT = {
    "  a b\t": "a b",
    "a.b": "a.b",
    "a.b.jpg": "a.b",
    "a.txt": "a.txt",
    ".jpg": ".jpg",
    f"{DECOMPOSED}.jpg": COMPOSED,
    "": "",
    **{f"a{extension}": "a" for extension in EXTENSIONS},
}


@pytest.mark.parametrize(("text", "name"), SPELT.items())
def test_a_name_is_spelt_in_one_way(text, name):
    assert annotations.sample_name(text) == name
    assert annotations.sample_name(name) == name


@pytest.mark.parametrize("path", ["..", "../a", "a/../../b", "a/..", "..\\a", "a\\b", "a\0"])
def test_a_path_may_escape_its_folder(path):
    assert annotations.escapes_folder(path)


@pytest.mark.parametrize("path", ["a", "a/b", "a..b", "...", "..a/b.."])
def test_a_path_may_stay_in_its_folder(path):
    assert not annotations.escapes_folder(path)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfa\r\n\r\n" + DECOMPOSED.encode(), f"a\r \r{DECOMPOSED}\t\r"]
)
def test_lines_keep_their_numbers(tmp_path, content):
    path = write(tmp_path / "a.txt", content)
    assert annotations.read_lines(path, "fix it") == [(1, "a"), (3, COMPOSED)]


MOST_CLASSES = [str(i) for i in range(254)]  # as many as fit into a mask


@pytest.mark.parametrize(
    "names", [["potted plant", "cup, blue", "Cat", "cat"], MOST_CLASSES], ids=len
)
def test_class_names_follow_the_background(tmp_path, names):
    lines = " \r\n\r\n".join(names)
    path = write(tmp_path / "classes.txt", f"\ufeff\r\n {lines}")
    assert annotations.read_classes(path) == ("background", *names)


BAD_CLASSES = {
    "missing": None,
    "twice": "cat\ndog\n cat\n",
    "the same in Unicode": f"{COMPOSED}\n{DECOMPOSED}\n",
    "background": "Background\ncat\n",
    "semicolon": "cat;dog\n",
    "too many": "\n".join([*MOST_CLASSES, "x"]),
    "none": "\n \n",
    "latin-1": "café".encode("latin-1"),
    "utf-16": "cat\n".encode("utf-16"),
}


@pytest.mark.parametrize("content", BAD_CLASSES.values(), ids=BAD_CLASSES)
def test_bad_class_names_are_refused(tmp_path, content):
    assert_refused(write(tmp_path / "classes.txt", content), annotations.read_classes)


TABLE_FORMS = [
    "name,classes\na,cat\nb,cat;dog\n",
    "a,cat\nb,cat;dog",
    "Name,Tags\n\na,cat\n\nb,dog;cat\n",
    "a.jpg,cat\nb.PNG,cat;dog\n",
    b"\xef\xbb\xbfname,classes\r\na,cat\r\nb,cat;dog\r\n",
    "a,;cat\nb,cat;;dog;\n",
    "a,cat ; ;\n\tb,;; cat;dog \n",
    "name,classes,,\na,cat,,\nb,cat;dog,,\n,,,\n",
    '"a","cat"\n"b","cat;dog"\n',
    "a,cat;cat\nb,dog;cat;dog\n",
]


@pytest.mark.parametrize("content", TABLE_FORMS)
def test_every_form_of_tag_table_says_the_same(tmp_path, content):
    tags, problems = read_table(tmp_path / "tags.csv", content)
    assert tags == {"a": ["cat"], "b": ["cat", "dog"]}
    assert problems == []


def test_names_may_hold_almost_anything(tmp_path):
    rows = {
        "first,cat": ("first", ["cat"]),
        "name,dog": ("name", ["dog"]),  # only the first line may be a header
        "one,": ("one", []),
        "two,;": ("two", []),
        '"one, two",cat': ("one, two", ["cat"]),
        '"say ""cheese""",dog': ('say "cheese"', ["dog"]),
        "my cat.v2,potted plant": ("my cat.v2", ["potted plant"]),
        "a..b": ("a..b", []),
        f"{DECOMPOSED}.jpeg,cat": (COMPOSED, ["cat"]),
    }
    tags, problems = read_table(tmp_path / "tags.csv", "".join(f"{row}\n" for row in rows))
    assert list(tags.items()) == list(rows.values())
    assert problems == []


def test_a_table_may_be_empty(tmp_path):
    assert read_table(tmp_path / "tags.csv", "name,classes\n\n") == ({}, [])


BAD_ROWS = [  # the number of the bad line, and the content
    (1, "a,Cat"),
    (1, "a,background"),
    (1, 'a,"cat,dog"'),
    (1, "a,cat,dog"),
    (1, "a,,dog"),
    (1, "../a,cat"),
    (1, "..,cat"),
    (1, "a\\b,cat"),
    (1, "/a,cat"),
    (1, '"a\x01",cat'),
    (1, "a;cat"),
    (2, "a.jpg,cat\na.png,dog"),
    (2, f"{COMPOSED},cat\n{DECOMPOSED},cat"),
    (2, "a,cat\n,dog"),
    (2, 'a,"two\nlines"'),
    (3, "name,classes\na,cat\nb,cow"),
    (3, "a,cat\n\na,dog"),
]


@pytest.mark.parametrize(("line", "content"), BAD_ROWS)
def test_a_bad_row_is_one_problem_and_the_others_are_read(tmp_path, line, content):
    path = tmp_path / "tags.csv"
    tags, (problem,) = read_table(path, f"{content}\nlast,dog\n")
    assert tags["last"] == ["dog"]
    assert problem.startswith(f"{path}, line {line}: ")
    assert "\n" not in problem


@pytest.mark.parametrize(
    "content",
    [None, "a,cat\n".encode("utf-16"), b"\xe9,cat\n", b"a," + b"x" * 200_000, b'a,"cat\nb,dog\n'],
    ids=["missing", "utf-16", "latin-1", "a huge field", "an open quote"],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, content):
    assert_refused(write(tmp_path / "tags.csv", content), read_tag_table, CLASSES)


def test_a_table_that_is_written_is_read_again(tmp_path):
    rows = {
        "b": ["dog", "cat"],
        "one, two": ["potted plant"],
        'say "cheese"': ["cat"],
        COMPOSED: [],
        "name": ["dog"],
    }
    content = annotations.format_tags(rows.items())
    assert content.startswith("name,classes\nb,dog;cat\n")
    in_class_order = rows | {"b": ["cat", "dog"]}
    assert read_table(tmp_path / "tags.csv", content) == (in_class_order, [])


class TestTagsOf:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path / "tags.csv", "a,cat\nb,cat;dog\nc,\nd,potted plant\n")

    @pytest.fixture
    def table(self, path: Path) -> annotations.TagTable:
        return rows_or_raise(read_tag_table(path, CLASSES))

    def test_rows_come_in_the_order_asked_for(self, table, path):
        assert table.line == [1, 2, 3, 4]
        tags, problems = table.tags_of(iter(["d", "b", "a", "b"]), path)
        cat_and_dog = [1, 1, 0]
        assert tags.tolist() == [[0, 0, 1], cat_and_dog, [1, 0, 0], cat_and_dog]
        assert tags.dtype == np.float32
        assert problems == []

    def test_an_image_without_a_tag_is_a_problem(self, table, path):
        tags, problems = table.tags_of(["c", "a", "unknown"], path)
        assert tags.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
        for problem, name in zip(problems, ["c", "unknown"], strict=True):
            assert problem.startswith(f"{path}: ")
            assert f" {name} " in problem

    def test_there_may_be_no_names_or_no_rows(self, table, path):
        tags, _ = table.tags_of([], path)
        assert tags.shape == (0, 3)
        empty = rows_or_raise(read_tag_table(write(path, ""), CLASSES))
        _, problems = empty.tags_of(["a"], path)
        assert len(problems) == 1


def test_unknown_tags_are_problems():
    tags, problems = annotations.encode_tags({"fox", "dog", "cow"}, CLASSES, "here")
    assert tags.tolist() == [0, 1, 0]
    assert tags.dtype == np.uint8
    for problem, tag in zip(problems, ["cow", "fox"], strict=True):
        assert problem.startswith("here: ")
        assert tag in problem


def test_an_annotation_names_its_objects_and_not_their_parts(tmp_path):
    cat = "<object><name> cat </name><part><name>head</name></part></object>"
    dog = "<object><name>dog</name></object>"
    nameless = "<object><name/></object>"
    objects = f"{cat}{dog}{cat}{dog}{nameless}"
    path = write(
        tmp_path / "a.xml", f"<annotation><filename>a.jpg</filename>{objects}</annotation>"
    )
    assert annotations.read_annotation(path) == {"cat", "dog"}
    assert annotations.read_annotation(write(path, "<annotation/>")) == set()


UNKNOWN_ENCODINGS = [
    "<?xml version='1.0' encoding='klingon'?><annotation/>",
    "<?xml version='1.0' encoding='gbk'?><annotation/>",
]


@pytest.mark.parametrize("content", [None, "", "<annotation><object>", *UNKNOWN_ENCODINGS])
def test_a_bad_annotation_is_refused(tmp_path, content):
    assert_refused(write(tmp_path / "a.xml", content), annotations.read_annotation)


EVERY_TYPE = {f"a{i}": f"a{i}{extension}" for i, extension in enumerate(EXTENSIONS)}
TWO_FOLDERS = ["1/a.png", "1/b.png", "2/b.png", "2/c.png"]
FILES = [  # the files that there are, the patterns, and the files that match
    (
        ["images/b.jpg", "images/a.jpg", "images/note.txt", "c.jpg"],
        ["images/{}.jpg"],
        {"a": "images/a.jpg", "b": "images/b.jpg"},
    ),
    (
        ["images/a.b.jpg", f"images/{DECOMPOSED}.JPG"],
        ["images/{}.jpg"],
        {"a.b": "images/a.b.jpg", COMPOSED: f"images/{DECOMPOSED}.JPG"},
    ),
    ([*EVERY_TYPE.values(), "b.txt", "c", "d.mp4"], ["{}.*"], EVERY_TYPE),
    (["a.jpg", "._a.jpg", ".b.jpg"], ["{}.*"], {"a": "a.jpg"}),
    (["a.png", "b.PNG", "c.jpg"], ["{}.png"], {"a": "a.png", "b": "b.PNG"}),
    (TWO_FOLDERS, ["1/{}.png", "2/{}.png"], {"a": "1/a.png", "b": "1/b.png", "c": "2/c.png"}),
    (TWO_FOLDERS, ["2/{}.png", "1/{}.png"], {"a": "1/a.png", "b": "2/b.png", "c": "2/c.png"}),
    # the root counts only if nothing else is there
    (["images/a.jpg", "b.jpg"], ["images/{}.jpg", "{}.*"], {"a": "images/a.jpg"}),
    (["file.jpg"], ["nowhere/{}.jpg", "file.jpg/{}.jpg", "{}.jpg"], {"file": "file.jpg"}),
]


@pytest.mark.parametrize(("files", "patterns", "expected"), FILES)
def test_files_are_listed_by_the_names_of_their_images(tmp_path, files, patterns, expected):
    tree(tmp_path, *files)
    paths, problems = find_files(tmp_path, patterns)
    assert paths == {name: f"{tmp_path}/{file}" for name, file in expected.items()}
    assert problems == []


def test_folders_and_dangling_links_are_no_files(tmp_path):
    tree(tmp_path, "images/folder.jpg/x", "images/a.jpg")
    (tmp_path / "images/dangling.jpg").symlink_to("nowhere.jpg")
    paths, problems = find_files(tmp_path, ["images/{}.jpg"])
    assert paths == {"a": f"{tmp_path}/images/a.jpg"}
    assert problems == []


@pytest.mark.parametrize(
    "twins", [("a.jpg", "a.png"), ("a.JPG", "a.jpg"), (f"{DECOMPOSED}.jpg", f"{COMPOSED}.jpg")]
)
def test_two_files_of_one_name_are_a_problem(tmp_path, twins):
    tree(tmp_path / "images", *twins)
    files, (problem,) = find_files(tmp_path, ["images/{}.*"])
    assert len(files) == 1
    assert problem.startswith(f"{tmp_path / 'images'}: ")
    assert all(twin in problem for twin in twins)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    too_long = "x" * 300
    assert_refused(tmp_path, find_files, [f"{too_long}/{{}}.jpg"])


def test_files_of_other_types_are_listed_but_not_those_of_the_root(tmp_path):
    tree(
        tmp_path,
        "classes.txt",
        "images/a.jpg",
        "images/b.heic",
        "images/Thumbs.db",
        "masks/a.png",
        "masks/b.bmp",
        "masks/._a.png",
    )
    others = annotations.find_others(tmp_path, ["images/{}.*", "{}.*", "masks/{}.png"])
    assert others == ["images/Thumbs.db", "images/b.heic", "masks/b.bmp"]
