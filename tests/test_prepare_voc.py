"""PASCAL VOC 2012 and SBD from their archives: the lists, masks and tags that come out, and what is missing or damaged."""

import csv
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.io
from common import NAMES, bytes_below, files_below, times_below, write_lines
from PIL import Image
from scipy.sparse import csc_matrix

import prepare_voc
from errors import InputError

BELOW, SBD = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
LISTS, MASKS, TAGS = (
    f"{BELOW}/ImageSets/Segmentation",
    f"{BELOW}/SegmentationClassAug",
    f"{BELOW}/tags.csv",
)
TRAIN, VAL, EXTRA, LAST = (
    NAMES[:2],
    NAMES[2:4],
    NAMES[4:],
    "2008_000007",
)  # extra: of SBD alone; last: of Main/trainval alone
TRAIN_AUG = sorted(TRAIN + EXTRA)
SIZE = (48, 64)
BLANK, CLASS_21 = np.zeros(SIZE, np.uint8), np.full(SIZE, 21, np.uint8)


def write_mat(path: Path, mask: np.ndarray) -> None:
    """A mask as SBD stores it."""
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = csc_matrix(mask == i + 1)
    scipy.io.savemat(
        path, {"GTcls": {"Boundaries": boundaries, "Segmentation": mask}}, do_compression=True
    )


@pytest.fixture(scope="session")
def official(fixed_voc, tmp_path_factory) -> SimpleNamespace:
    """A tree of VOC and SBD as they are published, with seven images; the masks and tags that are to come out; both archives."""
    tree, masks, tags = tmp_path_factory.mktemp("official") / "tree", {}, {}
    shutil.copytree(fixed_voc, tree / BELOW)
    (tree / LISTS / "train_aug.txt").unlink()
    for folder in (
        f"{SBD}/cls",
        f"{SBD}/img",
        f"{BELOW}/SegmentationObject",
        f"{BELOW}/ImageSets/Main",
    ):
        (tree / folder).mkdir(parents=True)
    for folder, ending in (
        ("JPEGImages", "jpg"),
        ("Annotations", "xml"),
        ("SegmentationClass", "png"),
    ):
        shutil.copyfile(
            fixed_voc / folder / f"{NAMES[1]}.{ending}", tree / BELOW / folder / f"{LAST}.{ending}"
        )
    for name in [*NAMES, LAST]:
        tags[name] = {
            one.text
            for one in ElementTree.parse(tree / BELOW / f"Annotations/{name}.xml").iterfind(
                "object/name"
            )
        }
        path = tree / BELOW / f"SegmentationClass/{name}.png"
        mask = np.array(Image.open(path))
        path.unlink()
        if name not in (TRAIN[-1], VAL[-1], LAST):
            write_mat(tree / SBD / f"cls/{name}.mat", mask)
            masks[name] = mask.copy()
        if name in TRAIN + VAL:
            mask[:3] = 255  # so that it differs from SBD's
            Image.fromarray(mask).save(path)
            masks[name] = mask
    for file in (f"{SBD}/img/a.jpg", f"{BELOW}/SegmentationObject/a.png"):
        (tree / file).write_bytes(b"not needed")
    write_lines(tree / LISTS / "train.txt", *TRAIN)
    write_lines(tree / LISTS / "val.txt", *VAL)
    write_lines(tree / BELOW / "ImageSets/Main/trainval.txt", TRAIN[0], *VAL, LAST)
    write_lines(
        tree / SBD / "train.txt", TRAIN[0], EXTRA[0], VAL[1]
    )  # SBD trains on some of VOC's val
    write_lines(tree / SBD / "val.txt", VAL[0], *EXTRA[1:])
    for archive, mode, name in (
        ("voc.tar", "w", "VOCdevkit"),
        ("sbd.tgz", "w:gz", "benchmark_RELEASE"),
    ):
        with tarfile.open(tree.parent / archive, mode) as packed:
            packed.add(tree / name, name)
    return SimpleNamespace(
        tree=tree, masks=masks, tags=tags, voc=tree.parent / "voc.tar", sbd=tree.parent / "sbd.tgz"
    )


@pytest.fixture
def tree(official, tmp_path) -> Path:
    """A copy of both datasets, to spoil."""
    return shutil.copytree(official.tree, tmp_path / "tree")


@pytest.fixture(autouse=True)
def seven_images_are_all(monkeypatch):
    monkeypatch.setattr(
        prepare_voc,
        "COUNTS",
        {"JPEGImages/{}.jpg": 7, "Annotations/{}.xml": 7, "SegmentationClass/{}.png": 4},
    )
    for name, count in {"TRAIN": 2, "VAL": 2, "TRAIN_AUG": 4, "SBD_MASKS": 4}.items():
        monkeypatch.setattr(prepare_voc, name, count)


