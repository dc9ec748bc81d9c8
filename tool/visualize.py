"""Images of results: overlays, contact sheets and bar charts."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from data.images import IGNORE

from .label_file import palette
from .outputs import atomic_write

matplotlib.use("Agg")
from matplotlib import font_manager
from matplotlib import pyplot as plt

FONT = font_manager.findfont("DejaVu Sans")  # matplotlib brings it
TINT = 90  # of 255: how much of a mask's colour lies over the image
ALPHA = 3  # the channel of a layer that says how opaque it is
SHEET_DPI = 130
PANEL_INCHES = 2.2  # width of an image on a contact sheet

Panels = Callable[[int, np.ndarray], list[np.ndarray]]  # index and crop -> what is beside the crop
ClassNames = Sequence[str] | Mapping[int, str]  # by class id
Columns = dict[str, dict[str, float | None]]  # title -> class name -> percent


def mask_layer(mask: np.ndarray) -> np.ndarray:
    """Class ids (H, W) uint8 -> RGBA (H, W, 4) uint8 to lay over an image.

    Each object has a tint inside, and an outline of VOC's colour within a white line.
    The background stays clear. Pixels of IGNORE are pale and have no outline.
    """
    alpha = np.full(256, TINT, np.uint8)
    tints = np.column_stack([palette(), alpha])
    tints[0] = 0
    layer = tints[mask]

    class_ids = np.where(mask == IGNORE, 0, mask)
    is_object = class_ids > 0
    outline_width = 2 + max(mask.shape) // 600
    outline = is_object & _near_border(class_ids, outline_width + 1)
    white_line = is_object & _near_border(class_ids, 1)
    layer[outline, ALPHA] = 255
    layer[white_line] = 255
    return layer


def _near_border(class_ids: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool, whether there is a pixel of another class at most so many pixels away."""
    side = 2 * width + 1
    window = np.ones((side, side), np.uint8)
    return cv2.dilate(class_ids, window) != cv2.erode(class_ids, window)


def name_places(mask: np.ndarray) -> dict[int, tuple[int, int]]:
    """The (x, y) of each class in (H, W) uint8 that is farthest from the border of its mask.

    The name of the class stands there. The image's edge is a border, too.
    """
    pixels = np.bincount(mask.ravel(), minlength=IGNORE)
    foreground = np.flatnonzero(pixels[1:IGNORE]) + 1
    places = {}
    for class_id in foreground.tolist():
        inside = (mask == class_id).astype(np.uint8)
        distance = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)
        _, _, _, farthest = cv2.minMaxLoc(distance[1:-1, 1:-1])
        places[class_id] = farthest
    return places


def overlay(image: np.ndarray, mask: np.ndarray, class_names: ClassNames = ()) -> np.ndarray:
    """Lay `mask_layer` of class ids (H, W) uint8 over an image (H, W, 3) uint8.

    class_names: written into the masks; none by default.
    """
    layer = Image.fromarray(mask_layer(mask))
    base = Image.fromarray(image).convert("RGBA")
    painted = Image.alpha_composite(base, layer).convert("RGB")
    if class_names:
        _draw_names(painted, mask, class_names)
    return np.asarray(painted)


