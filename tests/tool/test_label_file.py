"""Label images: VOC's colours, what is written comes back, and what is cut does not pass for whole."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from errors import InputError
from tool import files, label_file

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


KEYS = np.array([0, 3, 12])


def test_a_result_is_the_label_and_small_plain_arrays(tmp_path):
    folder, probability = tmp_path / "new", np.random.default_rng(0).dirichlet([1, 1, 1], (4, 5)).transpose(2, 0, 1)
    label_file.save_result(folder, "a.b", KEYS, probability, with_probability=True)
    with np.load(folder / "a.b.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["keys", "probability"]
        assert arrays["keys"].tolist() == [0, 3, 12]
        assert arrays["probability"].dtype == np.float16
        np.testing.assert_allclose(arrays["probability"], probability, atol=2**-12)
    with Image.open(folder / "a.b.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), KEYS[probability.argmax(0)])
    assert sorted(path.name for path in folder.iterdir()) == ["a.b.npz", "a.b.png"]


def test_a_result_is_the_class_of_the_largest_probability(tmp_path):
    probability = np.array([[[0.5, 0.2, 0.1]], [[0.3, 0.6, 0.1]], [[0.2, 0.2, 0.8]]], np.float32)
    label_file.save_result(tmp_path, "a", KEYS, probability, with_probability=False)
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[0, 3, 12]]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("written", "asked"), [(False, False), (True, False), (True, True)])
def test_a_result_is_made_when_all_that_is_asked_for_is_there(tmp_path, written, asked):
    source = tmp_path / "source"
    source.touch()
    assert not label_file.is_result_made(tmp_path, "a", source, asked)
    label_file.save_result(tmp_path, "a", KEYS, np.zeros((3, 4, 5)), with_probability=written)
    assert label_file.is_result_made(tmp_path, "a", source, asked)
    assert not label_file.is_result_made(tmp_path, "b", source, asked)


@pytest.mark.parametrize("asked", [False, True])
def test_a_result_older_than_its_source_is_not_made(tmp_path, asked):
    source = tmp_path / "source"
    source.touch()
    label_file.save_result(tmp_path, "a", KEYS, np.zeros((3, 4, 5)), with_probability=True)
    later = (tmp_path / "a.png").stat().st_mtime_ns + 1
    os.utime(source, ns=(later, later))
    assert not label_file.is_result_made(tmp_path, "a", source, asked)
    source.unlink()
    assert not label_file.is_result_made(tmp_path, "a", source, asked)


def test_a_result_without_its_probabilities_or_with_a_cut_label_is_not_made(tmp_path):
    source = tmp_path / "source"
    source.touch()
    label_file.save_result(tmp_path, "a", KEYS, np.zeros((3, 4, 5)), with_probability=False)
    assert not label_file.is_result_made(tmp_path, "a", source, True)
    label_file.save_result(tmp_path, "a", KEYS, np.zeros((3, 4, 5)), with_probability=True)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-1])
    assert not label_file.is_result_made(tmp_path, "a", source, True)


@pytest.mark.parametrize(
    ("probability", "keys"),
    [
        ([[0.9, 0.9], [0.1, 0.0], [0.0, 0.09], [0.0, 0.01]], [0, 1]),  # what reaches 0.1 anywhere
        ([[0.0, 0.1], [0.4, 0.9], [0.6, 0.0]], [0, 1, 2]),
        ([[0.01, 0.01], [0.99, 0.99]], [0, 1]),  # the background in any case
        ([[1.0, 1.0], [0.0, 0.0]], [0]),
        ([[0.05], *[[0.04]] * 10, [0.09], *[[0.046]] * 10], [0, 11]),  # what wins a pixel, although it does not reach 0.1
    ],
)
def test_likely_classes_by_hand(probability, keys):
    assert label_file.likely_classes(np.array(probability, np.float32)[:, None]).tolist() == keys


NOTES = [{"class_names": ["background", "cat"]}, {"cam": {"class_names": ["background", "cat"]}, "crf": None}]


@pytest.mark.parametrize("note", [*NOTES, {}, {"cam": {}}, {"cam": None}, {"cam": "somebody's", "class_names": None}, None])
def test_labels_of_these_classes_or_without_a_note_are_taken(tmp_path, note):
    if note is not None:
        files.write_json(tmp_path / "settings.json", note)
    label_file.check_classes(tmp_path, ("background", "cat"))


@pytest.mark.parametrize("note", [*NOTES, {"cam": "somebody's", "class_names": ["background", "cat"]}])
@pytest.mark.parametrize("class_names", [("background", "dog"), ("background", "cat", "dog"), ("background",)])
def test_labels_of_other_classes_are_refused_by_their_note(tmp_path, note, class_names):
    files.write_json(tmp_path / "settings.json", note)
    with pytest.raises(InputError, match="the labels are of other classes than the dataset's; use the --dataset") as error:
        label_file.check_classes(tmp_path, class_names)
    assert str(error.value).startswith(f"{tmp_path / 'settings.json'}: ")


@pytest.mark.parametrize("content", ["", "{", "3", "[1]"])
def test_a_note_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(InputError, match=r"settings\.json: cannot be read"):
        label_file.check_classes(tmp_path, ("background", "cat"))


def test_a_folder_of_labels_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError, match="there are no labels; correct --label_dir or make them first") as error:
            label_file.check_classes(folder, ("background", "cat"))
        assert str(error.value).startswith(f"{folder}: ")


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
        label_file.save_result(tmp_path, "a", np.array([0, 1]), np.zeros((2, 3, 4)), with_probability=True)
    assert list(tmp_path.iterdir()) == []