def run(root: Path, *flags, num_workers: int = 0) -> tuple[str, str | None]:
    """What is printed, and the error in one line, if any."""
    argv = ["--root", root, "--num_workers", num_workers, "--no-checksum", *flags]
    with redirect_stdout(io.StringIO()) as printed:
        try:
            prepare_voc.main([str(one) for one in argv])
        except InputError as error:
            assert "\n" not in str(error)
            return printed.getvalue(), str(error)
    return printed.getvalue(), None


def verdicts(printed: str) -> dict[str, str]:
    """What the table says of each count that is not as expected."""
    rows = re.findall(r"^(\S.*?) +[\d,]+ +[\d,]+  (.*)$", printed, re.MULTILINE)
    assert len(rows) == 8
    return {what: verdict for what, verdict in rows if verdict != "OK"}


def problems_in(printed: str) -> list[str]:
    return [line.strip() for line in printed.partition("\nproblems (")[2].splitlines()[1:]]


def listed(root: Path) -> list[str]:
    return (root / LISTS / "train_aug.txt").read_text().splitlines()


def assert_prepared(
    root: Path,
    official: SimpleNamespace,
    train_aug: list[str] = TRAIN_AUG,
    no_mask: str = "",
    no_tags: str = "",
) -> None:
    """The list, the masks and the tags are as they should be, but for an image without a mask or without tags."""
    assert listed(root) == train_aug
    with open(root / TAGS, newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["name", "classes"]
    tags = {name: set(classes.split(";")) for name, classes in rows if classes}
    assert tags == {name: official.tags[name] for name in official.tags.keys() - {no_tags}}
    names = {*train_aug, *VAL} & official.masks.keys() - {no_mask}
    assert files_below(root / MASKS) == {f"{name}.png" for name in names}
    for name in names:
        np.testing.assert_array_equal(
            Image.open(root / MASKS / f"{name}.png"), official.masks[name], name
        )


def test_two_archives_become_a_dataset(official, tmp_path):
    printed, error = run(
        tmp_path / "new/root", "--archive", official.voc, "--sbd", official.sbd, num_workers=2
    )
    assert (error, verdicts(printed), problems_in(printed)) == (None, {}, [])
    assert_prepared(tmp_path / "new/root", official)
    there = bytes_below(tmp_path / "new/root")
    for path, content in bytes_below(official.tree).items():
        assert there.get(path) == (None if content == b"not needed" else content)


@pytest.mark.parametrize("sbd", ["", SBD, "benchmark_RELEASE", "archive"])
def test_every_way_to_pass_the_files_leads_to_the_same(sbd, official, tree):
    flags = ["--archive", official.voc] if sbd else []
    more = (
        [shutil.copy(official.sbd, tree / prepare_voc.SBD_SOURCE.file)]
        if sbd == "archive"
        else ["--sbd", official.tree / sbd]
    )
    root = tree.parent / "root" if sbd else tree / BELOW
    assert run(root, *flags, *more)[1] is None
    assert_prepared(root if sbd else tree, official)
    assert (root / "benchmark_RELEASE").exists() == (sbd == "archive")


@pytest.mark.parametrize("lost", ["", "train.txt", "val.txt", "cls"])
def test_archives_in_the_root_are_unpacked_until_all_is_there(lost, official, tmp_path):
    sources = (official.voc, prepare_voc.VOC_SOURCE), (official.sbd, prepare_voc.SBD_SOURCE)
    archives = [Path(shutil.copy(path, tmp_path / source.file)) for path, source in sources]
    if lost:
        shutil.copytree(official.tree, tmp_path, dirs_exist_ok=True)
        (tmp_path / LISTS / "val.txt").unlink()
        (tmp_path / SBD / lost).rename(tmp_path / "lost")
    assert run(tmp_path)[1] is None
    assert_prepared(tmp_path, official)
    for path in archives:
        path.write_bytes(b"not read again")
    assert run(tmp_path)[1] is None


def test_only_what_is_missing_is_downloaded(official, tree, tmp_path, monkeypatch):
    downloaded, archives = (
        [],
        {prepare_voc.VOC_SOURCE: official.voc, prepare_voc.SBD_SOURCE: official.sbd},
    )

    def download(url: str, path: Path, md5: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archives[prepare_voc.Source(path.name, url, md5)], path)
        downloaded.append((path.name, md5))

    monkeypatch.setattr(archives, "download", download)
    voc, sbd = (
        ("VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),
        ("benchmark.tgz", "82b4d87ceb2ed10f6038a1cba92111cb"),
    )
    assert run(tmp_path / "root")[1].startswith(str(tmp_path)) and downloaded == []
    for root, flags, expected in (
        (tmp_path / "root", [], [voc, sbd]),
        (tmp_path / "root", [], []),
        (tmp_path / "one", ["--sbd", official.sbd], [voc]),
        (tmp_path / "two", ["--archive", official.voc], [sbd]),
        (tree / BELOW, ["--sbd", official.tree], []),
    ):
        downloaded.clear()
        assert run(root, "--download", *flags)[1] is None
        assert downloaded == expected
    assert_prepared(tmp_path / "root", official)


class TestAgain:
    def test_a_second_run_writes_only_what_is_missing(self, official, tmp_path):
        flags = tmp_path / "root", "--archive", official.voc, "--sbd", official.sbd
        first, times, content = run(*flags), times_below(tmp_path), bytes_below(tmp_path)
        assert run(*flags) == first
        assert (times_below(tmp_path), bytes_below(tmp_path)) == (times, content)
        lost = {
            f"root/{name}"
            for name in (
                f"{MASKS}/{TRAIN[0]}.png",
                f"{BELOW}/JPEGImages/{LAST}.jpg",
                TAGS,
                f"{LISTS}/train_aug.txt",
            )
        }
        for name in lost:
            (tmp_path / name).unlink()
        assert run(*flags) == first
        assert bytes_below(tmp_path) == content
        assert {name for name, time in times_below(tmp_path).items() if time != times[name]} == lost

    @pytest.mark.parametrize("name", [f"{LISTS}/train_aug.txt", TAGS, f"{MASKS}/{TRAIN[0]}.png"])
    def test_files_of_other_content_are_kept_and_replaced_by_overwrite(self, name, official, tree):
        run(tree)
        if name.endswith(".png"):
            Image.fromarray(BLANK).save(tree / name)
        else:
            (tree / name).write_text(f"{TRAIN[0]}{',cat' * name.endswith('csv')}\n")
        other = (tree / name).read_bytes()
        printed, error = run(tree)
        assert (tree / name).read_bytes() == other
        if not name.endswith(".png"):
            assert error.startswith(str(tree / BELOW)) and [
                line.split(": ")[0] for line in problems_in(printed)
            ] == [str(tree / name)]
        assert run(tree, "--overwrite")[1] is None
        assert_prepared(tree, official)

    def test_a_list_of_the_same_names_in_another_form_is_no_problem(self, tree):
        lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in TRAIN_AUG]
        write_lines(tree / LISTS / "train_aug.txt", *lines)
        assert run(tree)[1] is None and listed(tree) == lines

    def test_a_tag_table_counts_where_there_are_no_annotations(self, official, tree):
        shutil.rmtree(tree / BELOW / "Annotations")
        table = (
            "".join(
                f"{name},{';'.join(tags)}\n"
                for name, tags in official.tags.items()
                if name != TRAIN[0]
            )
            + f"{TRAIN[0]},\n"
        )
        (tree / TAGS).write_text(table)
        printed = run(tree)[0]
        assert problems_in(printed) == []
        assert verdicts(printed) == {
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
        if not has_main:
            shutil.rmtree(tree / BELOW / "ImageSets/Main")
        printed, error = run(tree)
        train_aug = [*TRAIN, LAST] if has_main else TRAIN
        assert_prepared(tree, official, train_aug=train_aug)
        assert (
            error is None
            and f" {len(train_aug)} images instead of 4" in printed
            and " 4 of train_aug and val have a mask" in printed
        )
        (tree / BELOW / f"SegmentationClass/{TRAIN[0]}.png").unlink()
        assert run(tree)[1].startswith(f"{tree / BELOW}: ")

    @pytest.mark.parametrize(
        ("names", "overwrite"),
        [(TRAIN_AUG[::-1], False), (TRAIN_AUG[::-1], True), (EXTRA, False), (EXTRA, True)],
    )
    def test_a_training_list_that_is_there_stays(self, names, overwrite, tree):
        write_lines(tree / LISTS / "train_aug.txt", *names)
        printed, error = run(tree, *["--overwrite"] * overwrite)
        assert error is None
        assert listed(tree) == ([*TRAIN, LAST] if (names, overwrite) == (EXTRA, True) else names)
        assert ("Without SBD" in printed) == (len(listed(tree)) != 4)


def test_a_part_of_voc_is_prepared_and_not_taken_for_all_of_it(official, tree, monkeypatch):
    monkeypatch.undo()
    printed, error = run(tree)
    assert error.startswith(str(tree / BELOW))
    assert_prepared(tree, official)
    missing = (
        "17,118",
        "17,118",
        "2,909",
        "1,462",
        "1,447",
        "10,578",
        "12,025",
        "12,025",
    )  # of the counts as published
    assert [*verdicts(printed).values()] == [f"{number} missing" for number in missing]
    shutil.rmtree(tree / "benchmark_RELEASE")
    assert run(tree)[1].startswith(str(tree / BELOW))


def save(mask: np.ndarray) -> Callable[[Path], None]:
    return lambda path: (
        Image.fromarray(mask).save(path) if path.suffix == ".png" else write_mat(path, mask)
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(tree: Path, file: str) -> Path:
    (tree / file).rename(tree.parent / "lost")
    return tree


SBD_PARTS = ("cls", "train.txt", "val.txt")
REFUSED = {  # flags, the root, what is named
    "VOC's archive not official": lambda official, tree: (
        ["--archive", official.voc, "--checksum"],
        tree.parent,
        official.voc,
    ),
    "SBD's archive not official": lambda official, tree: (
        ["--sbd", official.sbd, "--checksum"],
        tree.parent,
        official.sbd,
    ),
    **{
        f"no {flag}": lambda _, tree, flag=flag: (
            [flag, tree / "a.tar"],
            tree.parent,
            tree / "a.tar",
        )
        for flag in ("--archive", "--sbd")
    },
    "SBD's archive as VOC's": lambda official, tree: (
        ["--archive", official.sbd],
        tree.parent,
        official.sbd,
    ),
    "VOC's archive as SBD's": lambda official, tree: (
        ["--sbd", official.voc],
        tree.parent,
        official.voc,
    ),
    "VOC's folder as SBD's": lambda official, tree: (
        ["--sbd", tree / BELOW],
        tree.parent,
        tree / BELOW,
    ),
    "nothing": lambda official, tree: ([], tree.parent, tree.parent),
    "VOC elsewhere in the root": lambda official, tree: (
        ["--archive", official.voc],
        tree / BELOW,
        tree / BELOW,
    ),
    **{
        f"SBD: {part}": lambda _, tree, part=part: (
            ["--sbd", lose(tree, f"{SBD}/{part}")],
            tree.parent,
            tree,
        )
        for part in SBD_PARTS
    },
    **{
        name: lambda _, tree, name=name: ([], lose(tree, f"{LISTS}/{name}"), tree / LISTS / name)
        for name in ("train.txt", "val.txt")
    },
}
OF_SBD, OWN = f"{SBD}/cls/{EXTRA[1]}.mat", f"{BELOW}/SegmentationClass/{TRAIN[0]}.png"
XML, JPG = f"{BELOW}/Annotations/{EXTRA[1]}.xml", f"{BELOW}/JPEGImages/{EXTRA[1]}.jpg"
MASK, WITH_TAGS, AUG = (
    "train_aug and val, with a mask",
    "train_aug and val, with tags",
    "train_aug.txt, images",
)
BAD_MASKS = {"cut": cut, "of another size": save(BLANK[:-1]), "of class 21": save(CLASS_21)}
BAD_MATS = {"another variable": {"GTinst": {"Segmentation": BLANK}}, "no struct": {"GTcls": BLANK}}
BAD_MATS |= {
    what: {"GTcls": {"Segmentation": value}}
    for what, value in (("letters", "a mask"), ("fractions", BLANK / 2))
}
SPOILED = {
    **{
        f"{Path(name).suffix} {what}": (name, spoil, {MASK})
        for name in (OF_SBD, OWN)
        for what, spoil in BAD_MASKS.items()
    },
    **{
        what: (OF_SBD, lambda path, content=content: scipy.io.savemat(path, content), {MASK})
        for what, content in BAD_MATS.items()
    },
    "annotation cut": (XML, cut, {WITH_TAGS}),
    "annotation of another class": (
        XML,
        lambda path: path.write_text("<a><object><name>unicorn</name></object></a>"),
        {WITH_TAGS},
    ),
    "image missing": (JPG, Path.unlink, {"JPEGImages/*.jpg", AUG, MASK, WITH_TAGS}),
    "image damaged": (JPG, lambda path: path.write_bytes(b""), {MASK}),
}


@pytest.mark.parametrize("how", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_named_before_anything_is_written(how, official, tree, tmp_path):
    flags, root, named = how(official, tree)
    before = times_below(tmp_path)
    assert run(root, *flags)[1].startswith(f"{named}: ")
    assert times_below(tmp_path) == before


@pytest.mark.parametrize(("name", "spoil", "missing"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_file_is_named_and_the_rest_is_prepared(name, spoil, missing, official, tree):
    spoil(tree / name)
    printed, error = run(tree)
    (problem,) = problems_in(printed)
    assert str(tree / name) in problem
    assert error.startswith(f"{tree / BELOW}: ")
    assert verdicts(printed) == dict.fromkeys(missing, "1 missing")
    spoiled, train_aug = (
        Path(name).stem,
        [one for one in TRAIN_AUG if AUG not in missing or one != EXTRA[1]],
    )
    assert_prepared(tree, official, train_aug, spoiled * (MASK in missing), spoiled * (name == XML))
