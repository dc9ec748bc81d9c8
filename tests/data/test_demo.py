"""The demo dataset: the same to the byte, its parts agree, and it never overwrites anything else."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.annotations import read_tag_table, rows_or_raise
from data.demo import draw_dataset, draw_image, main
from data.registry import open_dataset
from errors import InputError

IMAGES, SIZE, SEED = 12, 64, 3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")  # an empty folder is filled
    draw_dataset(folder, IMAGES, SIZE, SEED)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_settings_give_the_same_bytes(drawn, tmp_path):
    main(
        [
            str(tmp_path / "new/deep/again"),
            "--images",
            str(IMAGES),
            "--size",
            str(SIZE),
            "--seed",
            str(SEED),
        ]
    )
    assert contents(tmp_path / "new/deep/again") == contents(drawn)
    assert [path.name for path in (tmp_path / "new/deep").iterdir()] == [
        "again"
    ]  # nothing temporary is left


def test_images_are_the_published_ones():
    """The demo's figures in docs/ hold for these images alone; another processor may move a level or an outline by a little."""
    images, masks = zip(*(draw_image(0, index, 32) for index in range(24)))
    np.testing.assert_allclose(
        np.mean(images, (0, 1, 2)), [113.2049, 114.5111, 121.2133], atol=0.01
    )
    np.testing.assert_allclose(
        np.bincount(np.ravel(masks)), [17414, 823, 1270, 452, 1545, 1445, 1627], atol=3
    )


def test_images_masks_and_tags_agree(drawn):
    dataset = open_dataset("folder", drawn)
    samples = dataset.samples("masked")
    assert len(samples) == IMAGES
    table, shown = rows_or_raise(read_tag_table(drawn / "tags.csv", dataset.class_names)), set()
    for (_, image_path, mask_path), label in zip(samples, table.tags, strict=True):
        with Image.open(image_path) as image, Image.open(mask_path) as classes:
            assert (image.mode, image.size, classes.mode, classes.size) == (
                "RGB",
                (SIZE, SIZE),
                "P",
                (SIZE, SIZE),
            )
            colours, ids = np.asarray(image, np.float64), np.asarray(classes)
        assert [0, *(np.flatnonzero(label) + 1)] == np.unique(ids).tolist()
        assert 0.04 < (ids > 0).mean() < 0.6
        assert (
            np.linalg.norm(colours[ids > 0].mean(0) - colours[ids == 0].mean(0)) > 15
        )  # objects stand out
        shown |= {*np.unique(ids)}
    assert shown == set(range(7))


def test_a_finished_dataset_is_left_alone_and_other_settings_are_refused(drawn):
    before = (drawn / "tags.csv").stat().st_mtime_ns
    draw_dataset(drawn, IMAGES, SIZE, SEED)
    with pytest.raises(InputError):
        draw_dataset(drawn, IMAGES, SIZE, SEED + 1)
    assert (drawn / "tags.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("file", ["diary.txt", "settings.json"])
def test_what_somebody_else_made_is_refused_and_kept(tmp_path, file, capsys):
    (tmp_path / file).write_bytes(b"\xffmine")
    for out_dir in (tmp_path, tmp_path / file, tmp_path / file / "below"):
        with pytest.raises(SystemExit) as end:
            main([str(out_dir), "--images", "1", "--size", "32"])
        assert end.value.code == 2 and f"{out_dir}: " in capsys.readouterr().err
    assert contents(tmp_path) == {file: b"\xffmine"}


@pytest.mark.parametrize("numbers", [(0, 64, 0), (1, 31, 0), (1, 64, -1)])
def test_numbers_out_of_range_are_refused(tmp_path, numbers):
    with pytest.raises(InputError):
        draw_dataset(tmp_path / "set", *numbers)
    assert not (tmp_path / "set").exists()
