"""PASCAL VOC 2012 and SBD from their archives: lists, masks, tags, and what is damaged."""

import csv
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.io
from common import NAMES, bytes_below, files_below, times_below, write_lines
from PIL import Image
from scipy.sparse import csc_matrix

import prepare_voc
from errors import InputError
from exchange import downloads

BELOW = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"
LISTS = f"{BELOW}/ImageSets/Segmentation"
MASKS = f"{BELOW}/SegmentationClassAug"
TAGS = f"{BELOW}/tags.csv"
TRAIN = NAMES[:2]
VAL = NAMES[2:4]
EXTRA = NAMES[4:]  # of SBD alone
LAST = "2008_000007"  # of Main/trainval alone
TRAIN_AUG = sorted(TRAIN + EXTRA)
SIZE = (48, 64)
BLANK = np.zeros(SIZE, np.uint8)
CLASS_21 = np.full(SIZE, 21, np.uint8)
NOT_NEEDED = b"not needed"


@dataclass(frozen=True)
class Official:
    """VOC and SBD as they are published, with seven images.

    Attributes:
        tree: the unpacked files of both.
        masks: of the images, by name, that are to come out; those without a mask are left out.
        tags: of the images, by name, that are to come out.
        voc, sbd: the archives.
    """

    tree: Path
    masks: dict[str, np.ndarray]
    tags: dict[str, set[str]]
    voc: Path
    sbd: Path


@pytest.fixture(scope="session")
def official(fixed_voc, tmp_path_factory) -> Official:
    tree = tmp_path_factory.mktemp("official") / "tree"
    shutil.copytree(fixed_voc, tree / BELOW)
    add_last_image(tree)
    add_what_is_not_needed(tree)
    tags = {name: read_tags(tree, name) for name in [*NAMES, LAST]}
    masks = spread_masks(tree)
    write_lists(tree)
    voc = pack(tree, "VOCdevkit", "voc.tar")
    sbd = pack(tree, "benchmark_RELEASE", "sbd.tgz")
    return Official(tree, masks, tags, voc, sbd)


def add_last_image(tree: Path) -> None:
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        source = tree / BELOW / folder / f"{NAMES[1]}.{ending}"
        shutil.copy(source, source.with_stem(LAST))


def add_what_is_not_needed(tree: Path) -> None:
    for file in (f"{SBD}/img/a.jpg", f"{BELOW}/SegmentationObject/a.png"):
        (tree / file).parent.mkdir(parents=True)
        (tree / file).write_bytes(NOT_NEEDED)


def read_tags(tree: Path, name: str) -> set[str]:
    annotation = ElementTree.parse(tree / BELOW / f"Annotations/{name}.xml")
    return {element.text for element in annotation.iterfind("object/name")}


def spread_masks(tree: Path) -> dict[str, np.ndarray]:
    """Leave VOC's lists their masks and give the others to SBD; returns those that count.

    SBD also has all but the last one of each list, which differ from VOC's.
    """
    (tree / SBD / "cls").mkdir()
    masks = {}
    for name in NAMES:
        path = tree / BELOW / f"SegmentationClass/{name}.png"
        mask = np.array(Image.open(path))
        if name not in (TRAIN[-1], VAL[-1]):
            write_mat(tree / SBD / f"cls/{name}.mat", mask)
        if name in EXTRA:
            path.unlink()
        else:
            mask[:3] = 255
            Image.fromarray(mask).save(path)
        masks[name] = mask
    return masks


def write_mat(path: Path, mask: np.ndarray) -> None:
    """A mask as SBD stores it."""
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = csc_matrix(mask == i + 1)
    content = {"GTcls": {"Boundaries": boundaries, "Segmentation": mask}}
    scipy.io.savemat(path, content, do_compression=True)


def write_lists(tree: Path) -> None:
    (tree / LISTS / "train_aug.txt").unlink()
    (tree / BELOW / "ImageSets/Main").mkdir()
    write_lines(tree / LISTS / "train.txt", *TRAIN)
    write_lines(tree / LISTS / "val.txt", *VAL)
    write_lines(tree / BELOW / "ImageSets/Main/trainval.txt", TRAIN[0], *VAL, LAST)
    # SBD trains on some of VOC's val
    write_lines(tree / SBD / "train.txt", TRAIN[0], EXTRA[0], VAL[1])
    write_lines(tree / SBD / "val.txt", VAL[0], *EXTRA[1:])


