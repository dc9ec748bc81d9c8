"""The text files of a dataset: every form that is read, and every bad one named by its file and line."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data import annotations
from data.annotations import IMAGE_TYPES, find_files, read_tag_table, rows_or_raise
from errors import InputError

CLASSES = ("background", "cat", "dog", "potted plant")
COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def write(path: Path, content: str | bytes | None) -> Path:
    """A file of this content; None: no file."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def tags_of(path: Path, content: str | bytes) -> tuple[dict[str, list[str]], list[str]]:
    """What a tag table of this content says, as names of classes, and its problems."""
    table, problems = read_tag_table(write(path, content), CLASSES)
    assert (table.tags.shape, table.tags.dtype) == (
        (len(table.row), len(CLASSES) - 1),
        np.uint8,
    )
    return {
        name: [CLASSES[1:][i] for i in np.flatnonzero(table.tags[row])]
        for name, row in table.row.items()
    }, problems


def assert_refused(path: Path, read, *arguments) -> None:
    with pytest.raises(InputError) as error:
        read(path, *arguments)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


ENDINGS = (*IMAGE_TYPES, ".JPG", ".Png")
SPELT = {
    "  a b\t": "a b",
    "a.b": "a.b",
    "a.b.jpg": "a.b",
    "a.txt": "a.txt",
    ".jpg": ".jpg",
    f"{DECOMPOSED}.jpg": COMPOSED,
    "": "",
}
MOST = [*map(str, range(254))]  # as many as fit into a mask
BAD_CLASSES = [
    None,
    "cat\ndog\n cat\n",
    f"{COMPOSED}\n{DECOMPOSED}\n",
    "Background\ncat\n",
    "cat;dog\n",
    "\n".join([*MOST, "x"]),
    "\n \n",
]
FORMS = [
    "name,classes\na,cat\nb,cat;dog\n",
    "a,cat\nb,cat;dog",
    "Name,Tags\n\na,cat\n\nb,dog;cat\n",
    "a.jpg,cat\nb.PNG,cat;dog\n",
]
FORMS += [
    b"\xef\xbb\xbfname,classes\r\na,cat\r\nb,cat;dog\r\n",
    "a,;cat\nb,cat;;dog;\n",
    "a,cat ; ;\n\tb,;; cat;dog \n",
]
FORMS += [
    "name,classes,,\na,cat,,\nb,cat;dog,,\n,,,\n",
    '"a","cat"\n"b","cat;dog"\n',
    "a,cat;cat\nb,dog;cat;dog\n",
]
BAD_ROWS = {  # by the number of the bad line
    1: [
        "a,Cat",
        "a,background",
        'a,"cat,dog"',
        "a,cat,dog",
        "a,,dog",
        "../a,cat",
        "..,cat",
        "a\\b,cat",
        "/a,cat",
        '"a\x01",cat',
        "a;cat",
    ],
    2: [
        "a.jpg,cat\na.png,dog",
        f"{COMPOSED},cat\n{DECOMPOSED},cat",
        "a,cat\n,dog",
        'a,"two\nlines"',
    ],
    3: ["name,classes\na,cat\nb,cow", "a,cat\n\na,dog"],
}
UNKNOWN_ENCODINGS = [
    f"<?xml version='1.0' encoding='{name}'?><annotation/>" for name in ("klingon", "gbk")
]
ANY, JPG = ["{}.*"], ["images/{}.jpg"]
EACH = {f"a{i}": f"a{i}{ending}" for i, ending in enumerate(ENDINGS)}
FOUR = ["1/a.png", "1/b.png", "2/b.png", "2/c.png"]
FOUND = [
    (
        ["images/b.jpg", "images/a.jpg", "images/note.txt", "c.jpg"],
        JPG,
        {"a": "images/a.jpg", "b": "images/b.jpg"},
    ),
    (
        ["images/a.b.jpg", f"images/{DECOMPOSED}.JPG"],
        JPG,
        {"a.b": "images/a.b.jpg", COMPOSED: f"images/{DECOMPOSED}.JPG"},
    ),
    ([*EACH.values(), "b.txt", "c", "d.mp4"], ANY, EACH),
    (["a.jpg", "._a.jpg", ".b.jpg"], ANY, {"a": "a.jpg"}),
    (["a.png", "b.PNG", "c.jpg"], ["{}.png"], {"a": "a.png", "b": "b.PNG"}),
    (FOUR, ["1/{}.png", "2/{}.png"], {"a": "1/a.png", "b": "1/b.png", "c": "2/c.png"}),
    (FOUR, ["2/{}.png", "1/{}.png"], {"a": "1/a.png", "b": "2/b.png", "c": "2/c.png"}),
    (
        ["images/a.jpg", "b.jpg"],
        [*JPG, *ANY],
        {"a": "images/a.jpg"},
    ),  # the root counts only if nothing else is there
    (["file.jpg"], ["nowhere/{}.jpg", "file.jpg/{}.jpg", "{}.jpg"], {"file": "file.jpg"}),
    (["images/folder.jpg/x", "images/a.jpg"], JPG, {"a": "images/a.jpg"}),
]


