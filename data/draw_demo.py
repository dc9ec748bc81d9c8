"""Draw a small weakly supervised segmentation dataset, to try the whole method in minutes without a download.

Six kinds of things stand on cluttered backgrounds. Each has a large plain body, whose colour says nothing about its
kind, and a small mark on the body whose pattern and colour give the kind away. A classifier trained on the tags needs
only the mark, so its class activation map covers little else; the body resembles itself and not the background, so a
method that gathers resembling cells can recover the whole thing. The masks are exact.

    python -m data.draw_demo OUT_DIR [--pictures 240] [--size 128] [--seed 0]

OUT_DIR then holds images/NAME.jpg, masks/NAME.png (0 background, 1.. the line in classes.txt), classes.txt, tags.csv
(columns name and classes, the latter joined by semicolons) and settings.json.
"""

import argparse
import colorsys
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from errors import InputError

from .tables import format_tags

FORMAT = 1  # raise it when the same settings give other pictures
SUPERSAMPLE = 3  # odd, so that one sample sits on the centre of each pixel: that one decides the mask
JPEG_QUALITY = 92
SMALLEST_SIZE = 32
MARK_RADIUS = 0.34  # of the object's radius
COUNT_ODDS = (0.45, 0.4, 0.15)  # of one, two and three objects in a picture
RADII = ((0.32, 0.45), (0.23, 0.30), (0.18, 0.23))  # of the picture's side, by the number of objects
PLACING_TRIES = 200

Field = np.ndarray  # one value for each sample of the picture: (H, W)
Colour = np.ndarray  # red, green, blue from 0 to 1


class Kind(NamedTuple):
    """A class of objects; both functions take local coordinates x, y (to the right, down) and return where it is."""

    name: str
    body: Callable[[Field, Field], Field]  # within about the unit disc
    mark: Callable[[Field, Field], Field]  # the dark strokes, in the unit disc
    mark_colour: tuple[float, float, float]


class Placed(NamedTuple):
    """One object of a picture; lengths in samples."""

    kind: int
    x: float
    y: float
    radius: float
    angle: float
    flip: int


def ellipse(x: Field, y: Field, half_width: float, half_height: float, power: float = 2) -> Field:
    """Where the (super)ellipse about the origin is."""
    return np.abs(x / half_width) ** power + np.abs(y / half_height) ** power < 1


def fish_body(x: Field, y: Field) -> Field:
    tail = (x < -0.45) & (x > -0.95) & (np.abs(y) < -0.3 - x)
    return ellipse(x - 0.17, y, 0.8, 0.6) | tail


def beetle_body(x: Field, y: Field) -> Field:
    return ellipse(x, y - 0.12, 0.68, 0.82) | ellipse(x, y + 0.7, 0.4, 0.28)


def kite_body(x: Field, y: Field) -> Field:
    return ellipse(x, y + 0.2, 0.82, np.where(y < -0.2, 0.75, 1.15), 1.15)


def mushroom_body(x: Field, y: Field) -> Field:
    cap = ellipse(x, y - 0.12, 0.95, 0.95) & (y < 0.22)
    return cap | ellipse(x, y - 0.3, 0.38, 0.66, 4)


def snail_body(x: Field, y: Field) -> Field:
    shell = ellipse(x + 0.14, y + 0.1, 0.7, 0.72)
    return shell | ellipse(x, y - 0.62, 0.98, 0.2, 3) | ellipse(x - 0.76, y - 0.28, 0.2, 0.5, 3)


def lantern_body(x: Field, y: Field) -> Field:
    return ellipse(x, y - 0.08, 0.7, 0.8, 3.5) | ellipse(x, y + 0.76, 0.34, 0.2, 5)


def stripes(x: Field, y: Field) -> Field:
    return np.sin(2.6 * math.pi * x) > 0


def dots(x: Field, y: Field) -> Field:
    return np.hypot((1.9 * x) % 1 - 0.5, (1.9 * y + 0.5) % 1 - 0.5) < 0.33


def checks(x: Field, y: Field) -> Field:
    return (np.floor(2.2 * x) + np.floor(2.2 * y)) % 2 == 0


def rings(x: Field, y: Field) -> Field:
    return np.cos(2.4 * math.pi * np.hypot(x, y)) > 0


def spiral(x: Field, y: Field) -> Field:
    return np.sin(3.4 * math.pi * np.hypot(x, y) + np.arctan2(y, x)) > 0


def cross(x: Field, y: Field) -> Field:
    return np.minimum(np.abs(x), np.abs(y)) < 0.24