def _draw_names(painted: Image.Image, mask: np.ndarray, class_names: ClassNames) -> None:
    draw = ImageDraw.Draw(painted)
    font_size = max(10, max(mask.shape) // 20)
    font = ImageFont.truetype(FONT, font_size)
    for class_id, (x, y) in name_places(mask).items():
        name = class_names[class_id]
        half_width = font.getlength(name) / 2
        x = max(half_width, min(x, painted.width - half_width))
        draw.text(
            (x, y),
            name,
            "white",
            font,
            anchor="mm",
            stroke_width=font.size // 8,
            stroke_fill="black",
        )


def heat(image: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """Lay a map (H, W) in [0, 1] over an image (H, W, 3) uint8 as a heat map."""
    scaled = (np.clip(activation, 0, 1) * 255).astype(np.uint8)
    colours = _apply_colours(scaled, cv2.COLORMAP_JET)
    return cv2.addWeighted(colours, 0.5, image, 0.5, 0)


def heat_layer(activation: np.ndarray, levels: int = 24) -> np.ndarray:
    """A map (H, W) in [0, 1] -> RGBA (H, W, 4) uint8 to lay over an image.

    The stronger the map, the more opaque. Few levels make small files.
    """
    level = np.round(np.clip(activation, 0, 1) * levels)
    scaled = (level * (255 / levels)).astype(np.uint8)
    return np.dstack([_apply_colours(scaled, cv2.COLORMAP_TURBO), scaled // 4 * 3])


def _apply_colours(scaled: np.ndarray, colour_map: int) -> np.ndarray:
    """(H, W) uint8 -> RGB (H, W, 3) uint8, by one of OpenCV's colour maps."""
    bgr = cv2.applyColorMap(scaled, colour_map)
    return bgr[:, :, ::-1]


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image (H, W, 3) or a layer (H, W, 4) uint8 as JPEG or PNG, as the path says."""
    if path.suffix == ".jpg":
        options = {"format": "jpeg", "quality": 90}
    else:
        options = {"format": "png", "compress_level": 3}
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, **options)


def training_sheet(
    image: torch.Tensor, cam: torch.Tensor, is_cam: torch.Tensor, tags: torch.Tensor, rows: int = 4
) -> np.ndarray:
    """A row for each crop: the crop, CAM and IS-CAM of its first tag. See `_sheet`.

    cam, is_cam: (B, K, h, w) in [0, 1]; tags: (B, K-1).
    """

    def panels(i: int, crop: np.ndarray) -> list[np.ndarray]:
        first_class = int(tags[i].argmax()) + 1
        maps = [_resize_map(kind[i, first_class], crop) for kind in (cam, is_cam)]
        return [heat(crop, activation) for activation in maps]

    return _sheet(image, panels, rows)


def edge_sheet(
    image: torch.Tensor, target: torch.Tensor, logits: torch.Tensor, rows: int = 4
) -> np.ndarray:
    """A row for each crop: the crop, its inter-pixel labels and edges. See `_sheet`.

    target: (B, H, W) uint8; logits: (B, 1, h, w).
    """

    def panels(i: int, crop: np.ndarray) -> list[np.ndarray]:
        labels = target[i].cpu().numpy()
        edges = _resize_map(logits[i, 0].sigmoid(), crop)
        return [overlay(crop, labels), heat(crop, edges)]

    return _sheet(image, panels, rows)


def segmentation_sheet(
    image: torch.Tensor, target: torch.Tensor, logits: torch.Tensor, rows: int = 4
) -> np.ndarray:
    """A row for each crop: the crop, its pseudo label and the prediction. See `_sheet`.

    target: (B, H, W) uint8; logits: (B, K, h, w).
    """

    def panels(i: int, crop: np.ndarray) -> list[np.ndarray]:
        pseudo_label = target[i].cpu().numpy()
        prediction = logits[i].argmax(0).to(torch.uint8).cpu().numpy()
        width_and_height = crop.shape[1::-1]
        resized = cv2.resize(prediction, width_and_height, interpolation=cv2.INTER_NEAREST)
        return [overlay(crop, pseudo_label), overlay(crop, resized)]

    return _sheet(image, panels, rows)


def _sheet(image: torch.Tensor, panels: Panels, rows: int) -> np.ndarray:
    """The first images (B, 3, H, W) uint8, each beside its panels: (rows * H, 3 * W, 3) uint8."""
    lines = []
    for i, tensor in enumerate(image[:rows]):
        crop = tensor.permute(1, 2, 0).cpu().numpy()
        lines.append(np.hstack([crop, *panels(i, crop)]))
    return np.vstack(lines)


def _resize_map(activation: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """A map (h, w) of any precision at the size of an image, float32."""
    pixels = activation.detach().float().cpu().numpy()
    return cv2.resize(pixels, image.shape[1::-1])


class SheetRow(NamedTuple):
    """A row of a contact sheet."""

    caption: str
    images: Sequence[np.ndarray]  # (H, W, 3) uint8 each


def contact_sheet(
    rows: Sequence[SheetRow], titles: Sequence[str], path: Path, dpi: int = SHEET_DPI
) -> None:
    """Write a PNG or JPEG with rows of images; titles: of the columns."""
    height = min(_tallest(rows), 1.2)
    width_inches = PANEL_INCHES * len(titles)
    height_inches = PANEL_INCHES * height * len(rows) + 0.3
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(width_inches, height_inches), squeeze=False
    )
    for line, (caption, images) in zip(axes, rows):
        for axis, image in zip(line, images):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(caption, fontsize=7, parse_math=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    _write(figure, path, dpi)


def _tallest(rows: Sequence[SheetRow]) -> float:
    """The largest height of an image, as a multiple of its width."""
    heights = []
    for _, images in rows:
        heights += [image.shape[0] / image.shape[1] for image in images]
    return max(heights)


def bar_chart(columns: Columns, title: str, path: Path) -> None:
    """Write a PNG with a group of bars for each class; a class without a value has no bar."""
    class_names = list(next(iter(columns.values())))
    width_inches = max(5, 0.42 * len(class_names) + 1)
    figure, axis = plt.subplots(figsize=(width_inches, 3.6))
    width = 0.8 / len(columns)
    middle = (len(columns) - 1) / 2
    for i, (column_title, column) in enumerate(columns.items()):
        places = np.arange(len(class_names)) + (i - middle) * width
        heights = [value or 0 for value in column.values()]
        axis.bar(places, heights, width, label=column_title)
    axis.set_xticks(
        range(len(class_names)), class_names, rotation=60, ha="right", fontsize=8, parse_math=False
    )
    axis.set_ylabel("% of the union")
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.legend(fontsize=8)
    _write(figure, path)


def _write(figure: plt.Figure, path: Path, dpi: int = SHEET_DPI) -> None:
    with warnings.catch_warnings(), atomic_write(path) as temporary:
        # a name in a script that the font lacks is shown as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.tight_layout(pad=0.4)
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi)
    plt.close(figure)
