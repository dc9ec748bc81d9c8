"""PASCAL VOC 2012 and SBD from their archives: lists, masks and tags as they should be, and what is missing or damaged is told."""

import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.io
from common import NAMES, VOC_CLASSES, bytes_below, call, cut_in_half, files_below, times_below, write_lines
from PIL import Image
from scipy.sparse import csc_matrix

from data import prepare_voc
from data.registry import open_dataset
from errors import InputError

ROOT = Path(__file__).resolve().parents[2]
BELOW = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"
LISTS = f"{BELOW}/ImageSets/Segmentation"
MASKS = f"{BELOW}/SegmentationClassAug"
IN_PART = "prepared, but it is not all of VOC 2012"


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def write_mat(path: Path, mask: np.ndarray) -> None:
    """A mask as SBD has it."""
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = csc_matrix(mask == i + 1)
    present = np.setdiff1d(mask, 0).astype(np.uint8)[:, None]
    content = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
    scipy.io.savemat(path, {"GTcls": content}, do_compression=True)


@dataclass(frozen=True)
class Official:
    """VOC and SBD as they are published: their files below a folder, and what is to come out."""

    tree: Path
    train: list[str]
    val: list[str]
    train_aug: set[str]
    masks: dict[str, np.ndarray]

    def pack(self, folder: Path) -> tuple[Path, Path]:
        """The two archives."""
        return pack(folder / "voc.tar", self.tree, "VOCdevkit"), pack(folder / "sbd.tgz", self.tree, "benchmark_RELEASE")

    @property
    def names(self) -> set[str]:
        return self.train_aug | set(self.val)

    @property
    def tags(self) -> dict[str, set[str]]:
        annotations = sorted((self.tree / BELOW / "Annotations").iterdir())
        return {one.stem: {name.text for name in ElementTree.parse(one).iterfind("object/name")} for one in annotations}