KINDS = (
    Kind("fish", fish_body, stripes, (0.05, 0.15, 0.65)),
    Kind("beetle", beetle_body, dots, (0.08, 0.08, 0.10)),
    Kind("kite", kite_body, checks, (0.80, 0.05, 0.10)),
    Kind("mushroom", mushroom_body, rings, (0.75, 0.0, 0.60)),
    Kind("snail", snail_body, spiral, (0.0, 0.40, 0.20)),
    Kind("lantern", lantern_body, cross, (0.85, 0.40, 0.0)),
)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """The colour as red, green, blue; hue in turns, any number."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], rows: int, columns: int) -> Field:
    """Noise of about unit deviation, of the given shape, interpolated from rows x columns independent values."""
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def draw_background(rng: np.random.Generator, side: int, hue: float) -> np.ndarray:
    """A gradient strewn with blobs, scraps and lines in colours around the hue, under noise: (side, side, 3)."""

    def colour() -> Colour:
        return hsv(hue + rng.normal(0, 0.06), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.95))

    ramp = smooth_noise(rng, (side, side), 2, 2)[..., None] * 0.4 + 0.5
    picture = (colour() * ramp + colour() * (1 - ramp)).astype(np.float32)
    for _ in range(rng.integers(25, 45)):
        centre = rng.uniform(0, side, 2)
        shape = rng.integers(3)
        if shape == 0:
            axes = rng.uniform(0.02, 0.12, 2) * side
            cv2.ellipse(picture, (tuple(centre), tuple(2 * axes), rng.uniform(0, 180)), colour().tolist(), -1)
        elif shape == 1:
            corners = centre + rng.uniform(-0.12, 0.12, (rng.integers(3, 6), 2)) * side
            cv2.fillPoly(picture, [corners.astype(np.int32)], colour().tolist())
        else:
            end = centre + rng.uniform(-0.4, 0.4, 2) * side
            ends = [tuple(int(v) for v in point) for point in (centre, end)]
            cv2.line(picture, *ends, colour().tolist(), int(rng.uniform(0.005, 0.025) * side) + 1)
    fine = side // 4
    noise = 0.05 * smooth_noise(rng, (side, side), 12, 12) + 0.07 * smooth_noise(rng, (side, side), fine, fine)
    return picture * (1 + noise[..., None])


def place_objects(rng: np.random.Generator, side: int, first_kind: int) -> list[Placed]:
    """One to three objects that hardly touch, the first of the given kind; alone where no room is found for all."""
    count = rng.choice(len(COUNT_ODDS), p=COUNT_ODDS) + 1
    others = rng.permutation([kind for kind in range(len(KINDS)) if kind != first_kind])
    kinds = [first_kind, *others[: count - 1].tolist()]
    if count > 1 and rng.random() < 0.1:
        kinds[1] = first_kind
    for _ in range(PLACING_TRIES):
        radii = rng.uniform(*RADII[count - 1], count) * side
        centres = rng.uniform(0.9 * radii, side - 0.9 * radii, (2, count)).T
        pairs = itertools.combinations(range(count), 2)
        if all(np.hypot(*(centres[a] - centres[b])) > 0.93 * (radii[a] + radii[b]) for a, b in pairs):
            break
    else:
        kinds = kinds[:1]
    return [
        Placed(kind, x, y, radius, rng.uniform(-0.7, 0.7), 1 if rng.random() < 0.5 else -1)
        for kind, (x, y), radius in zip(kinds, centres.tolist(), radii.tolist())
    ]


def window(spot: Placed, side: int) -> tuple[slice, slice]:
    """The rows and columns of samples that the object may reach."""
    reach = 1.35 * spot.radius
    rows, columns = ((max(0, int(at - reach)), min(side, int(at + reach) + 1)) for at in (spot.y, spot.x))
    return slice(*rows), slice(*columns)


def local_coordinates(rng: np.random.Generator, box: tuple[slice, slice], spot: Placed) -> tuple[Field, Field]:
    """The box's samples in the object's own frame (its radius is 1), bent a little so that no two are alike."""
    down, right = np.mgrid[box].astype(np.float32)
    right, down = (right - spot.x) / spot.radius, (down - spot.y) / spot.radius
    cos, sin = math.cos(spot.angle), math.sin(spot.angle)
    x, y = spot.flip * (cos * right + sin * down), cos * down - sin * right
    bend_x, bend_y = rng.uniform(-0.045, 0.045, 2).tolist()
    phase_x, phase_y = rng.uniform(0, 2 * math.pi, 2).tolist()
    return x + bend_x * np.sin(3 * y + phase_x), y * rng.uniform(1, 1.15) + bend_y * np.sin(3 * x + phase_y)


def draw_mark(rng: np.random.Generator, paint: np.ndarray, x: Field, y: Field, kind: Kind) -> None:
    """Draw the kind's mark into the paint (H, W, 3) of a body whose local coordinates are x, y."""
    x = (x - rng.uniform(-0.25, 0.25)) / MARK_RADIUS
    y = (y - rng.uniform(-0.25, 0.05)) / MARK_RADIUS
    distance = np.hypot(x, y)
    disc = distance < 1.1
    strokes = disc & (kind.mark(x, y) | (distance > 0.96))
    paint[disc] = 0.45 * paint[disc] + 0.55  # the body's own hue, paler
    paint[strokes] = np.array(kind.mark_colour) * rng.uniform(0.85, 1.1)


