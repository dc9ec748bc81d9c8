"""Draw a small weakly supervised segmentation dataset, to try the whole method without a download.

Six kinds of objects stand on cluttered backgrounds. Each has a large plain body, whose colour does
not depend on its kind, and a small mark on the body, whose pattern and colour do. A classifier of
the tags needs only the mark, so its class activation map covers little else. The body resembles
itself and not the background, so a method that gathers similar cells can recover the whole object.
The masks are exact.

    python -m data.demo OUT_DIR [--images 240] [--size 128] [--seed 0]

Writes OUT_DIR/images/NAME.jpg, masks/NAME.png (0 background, then the lines of classes.txt),
classes.txt, tags.csv and settings.json.
"""

import argparse
import colorsys
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from errors import InputError

from .annotations import format_tags

FORMAT = 1  # raise it when the same settings give other images
SUPERSAMPLE = 3  # odd, so that one sample, which decides the mask, lies on the centre of each pixel
JPEG_QUALITY = 92
MIN_SIZE = 32
MARK_RADIUS = 0.34  # of the object's radius
COUNT_ODDS = (0.45, 0.4, 0.15)  # of one, two and three objects in an image
RADII = ((0.32, 0.45), (0.23, 0.30), (0.18, 0.23))  # of the image's side, by the number of objects
PLACING_TRIES = 200

Field = np.ndarray  # (H, W), a value for each sample of an image


# The bodies: where each is, about in the unit disc; x to the right, y down.


def ellipse(
    x: Field, y: Field, half_width: float, half_height: float | Field, power: float = 2
) -> Field:
    """Where the (super)ellipse around the origin is."""
    return np.abs(x / half_width) ** power + np.abs(y / half_height) ** power < 1


def fish(x: Field, y: Field) -> Field:
    trunk = ellipse(x - 0.17, y, 0.8, 0.6)
    tail = (x < -0.45) & (x > -0.95) & (np.abs(y) < -0.3 - x)
    return trunk | tail


def beetle(x: Field, y: Field) -> Field:
    trunk = ellipse(x, y - 0.12, 0.68, 0.82)
    head = ellipse(x, y + 0.7, 0.4, 0.28)
    return trunk | head


def kite(x: Field, y: Field) -> Field:
    half_height = np.where(y < -0.2, 0.75, 1.15)
    return ellipse(x, y + 0.2, 0.82, half_height, 1.15)


def mushroom(x: Field, y: Field) -> Field:
    cap = ellipse(x, y - 0.12, 0.95, 0.95) & (y < 0.22)
    stem = ellipse(x, y - 0.3, 0.38, 0.66, 4)
    return cap | stem


def snail(x: Field, y: Field) -> Field:
    shell = ellipse(x + 0.14, y + 0.1, 0.7, 0.72)
    foot = ellipse(x, y - 0.62, 0.98, 0.2, 3)
    neck = ellipse(x - 0.76, y - 0.28, 0.2, 0.5, 3)
    return shell | foot | neck


def lantern(x: Field, y: Field) -> Field:
    glass = ellipse(x, y - 0.08, 0.7, 0.8, 3.5)
    lid = ellipse(x, y + 0.76, 0.34, 0.2, 5)
    return glass | lid


BODIES = {
    "fish": fish,
    "beetle": beetle,
    "kite": kite,
    "mushroom": mushroom,
    "snail": snail,
    "lantern": lantern,
}
KINDS = tuple(BODIES)


# The marks: where the strokes of each are, in the unit disc.


def stripes(x: Field, y: Field) -> Field:
    return np.sin(2.6 * math.pi * x) > 0


def dots(x: Field, y: Field) -> Field:
    right = (1.9 * x) % 1 - 0.5
    down = (1.9 * y + 0.5) % 1 - 0.5
    return np.hypot(right, down) < 0.33


def checks(x: Field, y: Field) -> Field:
    return (np.floor(2.2 * x) + np.floor(2.2 * y)) % 2 == 0


def rings(x: Field, y: Field) -> Field:
    return np.cos(2.4 * math.pi * np.hypot(x, y)) > 0


