"""Label images: VOC's colours, what is written comes back, and what is cut does not pass for whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from errors import InputError
from tool import label_file

LABEL = np.array([[0, 1, 20], [7, 255, 254]], np.uint8)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = label_file.path_of(tmp_path / "seg_label", "2007_000001")
    label_file.save(path, LABEL)
    return path


def test_palette_is_vocs():
    colours = label_file.palette()
    assert (colours.shape, colours.dtype) == ((256, 3), np.uint8)
    assert colours[:6].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert colours[20].tolist() == [0, 64, 128]  # tvmonitor
    assert colours[255].tolist() == [224, 224, 192]
    assert len(np.unique(colours, axis=0)) == 256


def test_path_is_named_by_the_picture(tmp_path):
    assert label_file.path_of(tmp_path, "a.b") == tmp_path / "a.b.png"


def test_a_label_comes_back_with_vocs_colours(written):
    with Image.open(written) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert np.array_equal(np.asarray(image), LABEL)
        assert np.array_equal(np.asarray(image.convert("RGB")), label_file.palette()[LABEL])
    assert list(written.parent.iterdir()) == [written]


def test_a_turned_label_comes_back_turned(tmp_path):
    label_file.save(tmp_path / "a.png", LABEL.T[::-1])
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[20, 254], [1, 255], [0, 7]]


def test_a_written_label_is_whole(written):
    assert label_file.is_whole(written)


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, -1])
def test_a_cut_label_is_not_whole(written, left):
    content = written.read_bytes()
    assert len(content) > 100
    written.write_bytes(content[:left])
    assert not label_file.is_whole(written)


def test_what_is_no_png_is_not_whole(tmp_path):
    path = tmp_path / "a.png"
    assert not label_file.is_whole(path)
    assert not label_file.is_whole(tmp_path)
    path.write_text("<html>404: there is no such label</html>")
    assert not label_file.is_whole(path)
    Image.fromarray(LABEL).save(path, format="jpeg")
    assert not label_file.is_whole(path)


def test_probabilities_are_small_plain_arrays(tmp_path):
    path, probability = tmp_path / "new/a.npz", np.random.default_rng(0).dirichlet([1, 1, 1], (4, 5)).transpose(2, 0, 1)
    label_file.save_probability(path, np.array([0, 3, 12]), probability)
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["keys", "probability"]
        assert arrays["keys"].tolist() == [0, 3, 12]
        assert arrays["probability"].dtype == np.float16
        np.testing.assert_allclose(arrays["probability"], probability, atol=2**-12)
    assert list(path.parent.iterdir()) == [path]


def test_writing_that_fails_keeps_the_label_of_before(written, monkeypatch):
    def fail(image: Image.Image, path: Path, **more) -> None:
        path.write_bytes(b"\x89PNG the first bytes")
        raise OSError(28, "No space left on device")

    before = written.read_bytes()
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError, match="No space left on device") as error:
        label_file.save(written, LABEL + 1)
    assert str(error.value).startswith(f"{written}: ")
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_writing_probabilities_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: file.write(arrays["missing"]))
    with pytest.raises(KeyError):
        label_file.save_probability(tmp_path / "a.npz", np.array([0, 1]), np.zeros((2, 3, 4)))
    assert list(tmp_path.iterdir()) == []
