"""Label images: VOC's colours, what is written comes back, other classes are refused."""

import numpy as np
import pytest
from PIL import Image

from errors import InputError
from tool import label_file, outputs

LABEL = np.array([[0, 1, 20], [7, 255, 254]], np.uint8)
KEYS = np.array([0, 3, 12])
CLASSES = ("background", "cat")


def test_palette_is_vocs():
    colours = label_file.palette()
    assert (colours.shape, colours.dtype) == ((256, 3), np.uint8)
    assert colours[:6].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
    ]
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert colours[20].tolist() == [0, 64, 128]  # tvmonitor
    assert colours[255].tolist() == [224, 224, 192]
    assert len(np.unique(colours, axis=0)) == 256


@pytest.mark.parametrize("label", [LABEL, LABEL.T[::-1]], ids=["straight", "turned"])
def test_a_label_comes_back_with_vocs_colours_and_nothing_else(tmp_path, label):
    path = label_file.path_of(tmp_path / "seg_label", "a.b")
    assert path == tmp_path / "seg_label/a.b.png"
    label_file.save(path, label)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.text) == ("PNG", "P", {})
        colours = np.asarray(image.convert("RGB"))
        assert np.array_equal(np.asarray(image), label)
        assert np.array_equal(colours, label_file.palette()[label])
    assert list(path.parent.iterdir()) == [path]


def test_a_prediction_is_the_class_of_the_largest_probability(tmp_path):
    probability = np.array([[[0.5, 0.2, 0.1]], [[0.3, 0.6, 0.1]], [[0.2, 0.2, 0.8]]])
    label_file.save_prediction(tmp_path / "new", "a.b", KEYS, probability, with_probability=True)
    with (
        Image.open(tmp_path / "new/a.b.png") as image,
        np.load(tmp_path / "new/a.b.npz", allow_pickle=False) as arrays,
    ):
        assert (image.mode, np.asarray(image).tolist()) == ("P", [[0, 3, 12]])
        assert sorted(arrays.files) == ["keys", "probability"]
        assert (arrays["keys"].tolist(), arrays["probability"].dtype) == ([0, 3, 12], np.float16)
        np.testing.assert_allclose(arrays["probability"], probability, atol=2**-12)


NAMES = {"class_names": list(CLASSES)}
NOTES = [NAMES, {"cam": NAMES, "crf": None}, {"cam": "of another program", **NAMES}, "{", None]


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize(
    "class_names", [("background", "dog"), ("background", "cat", "dog"), ("background",)]
)
def test_labels_of_other_classes_or_with_a_damaged_note_or_no_folder_are_refused(
    tmp_path, note, class_names
):
    folder = tmp_path / "labels"
    named = folder
    if note is not None:
        named = folder / "settings.json"
        outputs.write_json(named, note)
    with pytest.raises(InputError) as error:
        label_file.check_folder(folder, class_names)
    assert str(error.value).startswith(f"{named}: ")
    assert "\n" not in str(error.value)