def spiral(x: Field, y: Field) -> Field:
    angle = np.arctan2(y, x)
    return np.sin(3.4 * math.pi * np.hypot(x, y) + angle) > 0


def cross(x: Field, y: Field) -> Field:
    return np.minimum(np.abs(x), np.abs(y)) < 0.24


@dataclass(frozen=True)
class Mark:
    strokes: Callable[[Field, Field], Field]
    colour: tuple[float, float, float]  # red, green, blue in [0, 1]


MARKS = {
    "fish": Mark(stripes, (0.05, 0.15, 0.65)),
    "beetle": Mark(dots, (0.08, 0.08, 0.10)),
    "kite": Mark(checks, (0.80, 0.05, 0.10)),
    "mushroom": Mark(rings, (0.75, 0.0, 0.60)),
    "snail": Mark(spiral, (0.0, 0.40, 0.20)),
    "lantern": Mark(cross, (0.85, 0.40, 0.0)),
}


@dataclass(frozen=True)
class PlacedObject:
    """An object and its place in an image of side samples a side."""

    kind: int  # index of KINDS
    x: float
    y: float
    radius: float
    angle: float  # radians
    flip: int  # -1 if mirrored, else 1


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour as red, green and blue in [0, 1]; hue in turns, any number."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], rows: int, columns: int
) -> Field:
    """Noise of about unit deviation, interpolated from rows x columns independent values."""
    height, width = shape
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def background_colour(rng: np.random.Generator, hue: float) -> np.ndarray:
    """Any colour around the hue."""
    return hsv(hue + rng.normal(0, 0.06), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.95))


