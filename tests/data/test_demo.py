"""The demo dataset: the same to the byte, its parts agree, it never overwrites anything else."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.annotations import read_tag_table, rows_or_raise
from data.demo import draw_dataset, draw_image, main
from data.registry import open_dataset
from errors import InputError

IMAGES = 12
SIZE = 64
SEED = 3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")  # an empty folder is filled
    draw_dataset(folder, IMAGES, SIZE, SEED)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("flag", ["--images", "--pictures"])  # its old name
def test_same_settings_give_the_same_bytes(drawn, tmp_path, flag):
    again = tmp_path / "new/deep/again"
    main([str(again), flag, str(IMAGES), "--size", str(SIZE), "--seed", str(SEED)])
    assert contents(again) == contents(drawn)
    assert list(again.parent.iterdir()) == [again]  # nothing temporary is left


def test_its_settings_are_those_of_earlier_versions(drawn):
    """A dataset that an earlier version drew is not refused."""
    settings = json.loads((drawn / "settings.json").read_text())
    assert settings == {"format": 1, "pictures": IMAGES, "size": SIZE, "seed": SEED}


def test_images_are_the_published_ones():
    """The demo's figures in docs/ hold for these images alone.

    Another processor may move a level or an outline by a little.
    """
    colours = []
    masks = []
    for index in range(24):
        image, mask = draw_image(0, index, 32)
        colours.append(image.mean((0, 1)))
        masks.append(mask)
    mean_colour = np.mean(colours, axis=0)
    np.testing.assert_allclose(mean_colour, [113.2049, 114.5111, 121.2133], atol=0.01)
    pixels = np.bincount(np.ravel(masks))
    np.testing.assert_allclose(pixels, [17414, 823, 1270, 452, 1545, 1445, 1627], atol=3)


def test_images_masks_and_tags_agree(drawn):
    dataset = open_dataset("folder", drawn)
    samples = dataset.samples("masked")
    assert len(samples) == IMAGES
    table = rows_or_raise(read_tag_table(drawn / "tags.csv", dataset.class_names))
    all_ids = set()
    for sample, tags in zip(samples, table.tags, strict=True):
        with Image.open(sample.image) as image:
            assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
            colours = np.asarray(image, np.float64)
        with Image.open(sample.mask) as mask:
            assert (mask.mode, mask.size) == ("P", (SIZE, SIZE))
            class_ids = np.asarray(mask)
        is_object = class_ids > 0
        tagged = np.flatnonzero(tags) + 1
        assert np.unique(class_ids).tolist() == [0, *tagged]
        assert 0.04 < is_object.mean() < 0.6
        contrast = colours[is_object].mean(0) - colours[~is_object].mean(0)
        assert np.linalg.norm(contrast) > 15  # objects stand out
        all_ids.update(np.unique(class_ids).tolist())
    assert all_ids == set(range(7))


def test_a_finished_dataset_is_left_alone_and_other_settings_are_refused(drawn):
    before = (drawn / "tags.csv").stat().st_mtime_ns
    draw_dataset(drawn, IMAGES, SIZE, SEED)
    with pytest.raises(InputError):
        draw_dataset(drawn, IMAGES, SIZE, SEED + 1)
    assert (drawn / "tags.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("file", ["diary.txt", "settings.json"])
@pytest.mark.parametrize("below", ["", "{file}", "{file}/below"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, file, below, capsys):
    (tmp_path / file).write_bytes(b"\xffmine")
    out_dir = tmp_path / below.format(file=file)
    with pytest.raises(SystemExit) as end:
        main([str(out_dir), "--images", "1", "--size", "32"])
    assert end.value.code == 2
    assert f"{out_dir}: " in capsys.readouterr().err
    assert contents(tmp_path) == {file: b"\xffmine"}


@pytest.mark.parametrize(
    ("images", "size", "seed"),
    [
        (0, 64, 0),
        (1, 31, 0),
        (1, 64, -1),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, images, size, seed):
    with pytest.raises(InputError):
        draw_dataset(tmp_path / "set", images, size, seed)
    assert not (tmp_path / "set").exists()
