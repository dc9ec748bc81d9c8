"""Images of results: overlays, contact sheets and bar charts."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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


def mask_layer(label: np.ndarray) -> np.ndarray:
    """Class ids (H, W) uint8 -> RGBA (H, W, 4) uint8 to lay over an image: a tint inside, an outline of VOC's colour within a white line.

    The background stays clear. Pixels of IGNORE are pale and have no outline.
    """
    classes, width = np.where(label == IGNORE, 0, label), 2 + max(label.shape) // 600
    tints = np.column_stack([palette(), np.full(256, TINT, np.uint8)])
    tints[0] = 0
    layer = tints[label]
    layer[(classes > 0) & _near_border(classes, width + 1), 3] = 255
    layer[(classes > 0) & _near_border(classes, 1)] = 255
    return layer


def _near_border(label: np.ndarray, width: int) -> np.ndarray:
    """(H, W) whether a pixel has another class at most so many pixels away."""
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return cv2.dilate(label, window) != cv2.erode(label, window)


def name_places(label: np.ndarray) -> dict[int, tuple[int, int]]:
    """Where the name of each class stands: the (x, y) inside it that is farthest from its border, for the ids in (H, W) uint8."""
    places = {}
    for key in (
        np.flatnonzero(np.bincount(label.ravel(), minlength=IGNORE)[1:IGNORE]) + 1
    ).tolist():
        inside = np.pad((label == key).astype(np.uint8), 1)  # the image's edge is a border, too
        places[key] = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1])[3]
    return places


def overlay(
    image: np.ndarray, label: np.ndarray, names: Sequence[str] | Mapping[int, str] = ()
) -> np.ndarray:
    """Lay `mask_layer` of class ids (H, W) uint8 over an image (H, W, 3) uint8; names: of the classes, written into their masks."""
    layer = Image.fromarray(mask_layer(label))
    painted = Image.alpha_composite(Image.fromarray(image).convert("RGBA"), layer).convert("RGB")
    if names:
        draw, font = (
            ImageDraw.Draw(painted),
            ImageFont.truetype(FONT, max(10, max(label.shape) // 20)),
        )
        for key, (x, y) in name_places(label).items():
            half = font.getlength(names[key]) / 2
            x = max(half, min(x, painted.width - half))
            draw.text(
                (x, y),
                names[key],
                "white",
                font,
                anchor="mm",
                stroke_width=font.size // 8,
                stroke_fill="black",
            )
    return np.asarray(painted)


def heat(image: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """Lay a map (H, W) in [0, 1] over an image (H, W, 3) uint8 as a heat map."""
    scaled = (np.clip(activation, 0, 1) * 255).astype(np.uint8)
    return cv2.addWeighted(
        cv2.applyColorMap(scaled, cv2.COLORMAP_JET)[:, :, ::-1], 0.5, image, 0.5, 0
    )


def heat_layer(activation: np.ndarray, levels: int = 24) -> np.ndarray:
    """A map (H, W) in [0, 1] as RGBA (H, W, 4) uint8 to lay over an image: the stronger, the more opaque; few levels pack well."""
    level = (np.round(np.clip(activation, 0, 1) * levels) * (255 / levels)).astype(np.uint8)
    return np.dstack([cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[:, :, ::-1], level // 4 * 3])


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image (H, W, 3) or a layer (H, W, 4) uint8 as JPEG or PNG, as the path says."""
    options = (
        {"format": "jpeg", "quality": 90}
        if path.suffix == ".jpg"
        else {"format": "png", "compress_level": 3}
    )
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, **options)


def training_sheet(
    image: torch.Tensor, cam: torch.Tensor, is_cam: torch.Tensor, label: torch.Tensor, rows: int = 4
) -> np.ndarray:
    """Crop, CAM and IS-CAM of the first labelled class; cam and is_cam (B, K, h, w) in [0, 1], label (B, K-1). See `_sheet`."""

    def panels(i: int, crop: np.ndarray) -> list[np.ndarray]:
        shown = int(label[i].argmax()) + 1
        return [heat(crop, _enlarged(kind[i, shown], crop)) for kind in (cam, is_cam)]

    return _sheet(image, panels, rows)