def pack(tree: Path, folder: str, file: str) -> Path:
    path = tree.parent / file
    mode = {".tar": "w", ".tgz": "w:gz"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        archive.add(tree / folder, folder)
    return path


@pytest.fixture
def tree(official, tmp_path) -> Path:
    """A copy of both datasets, to spoil."""
    return shutil.copytree(official.tree, tmp_path / "tree")


@pytest.fixture(autouse=True)
def seven_images_are_all(monkeypatch):
    files = {"JPEGImages/{}.jpg": 7, "Annotations/{}.xml": 7, "SegmentationClass/{}.png": 4}
    monkeypatch.setattr(prepare_voc, "FILES", files)
    for name, count in {"TRAIN": 2, "VAL": 2, "TRAIN_AUG": 4, "SBD_MASKS": 4}.items():
        monkeypatch.setattr(prepare_voc, name, count)


@dataclass(frozen=True)
class Run:
    """What a run printed, and its error in one line, if any."""

    printed: str
    error: str | None = None

    @property
    def verdicts(self) -> dict[str, str]:
        """What the table says of each count that is not as expected."""
        rows = re.findall(r"^(\S.*?) +[\d,]+ +[\d,]+  (.*)$", self.printed, re.MULTILINE)
        assert len(rows) == 8
        return {what: verdict for what, verdict in rows if verdict != "OK"}

    @property
    def problems(self) -> list[str]:
        after = self.printed.partition("\nproblems (")[2]
        return [line.strip() for line in after.splitlines()[1:]]

    @property
    def words(self) -> str:
        """What was printed, in one line."""
        return " ".join(self.printed.split())


def run(root: Path, *flags, num_workers: int = 0) -> Run:
    argv = ["--root", root, "--num_workers", num_workers, "--no-checksum", *flags]
    error = None
    with redirect_stdout(io.StringIO()) as printed:
        try:
            prepare_voc.main([str(argument) for argument in argv])
        except InputError as caught:
            error = str(caught)
            assert "\n" not in error
    return Run(printed.getvalue(), error)


def train_aug_of(root: Path) -> list[str]:
    return (root / LISTS / "train_aug.txt").read_text().splitlines()


def assert_prepared(
    root: Path,
    official: Official,
    train_aug: list[str] = TRAIN_AUG,
    no_mask: str = "",
    no_tags: str = "",
) -> None:
    """The list, the masks and the tags are right, but for an image without a mask or tags."""
    assert train_aug_of(root) == train_aug
    with open(root / TAGS, newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["name", "classes"]
    tags = {name: set(classes.split(";")) for name, classes in rows if classes}
    assert tags == {name: official.tags[name] for name in official.tags.keys() - {no_tags}}
    names = {*train_aug, *VAL} & official.masks.keys() - {no_mask}
    assert files_below(root / MASKS) == {f"{name}.png" for name in names}
    for name in names:
        mask = Image.open(root / MASKS / f"{name}.png")
        np.testing.assert_array_equal(mask, official.masks[name], name)


def test_two_archives_become_a_dataset(official, tmp_path):
    root = tmp_path / "new/root"
    result = run(root, "--archive", official.voc, "--sbd", official.sbd, num_workers=2)
    assert (result.error, result.verdicts, result.problems) == (None, {}, [])
    assert_prepared(root, official)
    unpacked = bytes_below(root)
    for path, content in bytes_below(official.tree).items():
        if content == NOT_NEEDED:
            assert path not in unpacked
        else:
            assert unpacked[path] == content


class TestWaysToPassTheFiles:
    """Every way leads to the same."""

    def test_unpacked(self, official, tree):
        assert run(tree / BELOW, "--sbd", official.tree).error is None
        assert_prepared(tree, official)
        assert not (tree / BELOW / "benchmark_RELEASE").exists()

    @pytest.mark.parametrize("folder", [SBD, "benchmark_RELEASE"])
    def test_an_archive_and_a_folder(self, folder, official, tmp_path):
        flags = ["--archive", official.voc, "--sbd", official.tree / folder]
        assert run(tmp_path / "root", *flags).error is None
        assert_prepared(tmp_path / "root", official)
        assert not (tmp_path / "root/benchmark_RELEASE").exists()

    def test_two_archives_by_one_flag(self, official, tmp_path):
        sbd = shutil.copy(official.sbd, tmp_path / prepare_voc.SBD_ARCHIVE.file)
        assert run(tmp_path / "root", "--archive", official.voc, sbd).error is None
        assert_prepared(tmp_path / "root", official)
        assert (tmp_path / "root/benchmark_RELEASE").exists()


@pytest.mark.parametrize("lost", ["", "train.txt", "val.txt", "cls"])
def test_archives_in_the_root_are_unpacked_until_all_is_there(lost, official, tmp_path):
    voc = Path(shutil.copy(official.voc, tmp_path / prepare_voc.VOC_ARCHIVE.file))
    sbd = Path(shutil.copy(official.sbd, tmp_path / prepare_voc.SBD_ARCHIVE.file))
    if lost:
        shutil.copytree(official.tree, tmp_path, dirs_exist_ok=True)
        (tmp_path / LISTS / "val.txt").unlink()
        (tmp_path / SBD / lost).rename(tmp_path / "lost")
    assert run(tmp_path).error is None
    assert_prepared(tmp_path, official)
    for path in (voc, sbd):
        path.write_bytes(b"not read again")
    assert run(tmp_path).error is None


class TestDownload:
    VOC = ("VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd")
    SBD = ("benchmark.tgz", "82b4d87ceb2ed10f6038a1cba92111cb")

    @pytest.fixture
    def downloaded(self, official, monkeypatch) -> list[tuple[str, str]]:
        """The name and MD5 sum of each file that is downloaded, from a server that has them."""
        served = {
            prepare_voc.VOC_ARCHIVE: official.voc,
            prepare_voc.SBD_ARCHIVE: official.sbd,
        }
        names = []

        def download(url: str, path: Path, md5: str) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(served[prepare_voc.OfficialArchive(path.name, url, md5)], path)
            names.append((path.name, md5))

        monkeypatch.setattr(downloads, "download", download)
        return names

    def test_nothing_without_the_flag(self, downloaded, tmp_path):
        assert run(tmp_path / "root").error.startswith(str(tmp_path))
        assert downloaded == []

    def test_both_archives_once(self, downloaded, official, tmp_path):
        assert run(tmp_path, "--download").error is None
        assert downloaded == [self.VOC, self.SBD]
        assert run(tmp_path, "--download").error is None
        assert downloaded == [self.VOC, self.SBD]
        assert_prepared(tmp_path, official)

    def test_only_what_is_not_given(self, downloaded, official, tmp_path):
        assert run(tmp_path / "one", "--download", "--sbd", official.sbd).error is None
        assert run(tmp_path / "two", "--download", "--archive", official.voc).error is None
        assert downloaded == [self.VOC, self.SBD]

    def test_nothing_if_all_is_there(self, downloaded, official, tree):
        assert run(tree / BELOW, "--download", "--sbd", official.tree).error is None
        assert downloaded == []


class TestAgain:
    def test_a_second_run_writes_only_what_is_missing(self, official, tmp_path):
        root = tmp_path / "root"
        flags = ["--archive", official.voc, "--sbd", official.sbd]
        first = run(root, *flags)
        times = times_below(root)
        content = bytes_below(root)
        assert run(root, *flags) == first
        assert times_below(root) == times
        assert bytes_below(root) == content

        mask = f"{MASKS}/{TRAIN[0]}.png"
        lost = {mask, f"{BELOW}/JPEGImages/{LAST}.jpg", TAGS, f"{LISTS}/train_aug.txt"}
        for name in lost:
            (root / name).unlink()
        assert run(root, *flags) == first
        assert bytes_below(root) == content
        assert {name for name, time in times_below(root).items() if time != times[name]} == lost

    @pytest.mark.parametrize(
        ("name", "text"),
        [(f"{LISTS}/train_aug.txt", f"{TRAIN[0]}\n"), (TAGS, f"{TRAIN[0]},cat\n")],
    )
    def test_another_text_is_kept_and_replaced_by_overwrite(self, name, text, official, tree):
        run(tree)
        (tree / name).write_text(text)
        result = run(tree)
        assert (tree / name).read_text() == text
        assert result.error.startswith(str(tree / BELOW))
        (problem,) = result.problems
        assert problem.startswith(f"{tree / name}: ")
        assert run(tree, "--overwrite").error is None
        assert_prepared(tree, official)

    def test_another_mask_is_kept_and_replaced_by_overwrite(self, official, tree):
        run(tree)
        path = tree / MASKS / f"{TRAIN[0]}.png"
        Image.fromarray(BLANK).save(path)
        other = path.read_bytes()
        run(tree)
        assert path.read_bytes() == other
        assert run(tree, "--overwrite").error is None
        assert_prepared(tree, official)

    def test_a_list_of_the_same_names_in_another_form_is_no_problem(self, tree):
        lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in TRAIN_AUG]
        write_lines(tree / LISTS / "train_aug.txt", *lines)
        assert run(tree).error is None
        assert train_aug_of(tree) == lines

    def test_a_tag_table_counts_if_there_are_no_annotations(self, official, tree):
        shutil.rmtree(tree / BELOW / "Annotations")
        rows = []
        for name, tags in official.tags.items():
            if name != TRAIN[0]:
                rows.append(f"{name},{';'.join(tags)}")
        write_lines(tree / TAGS, *rows, f"{TRAIN[0]},")
        table = (tree / TAGS).read_text()
        result = run(tree)
        assert result.problems == []
        assert result.verdicts == {
            "Annotations/*.xml": "7 missing",
            "train_aug and val, with tags": "1 missing",
        }
        assert (tree / TAGS).read_text() == table


class TestWithoutSbd:
    @pytest.fixture(autouse=True)
    def lose_sbd(self, tree):
        shutil.rmtree(tree / "benchmark_RELEASE")

    @pytest.mark.parametrize("has_main", [True, False])
    def test_the_training_list_is_made_of_vocs_own(self, has_main, official, tree):
        train_aug = [*TRAIN, LAST]
        if not has_main:
            shutil.rmtree(tree / BELOW / "ImageSets/Main")
            train_aug = TRAIN
        result = run(tree)
        assert result.error is None
        assert_prepared(tree, official, train_aug=train_aug)
        assert f" {len(train_aug)} images instead of 4" in result.words
        assert " 4 of train_aug and val have a mask" in result.words

    def test_a_missing_mask_of_voc_is_missed(self, tree):
        (tree / BELOW / f"SegmentationClass/{TRAIN[0]}.png").unlink()
        assert run(tree).error.startswith(f"{tree / BELOW}: ")

    @pytest.mark.parametrize("flags", [[], ["--overwrite"]])
    def test_a_complete_training_list_stays(self, flags, tree):
        names = TRAIN_AUG[::-1]
        write_lines(tree / LISTS / "train_aug.txt", *names)
        result = run(tree, *flags)
        assert result.error is None
        assert train_aug_of(tree) == names
        assert "Without SBD" not in result.printed

    @pytest.mark.parametrize(
        ("flags", "expected"), [([], EXTRA), (["--overwrite"], [*TRAIN, LAST])]
    )
    def test_a_part_of_the_training_list_stays_without_overwrite(self, flags, expected, tree):
        write_lines(tree / LISTS / "train_aug.txt", *EXTRA)
        result = run(tree, *flags)
        assert result.error is None
        assert train_aug_of(tree) == expected
        assert "Without SBD" in result.printed


def test_a_part_of_voc_is_prepared_and_not_taken_for_all_of_it(official, tree, monkeypatch):
    monkeypatch.undo()  # the counts are as published
    result = run(tree)
    assert result.error.startswith(str(tree / BELOW))
    assert_prepared(tree, official)
    assert result.verdicts == {
        "JPEGImages/*.jpg": "17,118 missing",
        "Annotations/*.xml": "17,118 missing",
        "SegmentationClass/*.png": "2,909 missing",
        "train.txt, images": "1,462 missing",
        "val.txt, images": "1,447 missing",
        "train_aug.txt, images": "10,578 missing",
        "train_aug and val, with a mask": "12,025 missing",
        "train_aug and val, with tags": "12,025 missing",
    }
    shutil.rmtree(tree / "benchmark_RELEASE")
    assert run(tree).error.startswith(str(tree / BELOW))


@dataclass(frozen=True)
class Refused:
    """A call that is refused: its flags, its root, and what the error names.

    Each path is below {official}, or below {tree}, which is in {tmp}.
    """

    flags: str
    root: str
    named: str
    lost: str = ""  # a file or folder of the tree that is not there


VOC_TAR = "{official}/voc.tar"
SBD_TGZ = "{official}/sbd.tgz"
VOC_FOLDER = f"{{tree}}/{BELOW}"
REFUSED = {
    "VOC's archive not official": Refused(f"--archive {VOC_TAR} --checksum", "{tmp}", VOC_TAR),
    "SBD's archive not official": Refused(f"--sbd {SBD_TGZ} --checksum", "{tmp}", SBD_TGZ),
    "no --archive": Refused("--archive {tree}/a.tar", "{tmp}", "{tree}/a.tar"),
    "no --sbd": Refused("--sbd {tree}/a.tar", "{tmp}", "{tree}/a.tar"),
    "SBD's archive as VOC's": Refused(f"--archive {SBD_TGZ}", "{tmp}", SBD_TGZ),
    "VOC's archive as SBD's": Refused(f"--sbd {VOC_TAR}", "{tmp}", VOC_TAR),
    "VOC's folder as SBD's": Refused(f"--sbd {VOC_FOLDER}", "{tmp}", VOC_FOLDER),
    "nothing": Refused("", "{tmp}", "{tmp}"),
    "VOC elsewhere in the root": Refused(f"--archive {VOC_TAR}", VOC_FOLDER, VOC_FOLDER),
}
for part in ("cls", "train.txt", "val.txt"):
    REFUSED[f"SBD: {part}"] = Refused("--sbd {tree}", "{tmp}", "{tree}", f"{SBD}/{part}")
for file in (f"{LISTS}/train.txt", f"{LISTS}/val.txt"):
    REFUSED[file] = Refused("", "{tree}", f"{{tree}}/{file}", file)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_named_before_anything_is_written(case, official, tree, tmp_path):
    places = {"official": official.voc.parent, "tree": tree, "tmp": tmp_path}
    if case.lost:
        (tree / case.lost).rename(tmp_path / "lost")
    before = times_below(tmp_path)
    result = run(Path(case.root.format(**places)), *case.flags.format(**places).split())
    assert result.error.startswith(f"{case.named.format(**places)}: ")
    assert times_below(tmp_path) == before


SBD_MASK = f"{SBD}/cls/{EXTRA[1]}.mat"
VOC_MASK = f"{BELOW}/SegmentationClass/{TRAIN[0]}.png"
ANNOTATION = f"{BELOW}/Annotations/{EXTRA[1]}.xml"
IMAGE = f"{BELOW}/JPEGImages/{EXTRA[1]}.jpg"
MASKED = "train_aug and val, with a mask"  # rows of the table
TAGGED = "train_aug and val, with tags"
LISTED = "train_aug.txt, images"


@dataclass(frozen=True)
class Spoiled:
    """A file, how it is spoiled, and the rows of the table that lack one for it."""

    name: str
    spoil: Callable[[Path], object]
    missing: set[str]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save(mask: np.ndarray) -> Callable[[Path], None]:
    """Write another mask in the format of the file."""

    def spoil(path: Path) -> None:
        if path.suffix == ".png":
            Image.fromarray(mask).save(path)
        else:
            write_mat(path, mask)

    return spoil


def save_mat(content: dict) -> Callable[[Path], None]:
    return lambda path: scipy.io.savemat(path, content)


def save_gtcls(mask: object) -> Callable[[Path], None]:
    return save_mat({"GTcls": {"Segmentation": mask}})


def write_unicorn(path: Path) -> None:
    path.write_text("<a><object><name>unicorn</name></object></a>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


SPOILED = {
    "annotation cut": Spoiled(ANNOTATION, cut, {TAGGED}),
    "annotation of another class": Spoiled(ANNOTATION, write_unicorn, {TAGGED}),
    "image missing": Spoiled(IMAGE, Path.unlink, {"JPEGImages/*.jpg", LISTED, MASKED, TAGGED}),
    "image damaged": Spoiled(IMAGE, empty, {MASKED}),
    "another variable": Spoiled(SBD_MASK, save_mat({"GTinst": {"Segmentation": BLANK}}), {MASKED}),
    "no struct": Spoiled(SBD_MASK, save_mat({"GTcls": BLANK}), {MASKED}),
    "letters": Spoiled(SBD_MASK, save_gtcls("a mask"), {MASKED}),
    "fractions": Spoiled(SBD_MASK, save_gtcls(BLANK / 2), {MASKED}),
}
for name in (SBD_MASK, VOC_MASK):
    ending = Path(name).suffix
    SPOILED[f"{ending} cut"] = Spoiled(name, cut, {MASKED})
    SPOILED[f"{ending} of another size"] = Spoiled(name, save(BLANK[:-1]), {MASKED})
    SPOILED[f"{ending} of class 21"] = Spoiled(name, save(CLASS_21), {MASKED})


@pytest.mark.parametrize("case", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_file_is_named_and_the_rest_is_prepared(case, official, tree):
    case.spoil(tree / case.name)
    result = run(tree)
    (problem,) = result.problems
    assert str(tree / case.name) in problem
    assert result.error.startswith(f"{tree / BELOW}: ")
    assert result.verdicts == dict.fromkeys(case.missing, "1 missing")

    spoiled = Path(case.name).stem
    expected = {"train_aug": TRAIN_AUG}
    if LISTED in case.missing:
        expected["train_aug"] = [name for name in TRAIN_AUG if name != spoiled]
    if MASKED in case.missing:
        expected["no_mask"] = spoiled
    if case.name == ANNOTATION:
        expected["no_tags"] = spoiled
    assert_prepared(tree, official, **expected)
