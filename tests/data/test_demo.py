"""The demo dataset: the same to the byte, its parts agree, and it never overwrites anything else."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.annotations import checked, read_tags
from data.demo import draw_dataset, draw_picture, main
from data.registry import open_dataset
from errors import InputError

PICTURES, SIZE, SEED = 12, 64, 3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    draw_dataset(folder, PICTURES, SIZE, SEED)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_settings_give_the_same_bytes(drawn, tmp_path):
    main([str(tmp_path / "new/again"), "--pictures", str(PICTURES), "--size", str(SIZE), "--seed", str(SEED)])
    assert contents(tmp_path / "new/again") == contents(drawn)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["again"]  # nothing temporary is left


def test_pictures_are_the_published_ones():
    """The demo's figures in docs/ hold for these pictures alone; another processor may move a colour by a level or an outline by a pixel."""
    drawn = [draw_picture(0, index, 64) for index in range(6)]
    np.testing.assert_allclose([picture.mean((0, 1)) for picture, _ in drawn], MEANS, atol=0.2)
    np.testing.assert_allclose([np.bincount(mask.ravel(), minlength=7)[1:] for _, mask in drawn], AREAS, atol=4)


def test_another_seed_gives_another_picture():
    assert not np.array_equal(draw_picture(SEED, 0, SIZE)[0], draw_picture(SEED + 1, 0, SIZE)[0])


def test_pictures_masks_and_tags_agree(drawn):
    dataset = open_dataset("folder", drawn)
    entries = dataset.entries("masked")
    assert len(entries) == PICTURES
    table, shown = checked(read_tags(drawn / "tags.csv", dataset.class_names)), set()
    for (_, picture, mask), label in zip(entries, table.labels, strict=True):
        with Image.open(picture) as image, Image.open(mask) as classes:
            assert (image.mode, image.size, classes.mode, classes.size) == ("RGB", (SIZE, SIZE), "P", (SIZE, SIZE))
            colours, ids = np.asarray(image, np.float64), np.asarray(classes)
        assert [0, *(np.flatnonzero(label) + 1)] == np.unique(ids).tolist()
        assert 0.04 < (ids > 0).mean() < 0.6
        assert np.linalg.norm(colours[ids > 0].mean(0) - colours[ids == 0].mean(0)) > 15  # objects stand out
        shown |= {*np.unique(ids)}
    assert shown == set(range(7))


def test_a_finished_dataset_is_left_alone_and_other_settings_are_refused(drawn):
    before = (drawn / "tags.csv").stat().st_mtime_ns
    draw_dataset(drawn, PICTURES, SIZE, SEED)
    with pytest.raises(InputError):
        draw_dataset(drawn, PICTURES, SIZE, SEED + 1)
    assert (drawn / "tags.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("file", ["diary.txt", "settings.json"])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, file, capsys):
    (tmp_path / file).write_bytes(b"\xffmine")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), "--pictures", "1", "--size", "32"])
    assert end.value.code == 2 and str(tmp_path) in capsys.readouterr().err
    assert contents(tmp_path) == {file: b"\xffmine"}


def test_a_file_in_the_folders_place_is_refused_and_kept(tmp_path):
    (tmp_path / "set").write_text("mine")
    for out_dir in (tmp_path / "set", tmp_path / "set/below"):
        with pytest.raises(InputError) as error:
            draw_dataset(out_dir, 1, 32, 0)
        assert str(error.value).startswith(f"{out_dir}: ")
    assert contents(tmp_path) == {"set": b"mine"}


def test_an_empty_folder_is_filled(tmp_path):
    draw_dataset(tmp_path, 1, 32, 0)
    assert {"images/demo_0000.jpg", "masks/demo_0000.png", "settings.json"} < contents(tmp_path).keys()


@pytest.mark.parametrize("numbers", [(0, 64, 0), (1, 31, 0), (1, 64, -1)])
def test_numbers_out_of_range_are_refused(tmp_path, numbers):
    with pytest.raises(InputError):
        draw_dataset(tmp_path / "set", *numbers)
    assert not (tmp_path / "set").exists()
