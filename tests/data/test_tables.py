"""The text files of a dataset: every form that is read, and every one that is refused by its file and line."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data.tables import (
    PICTURE_TYPES,
    find_files,
    find_others,
    format_tags,
    label_of,
    leaves_folder,
    plain_name,
    read_annotation,
    read_classes,
    read_lines,
    read_tags,
)
from errors import InputError

CLASSES = ("background", "cat", "dog", "potted plant")
COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def file_of(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tags_of(path: Path, content: str | bytes, **more) -> dict[str, list[str]]:
    """What a tag table of this content says, as names of classes."""
    table = read_tags(file_of(path, content), CLASSES, **more)
    assert (table.labels.shape, table.labels.dtype) == ((len(table.row), len(CLASSES) - 1), np.uint8)
    return {name: [CLASSES[1:][i] for i in np.flatnonzero(table.labels[row])] for name, row in table.row.items()}


def assert_one_line(error: pytest.ExceptionInfo, start: str) -> None:
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


@pytest.mark.parametrize("ending", [*PICTURE_TYPES, ".JPG", ".Png"])
def test_a_plain_name_has_no_ending_of_a_picture(ending):
    assert plain_name(f"a{ending}") == "a"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a", "a"),
        ("  a b\t", "a b"),
        ("a.b", "a.b"),
        ("a.b.jpg", "a.b"),
        ("a.txt", "a.txt"),
        ("2007_000032", "2007_000032"),
        (".jpg", ".jpg"),
        (DECOMPOSED, COMPOSED),
        (f"{DECOMPOSED}.jpg", COMPOSED),
        ("", ""),
    ],
)
def test_a_plain_name_is_spelt_in_one_way(text, name):
    assert plain_name(text) == name == plain_name(name)


@pytest.mark.parametrize(
    ("text", "leaves"),
    [
        ("..", True),
        ("../a", True),
        ("a/../../b", True),
        ("a/..", True),
        ("..\\a", True),
        ("a\\b", True),
        ("a\0", True),
        ("a", False),
        ("a/b", False),
        ("a..b", False),
        ("...", False),
        ("..a/b..", False),
    ],
)
def test_what_leaves_its_folder(text, leaves):
    assert leaves_folder(text) is leaves


@pytest.mark.parametrize("content", [b"a\n\n b \n", b"\xef\xbb\xbfa\r\n\r\nb", b"a\r \rb\t\r"], ids=["LF", "BOM and CRLF", "CR"])
def test_lines_keep_their_numbers(tmp_path, content):
    assert read_lines(file_of(tmp_path / "a.txt", content), "mend it") == [(1, "a"), (3, "b")]


def test_an_empty_file_has_no_lines(tmp_path):
    assert read_lines(file_of(tmp_path / "a.txt", ""), "mend it") == []


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"\xff\xfea\0"), lambda path: path.mkdir(), lambda path: None])
def test_lines_that_cannot_be_read_end_in_the_cure(tmp_path, spoil):
    spoil(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"cannot be read \(.+\); mend it$") as error:
        read_lines(tmp_path / "a.txt", "mend it")
    assert_one_line(error, f"{tmp_path / 'a.txt'}: ")


@pytest.mark.parametrize("content", ["cat\ndog\n", "cat\ndog", "\ufeff\r\n cat \r\n\r\ndog\r\n"])
def test_class_names_follow_the_background(tmp_path, content):
    assert read_classes(file_of(tmp_path / "classes.txt", content)) == ("background", "cat", "dog")


def test_names_that_hold_spaces_and_commas_are_classes(tmp_path):
    assert read_classes(file_of(tmp_path / "classes.txt", "potted plant\ncup, blue\nCat\ncat\n"))[1:] == (
        "potted plant",
        "cup, blue",
        "Cat",
        "cat",
    )


def test_254_classes_fit_into_a_mask(tmp_path):
    assert len(read_classes(file_of(tmp_path / "classes.txt", "\n".join(map(str, range(254)))))) == 255


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("cat\ndog\n cat\n", "class 'cat' stands twice"),
        ("background\ncat\n", "without 'background'"),
        ("cat;dog\n", "semicolons"),
        ("\n".join(map(str, range(255))), "1 to 254 class names"),
        ("", "1 to 254 class names"),
        ("\n \n", "1 to 254 class names"),
        ("café".encode("latin-1"), "cannot be read .*one class name a line"),
        ("cat\n".encode("utf-16"), "cannot be read .*one class name a line"),
        (None, "cannot be read .*one class name a line"),
    ],
)
def test_bad_class_names_are_refused_by_their_file(tmp_path, content, match):
    path = tmp_path / "classes.txt"
    if content is not None:
        file_of(path, content)
    with pytest.raises(InputError, match=match) as error:
        read_classes(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "name,classes\na,cat\nb,cat;dog\n",
        "a,cat\nb,cat;dog",
        "Name,Tags\n\na,cat\n\nb,dog;cat\n",
        b"\xef\xbb\xbfname,classes\r\na,cat\r\nb,cat;dog\r\n",
        b"\xef\xbb\xbfa,cat\r\nb,cat;dog\r\n",
        "a.jpg,cat\nb.PNG,cat;dog\n",
        "a,;cat\nb,cat;;dog\n",
        "a,cat;\nb,;cat;dog;\n",
        "a,cat ; ;\nb,;; cat;dog\n",
        "name,classes,,\na,cat,,\nb,cat;dog,,\n,,,\n",
        " a , cat \n\tb,  cat ;\tdog \n",
        '"a","cat"\n"b","cat;dog"\n',
        "a,cat;cat\nb,dog;cat;dog\n",
    ],
)
def test_every_form_of_tag_table_says_the_same(tmp_path, content):
    assert tags_of(tmp_path / "tags.csv", content) == {"a": ["cat"], "b": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("content", "tags"),
    [
        ("", {}),
        ("\n\n", {}),
        ("name,classes\n", {}),
        ("a\nb,\nc,;\nd,,\n", {"a": [], "b": [], "c": [], "d": []}),
        ('"one, two",cat\n', {"one, two": ["cat"]}),
        ('"say ""cheese""",cat\n', {'say "cheese"': ["cat"]}),
        ("my cat.v2,potted plant\n", {"my cat.v2": ["potted plant"]}),
        ("a,cat\nname,dog\n", {"a": ["cat"], "name": ["dog"]}),
        (f"{DECOMPOSED},cat\n", {COMPOSED: ["cat"]}),
        (f"{COMPOSED}.jpeg,cat\n", {COMPOSED: ["cat"]}),
        ("a..b,cat\n", {"a..b": ["cat"]}),
    ],
)
def test_a_tag_table_has_the_names_and_tags_that_it_says(tmp_path, content, tags):
    assert tags_of(tmp_path / "tags.csv", content) == tags