def edge_sheet(
    image: torch.Tensor, label: torch.Tensor, logits: torch.Tensor, rows: int = 4
) -> np.ndarray:
    """Crop, inter-pixel label (B, H, W) uint8 and edges from logits (B, 1, h, w). See `_sheet`."""

    def panels(i: int, crop: np.ndarray) -> list[np.ndarray]:
        return [
            overlay(crop, label[i].cpu().numpy()),
            heat(crop, _enlarged(logits[i, 0].sigmoid(), crop)),
        ]

    return _sheet(image, panels, rows)


def segmentation_sheet(
    image: torch.Tensor, label: torch.Tensor, logits: torch.Tensor, rows: int = 4
) -> np.ndarray:
    """Crop, pseudo label (B, H, W) uint8 and prediction from logits (B, K, h, w). See `_sheet`."""

    def panels(i: int, crop: np.ndarray) -> list[np.ndarray]:
        prediction = logits[i].argmax(0).to(torch.uint8).cpu().numpy()
        enlarged = cv2.resize(prediction, crop.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return [overlay(crop, label[i].cpu().numpy()), overlay(crop, enlarged)]

    return _sheet(image, panels, rows)


def _sheet(
    image: torch.Tensor, panels: Callable[[int, np.ndarray], list[np.ndarray]], rows: int
) -> np.ndarray:
    """A row for each of the first images (B, 3, H, W) uint8, beside its panels: (rows * H, 3 * W, 3) uint8."""
    images = [one.permute(1, 2, 0).cpu().numpy() for one in image[:rows]]
    return np.vstack([np.hstack([image, *panels(i, image)]) for i, image in enumerate(images)])


def _enlarged(activation: torch.Tensor, image: np.ndarray) -> np.ndarray:
    return cv2.resize(activation.detach().float().cpu().numpy(), image.shape[1::-1])


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    columns: Sequence[str],
    path: Path,
    dpi: int = 130,
) -> None:
    """Write a PNG or JPEG with a row of images (H, W, 3) uint8 for every (caption, images), under column titles."""
    tallness = max(image.shape[0] / image.shape[1] for _, images in rows for image in images)
    size = (2.2 * len(columns), 2.2 * min(tallness, 1.2) * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False)
    for line, (caption, images) in zip(axes, rows):
        for axis, image in zip(line, images):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(caption, fontsize=7, parse_math=False)
    for axis, title in zip(axes[0], columns):
        axis.set_title(title, fontsize=9)
    _write(figure, path, dpi)


def bar_chart(columns: dict[str, dict[str, float | None]], title: str, path: Path) -> None:
    """Write a PNG with one group of bars a class: column title -> class name -> value in percent."""
    names = list(next(iter(columns.values())))
    figure, axis = plt.subplots(figsize=(max(5, 0.42 * len(names) + 1), 3.6))
    width = 0.8 / len(columns)
    for i, (label, column) in enumerate(columns.items()):
        heights = [
            value or 0 for value in column.values()
        ]  # a class that the truth never shows has none
        axis.bar(
            np.arange(len(names)) + (i - (len(columns) - 1) / 2) * width,
            heights,
            width,
            label=label,
        )
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8, parse_math=False)
    axis.set_ylabel("% of the union")
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.legend(fontsize=8)
    _write(figure, path)


def _write(figure: plt.Figure, path: Path, dpi: int = 130) -> None:
    with warnings.catch_warnings(), atomic_write(path) as temporary:
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # a name in a script that the font lacks is shown as boxes
        figure.tight_layout(pad=0.4)
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi)
    plt.close(figure)
