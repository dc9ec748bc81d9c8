"""The dense CRF: labels follow flat colours, as in the authors' program; its package may lack."""

import sys

import numpy as np
import pytest
from PIL import Image

from data.images import read_image
from errors import InputError
from tool import crf

COLOURS = [[200, 40, 40], [40, 40, 200], [40, 200, 40]]


def stripes(count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A read-only image (24, 16 * count, 3) of upright stripes, and the stripe of each pixel."""
    label = np.repeat(np.arange(count), 16)[None].repeat(24, 0)
    image = np.array(COLOURS, np.uint8)[label]
    image.setflags(write=False)
    return image, label


def assert_probabilities(found: np.ndarray, shape: tuple[int, int, int]) -> None:
    assert (found.shape, found.dtype) == (shape, np.float32)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_wrong_pixels_take_the_label_of_their_colour_also_in_a_turned_image():
    image, truth = stripes()
    label = truth.copy()
    label[4:7, 5:8] = 1
    label[15, 20] = 0
    found = crf.refine_label(image, label, 2)
    assert_probabilities(found, (2, 24, 32))
    assert np.array_equal(found.argmax(0), truth)
    assert np.array_equal(crf.refine_label(image.swapaxes(0, 1), label.T, 2).argmax(0), truth.T)


def test_inter_pixel_labels_by_hand():
    # foreground wins; background wins, but not by twice; background wins by more than twice
    image, stripe = stripes(3)
    maps = np.array([[0.2, 0.6, 0.9], [0.8, 0.5, 0.1]], np.float32)[:, stripe]
    found = crf.inter_pixel_label(image, maps, np.array([0, 7]))
    assert (found.shape, found.dtype) == ((24, 48), np.uint8)
    assert np.array_equal(found, np.array([7, 255, 0])[stripe])


@pytest.mark.parametrize("name", ["2007_009216", "2010_002527", "2010_005805"])
def test_inter_pixel_labels_agree_with_the_authors_program(shared, voc_subset, name):
    image = read_image(voc_subset / f"JPEGImages/{name}.jpg", upright=False)
    golden = np.load(shared / "golden/cam_full3.npz", allow_pickle=False)
    height, width = image.shape[:2]
    halved = golden[f"{name}/is_cam"].astype(np.float32)
    maps = halved.repeat(2, 1).repeat(2, 2)[:, :height, :width]
    expected = np.asarray(Image.open(shared / f"golden/ir_label_{name}.png"))
    found = crf.inter_pixel_label(image, maps, golden[f"{name}/keys"])
    assert found.shape == expected.shape
    assert (found == expected).mean() >= 0.999


@pytest.mark.parametrize("module", ["pydensecrf", "pydensecrf.densecrf"])
def test_a_missing_package_is_refused_by_name(monkeypatch, module):
    crf.require()
    monkeypatch.setitem(sys.modules, "pydensecrf", sys.modules.get("pydensecrf"))
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"^pydensecrf: ") as error:
        crf.require()
    assert "\n" not in str(error.value)


def test_one_iteration_moves_less_than_ten():
    image, truth = stripes()
    rng = np.random.default_rng(0)
    is_truth = np.arange(2)[:, None, None] == truth
    noise = rng.uniform(-0.3, 0.3, is_truth.shape)
    maps = np.where(is_truth, 0.6, 0.4) + noise
    plain = maps / maps.sum(0)
    by_ten = np.abs(crf.refine_maps(image, maps) - plain).mean()
    by_one = np.abs(crf.refine_maps(image, maps, iterations=1) - plain).mean()
    assert 0 < by_one < by_ten