@pytest.mark.parametrize(
    ("text", "name"), [*((f"a{ending}", "a") for ending in ENDINGS), *SPELT.items()]
)
def test_a_name_is_spelt_in_one_way(text, name):
    assert annotations.sample_name(text) == name == annotations.sample_name(name)


def test_paths_that_escape_their_folder():
    assert all(
        map(annotations.escapes_folder, ["..", "../a", "a/../../b", "a/..", "..\\a", "a\\b", "a\0"])
    )
    assert not any(map(annotations.escapes_folder, ["a", "a/b", "a..b", "...", "..a/b.."]))


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfa\r\n\r\n" + DECOMPOSED.encode(), f"a\r \r{DECOMPOSED}\t\r"]
)
def test_lines_keep_their_numbers(tmp_path, content):
    assert annotations.read_lines(write(tmp_path / "a.txt", content), "fix it") == [
        (1, "a"),
        (3, COMPOSED),
    ]


@pytest.mark.parametrize("names", [["potted plant", "cup, blue", "Cat", "cat"], MOST], ids=len)
def test_class_names_follow_the_background(tmp_path, names):
    path = write(tmp_path / "classes.txt", "\ufeff\r\n " + " \r\n\r\n".join(names))
    assert annotations.read_classes(path) == ("background", *names)


@pytest.mark.parametrize(
    "content", [*BAD_CLASSES, "café".encode("latin-1"), "cat\n".encode("utf-16")]
)
def test_bad_class_names_are_refused(tmp_path, content):
    assert_refused(write(tmp_path / "classes.txt", content), annotations.read_classes)


@pytest.mark.parametrize("content", FORMS)
def test_every_form_of_tag_table_says_the_same(tmp_path, content):
    assert tags_of(tmp_path / "tags.csv", content) == ({"a": ["cat"], "b": ["cat", "dog"]}, [])


def test_names_may_hold_almost_anything(tmp_path):
    content = 'first,cat\nname,dog\none,\ntwo,;\n"one, two",cat\n"say ""cheese""",dog\nmy cat.v2,potted plant\n'
    tags, problems = tags_of(
        tmp_path / "tags.csv", f"{content}a..b\n{DECOMPOSED}.jpeg,cat\n"
    )  # only the first line may be a header
    assert list(tags) == [
        "first",
        "name",
        "one",
        "two",
        "one, two",
        'say "cheese"',
        "my cat.v2",
        "a..b",
        COMPOSED,
    ]
    assert [*tags.values()] == [
        ["cat"],
        ["dog"],
        [],
        [],
        ["cat"],
        ["dog"],
        ["potted plant"],
        [],
        ["cat"],
    ] and problems == []
    assert tags_of(tmp_path / "tags.csv", "name,classes\n\n") == ({}, [])


