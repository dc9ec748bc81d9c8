"""The demo dataset: repeatable, its parts agree, and it never overwrites anything else."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.draw_demo import draw_dataset, main
from errors import InputError

PICTURES, SIZE, SEED = 12, 64, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    draw_dataset(folder, PICTURES, SIZE, SEED)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_tags(folder: Path) -> dict[str, list[str]]:
    with open(folder / "tags.csv", encoding="utf-8", newline="") as file:
        return {row["name"]: row["classes"].split(";") for row in csv.DictReader(file)}


def test_same_settings_give_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    main([str(tmp_path / "again"), "--pictures", str(PICTURES), "--size", str(SIZE), "--seed", str(SEED)])
    assert contents(tmp_path / "again") == contents(dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # nothing temporary is left


def test_another_seed_gives_other_pictures(dataset: Path, tmp_path: Path) -> None:
    draw_dataset(tmp_path / "other", 1, SIZE, SEED + 1)
    first = "images/demo_0000.jpg"
    assert (tmp_path / "other" / first).read_bytes() != (dataset / first).read_bytes()


def test_pictures_and_masks_have_the_size_asked_for(dataset: Path) -> None:
    names = read_tags(dataset)
    assert len(names) == PICTURES
    for name in names:
        with Image.open(dataset / "images" / f"{name}.jpg") as picture, Image.open(dataset / "masks" / f"{name}.png") as mask:
            assert (picture.mode, picture.size) == ("RGB", (SIZE, SIZE))
            assert (mask.mode, mask.size) == ("P", (SIZE, SIZE))


def test_tags_are_the_classes_of_the_mask(dataset: Path) -> None:
    classes = ["background", *(dataset / "classes.txt").read_text(encoding="utf-8").splitlines()]
    tags = read_tags(dataset)
    for name, tagged in tags.items():
        with Image.open(dataset / "masks" / f"{name}.png") as mask:
            values = np.unique(np.asarray(mask))
        assert values[0] == 0 and values[-1] < len(classes)
        assert tagged == [classes[value] for value in values[1:]]
    assert {tag for tagged in tags.values() for tag in tagged} == set(classes[1:])


def test_an_object_stands_out_from_its_background(dataset: Path) -> None:
    for name in read_tags(dataset):
        with Image.open(dataset / "images" / f"{name}.jpg") as picture, Image.open(dataset / "masks" / f"{name}.png") as mask:
            colours, inside = np.asarray(picture, np.float64), np.asarray(mask) > 0
        assert 0.04 < inside.mean() < 0.6
        assert np.linalg.norm(colours[inside].mean(0) - colours[~inside].mean(0)) > 15


def test_a_finished_dataset_is_left_alone(dataset: Path) -> None:
    before = (dataset / "tags.csv").stat().st_mtime_ns
    draw_dataset(dataset, PICTURES, SIZE, SEED)
    assert (dataset / "tags.csv").stat().st_mtime_ns == before


def test_refuses_other_settings(dataset: Path) -> None:
    with pytest.raises(InputError, match="is not this demo dataset"):
        draw_dataset(dataset, PICTURES, SIZE, SEED + 1)


def test_refuses_an_incomplete_dataset(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "set", 2, 32, 0)
    (tmp_path / "set" / "masks" / "demo_0001.png").unlink()
    with pytest.raises(InputError, match="is not this demo dataset"):
        draw_dataset(tmp_path / "set", 2, 32, 0)


def test_refuses_a_foreign_folder_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not this demo dataset"):
        draw_dataset(tmp_path, 1, 32, 0)
    assert contents(tmp_path) == {"diary.txt": b"mine"}


def test_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    draw_dataset(tmp_path / "set", 1, 32, 0)
    assert (tmp_path / "set" / "images" / "demo_0000.jpg").is_file()


@pytest.mark.parametrize("numbers", [(0, 64, 0), (1, 31, 0), (1, 64, -1)])
def test_refuses_numbers_out_of_range(tmp_path: Path, numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="at least 1 picture"):
        draw_dataset(tmp_path / "set", *numbers)
