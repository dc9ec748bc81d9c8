"""Images of results: what is painted where, and files that open again."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from tool.visualize import (
    SheetRow,
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

HEIGHT = 12
WIDTH = 16
GREY = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
WHITE = [255, 255, 255, 255]
RED = [128, 0, 0, 255]  # VOC's colour of class 1
GREEN = [0, 128, 0, 255]  # of class 2


def grey_crops(count: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return torch.full((count, 3, height, width), 100, dtype=torch.uint8)


def test_an_overlay_paints_its_classes_and_leaves_the_background():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:6, 3:6] = 1
    painted = overlay(GREY, mask)
    assert painted.shape == GREY.shape
    assert painted.dtype == np.uint8
    assert (painted[mask == 0] == 100).all()
    red, green, blue = painted[4, 4].astype(int)
    assert green == blue < 100 < red


def test_heat_runs_from_blue_to_red_and_ends_at_one():
    activation = np.zeros((HEIGHT, WIDTH), np.float32)
    activation[:, 8:12] = 1.5
    activation[:, 12:] = 1.0
    painted = heat(GREY, activation)
    assert painted.shape == GREY.shape
    assert painted.dtype == np.uint8
    cold_red, _, cold_blue = painted[0, 0]
    assert cold_blue > cold_red
    hot_red, _, hot_blue = painted[0, 15]
    assert hot_red > hot_blue
    assert np.array_equal(painted[0, 8], painted[0, 15])


def check_sheet(sheet: np.ndarray, rows: int) -> None:
    """Fail unless a sheet has so many rows of crops, and three columns."""
    assert sheet.shape == (rows * HEIGHT, 3 * WIDTH, 3)
    assert sheet.dtype == np.uint8


@pytest.mark.parametrize(
    ("batch", "rows", "expected"),
    [
        (3, 2, 2),
        (3, 4, 3),
        (1, 4, 1),
    ],
)
class TestSheetsHaveARowAnImageAndThreeColumns:
    """The background paints nothing, so crops and masks stay grey."""

    def test_training(self, batch, rows, expected):
        maps = torch.zeros(batch, 3, 3, 4, requires_grad=True)
        tags = torch.tensor([[0.0, 1.0]] * batch)
        is_cam = maps.detach().bfloat16()
        sheet = training_sheet(grey_crops(batch), maps, is_cam, tags, rows)
        check_sheet(sheet, expected)
        assert (sheet[:, :WIDTH] == 100).all()

    def test_edges(self, batch, rows, expected):
        target = torch.zeros(batch, HEIGHT, WIDTH, dtype=torch.uint8)
        logits = torch.zeros(batch, 1, 3, 4, requires_grad=True)
        sheet = edge_sheet(grey_crops(batch), target, logits, rows)
        check_sheet(sheet, expected)
        crops_and_labels, edges = np.split(sheet, [2 * WIDTH], axis=1)
        assert (crops_and_labels == 100).all()
        # a logit of 0 is an even chance, between red and blue
        red, green, blue = np.moveaxis(edges, 2, 0)
        assert (green > np.maximum(red, blue)).all()

    def test_segmentation(self, batch, rows, expected):
        target = torch.zeros(batch, HEIGHT, WIDTH, dtype=torch.uint8)
        logits = torch.zeros(batch, 3, 3, 4, requires_grad=True)
        sheet = segmentation_sheet(grey_crops(batch), target, logits, rows)
        check_sheet(sheet, expected)
        assert (sheet == 100).all()


def test_segmentation_sheet_shows_target_and_prediction():
    target = torch.zeros(2, 8, 8, dtype=torch.uint8)
    target[1, :, 4:] = 2
    target[1, 0] = 255
    logits = torch.zeros(2, 4, 2, 2).bfloat16()
    logits[1, 3, 0, 1] = 5  # class 3 in the upper right quarter
    prediction = np.zeros((8, 8), np.uint8)
    prediction[:4, 4:] = 3

    sheet = segmentation_sheet(grey_crops(2, 8, 8), target, logits)
    first_row, second_row = np.split(sheet, 2)
    crop, target_panel, prediction_panel = np.split(second_row, 3, axis=1)
    assert (first_row == 100).all()
    assert np.array_equal(target_panel, overlay(crop, target[1].numpy()))
    assert np.array_equal(prediction_panel, overlay(crop, prediction))


def check_image_file(path, image_format: str) -> None:
    """Fail unless the file holds a drawing of this format."""
    with Image.open(path) as image:
        assert image.format == image_format
        assert min(image.size) > 100
        colours = np.unique(np.asarray(image.convert("RGB")))
        assert len(colours) > 2


def test_contact_sheets_are_readable_files(tmp_path):
    upright = GREY.swapaxes(0, 1)
    rows = [SheetRow("first\nmIoU $50.0", [GREY, GREY]), SheetRow("猫", [upright, upright])]
    contact_sheet(rows, ["image", "label"], tmp_path / "new/sheet.jpg")
    check_image_file(tmp_path / "new/sheet.jpg", "JPEG")
    contact_sheet([SheetRow("only", [GREY])], ["image"], tmp_path / "small.png")
    check_image_file(tmp_path / "small.png", "PNG")
    assert plt.get_fignums() == []


def test_charts_are_readable_files(tmp_path):
    columns = {
        "IS-CAM": {"background": 80.0, "cat": None},
        "general CAM": {"background": 70.0, "cat": None},
    }
    bar_chart(columns, "3 images", tmp_path / "bars.png")
    check_image_file(tmp_path / "bars.png", "PNG")
    assert plt.get_fignums() == []


def test_masks_have_an_outline_within_a_white_line():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:35, 5:30] = 1
    mask[5:35, 30:55] = 2
    layer = mask_layer(mask)
    alpha = layer[..., 3]
    assert (alpha[mask == 0] == 0).all()
    assert 0 < alpha[20, 15] < 255  # a tint
    for column in (5, 29, 30):
        assert layer[20, column].tolist() == WHITE
    assert layer[20, 6].tolist() == RED
    assert layer[20, 31].tolist() == GREEN


def test_ignored_pixels_and_the_edge_of_the_image_have_no_outline():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:35, 5:30] = 1
    mask[:3] = 255
    ignored = mask_layer(mask)[:3].reshape(-1, 4)
    assert len(np.unique(ignored, axis=0)) == 1
    assert ignored[0, 3] < 255
    full = mask_layer(np.full((4, 4), 7, np.uint8))
    assert full[..., 3].max() < 255


@pytest.fixture
def mask_with_a_class_at_the_edge():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 10:40] = 3
    mask[0:12, 70:80] = 9
    mask[55:] = 255
    return mask


def test_names_stand_inside_their_masks(mask_with_a_class_at_the_edge):
    places = name_places(mask_with_a_class_at_the_edge)
    assert places.keys() == {3, 9}
    for class_id, (x, y) in places.items():
        assert mask_with_a_class_at_the_edge[y, x] == class_id
    _, y = places[3]
    assert 20 <= y < 40  # not at its border


def test_names_are_written_within_the_image(mask_with_a_class_at_the_edge):
    image = np.full((60, 80, 3), 100, np.uint8)
    class_names = {3: "cat", 9: "猫 with a long name"}
    named = overlay(image, mask_with_a_class_at_the_edge, class_names)
    plain = overlay(image, mask_with_a_class_at_the_edge)
    is_written = (named != plain).any(2)
    assert is_written[:12].any()
    assert is_written[20:40, 10:40].any()


def test_a_mask_of_background_has_no_name():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    assert np.array_equal(overlay(GREY, mask, {}), GREY)


def test_heat_layers_are_the_more_opaque_the_stronger():
    layer = heat_layer(np.array([[0.0, 0.5, 1.0, 7.0]]))
    assert layer.shape == (1, 4, 4)
    none, half, full, above = layer[0, :, 3]
    assert none == 0 < half < full < 255
    assert full == above