REFUSED = [
    ("name,classes\na,cat\nb,cow\n", 3, "tag 'cow' is not a class"),
    ("a,Cat\n", 1, "tag 'Cat' is not a class"),
    ("a,background\n", 1, "tag 'background' is not a class"),
    ('a,"cat,dog"\n', 1, "tag 'cat,dog' is not a class"),
    ("a,cat\n\na,dog\n", 3, "a stands twice"),
    ("a.jpg,cat\na.png,dog\n", 2, "a stands twice"),
    (f"{COMPOSED},cat\n{DECOMPOSED},cat\n", 2, f"{COMPOSED} stands twice"),
    ("a,cat,dog\n", 1, "expected name,class;class, not 'a,cat,dog'"),
    ("a,,dog\n", 1, "expected name,class;class, not 'a,,dog'"),
    ("a,cat\n,dog\n", 2, "expected name,class;class, not ',dog'"),
    ("../a,cat\n", 1, "expected name,class;class, not '../a,cat'"),
    ("..,cat\n", 1, "expected name,class;class"),
    ("a\\b,cat\n", 1, "expected name,class;class"),
    ("a/b,cat\n", 1, "expected name,class;class"),
    ("/a,cat\n", 1, "expected name,class;class"),
    ('a,cat,"two\nlines"\n', 2, "expected name,class;class"),
    ('a,"two\nlines"\n', 2, "expected name,class;class"),
]


@pytest.mark.parametrize(("content", "line", "match"), REFUSED)
def test_a_bad_row_is_refused_by_its_line(tmp_path, content, line, match):
    with pytest.raises(InputError) as error:
        tags_of(tmp_path / "tags.csv", content)
    assert_one_line(error, f"{tmp_path / 'tags.csv'}, line {line}: ")
    assert match in str(error.value)


@pytest.mark.parametrize(("content", "line", "match"), REFUSED)
def test_a_bad_row_can_be_complained_of_and_left_out(tmp_path, content, line, match):
    problems = []
    tags = tags_of(tmp_path / "tags.csv", f"{content}last,dog\n", complain=problems.append)
    assert tags["last"] == ["dog"]
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'tags.csv'}, line {line}: ") and match in problem
    assert "\n" not in problem


