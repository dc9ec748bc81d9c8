"""A look at a dataset: what must be mended is told once and ends in an error, what is worth knowing is told and is none."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from common import FIRST, NAMES, bytes_below, cut_in_half, times_below, write_lines
from PIL import Image

from data import check_dataset
from errors import InputError

PICTURES = 16  # as many as the usual batch
SIZE = (24, 16)  # width and height


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """16 pictures of a person's own: a cat on each, a dog as well on every fourth, and masks that show them."""
    root = tmp_path / "own"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(PICTURES):
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[4:10, :12], mask[4:10, 12:], mask[0] = 1, 2 * (i % 4 == 0), 255
        Image.new("RGB", SIZE, (10 * i, 0, 0)).save(root / f"images/p_{i:02d}.png")
        Image.fromarray(mask).save(root / f"masks/p_{i:02d}.png")
    write_lines(root / "classes.txt", "cat", "dog")
    write_lines(root / "tags.csv", "name,classes", *(f"p_{i:02d},cat{';dog' * (i % 4 == 0)}" for i in range(PICTURES)))
    return root


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Check a dataset and return what was printed; nothing is written, and one line tells how many things are to be mended."""

    def check(root: Path, *flags: str, mend: int = 0) -> str:
        before, content = times_below(tmp_path), bytes_below(tmp_path)
        argv = [str(root), "--num_workers", "0", *flags]
        if mend:
            with pytest.raises(
                InputError, match=rf"^{re.escape(str(root))}: cannot be used yet \({mend} to be mended, see above\); "
            ) as caught:
                check_dataset.main(argv)
            assert "\n" not in str(caught.value)
        else:
            check_dataset.main(argv)
        assert (times_below(tmp_path), bytes_below(tmp_path)) == (before, content)
        return capsys.readouterr().out

    return check


def section(printed: str, title: str) -> list[str]:
    """The lines under a title, whose number it must tell; none where the title is not there."""
    found = re.search(rf"^{title} \((\d+)\)\n((?:  .*\n)+)", printed, re.MULTILINE)
    lines = found[2].splitlines() if found else []
    assert not found or int(found[1]) == len(lines) or lines[-1] == f"  and {int(found[1]) - 10} more"
    return [line.strip() for line in lines]


def problems_in(printed: str) -> list[str]:
    assert "all is well" not in printed
    return section(printed, "to be mended")


def notes_in(printed: str) -> list[str]:
    assert "to be mended" not in printed
    assert "all is well" in printed
    return section(printed, "worth knowing")


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    write_lines(path, *lines)


def add_line(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


class TestWell:
    def test_the_report_counts_pictures_tags_and_masks_of_each_class(self, own, check):
        printed = check(own)
        assert notes_in(printed) == []
        assert f"{own}: 'folder' dataset, 2 classes" in printed
        assert "pictures to train on: 16; tags a picture: 1.25" in printed
        assert "sizes: from 24x16 to 24x16" in printed
        assert "masks: 16 " in printed
        assert re.search(r"^cat +16 +16$", printed, re.MULTILINE)
        assert re.search(r"^dog +4 +4$", printed, re.MULTILINE)
        assert printed.endswith(f"all is well: bash run_folder.sh --dataset_root {own}\n")

    def test_worker_processes_report_the_same(self, own, check):
        assert check(own, "--num_workers", "2") == check(own)

    def test_pictures_without_masks_are_enough(self, own, check):
        shutil.rmtree(own / "masks")
        printed = check(own)
        assert notes_in(printed) == []
        assert "\nmasks: 0 " in printed

    def test_pictures_may_lie_beside_the_class_names(self, own, check):
        for path in (own / "images").iterdir():
            path.rename(own / path.name)
        printed = check(own)
        assert notes_in(printed) == []
        assert "pictures to train on: 16;" in printed

    def test_the_sizes_go_from_the_smallest_to_the_largest(self, own, check):
        shutil.rmtree(own / "masks")
        Image.new("L", (7, 5)).save(own / "images/p_00.png")
        Image.new("L", (100, 5)).save(own / "images/p_01.png")
        assert "sizes: from 7x5 to 100x5" in check(own)


def break_picture(root: Path) -> None:
    (root / "images/p_03.png").write_bytes(b"<html>404</html>")


def cut_picture(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
    Image.fromarray(noise).save(root / "images/p_03.png")
    cut_in_half(root / "images/p_03.png")


SPOILED = {
    "not a picture": (break_picture, r"images/p_03\.png: not a readable picture"),
    "a cut picture": (cut_picture, r"images/p_03\.png: not a readable picture"),
    "an unknown tag": (
        lambda root: replace_line(root / "tags.csv", 5, "p_03,cat;cow"),
        r"tags\.csv, line 5: tag 'cow' is not a class of the dataset",
    ),
    "an unknown tag alone": (
        lambda root: replace_line(root / "tags.csv", 5, "p_03,cow"),
        r"tags\.csv, line 5: tag 'cow' is not a class of the dataset",
    ),
    "a name twice": (lambda root: add_line(root / "tags.csv", "p_03,dog"), r"tags\.csv, line 18: p_03 stands twice"),
    "a row of another form": (
        lambda root: add_line(root / "tags.csv", "p_99,dog,cat"),
        r"tags\.csv, line 18: expected name,class;class",
    ),
    "a quote that is never closed": (lambda root: replace_line(root / "tags.csv", 5, '"p_03,cat'), r"tags\.csv"),
    "a name that leaves": (lambda root: add_line(root / "tags.csv", "../p_03,dog"), r"tags\.csv, line 18: expected name,class;class"),
    "a missing picture": (lambda root: (root / "images/p_03.png").unlink(), r"tags\.csv, line \d: there is no picture .*images/p_03"),
    "two pictures of one name": (
        lambda root: Image.new("RGB", SIZE).save(root / "images/p_03.jpg"),
        r"images: p_03\.jpg and p_03\.png have one name",
    ),
    "a mask of another size": (lambda root: Image.new("L", SIZE[::-1]).save(root / "masks/p_03.png"), r"masks/p_03\.png: is 16x24"),
    "a mask of another class": (lambda root: Image.new("L", SIZE, 3).save(root / "masks/p_03.png"), r"masks/p_03\.png: holds class 3"),
    "a mask in colours": (lambda root: Image.new("RGB", SIZE).save(root / "masks/p_03.png"), r"masks/p_03\.png: .* this is RGB"),
    "a cut mask": (lambda root: cut_in_half(root / "masks/p_03.png"), r"masks/p_03\.png: not a readable mask"),
    "no tag at all": (lambda root: write_lines(root / "tags.csv", "name,classes", "p_00,"), r"tags\.csv: no picture has a tag"),
    "no tag table": (lambda root: (root / "tags.csv").unlink(), r"tags\.csv: cannot be read"),
}


class TestToBeMended:
    @pytest.mark.parametrize(("spoil", "told"), SPOILED.values(), ids=SPOILED)
    def test_is_listed_once(self, own, check, spoil, told):
        spoil(own)
        printed = check(own, mend=1)
        (problem,) = problems_in(printed)
        assert re.match(rf"{re.escape(str(own))}/{told}.*; ", problem)
        assert printed.count(problem) == 1

    def test_several_at_once_are_all_listed(self, own, check):
        break_picture(own)
        replace_line(own / "tags.csv", 6, "p_04,unicorn")
        add_line(own / "tags.csv", "p_05,dog")
        add_line(own / "tags.csv", "p_77,dog")
        Image.new("RGB", SIZE).save(own / "images/p_06.jpg")
        Image.new("L", SIZE, 9).save(own / "masks/p_08.png")
        Image.new("RGB", SIZE).save(own / "masks/p_09.png")
        problems = problems_in(check(own, mend=7))
        for part in ("p_03.png", "unicorn", "line 18: p_05", "images/p_77", "p_06.jpg and p_06.png", "p_08.png: holds class 9", "p_09.png"):
            assert sum(part in problem for problem in problems) == 1, part

    @pytest.mark.parametrize("broken", [10, 11, 13])
    def test_of_more_than_ten_the_first_are_named_and_the_others_counted(self, own, check, broken):
        for i in range(broken):
            (own / f"images/p_{i:02d}.png").write_bytes(b"")
        *named, last = problems_in(check(own, mend=broken))
        if broken > 10:
            assert last == f"and {broken - 10} more"
        else:
            named.append(last)
        assert [re.search(r"images/(p_\d+)\.png: ", problem)[1] for problem in named] == [f"p_{i:02d}" for i in range(10)]

    def test_worker_processes_tell_the_same_problems(self, own, check):
        break_picture(own)
        Image.new("RGB", SIZE).save(own / "masks/p_09.png")
        assert check(own, "--num_workers", "2", mend=2) == check(own, mend=2)

    @pytest.mark.parametrize("kind", ["folder", "voc", "coco"])
    def test_a_folder_of_something_else_is_no_dataset(self, check, kind, tmp_path):
        with pytest.raises(InputError, match=rf"there is no .* so this is no '{kind}' dataset; "):
            check(tmp_path, "--dataset", kind)

    def test_class_names_that_cannot_serve_end_in_one_line(self, own, check):
        write_lines(own / "classes.txt", "cat", "cat")
        with pytest.raises(InputError, match=r"classes\.txt: class 'cat' stands twice; "):
            check(own)


def untag(root: Path) -> None:
    replace_line(root / "tags.csv", 4, "p_02,")
    replace_line(root / "tags.csv", 5, "")


NOTED = {
    "pictures without a tag": (
        untag,
        [
            "pictures not among the tagged ones, and left out (2): p_02, p_03",
            "masks of none of the tagged pictures (2): p_02, p_03",
            "fewer pictures than the usual batch of 16; train with --batch_size 14 or less",
        ],
    ),
    "a picture that no line names": (
        lambda root: Image.new("RGB", SIZE).save(root / "images/new.webp"),
        ["pictures not among the tagged ones, and left out (1): new"],
    ),
    "equal pictures": (
        lambda root: [shutil.copy(root / "images/p_02.png", root / f"images/p_0{i}.png") for i in (3, 5)],
        ["the same picture under several names (1): p_02 = p_03 = p_05"],
    ),
    "a class without a picture": (
        lambda root: add_line(root / "classes.txt", "cow"),
        ["classes without a picture, which cannot be learned (1): cow"],
    ),
    "a tag that the mask does not show": (
        lambda root: replace_line(root / "tags.csv", 3, "p_01,cat;dog"),
        ["pictures with a tag that their mask does not show (1): p_01"],
    ),
    "a class in the mask that is no tag": (
        lambda root: replace_line(root / "tags.csv", 2, "p_00,cat"),
        ["pictures with a class in their mask that is not among their tags (1): p_00"],
    ),
    "a mask of no picture": (
        lambda root: Image.new("L", SIZE).save(root / "masks/other.png"),
        ["masks of none of the tagged pictures (1): other"],
    ),
}


class TestWorthKnowing:
    @pytest.mark.parametrize(("change", "notes"), NOTED.values(), ids=NOTED)
    def test_is_told_and_is_no_error(self, own, check, change, notes):
        change(own)
        assert notes_in(check(own)) == notes

    def test_five_pictures_are_named_and_the_others_counted(self, own, check):
        for i in range(7):
            Image.new("L", SIZE).save(own / f"masks/other_{i}.png")
        (note,) = notes_in(check(own))
        assert note == "masks of none of the tagged pictures (7): other_0, other_1, other_2, other_3, other_4, ..."

    def test_notes_are_told_beside_problems(self, own, check):
        break_picture(own)
        add_line(own / "classes.txt", "cow")
        printed = check(own, mend=1)
        assert len(problems_in(printed)) == 1
        assert section(printed, "worth knowing") == ["classes without a picture, which cannot be learned (1): cow"]


class TestVoc:
    def test_the_drawn_dataset_is_well(self, tiny_voc, check):
        printed = check(tiny_voc, "--dataset", "voc")
        unused = "classes without a picture, which cannot be learned (18): aeroplane, bicycle, bird, boat, bottle, ..."
        assert notes_in(printed) == [unused, "fewer pictures than the usual batch of 16; train with --batch_size 6 or less"]
        assert "pictures to train on: 6; tags a picture: 1.50" in printed
        assert re.search(r"^cat +3 +3$", printed, re.MULTILINE)
        assert re.search(r"^dog +6 +6$", printed, re.MULTILINE)
        assert re.search(r"^cow +0 +0$", printed, re.MULTILINE)
        assert f"bash run_voc.sh --dataset_root {tiny_voc}" in printed

    def test_pictures_of_no_list_are_told(self, tiny_voc, check):
        write_lines(tiny_voc / "ImageSets/Segmentation/train_aug.txt", *NAMES[1:])
        notes = notes_in(check(tiny_voc, "--dataset", "voc"))
        assert f"pictures not among the train_aug ones, and left out (1): {FIRST}" in notes

    def test_several_problems_are_all_listed(self, tiny_voc, check):
        (tiny_voc / f"JPEGImages/{NAMES[1]}.jpg").write_bytes(b"")
        (tiny_voc / f"JPEGImages/{NAMES[2]}.jpg").unlink()
        Image.new("RGB", (64, 48)).save(tiny_voc / f"SegmentationClass/{NAMES[3]}.png")
        problems = problems_in(check(tiny_voc, "--dataset", "voc", mend=3))
        for name in NAMES[1:4]:
            assert sum(name in problem for problem in problems) == 1, name

    def test_damaged_annotations_are_all_listed_beside_other_problems(self, tiny_voc, check):
        (tiny_voc / f"Annotations/{NAMES[0]}.xml").unlink()
        cut_in_half(tiny_voc / f"Annotations/{NAMES[1]}.xml")
        (tiny_voc / f"JPEGImages/{NAMES[2]}.jpg").write_bytes(b"")
        problems = problems_in(check(tiny_voc, "--dataset", "voc", mend=3))
        for name in NAMES[:3]:
            assert sum(name in problem for problem in problems) == 1, name

    def test_a_missing_list_is_listed(self, tiny_voc, check):
        (tiny_voc / "ImageSets/Segmentation/train_aug.txt").unlink()
        (problem,) = problems_in(check(tiny_voc, "--dataset", "voc", mend=1))
        assert "train_aug.txt" in problem


class TestCoco:
    @pytest.fixture
    def coco(self, tmp_path: Path) -> Path:
        """Three pictures as data/prepare_coco.py leaves them."""
        root = tmp_path / "coco"
        for folder in ("train2014", "val2014", "masks"):
            (root / folder).mkdir(parents=True)
        for i, folder in enumerate(("train2014", "train2014", "val2014")):
            Image.new("RGB", SIZE, (90 * i, 0, 0)).save(root / folder / f"c_{i}.jpg")
            Image.new("L", SIZE, 80).save(root / f"masks/c_{i}.png")
        write_lines(root / "train.txt", "c_0", "c_1")
        write_lines(root / "tags.csv", "name,classes", *(f"c_{i},toothbrush" for i in range(3)))
        return root

    def test_a_prepared_one_is_well(self, coco, check):
        printed = check(coco, "--dataset", "coco")
        assert "'coco' dataset, 80 classes" in printed
        assert "pictures to train on: 2; tags a picture: 1.00" in printed
        assert re.search(r"^toothbrush +2 +2$", printed, re.MULTILINE)
        assert "bash run_coco.sh" in printed
        assert len(notes_in(printed)) == 4  # left out, masks of no picture, unused classes, less than a batch

    def test_a_mask_of_another_class_is_listed(self, coco, check):
        Image.new("L", SIZE, 81).save(coco / "masks/c_1.png")
        (problem,) = problems_in(check(coco, "--dataset", "coco", mend=1))
        assert "masks/c_1.png: holds class 81" in problem

    def test_one_that_is_not_prepared_is_told_so(self, coco, check):
        (coco / "train.txt").unlink()
        (problem,) = problems_in(check(coco, "--dataset", "coco", mend=1))
        assert "train.txt" in problem
