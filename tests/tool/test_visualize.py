"""Images of results: what is painted where, and PNGs that open again with the shape that was meant."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from tool.visualize import (
    bar_chart,
    contact_sheet,
    edge_sheet,
    heat,
    heat_layer,
    mask_layer,
    name_places,
    overlay,
    segmentation_sheet,
    training_sheet,
)

GREY = np.full((12, 16, 3), 100, np.uint8)


def test_overlays_leave_the_background_and_heat_runs_from_blue_to_red():
    label, activation = np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.float32)
    label[3:6, 3:6] = 1
    painted = overlay(GREY, label)
    assert (painted[label == 0] == 100).all()
    red, green, blue = painted[4, 4].astype(int)
    assert green == blue < 100 < red  # VOC's class 1 is dark red
    activation[:, 8:] = [[1.5] * 4 + [1.0] * 4]  # what lies above 1 counts as 1
    found = heat(GREY, activation)
    assert (found.shape, found.dtype) == (painted.shape, painted.dtype) == ((12, 16, 3), np.uint8)
    assert found[0, 0, 2] > found[0, 0, 0] and found[0, 15, 0] > found[0, 15, 2]
    assert np.array_equal(found[0, 8], found[0, 15])


@pytest.mark.parametrize(("batch", "rows", "expected"), [(3, 2, 2), (3, 4, 3), (1, 4, 1)])
def test_sheets_have_a_row_an_image_and_three_columns(batch, rows, expected):
    image, label = (
        torch.full((batch, 3, 12, 16), 100, dtype=torch.uint8),
        torch.zeros(batch, 12, 16, dtype=torch.uint8),
    )
    maps = torch.zeros(batch, 3, 3, 4, requires_grad=True)
    training = training_sheet(
        image, maps, maps.detach().bfloat16(), torch.tensor([[0.0, 1.0]] * batch), rows
    )
    edges, masks = (
        edge_sheet(image, label, maps[:, :1], rows),
        segmentation_sheet(image, label, maps, rows),
    )
    for sheet, unpainted in ((training, 16), (edges, 32), (masks, 48)):  # background paints nothing
        assert (sheet.shape, sheet.dtype) == ((expected * 12, 3 * 16, 3), np.uint8)
        assert (sheet[:, :unpainted] == 100).all()
    assert (
        edges[:, 32:, 1] > edges[:, 32:, [0, 2]].max(2)
    ).all()  # a logit of 0 is an even chance, between red and blue


def test_segmentation_sheet_shows_label_and_prediction():
    label, logits = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, 4, 2, 2).bfloat16()
    label[1, :, 4:], label[1, 0] = 2, 255
    logits[1, 3, 0, 1] = 5  # class 3 in the upper right quarter
    sheet = segmentation_sheet(torch.full((2, 3, 8, 8), 100, dtype=torch.uint8), label, logits)
    prediction = np.zeros((8, 8), np.uint8)
    prediction[:4, 4:] = 3
    assert (sheet[:8] == 100).all()
    assert np.array_equal(sheet[8:, 8:16], overlay(sheet[8:, :8], label[1].numpy()))
    assert np.array_equal(sheet[8:, 16:], overlay(sheet[8:, :8], prediction))


def test_sheets_and_charts_are_readable_files(tmp_path):
    rows = [("first\nmIoU $50.0", [GREY, GREY]), ("猫", [GREY.swapaxes(0, 1)] * 2)]
    contact_sheet(rows, ["image", "label"], tmp_path / "new/sheet.jpg")
    contact_sheet([("only", [GREY])], ["image"], tmp_path / "small.png")
    columns = {
        title: {"background": value, "cat": None}
        for title, value in (("IS-CAM", 80.0), ("general CAM", 70.0))
    }
    bar_chart(columns, "3 images", tmp_path / "bars.png")
    for name, kind in {"new/sheet.jpg": "JPEG", "small.png": "PNG", "bars.png": "PNG"}.items():
        with Image.open(tmp_path / name) as image:
            assert image.format == kind and min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("RGB")))) > 2
    assert plt.get_fignums() == []


def test_masks_have_an_outline_within_a_white_line_and_ignored_pixels_have_none():
    label = np.zeros((40, 60), np.uint8)
    label[5:35, 5:30], label[5:35, 30:55], label[:3] = 1, 2, 255
    layer = mask_layer(label)
    assert (layer[label == 0][:, 3] == 0).all() and (
        0 < layer[20, 15, 3] < 255
    )  # clear, and a tint
    assert layer[20, 5].tolist() == layer[20, 29].tolist() == layer[20, 30].tolist() == [255] * 4
    assert layer[20, 6].tolist() == [128, 0, 0, 255] and layer[20, 31].tolist() == [
        0,
        128,
        0,
        255,
    ]  # VOC's first colours
    assert len(np.unique(layer[:3].reshape(-1, 4), axis=0)) == 1 and layer[0, 0, 3] < 255
    assert (
        mask_layer(np.full((4, 4), 7, np.uint8))[..., 3].max() < 255
    )  # the image's edge is none of the mask's


def test_names_stand_inside_their_masks_and_within_the_image():
    label = np.zeros((60, 80), np.uint8)
    label[10:50, 10:40], label[0:12, 70:80], label[55:] = 3, 9, 255
    assert name_places(label).keys() == {3, 9}
    for key, (x, y) in name_places(label).items():
        assert label[y, x] == key
    assert 20 <= name_places(label)[3][1] < 40  # not at its border
    image = np.full((60, 80, 3), 100, np.uint8)
    named, plain = (
        overlay(image, label, {3: "cat", 9: "猫 with a long name"}),
        overlay(image, label),
    )
    assert (named != plain).any(2)[:12, :80].any() and (named != plain).any(2)[20:40, 10:40].any()
    assert np.array_equal(overlay(image, np.zeros_like(label), {}), image)


def test_heat_layers_are_the_more_opaque_the_stronger():
    layer = heat_layer(np.array([[0.0, 0.5, 1.0, 7.0]]))
    assert (
        layer.shape == (1, 4, 4)
        and layer[0, 0, 3] == 0 < layer[0, 1, 3] < layer[0, 2, 3] == layer[0, 3, 3] < 255
    )
