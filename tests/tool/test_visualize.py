"""Pictures of results: what is painted where, and PNGs that open again with the shape that was meant."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from tool.visualize import bar_chart, contact_sheet, edge_sheet, heat, overlay, segmentation_sheet, training_sheet


def grey(height: int = 12, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def opened(path: Path) -> np.ndarray:
    """The file as RGB, which must be a PNG with something drawn on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels)) > 2
    return pixels


def test_overlay_paints_objects_and_leaves_the_background():
    label = np.zeros((12, 16), np.uint8)
    label[3:6, 3:6] = 1
    painted = overlay(grey(), label)
    assert (painted.shape, painted.dtype) == ((12, 16, 3), np.uint8)
    assert (painted[label == 0] == 100).all()
    red, green, blue = painted[4, 4].astype(int)
    assert green == blue < 100 < red  # VOC's class 1 is dark red


def test_heat_is_blue_where_cold_and_red_where_hot():
    activation = np.zeros((12, 16), np.float32)
    activation[:, 8:] = [[1.5] * 4 + [1.0] * 4]  # what lies above 1 counts as 1
    found = heat(grey(), activation)
    assert (found.shape, found.dtype) == ((12, 16, 3), np.uint8)
    assert found[0, 0, 2] > found[0, 0, 0]
    assert found[0, 15, 0] > found[0, 15, 2]
    assert np.array_equal(found[0, 8], found[0, 15])


@pytest.mark.parametrize(("batch", "rows", "expected"), [(3, 2, 2), (3, 4, 3), (1, 4, 1)])
def test_training_sheet_has_a_row_a_picture_and_three_columns(batch, rows, expected):
    image = torch.full((batch, 3, 12, 16), 100, dtype=torch.uint8)
    cam = torch.zeros(batch, 3, 3, 4, requires_grad=True)
    sheet = training_sheet(image, cam, cam.detach().bfloat16(), torch.tensor([[0.0, 1.0]] * batch), rows)
    assert (sheet.shape, sheet.dtype) == ((expected * 12, 3 * 16, 3), np.uint8)
    assert (sheet[:, :16] == 100).all()


def test_training_sheet_shows_the_first_labelled_class():
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    maps = torch.zeros(1, 4, 2, 2)
    maps[:, 2] = 1  # class 2 is the first that the label holds
    sheet = training_sheet(image, maps, 1 - maps, torch.tensor([[0.0, 1.0, 1.0]]))
    assert sheet[0, 8, 0] > 0 and sheet[0, 8, 2] == 0  # hot
    assert sheet[0, 16, 0] == 0 and sheet[0, 16, 2] > 0  # cold


@pytest.mark.parametrize(("batch", "rows", "expected"), [(3, 2, 2), (1, 4, 1)])
def test_edge_sheet_has_a_row_a_picture_and_three_columns(batch, rows, expected):
    image, label = torch.full((batch, 3, 12, 16), 100, dtype=torch.uint8), torch.zeros(batch, 12, 16, dtype=torch.uint8)
    sheet = edge_sheet(image, label, torch.zeros(batch, 1, 3, 4, requires_grad=True), rows)
    assert (sheet.shape, sheet.dtype) == ((expected * 12, 3 * 16, 3), np.uint8)
    assert (sheet[:, :32] == 100).all()  # a label of background paints nothing
    assert (sheet[:, 32:, 1] > sheet[:, 32:, [0, 2]].max(2)).all()  # a logit of 0 is an even chance, between red and blue


def test_edge_sheet_shows_label_and_edge():
    label = torch.tensor([[[0] * 4 + [1] * 4] * 8], dtype=torch.uint8)
    logits = torch.tensor([[[[-9.0, 9.0]] * 2]]).bfloat16()
    sheet = edge_sheet(torch.full((1, 3, 8, 8), 100, dtype=torch.uint8), label, logits)
    assert np.array_equal(sheet[:, 8:16], overlay(sheet[:, :8], label[0].numpy()))
    assert sheet[0, 16, 2] > sheet[0, 16, 0]  # cold
    assert sheet[0, 23, 0] > sheet[0, 23, 2]  # hot


@pytest.mark.parametrize(("batch", "rows", "expected"), [(3, 2, 2), (1, 4, 1)])
def test_segmentation_sheet_has_a_row_a_picture_and_three_columns(batch, rows, expected):
    image, label = torch.full((batch, 3, 12, 16), 100, dtype=torch.uint8), torch.zeros(batch, 12, 16, dtype=torch.uint8)
    logits = torch.zeros(batch, 21, 3, 4, requires_grad=True)
    sheet = segmentation_sheet(image, label, logits, rows)
    assert (sheet.shape, sheet.dtype) == ((expected * 12, 3 * 16, 3), np.uint8)
    assert (sheet == 100).all()  # background, in the label and in the prediction


def test_segmentation_sheet_shows_label_and_prediction():
    image = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    label = torch.zeros(2, 8, 8, dtype=torch.uint8)
    label[1, :, 4:], label[1, 0] = 2, 255
    logits = torch.zeros(2, 4, 2, 2).bfloat16()
    logits[1, 3, 0, 1] = 5  # class 3 in the upper right quarter
    sheet = segmentation_sheet(image, label, logits)
    prediction = np.zeros((8, 8), np.uint8)
    prediction[:4, 4:] = 3
    assert (sheet[:8] == 100).all()
    assert np.array_equal(sheet[8:, 8:16], overlay(sheet[8:, :8], label[1].numpy()))
    assert np.array_equal(sheet[8:, 16:], overlay(sheet[8:, :8], prediction))


def test_contact_sheet_is_a_readable_png(tmp_path):
    rows = [("first\nmIoU 50.0", [grey(), grey()]), ("second", [grey(16, 12), grey(16, 12)])]
    contact_sheet(rows, ["picture", "label"], tmp_path / "new/sheet.png")
    height, width, _ = opened(tmp_path / "new/sheet.png").shape
    assert height > 100 and width > 100
    assert plt.get_fignums() == []


def test_contact_sheet_of_one_picture(tmp_path):
    contact_sheet([("only", [grey()])], ["picture"], tmp_path / "sheet.png")
    opened(tmp_path / "sheet.png")


def test_bar_chart_is_a_readable_png_also_with_absent_classes(tmp_path):
    names = ["background", "cat", "dog"]
    bar_chart({"IS-CAM": [80.0, 50.0, np.nan], "general CAM": [70.0, 40.0, np.nan]}, names, "3 pictures", tmp_path / "bars.png")
    height, width, _ = opened(tmp_path / "bars.png").shape
    assert height > 100 and width > 100
    assert plt.get_fignums() == []