def draw_object(rng: np.random.Generator, picture: np.ndarray, mask: np.ndarray, spot: Placed, hue: float) -> None:
    """Draw the object into the picture (side, side, 3) and its class id into the mask (side, side)."""
    box = window(spot, len(mask))
    x, y = local_coordinates(rng, box, spot)
    colour = hsv(hue, rng.uniform(0.55, 0.85), rng.uniform(0.6, 0.9))
    grain = 0.03 * smooth_noise(rng, x.shape, 64, 16)  # strands longer than high: a brushed surface
    paint = colour * (1 + rng.uniform(-0.12, 0.12) * x - 0.12 * y + grain)[..., None]
    draw_mark(rng, paint, x, y, KINDS[spot.kind])

    body = KINDS[spot.kind].body(x, y)
    rim = body & ~cv2.erode(body.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    paint[rim] = 0.6 * colour
    picture[box][body] = paint[body]
    mask[box][body] = spot.kind + 1


def draw_picture(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture (size, size, 3) as uint8 RGB and its mask (size, size) as uint8, the same for the same numbers."""
    rng = np.random.default_rng([seed, index])
    side = size * SUPERSAMPLE
    hue = rng.random()
    picture = draw_background(rng, side, hue)
    mask = np.zeros((side, side), np.uint8)
    for spot in place_objects(rng, side, index % len(KINDS)):
        # Far from the background's hue; as that is any hue, a body's colour tells nothing about its kind.
        draw_object(rng, picture, mask, spot, hue + 0.5 + rng.uniform(-0.22, 0.22))
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    small += 0.015 * rng.standard_normal(small.shape, dtype=np.float32)
    centre = SUPERSAMPLE // 2
    return (small.clip(0, 1) * 255).round().astype(np.uint8), mask[centre::SUPERSAMPLE, centre::SUPERSAMPLE]


def mask_palette() -> list[int]:
    """Black for the background, then one bright colour for each kind, as the flat list that PIL takes."""
    colours = [hsv(index / len(KINDS), 0.75, 0.95) for index in range(len(KINDS))]
    return [0, 0, 0, *(int(255 * channel) for colour in colours for channel in colour)]


def write_files(folder: Path, settings: dict[str, int]) -> None:
    """Draw all pictures into the folder, which exists and is empty."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rows = []
    for index in range(settings["pictures"]):
        name = f"demo_{index:04d}"
        picture, mask = draw_picture(settings["seed"], index, settings["size"])
        Image.fromarray(picture).save(folder / "images" / f"{name}.jpg", quality=JPEG_QUALITY)
        palette_image = Image.fromarray(mask)
        palette_image.putpalette(mask_palette())
        palette_image.save(folder / "masks" / f"{name}.png")
        rows.append((name, [KINDS[value - 1].name for value in np.unique(mask) if value]))
    (folder / "classes.txt").write_text("".join(f"{kind.name}\n" for kind in KINDS), encoding="utf-8")
    (folder / "tags.csv").write_text(format_tags(rows), encoding="utf-8", newline="")
    (folder / "settings.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def is_drawn(folder: Path, settings: dict[str, int]) -> bool:
    """Whether the folder holds the whole dataset of these settings."""
    try:
        same = json.loads((folder / "settings.json").read_text(encoding="utf-8")) == settings
    except (OSError, ValueError):
        return False
    counts = {len(list(folder.glob(pattern))) for pattern in ("images/*.jpg", "masks/*.png")}
    lists_there = all((folder / name).is_file() for name in ("classes.txt", "tags.csv"))
    return same and lists_there and counts == {settings["pictures"]}


def draw_dataset(out_dir: str | Path, pictures: int = 240, size: int = 128, seed: int = 0) -> None:
    """Draw the dataset into out_dir, or leaves it as it is where it already holds this very dataset.

    Pictures are size x size pixels; the first objects' kinds take turns, so six pictures show every kind.
    Raises InputError for numbers out of range, and where out_dir holds anything else or cannot be written.
    """
    out_dir = Path(out_dir).absolute()
    if pictures < 1 or size < SMALLEST_SIZE or seed < 0:
        raise InputError(f"draw_demo: give at least 1 picture, a size of at least {SMALLEST_SIZE} and a seed from 0 up")
    settings = {"format": FORMAT, "pictures": pictures, "size": size, "seed": seed}
    try:
        if is_drawn(out_dir, settings):
            return
        if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
            raise InputError(f"{out_dir}: exists and is not this demo dataset; delete it or name another folder")
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}.") as scratch:
            folder = Path(scratch) / out_dir.name  # inside, as the scratch folder itself is closed to other users
            folder.mkdir()
            write_files(folder, settings)
            os.replace(folder, out_dir)
    except OSError as error:
        raise InputError(f"{out_dir}: cannot be written ({error.strerror}); name another folder") from error


def main(argv: list[str] | None = None) -> None:
    """The command line: draws the dataset and says where it is."""
    parser = argparse.ArgumentParser(prog="python -m data.draw_demo", description="Draw a small demo dataset.")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    draw_dataset(args.out_dir, args.pictures, args.size, args.seed)
    print(f"{args.out_dir}: {args.pictures} pictures of {len(KINDS)} classes")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