def test_all_problems_of_a_table_are_collected(tmp_path):
    problems = []
    content = "name,classes\na,cat;cow;fox\nb,dog\nb,cat\nc,cat,dog\n../d,cat\ne,dog\n"
    tags = tags_of(tmp_path / "tags.csv", content, complain=problems.append)
    assert tags == {"a": ["cat"], "b": ["dog"], "e": ["dog"]}
    said = [problem.removeprefix(f"{tmp_path / 'tags.csv'}, ").split(";")[0] for problem in problems]
    assert said == [
        "line 2: tag 'cow' is not a class of the dataset",
        "line 2: tag 'fox' is not a class of the dataset",
        "line 4: b stands twice",
        "line 5: expected name,class",
        "line 6: expected name,class",
    ]


@pytest.mark.parametrize(
    "content",
    [None, "a,cat\n".encode("utf-16"), "café,cat\n".encode("latin-1"), b"a," + b"x" * 200_000, b'a,"cat\n' + b"b,dog\n" * 40_000],
    ids=["missing", "UTF-16", "Latin-1", "an endless field", "an open quote"],
)
@pytest.mark.parametrize("complain", [None, [].append], ids=["refuse", "complain"])
def test_a_table_that_cannot_be_read_is_refused_by_its_path(tmp_path, content, complain):
    path = tmp_path / "tags.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as error:
        read_tags(path, CLASSES, **({"complain": complain} if complain else {}))
    assert_one_line(error, str(path))


def test_what_is_written_is_read_again(tmp_path):
    rows = {"b": ["dog", "cat"], "one, two": ["potted plant"], 'say "cheese"': ["cat"], COMPOSED: [], "name": ["dog"]}
    (tmp_path / "tags.csv").write_text(format_tags(rows.items()), encoding="utf-8", newline="")
    table = read_tags(tmp_path / "tags.csv", CLASSES)
    assert list(table.row) == list(rows)
    assert list(table.row.values()) == list(range(len(rows)))
    assert table.labels.tolist() == [[name in tags for name in CLASSES[1:]] for tags in rows.values()]
    assert (tmp_path / "tags.csv").read_bytes().startswith(b"name,classes\nb,dog;cat\n")


TABLE = "a,cat\nb,cat;dog\nc,\nd,potted plant\n"


def test_a_table_labels_the_pictures_asked_for_in_their_order(tmp_path):
    path = file_of(tmp_path / "tags.csv", TABLE)
    labels = read_tags(path, CLASSES).labels_of(iter(["d", "b", "a", "b"]), path)
    assert labels.dtype == np.float32
    assert labels.tolist() == [[0, 0, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("name", ["c", "unknown"])
def test_a_picture_without_a_tag_is_refused_by_its_name(tmp_path, name):
    path = file_of(tmp_path / "tags.csv", TABLE)
    with pytest.raises(InputError, match=f": picture {name} has no tag; tag it or leave it out$") as error:
        read_tags(path, CLASSES).labels_of(["a", name], path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [TABLE, "name,classes\n"], ids=["some", "empty"])
def test_pictures_without_a_tag_can_be_complained_of(tmp_path, content):
    problems, path = [], file_of(tmp_path / "tags.csv", content)
    labels = read_tags(path, CLASSES).labels_of(["c", "unknown"], path, problems.append)
    assert labels.tolist() == [[0, 0, 0]] * 2
    assert [problem.split(": ")[1].split(";")[0] for problem in problems] == ["picture c has no tag", "picture unknown has no tag"]


def test_a_label_is_in_the_order_of_the_classes():
    label = label_of({"potted plant", "cat"}, CLASSES, "a")
    assert (label.tolist(), label.dtype) == ([1, 0, 1], np.uint8)
    assert label_of(set(), CLASSES, "a").tolist() == [0, 0, 0]


def test_a_label_complains_of_each_unknown_tag():
    problems = []
    assert label_of({"fox", "dog", "cow"}, CLASSES, "here", problems.append).tolist() == [0, 1, 0]
    assert [problem.split(" is")[0] for problem in problems] == ["here: tag 'cow'", "here: tag 'fox'"]
    with pytest.raises(InputError, match=r"^here: tag 'cow' is not a class"):
        label_of({"fox", "dog", "cow"}, CLASSES, "here")


def test_an_annotation_names_its_objects_and_not_their_parts(tmp_path):
    objects = "<object><name> cat </name><part><name>head</name></part></object><object><name>dog</name></object>"
    path = file_of(tmp_path / "a.xml", f"<annotation><filename>a.jpg</filename>{objects * 2}<object><name/></object></annotation>")
    assert read_annotation(path) == {"cat", "dog"}
    assert read_annotation(file_of(path, "<annotation/>")) == set()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "annotation is missing"),
        ("", "not a readable annotation"),
        ("<annotation><object>", "not a readable annotation"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "not a readable annotation"),
    ],
)
def test_a_bad_annotation_is_refused_by_its_path(tmp_path, content, match):
    if content is not None:
        file_of(tmp_path / "a.xml", content)
    with pytest.raises(InputError, match=match) as error:
        read_annotation(tmp_path / "a.xml")
    assert str(error.value).startswith(f"{tmp_path / 'a.xml'}: ")
    assert "\n" not in str(error.value)


def tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_files_are_found_by_the_names_of_their_pictures(tmp_path):
    root = tree(tmp_path, "images/b.jpg", "images/a.jpg", "images/a.b.jpg", f"images/{DECOMPOSED}.jpg", "images/note.txt", "c.jpg")
    assert find_files(root, ["images/{}.jpg"]) == {
        "a": f"{root}/images/a.jpg",
        "b": f"{root}/images/b.jpg",
        "a.b": f"{root}/images/a.b.jpg",
        COMPOSED: f"{root}/images/{DECOMPOSED}.jpg",
    }


@pytest.mark.parametrize("ending", [*PICTURE_TYPES, ".JPG", ".Tiff"])
def test_a_star_stands_for_every_type_of_picture(tmp_path, ending):
    tree(tmp_path, f"a{ending}", "b.txt", "c", "d.mp4")
    assert find_files(tmp_path, ["{}.*"]) == {"a": f"{tmp_path}/a{ending}"}


def test_an_ending_without_a_star_means_what_it_says_in_any_case(tmp_path):
    assert list(find_files(tree(tmp_path, "a.png", "b.PNG", "c.jpg"), ["{}.png"])) == ["a", "b"]


def test_hidden_files_do_not_count(tmp_path):
    assert list(find_files(tree(tmp_path, "a.jpg", "._a.jpg", ".b.jpg"), ["{}.*"])) == ["a"]


def test_files_that_are_not_read_are_found_but_not_in_the_root(tmp_path):
    root = tree(tmp_path, "classes.txt", "images/a.jpg", "images/b.heic", "images/Thumbs.db", "masks/a.png", "masks/b.bmp", "masks/._a.png")
    found = find_others(root, ["images/{}.*", "{}.*", "masks/{}.png"])
    assert found == ["images/Thumbs.db", "images/b.heic", "masks/b.bmp"]


@pytest.mark.parametrize("content", ["name;classes\na;cat\n", "a,cat\nb;dog\n"], ids=["all", "one line"])
def test_a_table_of_semicolons_says_so(tmp_path, content):
    with pytest.raises(InputError, match=r"line \d: its columns are separated by semicolons; save the table with commas"):
        read_tags(file_of(tmp_path / "tags.csv", content), CLASSES)


@pytest.mark.parametrize("turn", [1, -1])
def test_an_earlier_pattern_wins(tmp_path, turn):
    tree(tmp_path, "one/a.png", "one/b.png", "two/b.png", "two/c.png")
    found = find_files(tmp_path, ["one/{}.png", "two/{}.png"][::turn])
    assert found == {"a": f"{tmp_path}/one/a.png", "b": f"{tmp_path}/{['one', 'two'][::turn][0]}/b.png", "c": f"{tmp_path}/two/c.png"}


@pytest.mark.parametrize("twins", [("a.jpg", "a.png"), ("a.JPG", "a.jpg"), (f"{DECOMPOSED}.jpg", f"{COMPOSED}.jpg")])
def test_two_files_of_one_name_are_refused(tmp_path, twins):
    tree(tmp_path, *(f"images/{twin}" for twin in twins))
    with pytest.raises(InputError, match="have one name; rename one of them") as error:
        find_files(tmp_path, ["images/{}.*"])
    assert_one_line(error, f"{tmp_path / 'images'}: ")
    assert all(twin in str(error.value) for twin in twins)
    problems = []
    assert len(find_files(tmp_path, ["images/{}.*"], problems.append)) == len(problems) == 1


@pytest.mark.parametrize("folder", ["nowhere/{}.jpg", "file.jpg/{}.jpg"])
def test_a_folder_that_is_not_there_holds_no_files(tmp_path, folder):
    assert find_files(tree(tmp_path, "file.jpg"), [folder]) == {}
    assert list(find_files(tmp_path, [folder, "{}.jpg"])) == ["file"]


def test_folders_and_links_to_nothing_are_no_files(tmp_path):
    tree(tmp_path, "elsewhere/a.jpg", "images/folder.jpg/x")
    (tmp_path / "images/dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "images/link.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    assert list(find_files(tmp_path, ["images/{}.jpg"])) == ["link"]