@pytest.mark.parametrize(
    ("line", "content"), [(line, content) for line, rows in BAD_ROWS.items() for content in rows]
)
def test_a_bad_row_is_one_problem_and_the_others_are_read(tmp_path, line, content):
    tags, (problem,) = tags_of(tmp_path / "tags.csv", f"{content}\nlast,dog\n")
    assert tags["last"] == ["dog"]
    assert problem.startswith(f"{tmp_path / 'tags.csv'}, line {line}: ") and "\n" not in problem


@pytest.mark.parametrize(
    "content",
    [None, "a,cat\n".encode("utf-16"), b"\xe9,cat\n", b"a," + b"x" * 200_000, b'a,"cat\nb,dog\n'],
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
    assert tags_of(tmp_path / "tags.csv", content) == (
        {name: sorted(tags, key=CLASSES.index) for name, tags in rows.items()},
        [],
    )


def test_a_table_labels_images_in_the_order_asked_for(tmp_path):
    path = write(tmp_path / "tags.csv", "a,cat\nb,cat;dog\nc,\nd,potted plant\n")
    table = rows_or_raise(read_tag_table(path, CLASSES))
    assert table.line == [1, 2, 3, 4]
    labels, problems = table.tags_of(iter(["d", "b", "a", "b"]), path)
    assert (labels.tolist(), labels.dtype, problems) == (
        [[0, 0, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]],
        np.float32,
        [],
    )
    labels, problems = table.tags_of(["c", "a", "unknown"], path)
    assert labels.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert all(
        problem.startswith(f"{path}: ") and f" {name} " in problem
        for problem, name in zip(problems, ["c", "unknown"], strict=True)
    )
    assert table.tags_of([], path)[0].shape == (0, 3)
    assert len(rows_or_raise(read_tag_table(write(path, ""), CLASSES)).tags_of(["a"], path)[1]) == 1


def test_unknown_tags_are_problems_of_a_label():
    label, problems = annotations.encode_tags({"fox", "dog", "cow"}, CLASSES, "here")
    assert (label.tolist(), label.dtype) == ([0, 1, 0], np.uint8)
    assert all(
        problem.startswith("here: ") and tag in problem
        for problem, tag in zip(problems, ["cow", "fox"], strict=True)
    )


def test_an_annotation_names_its_objects_and_not_their_parts(tmp_path):
    objects = "<object><name> cat </name><part><name>head</name></part></object><object><name>dog</name></object>"
    path = write(
        tmp_path / "a.xml",
        f"<annotation><filename>a.jpg</filename>{objects * 2}<object><name/></object></annotation>",
    )
    assert annotations.read_annotation(path) == {"cat", "dog"}
    assert annotations.read_annotation(write(path, "<annotation/>")) == set()


@pytest.mark.parametrize("content", [None, "", "<annotation><object>", *UNKNOWN_ENCODINGS])
def test_a_bad_annotation_is_refused(tmp_path, content):
    assert_refused(write(tmp_path / "a.xml", content), annotations.read_annotation)


@pytest.mark.parametrize(("files", "patterns", "result"), FOUND)
def test_files_are_found_by_the_names_of_their_images(tmp_path, files, patterns, result):
    tree(tmp_path, *files)
    if "images/folder.jpg/x" in files:
        (tmp_path / "images/dangling.jpg").symlink_to("nowhere.jpg")
    assert find_files(tmp_path, patterns) == (
        {name: f"{tmp_path}/{file}" for name, file in result.items()},
        [],
    )


@pytest.mark.parametrize(
    "twins", [("a.jpg", "a.png"), ("a.JPG", "a.jpg"), (f"{DECOMPOSED}.jpg", f"{COMPOSED}.jpg")]
)
def test_two_files_of_one_name_are_a_problem(tmp_path, twins):
    files, (problem,) = find_files(
        tree(tmp_path, *(f"images/{twin}" for twin in twins)), ["images/{}.*"]
    )
    assert (
        len(files) == 1
        and problem.startswith(f"{tmp_path / 'images'}: ")
        and all(twin in problem for twin in twins)
    )


def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    assert_refused(tmp_path, find_files, [f"{'x' * 300}/{{}}.jpg"])


def test_files_of_other_types_are_found_but_not_in_the_root(tmp_path):
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