def draw_background(rng: np.random.Generator, side: int, hue: float) -> np.ndarray:
    """A gradient with clutter in colours around the hue, under noise: (side, side, 3)."""
    ramp = smooth_noise(rng, (side, side), 2, 2)[..., None] * 0.4 + 0.5
    first = background_colour(rng, hue)
    second = background_colour(rng, hue)
    image = (first * ramp + second * (1 - ramp)).astype(np.float32)
    draw_clutter(rng, image, hue)
    wide = smooth_noise(rng, (side, side), 12, 12)
    fine = smooth_noise(rng, (side, side), side // 4, side // 4)
    noise = 0.05 * wide + 0.07 * fine
    return image * (1 + noise[..., None])


def draw_clutter(rng: np.random.Generator, image: np.ndarray, hue: float) -> None:
    """Draw blobs, scraps and lines in colours around the hue into an image (side, side, 3)."""
    side = len(image)
    for _ in range(rng.integers(25, 45)):
        centre = rng.uniform(0, side, 2)
        shape = rng.integers(3)
        if shape == 0:
            axes = rng.uniform(0.02, 0.12, 2) * side
            blob = (tuple(centre), tuple(2 * axes), rng.uniform(0, 180))
            cv2.ellipse(image, blob, background_colour(rng, hue).tolist(), -1)
        elif shape == 1:
            num_corners = rng.integers(3, 6)
            corners = centre + rng.uniform(-0.12, 0.12, (num_corners, 2)) * side
            colour = background_colour(rng, hue).tolist()
            cv2.fillPoly(image, [corners.astype(np.int32)], colour)
        else:
            end = centre + rng.uniform(-0.4, 0.4, 2) * side
            colour = background_colour(rng, hue).tolist()
            width = int(rng.uniform(0.005, 0.025) * side) + 1
            cv2.line(image, centre.astype(int), end.astype(int), colour, width)


def place_objects(rng: np.random.Generator, side: int, first_kind: int) -> list[PlacedObject]:
    """One to three objects that hardly touch, the first of first_kind; that alone if none fits."""
    count = rng.choice(len(COUNT_ODDS), p=COUNT_ODDS) + 1
    others = rng.permutation([kind for kind in range(len(KINDS)) if kind != first_kind])
    kinds = [first_kind, *others[: count - 1].tolist()]
    if count > 1 and rng.random() < 0.1:
        kinds[1] = first_kind
    for _ in range(PLACING_TRIES):
        radii = rng.uniform(*RADII[count - 1], count) * side
        centres = rng.uniform(0.9 * radii, side - 0.9 * radii, (2, count)).T
        if are_apart(centres, radii):
            break
    else:
        kinds = kinds[:1]
    placed = []
    for kind, (x, y), radius in zip(kinds, centres.tolist(), radii.tolist()):
        angle = rng.uniform(-0.7, 0.7)
        flip = 1 if rng.random() < 0.5 else -1
        placed.append(PlacedObject(kind, x, y, radius, angle, flip))
    return placed


def are_apart(centres: np.ndarray, radii: np.ndarray) -> bool:
    """Whether discs hardly touch: centres (N, 2), radii (N,)."""
    for a, b in itertools.combinations(range(len(radii)), 2):
        distance = np.hypot(*(centres[a] - centres[b]))
        if distance <= 0.93 * (radii[a] + radii[b]):
            return False
    return True


def draw_object(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    hue: float,
    placed: PlacedObject,
) -> None:
    """Draw an object into an image (side, side, 3) and its class id into the mask (side, side)."""
    kind = KINDS[placed.kind]
    box = box_around(placed, len(mask))
    x, y = object_coordinates(placed, box)
    x, y = bend(rng, x, y)
    body = BODIES[kind](x, y)
    inner = cv2.erode(body.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    rim = body & ~inner

    colour = hsv(hue, rng.uniform(0.55, 0.85), rng.uniform(0.6, 0.9))
    grain = 0.03 * smooth_noise(rng, x.shape, 64, 16)  # wider than high: a brushed surface
    light = 1 + rng.uniform(-0.12, 0.12) * x - 0.12 * y + grain
    paint = colour * light[..., None]
    draw_mark(rng, paint, MARKS[kind], x, y)
    paint[rim] = 0.6 * colour

    image[box][body] = paint[body]
    mask[box][body] = placed.kind + 1


def box_around(placed: PlacedObject, side: int) -> tuple[slice, slice]:
    """The rows and the columns of the image that an object may cover."""
    reach = 1.35 * placed.radius
    return clipped_slice(placed.y, reach, side), clipped_slice(placed.x, reach, side)


def clipped_slice(centre: float, reach: float, side: int) -> slice:
    """The samples at most `reach` from the centre that lie in an image of this side."""
    first = int(centre - reach)
    last = int(centre + reach)
    return slice(max(0, first), min(side, last + 1))


def object_coordinates(placed: PlacedObject, box: tuple[slice, slice]) -> tuple[Field, Field]:
    """The samples of a box in the object's own frame, with its radius as the unit."""
    down, right = np.mgrid[box].astype(np.float32)
    right = (right - placed.x) / placed.radius
    down = (down - placed.y) / placed.radius
    cos = math.cos(placed.angle)
    sin = math.sin(placed.angle)
    x = placed.flip * (cos * right + sin * down)
    y = cos * down - sin * right
    return x, y


def bend(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field]:
    """Bend and stretch coordinates a little, so that no two objects are alike."""
    bend_x, bend_y = rng.uniform(-0.045, 0.045, 2).tolist()
    phase_x, phase_y = rng.uniform(0, 2 * math.pi, 2).tolist()
    stretch = rng.uniform(1, 1.15)
    bent_x = x + bend_x * np.sin(3 * y + phase_x)
    bent_y = y * stretch + bend_y * np.sin(3 * x + phase_y)
    return bent_x, bent_y


def draw_mark(rng: np.random.Generator, paint: np.ndarray, mark: Mark, x: Field, y: Field) -> None:
    """Draw a mark near the middle of a body into its paint (H, W, 3)."""
    x = (x - rng.uniform(-0.25, 0.25)) / MARK_RADIUS
    y = (y - rng.uniform(-0.25, 0.05)) / MARK_RADIUS
    distance = np.hypot(x, y)
    disc = distance < 1.1
    ring = distance > 0.96
    paint[disc] = 0.45 * paint[disc] + 0.55  # the body's own hue, paler
    drawn = disc & (mark.strokes(x, y) | ring)
    paint[drawn] = np.array(mark.colour) * rng.uniform(0.85, 1.1)


def draw_image(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) uint8 RGB and its mask (size, size) uint8.

    They are the same for the same numbers.
    """
    rng = np.random.default_rng([seed, index])
    side = size * SUPERSAMPLE
    hue = rng.random()
    image = draw_background(rng, side, hue)
    mask = np.zeros((side, side), np.uint8)
    for placed in place_objects(rng, side, index % len(KINDS)):
        # far from the background's hue, which is any hue: a body's colour says nothing of its kind
        opposite = hue + 0.5 + rng.uniform(-0.22, 0.22)
        draw_object(rng, image, mask, opposite, placed)
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    small += 0.015 * rng.standard_normal(small.shape, dtype=np.float32)
    pixels = (small.clip(0, 1) * 255).round().astype(np.uint8)
    centre = SUPERSAMPLE // 2
    return pixels, mask[centre::SUPERSAMPLE, centre::SUPERSAMPLE]


def mask_palette() -> list[int]:
    """Red, green and blue of each class id in the masks: black, then a bright colour a kind."""
    palette = [0, 0, 0]
    for i in range(len(KINDS)):
        colour = hsv(i / len(KINDS), 0.75, 0.95)
        palette += [int(255 * channel) for channel in colour]
    return palette


def write_files(folder: Path, images: int, size: int, seed: int) -> None:
    """Draw all images into a folder that does not exist."""
    palette = mask_palette()
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for index in range(images):
        name = f"demo_{index:04d}"
        image, mask = draw_image(seed, index, size)
        Image.fromarray(image).save(folder / f"images/{name}.jpg", quality=JPEG_QUALITY)
        mask_image = Image.fromarray(mask)
        mask_image.putpalette(palette)
        mask_image.save(folder / f"masks/{name}.png")
        tags = [KINDS[class_id - 1] for class_id in np.unique(mask) if class_id]
        rows.append((name, tags))
    (folder / "classes.txt").write_text("".join(f"{kind}\n" for kind in KINDS), encoding="utf-8")
    (folder / "tags.csv").write_text(format_tags(rows), encoding="utf-8", newline="")


def draw_dataset(out_dir: str | Path, images: int = 240, size: int = 128, seed: int = 0) -> None:
    """Draw the dataset into out_dir, unless it is there already.

    Images are size x size pixels; the kinds of the first objects take turns, so six images show
    every kind.
    Raises InputError for numbers out of range, and if out_dir holds anything else or cannot be
    written.
    """
    if images < 1 or size < MIN_SIZE or seed < 0:
        raise InputError(
            f"{out_dir}: cannot be drawn; give at least 1 image, a size of at least {MIN_SIZE} "
            "and a seed of at least 0"
        )
    out_dir = Path(out_dir).absolute()
    # "pictures" is part of the file's format
    settings = json.dumps({"format": FORMAT, "pictures": images, "size": size, "seed": seed}) + "\n"
    try:
        if has_settings(out_dir, settings):
            return
        if out_dir.exists() and any(out_dir.iterdir()):
            raise InputError(
                f"{out_dir}: exists and is not this demo dataset; "
                "delete it or choose another folder"
            )
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".demo.") as temporary:
            # a folder inside, as other users may not enter the temporary one itself
            folder = Path(temporary) / "demo"
            write_files(folder, images, size, seed)
            (folder / "settings.json").write_text(settings)
            os.replace(folder, out_dir)
    except OSError as error:
        raise InputError(
            f"{out_dir}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def has_settings(folder: Path, settings: str) -> bool:
    """Whether a folder holds the dataset of these settings."""
    path = folder / "settings.json"
    return path.is_file() and path.read_bytes() == settings.encode()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.demo", description="Draw a small demo dataset."
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument(
        "--images", "--pictures", type=int, default=240, help="number of images (default 240)"
    )
    parser.add_argument(
        "--size", type=int, default=128, help="side of an image in pixels (default 128)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawing (default 0)")
    args = parser.parse_args(argv)
    try:
        draw_dataset(args.out_dir, args.images, args.size, args.seed)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.out_dir}: {args.images} images of {len(KINDS)} classes")


if __name__ == "__main__":
    main()