def pack(path: Path, tree: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        archive.add(tree / name, name)
    return path


def publish(tree: Path, voc: Path, names: list[str], all_masks: str) -> Official:
    """Deal out a dataset's pictures as VOC and SBD have them, in halves: train and val, and what only SBD has; the last one is on no
    list but Main/trainval.

    all_masks: the folder with a mask of every picture.
    """
    third = (len(names) - 1) // 3
    train, val, extra, last = names[:third], names[third : 2 * third], names[2 * third : -1], names[-1]
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation", "ImageSets/Main"):
        (tree / BELOW / folder).mkdir(parents=True)
    for folder in ("cls", "img", "inst"):
        (tree / SBD / folder).mkdir(parents=True)
    masks = {}
    for name in names:
        shutil.copyfile(voc / f"JPEGImages/{name}.jpg", tree / f"{BELOW}/JPEGImages/{name}.jpg")
        shutil.copyfile(voc / f"Annotations/{name}.xml", tree / f"{BELOW}/Annotations/{name}.xml")
        mask = read(voc / all_masks / f"{name}.png").copy()
        if name in train + val:
            mask[:3] = 255
            Image.fromarray(mask).save(tree / f"{BELOW}/SegmentationClass/{name}.png")
            masks[name] = mask
        sbds = np.where(mask == 255, 0, mask)
        if name not in (train[-1], val[-1], last):
            write_mat(tree / f"{SBD}/cls/{name}.mat", sbds)
            masks.setdefault(name, sbds)
    (tree / SBD / "img" / f"{names[0]}.jpg").write_bytes(b"a picture")
    (tree / SBD / "inst" / f"{names[0]}.mat").write_bytes(b"instances")
    Image.new("L", (4, 4)).save(tree / f"{BELOW}/SegmentationObject/{names[0]}.png")
    write_lines(tree / LISTS / "train.txt", *train)
    write_lines(tree / LISTS / "val.txt", *val)
    write_lines(tree / BELOW / "ImageSets/Main/trainval.txt", *train[:1], *val, last)
    write_lines(tree / SBD / "train.txt", *train[:-1], extra[0])
    write_lines(tree / SBD / "val.txt", *val[:-1], *extra[1:])
    return Official(tree, train, val, {*train, *extra}, masks)


@pytest.fixture(scope="session")
def drawn(fixed_voc, tmp_path_factory) -> Official:
    names = [*NAMES, "2008_000007"]
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copytree(fixed_voc, folder / "voc")
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        shutil.copyfile(folder / f"voc/{kind}/{NAMES[1]}.{ending}", folder / f"voc/{kind}/{names[-1]}.{ending}")
    return publish(folder / "tree", folder / "voc", names, "SegmentationClass")


@pytest.fixture(scope="session")
def real(voc_subset, tmp_path_factory) -> Official:
    """Twenty-two pictures of VOC: fourteen have masks by VOC, the others by SBD."""
    train, train_aug = ((voc_subset / f"ImageSets/Segmentation/{name}.txt").read_text().split() for name in ("train", "train_aug"))
    names = [Path(name).stem for name in train[:14]]
    more = sorted({Path(name).stem for name in train_aug} - {Path(name).stem for name in train})[:8]
    return publish(tmp_path_factory.mktemp("real") / "tree", voc_subset, names + more, "SegmentationClassAug")


@pytest.fixture
def mine(drawn, tmp_path) -> Official:
    """A test's own copy of the drawn one, to spoil."""
    shutil.copytree(drawn.tree, tmp_path / "tree")
    return Official(tmp_path / "tree", drawn.train, drawn.val, drawn.train_aug, drawn.masks)


@pytest.fixture(autouse=True)
def few_are_all(request, monkeypatch):
    """The drawn pictures are taken for the whole of VOC."""
    if "drawn" in request.fixturenames:
        take_for_all(monkeypatch, request.getfixturevalue("drawn"))


def take_for_all(monkeypatch, official: Official) -> None:
    number = len(official.tags)
    own = len(official.train + official.val)
    monkeypatch.setattr(prepare_voc, "COUNTS", {"JPEGImages/{}.jpg": number, "Annotations/{}.xml": number, "SegmentationClass/{}.png": own})
    for name in ("train", "val", "train_aug"):
        monkeypatch.setattr(prepare_voc, name.upper(), len(getattr(official, name)))
    monkeypatch.setattr(prepare_voc, "SBD_MASKS", len(os.listdir(official.tree / SBD / "cls")))


def prepare(root: Path, *flags, num_workers: int = 0, checksum: bool = False) -> str:
    return call(prepare_voc.main, "--root", root, "--num_workers", num_workers, *["--no-checksum"] * (not checksum), *flags)


def prepare_in_part(capsys, root: Path, *flags) -> str:
    """Prepare what is not all of VOC, and return what was printed."""
    with pytest.raises(InputError, match=IN_PART) as error:
        prepare_voc.main(["--root", str(root), "--num_workers", "0", "--no-checksum", *map(str, flags)])
    assert "\n" not in str(error.value)
    return capsys.readouterr().out


def assert_refused(match: str, root: Path, *flags, checksum: bool = False) -> None:
    with pytest.raises(InputError, match=match) as error:
        prepare(root, *flags, checksum=checksum)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


def verdicts(printed: str) -> dict[str, str]:
    """What the table says of each count."""
    return {match[1].strip(): match[2] for match in re.finditer(r"^(\S.*?) +[\d,]+ +[\d,]+  (.*)$", printed, re.MULTILINE)}


def listed(root: Path, name: str = "train_aug") -> list[str]:
    return (root / LISTS / f"{name}.txt").read_text().splitlines()


def assert_tags(root: Path, tags: dict[str, set[str]]) -> None:
    with open(root / BELOW / "tags.csv", newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["name", "classes"]
    assert {name: set(classes.split(";")) - {""} for name, classes in rows} == tags


def assert_masks(root: Path, masks: dict[str, np.ndarray]) -> None:
    assert files_below(root / MASKS) == {f"{name}.png" for name in masks}
    assert [name for name in masks if not np.array_equal(read(root / MASKS / f"{name}.png"), masks[name])] == []


def assert_prepared(root: Path, official: Official) -> None:
    assert listed(root) == sorted(official.train_aug)
    assert not official.train_aug & set(official.val)
    assert_masks(root, official.masks)
    assert_tags(root, official.tags)


@pytest.mark.parametrize("name", ["drawn", "real"])
def test_two_archives_become_a_dataset(name, request, tmp_path, monkeypatch):
    official = request.getfixturevalue(name)
    take_for_all(monkeypatch, official)
    voc, sbd = official.pack(tmp_path)
    root = tmp_path / "new/root"
    printed = prepare(root, "--archive", voc, "--sbd", sbd, num_workers=2 if name == "drawn" else 0)
    assert_prepared(root, official)
    there = bytes_below(root)
    for path, content in bytes_below(official.tree).items():
        if any(part in path for part in ("SegmentationObject", "/img/", "/inst/")):
            assert path not in there
        else:
            assert there[path] == content
    assert len(verdicts(printed)) == 8
    assert set(verdicts(printed).values()) == {"OK"}
    assert f"{root / BELOW} is ready: " in printed
    assert "problems" not in printed

    dataset = open_dataset("voc", root)
    entries = dataset.entries("train_aug")
    labels = dataset.labels(entries)
    assert set(entries.names()) == official.train_aug
    assert all(entry.mask.is_file() for entry in entries)
    for entry, label in zip(entries, labels):
        assert {VOC_CLASSES[1:][i] for i in np.flatnonzero(label)} == official.tags[entry.name]


@pytest.mark.parametrize("name", ["mine", "real"])
def test_a_part_of_voc_is_prepared_and_not_taken_for_all_of_it(name, request, tmp_path, monkeypatch, capsys):
    official = request.getfixturevalue(name)
    if name == "mine":  # as the drawn one is taken for all
        monkeypatch.undo()
    voc, sbd = official.pack(tmp_path)
    found = verdicts(prepare_in_part(capsys, tmp_path / "root", "--archive", voc, "--sbd", sbd))
    assert_prepared(tmp_path / "root", official)
    assert len(found) == 8
    assert found["JPEGImages/*.jpg"] == f"{17_125 - len(official.tags):,} missing"
    assert found["train_aug.txt, pictures"] == f"{10_582 - len(official.train_aug):,} missing"
    assert found["train_aug and val, with a mask"] == f"{12_031 - len(official.names):,} missing"
    assert all(verdict.endswith("missing") for verdict in found.values())


def test_vocs_own_masks_come_before_sbds_and_keep_what_is_to_be_ignored(drawn, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    prepare(tmp_path / "root", "--archive", voc, "--sbd", sbd)
    both, only_sbd = drawn.train[0], sorted(drawn.train_aug - set(drawn.train))[0]
    assert (tmp_path / f"root/{SBD}/cls/{both}.mat").is_file()
    own = read(drawn.tree / f"{BELOW}/SegmentationClass/{both}.png")
    assert np.array_equal(read(tmp_path / f"root/{MASKS}/{both}.png"), own)
    assert 255 in read(tmp_path / f"root/{MASKS}/{both}.png")
    assert 255 not in read(tmp_path / f"root/{MASKS}/{only_sbd}.png")


def test_the_same_command_again_writes_no_more_than_the_tags_with_the_same_content(drawn, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    root = tmp_path / "root"
    first = prepare(root, "--archive", voc, "--sbd", sbd)
    times, content = times_below(root), bytes_below(root)
    assert prepare(root, "--archive", voc, "--sbd", sbd) == first
    assert bytes_below(root) == content
    assert {name for name, time in times_below(root).items() if time != times[name]} <= {f"{BELOW}/tags.csv"}
    prepare(root)  # from what is there
    assert bytes_below(root) == content


def test_what_is_missing_is_made_again_and_nothing_else(drawn, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    root = tmp_path / "root"
    prepare(root, "--archive", voc, "--sbd", sbd)
    times, content = times_below(root), bytes_below(root)
    name = drawn.train[0]
    lost = {f"{MASKS}/{name}.png", f"{BELOW}/JPEGImages/{name}.jpg"}
    (root / f"{MASKS}/{name}.png").unlink()
    (root / f"{BELOW}/JPEGImages/{name}.jpg").unlink()
    prepare(root, "--archive", voc, "--sbd", sbd)
    assert bytes_below(root) == content
    assert {name for name, time in times_below(root).items() if time != times[name]} == lost


def test_sbds_archive_may_stand_beside_vocs(drawn, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    prepare(tmp_path / "root", "--archive", voc, sbd.rename(sbd.with_name("benchmark.tgz")))
    assert listed(tmp_path / "root") == sorted(drawn.train_aug)


def test_without_sbd_its_own_list_grows_with_what_comes_later(drawn, tmp_path):
    voc, _ = drawn.pack(tmp_path)
    prepare(tmp_path / "root", "--archive", voc)
    whole, main = listed(tmp_path / "root"), tmp_path / f"root/{BELOW}/ImageSets/Main/trainval.txt"
    names = main.read_text()
    main.unlink()
    (tmp_path / f"root/{LISTS}/train_aug.txt").unlink()
    prepare(tmp_path / "root")
    assert listed(tmp_path / "root") == sorted(drawn.train) != whole
    main.write_text(names)
    prepare(tmp_path / "root")
    assert listed(tmp_path / "root") == whole


@pytest.mark.parametrize("lost", ["train.txt", "val.txt", "cls"])
def test_an_unpacking_of_sbd_that_was_stopped_goes_on(drawn, tmp_path, lost):
    voc, sbd = drawn.pack(tmp_path)
    root = tmp_path / "root"
    sbd.rename(tmp_path / "benchmark.tgz")
    prepare(root, "--archive", voc, tmp_path / "benchmark.tgz")
    content = bytes_below(root)
    (tmp_path / "benchmark.tgz").rename(root / "benchmark.tgz")
    path = root / SBD / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    prepare(root)
    assert content.items() <= bytes_below(root).items()


@pytest.mark.parametrize("name", [f"{LISTS}/train_aug.txt", f"{BELOW}/tags.csv"])
def test_a_list_or_table_of_somebody_else_is_never_replaced(drawn, mine, tmp_path, name):
    some = drawn.train[0]
    (mine.tree / name).write_text(f"{some},cat\n" if name.endswith(".csv") else f"{some}\n")
    _, sbd = mine.pack(tmp_path)
    before = (mine.tree / name).read_bytes()
    with pytest.raises(InputError, match=rf"{name}: is to be written, but .*; move it away"):
        prepare(mine.tree, "--sbd", sbd)
    assert (mine.tree / name).read_bytes() == before


def test_a_table_of_somebody_else_counts_where_there_are_no_annotations(drawn, mine, tmp_path, capsys):
    _, sbd = mine.pack(tmp_path)
    shutil.rmtree(mine.tree / f"{BELOW}/Annotations")
    table = "".join(f"{name},{';'.join(tags)}\n" for name, tags in drawn.tags.items())
    (mine.tree / f"{BELOW}/tags.csv").write_text(table)
    printed = prepare_in_part(capsys, mine.tree, "--sbd", sbd)
    assert verdicts(printed)["train_aug and val, with tags"] == "OK"
    assert (mine.tree / f"{BELOW}/tags.csv").read_text() == table


def test_masks_of_somebody_else_are_kept_and_compared(drawn, mine, tmp_path, capsys):
    _, sbd = mine.pack(tmp_path)
    same, other = drawn.train[:2]
    (mine.tree / MASKS).mkdir()
    shutil.copy(mine.tree / f"{BELOW}/SegmentationClass/{same}.png", mine.tree / MASKS)
    Image.fromarray(np.zeros_like(drawn.masks[other])).save(mine.tree / f"{MASKS}/{other}.png")
    kept = bytes_below(mine.tree / MASKS)
    printed = prepare_in_part(capsys, mine.tree, "--sbd", sbd)
    assert "problems (1)" in printed and f"{other}.png: shows something else than its source says" in printed
    assert kept.items() <= bytes_below(mine.tree / MASKS).items()


def test_files_that_are_no_pictures_are_not_counted(drawn, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    prepare(tmp_path / "root", "--archive", voc, "--sbd", sbd)
    (tmp_path / f"root/{BELOW}/JPEGImages/Thumbs.db").touch()
    (tmp_path / f"root/{BELOW}/Annotations/._x.xml").touch()
    assert "missing" not in prepare(tmp_path / "root") and "more" not in prepare(tmp_path / "root")


@pytest.mark.parametrize("below", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_sbd_may_be_a_folder(below, drawn, tmp_path):
    voc, _ = drawn.pack(tmp_path)
    prepare(tmp_path / "root", "--archive", voc, "--sbd", drawn.tree / below)
    assert_prepared(tmp_path / "root", drawn)
    assert not (tmp_path / "root/benchmark_RELEASE").exists()


def test_archives_that_lie_in_the_root_are_found_there(drawn, tmp_path):
    for path, source in zip(drawn.pack(tmp_path), (prepare_voc.VOC_SOURCE, prepare_voc.SBD_SOURCE)):
        path.rename(tmp_path / source.file)
    prepare(tmp_path)
    assert_prepared(tmp_path, drawn)


def test_files_that_lie_in_the_root_are_found_there(drawn, mine, tmp_path):
    prepare(mine.tree)
    assert_prepared(mine.tree, drawn)


def test_the_folder_of_voc_itself_may_be_the_root(drawn, mine):
    prepare(mine.tree / BELOW, "--sbd", drawn.tree)
    assert_prepared(mine.tree, drawn)


def test_without_sbd_vocs_own_lists_stand_in_for_its_own(drawn, tmp_path):
    voc, _ = drawn.pack(tmp_path)
    root = tmp_path / "root"
    printed = prepare(root, "--archive", voc)
    last = max(drawn.tags)
    assert listed(root) == sorted([*drawn.train, last])
    assert_masks(root, {name: drawn.masks[name] for name in drawn.train + drawn.val})
    assert_tags(root, drawn.tags)
    text = printed.split("\nwithout SBD, ")[1]
    assert text.startswith(f"train_aug.txt holds {len(drawn.train) + 1} pictures instead of {len(drawn.train_aug)}. ")
    assert f"{len(drawn.train + drawn.val)} of the pictures have a mask" in text
    assert "is ready: " in text


def test_without_sbd_and_main_lists_the_training_list_is_vocs(drawn, mine):
    shutil.rmtree(mine.tree / BELOW / "ImageSets/Main")
    shutil.rmtree(mine.tree / "benchmark_RELEASE")
    prepare(mine.tree)
    assert listed(mine.tree) == sorted(drawn.train)


@pytest.mark.parametrize("ending", ["", " /SegmentationClassAug/{}.png"])
def test_without_sbd_a_training_list_that_is_there_stays(ending, drawn, mine):
    shutil.rmtree(mine.tree / "benchmark_RELEASE")
    picture = "/JPEGImages/{}.jpg" if ending else "{}"
    names = sorted(drawn.train_aug, reverse=True)
    path = write_lines(mine.tree / LISTS / "train_aug.txt", *((picture + ending).format(name, name) for name in names))
    before = path.read_bytes(), path.stat().st_mtime_ns
    printed = prepare(mine.tree)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert "is ready: " in printed
    assert "without SBD" not in printed  # the published list


def test_sbd_that_comes_later_completes_the_dataset(drawn, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    prepare(tmp_path / "root", "--archive", voc)
    printed = prepare(tmp_path / "root", "--sbd", sbd)
    assert_prepared(tmp_path / "root", drawn)
    assert set(verdicts(printed).values()) == {"OK"}


@pytest.mark.parametrize("flag", ["--archive", "--sbd"])
def test_an_archive_that_is_not_the_official_one_to_the_byte_is_refused(flag, drawn, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    path = voc if flag == "--archive" else sbd
    assert_refused(f"{path}: is not the official file", tmp_path / "root", flag, path, checksum=True)
    assert files_below(tmp_path / "root") == set()


def test_the_official_sums_are_those_of_the_publishers():
    assert prepare_voc.VOC_SOURCE.file == "VOCtrainval_11-May-2012.tar"
    assert prepare_voc.VOC_SOURCE.md5 == "6cd6e144f989b92b3379bac3b3de84fd"
    assert prepare_voc.SBD_SOURCE.file == "benchmark.tgz"
    assert prepare_voc.SBD_SOURCE.md5 == "82b4d87ceb2ed10f6038a1cba92111cb"


@pytest.mark.parametrize("flag", ["--archive", "--sbd"])
@pytest.mark.parametrize("trouble", ["cut", "evil", "link", "another", "missing", "text"])
def test_an_archive_that_is_not_to_be_trusted_is_refused_before_anything_is_written(flag, trouble, drawn, tmp_path):
    path = dict(zip(("--archive", "--sbd"), drawn.pack(tmp_path)))[flag]
    if trouble == "cut":
        cut_in_half(path)
    elif trouble == "missing":
        path.unlink()
    elif trouble == "text":
        path.write_text("<html>no such file</html>\n" * 100)
    else:
        with tarfile.open(path, "w:gz" if flag == "--sbd" else "w") as archive:
            if trouble != "another":
                archive.add(drawn.tree, "")
            info = tarfile.TarInfo("../evil.mat" if trouble == "evil" else "other/a.txt")
            info.type, info.linkname = (tarfile.SYMTYPE, "/etc") if trouble == "link" else (tarfile.REGTYPE, "")
            archive.addfile(info, io.BytesIO())
    assert_refused(f"^{path}: ", tmp_path / "root", flag, path)
    assert files_below(tmp_path / "root") == set()
    assert not (tmp_path / "evil.mat").exists()


@pytest.mark.parametrize("lost", ["cls", "train.txt", "val.txt"])
def test_a_folder_that_is_not_sbds_is_refused(lost, drawn, mine, tmp_path):
    (mine.tree / SBD / lost).rename(tmp_path / "lost")
    assert_refused(f"{mine.tree}: holds no cls/, train.txt and val.txt", tmp_path / "root", "--sbd", mine.tree)
    assert files_below(tmp_path / "root") == set()


@pytest.mark.parametrize("layout", ["dataset", "VOCdevkit"])
def test_an_archive_that_does_not_hold_sbd_leaves_nothing_and_is_named(layout, drawn, tmp_path):
    tree = drawn.tree / "benchmark_RELEASE" if layout == "dataset" else drawn.tree
    path = pack(tmp_path / "other.tgz", tree, layout)
    assert_refused(f"^{path}: ", tmp_path / "root", "--sbd", path)
    assert files_below(tmp_path / "root") == set()


def test_a_root_without_anything_tells_how_to_get_it(tmp_path):
    assert_refused("there is no JPEGImages here", tmp_path / "root")


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_official_list_that_is_missing_is_one_line(name, mine):
    (mine.tree / LISTS / f"{name}.txt").unlink()
    assert_refused(f"{name}.txt: is missing; give --archive", mine.tree)


def spoil_mat(tree: Path, name: str, how: str) -> str:
    """Spoil one of SBD's masks; returns what is to be told about it."""
    path, mask = tree / f"{SBD}/cls/{name}.mat", np.zeros((48, 64), np.uint8)
    if how == "cut":
        cut_in_half(path)
    elif how == "text":
        path.write_text("no mask")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another variable":
        scipy.io.savemat(path, {"GTinst": {"Segmentation": mask}})
    elif how == "no struct":
        scipy.io.savemat(path, {"GTcls": mask})
    elif how == "no mask":
        scipy.io.savemat(path, {"GTcls": {"Boundaries": mask}})
    elif how == "letters":
        scipy.io.savemat(path, {"GTcls": {"Segmentation": "a mask"}})
    elif how == "another size":
        write_mat(path, mask[:-1])
    elif how == "turned":
        write_mat(path, mask.T)
    elif how == "class 21":
        mask[0, 0] = 21
        write_mat(path, mask)
    return f"{name}.mat: "


@pytest.mark.parametrize(
    "how", ["cut", "text", "empty", "another variable", "no struct", "no mask", "letters", "another size", "turned", "class 21"]
)
def test_a_mask_of_sbd_that_is_damaged_is_told_and_the_rest_is_prepared(how, drawn, mine, capsys):
    spoiled = max(drawn.train_aug)
    told = spoil_mat(mine.tree, spoiled, how)
    printed = prepare_in_part(capsys, mine.tree)
    problems = printed.split("\nproblems (1)\n")[1].splitlines()
    assert len(problems) == 1
    assert told in problems[0]
    assert problems[0].endswith("; get SBD again")
    assert verdicts(printed)["train_aug and val, with a mask"] == "1 missing"
    assert_masks(mine.tree, {name: mask for name, mask in drawn.masks.items() if name != spoiled})
    assert listed(mine.tree) == sorted(drawn.train_aug)
    assert_tags(mine.tree, drawn.tags)


@pytest.mark.parametrize("how", ["cut", "another size", "class 21"])
def test_a_mask_of_voc_that_is_damaged_is_told_and_sbds_does_not_stand_in(how, drawn, mine, capsys):
    name = drawn.train[0]
    path = mine.tree / f"{BELOW}/SegmentationClass/{name}.png"
    if how == "cut":
        cut_in_half(path)
    else:
        Image.fromarray(np.full((48, 64) if how == "class 21" else (48, 63), 21 if how == "class 21" else 0, np.uint8)).save(path)
    printed = prepare_in_part(capsys, mine.tree)
    assert f"SegmentationClass/{name}.png: " in printed.split("\nproblems (1)\n")[1]
    assert_masks(mine.tree, {other: mask for other, mask in drawn.masks.items() if other != name})


@pytest.mark.parametrize("text", ["<annotation><object><name>cat</na", "<annotation><object><name>unicorn</name></object></annotation>"])
def test_an_annotation_that_is_damaged_is_told_and_the_rest_is_prepared(text, drawn, mine, capsys):
    name = drawn.train[0]
    (mine.tree / f"{BELOW}/Annotations/{name}.xml").write_text(text)
    printed = prepare_in_part(capsys, mine.tree)
    assert f"Annotations/{name}.xml: " in printed.split("\nproblems (1)\n")[1]
    assert verdicts(printed)["train_aug and val, with tags"] == "1 missing"
    no_tag = {name: set()} if "unicorn" in text else {}
    assert_tags(mine.tree, {other: tags for other, tags in drawn.tags.items() if other != name} | no_tag)
    assert_masks(mine.tree, drawn.masks)


@pytest.mark.parametrize("kind", ["JPEGImages", "Annotations"])
def test_a_file_that_the_archive_lacks_is_told_and_the_rest_is_prepared(kind, drawn, mine, tmp_path, capsys):
    lost = max(drawn.train_aug)
    next((mine.tree / BELOW / kind).glob(f"{lost}.*")).unlink()
    voc, sbd = mine.pack(tmp_path)
    printed = prepare_in_part(capsys, tmp_path / "root", "--archive", voc, "--sbd", sbd)
    assert verdicts(printed)[{"JPEGImages": "JPEGImages/*.jpg", "Annotations": "Annotations/*.xml"}[kind]] == "1 missing"
    if kind == "JPEGImages":
        assert f"there is no picture {tmp_path}/root/{BELOW}/JPEGImages/{lost}.jpg" in printed.split("\nproblems (1)\n")[1]
        assert verdicts(printed)["train_aug.txt, pictures"] == "1 missing"
        assert listed(tmp_path / "root") == sorted(drawn.train_aug - {lost})
    else:
        assert verdicts(printed)["train_aug and val, with tags"] == "1 missing"
        assert_tags(tmp_path / "root", {name: tags for name, tags in drawn.tags.items() if name != lost})


class Server(ThreadingHTTPServer):
    """Serves files, and notes what is asked for; `most`: bytes before a connection is cut."""

    def __init__(self, content: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked, self.most = content, [], None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append((self.path, start))
        rest = self.server.content[self.path][start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(drawn, tmp_path, monkeypatch):
    """A server of the drawn archives, which the command takes for the official one."""
    folder = tmp_path / "served"
    folder.mkdir()
    content = dict(zip(("/voc", "/sbd"), (path.read_bytes() for path in drawn.pack(folder))))
    with Server(content) as one:
        for path, name in (("/voc", "VOC_SOURCE"), ("/sbd", "SBD_SOURCE")):
            source = prepare_voc.Source(f"{name}.tar", f"http://127.0.0.1:{one.server_port}{path}", hashlib.md5(content[path]).hexdigest())
            monkeypatch.setattr(prepare_voc, name, source)
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def test_a_download_that_is_stopped_goes_on_and_is_not_made_again(drawn, server, tmp_path):
    root = tmp_path / "root"
    server.most = 2000
    assert_refused("goes on from", root, "--download", checksum=True)
    assert files_below(root) == {"VOC_SOURCE.tar.part"}
    server.most = None
    printed = prepare(root, "--download", checksum=True)
    assert_prepared(root, drawn)
    assert set(verdicts(printed).values()) == {"OK"}
    assert server.asked == [("/voc", 0), ("/voc", 2000), ("/sbd", 0)]
    prepare(root, "--download", checksum=True)
    for name in ("VOC_SOURCE.tar", "SBD_SOURCE.tar"):
        (root / name).unlink()
    prepare(root, "--download", checksum=True)
    assert len(server.asked) == 3


def test_only_what_is_not_given_is_downloaded(drawn, server, tmp_path):
    voc, sbd = drawn.pack(tmp_path)
    prepare(tmp_path / "one", "--download", "--sbd", sbd)
    prepare(tmp_path / "two", "--download", "--archive", voc)
    assert server.asked == [("/voc", 0), ("/sbd", 0)]
    for root in ("one", "two"):
        assert_prepared(tmp_path / root, drawn)


def test_nothing_is_downloaded_unasked(drawn, server, mine):
    shutil.rmtree(mine.tree / "benchmark_RELEASE")
    prepare(mine.tree)
    assert server.asked == []


def test_voc_that_is_whole_is_not_downloaded_whichever_folder_is_the_root(drawn, server, mine):
    prepare(mine.tree / BELOW, "--download", "--sbd", drawn.tree)
    assert server.asked == []


@pytest.mark.parametrize("how", [["data/prepare_voc.py"], ["-m", "data.prepare_voc"]])
def test_the_command_runs_as_a_script_and_as_a_module(how):
    done = subprocess.run([sys.executable, *how, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--root", "--download", "--archive", "--sbd", "--checksum", "--num_workers"):
        assert flag in done.stdout
