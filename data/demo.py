"""Draw a small weakly supervised segmentation dataset, to try the whole method in minutes without a download.

Six kinds of objects stand on cluttered backgrounds. Each has a large plain body, whose colour does not depend on its kind, and a small
mark on the body, whose pattern and colour do. A classifier of the tags needs only the mark, so its class activation map covers little
else; the body resembles itself and not the background, so a method that gathers similar cells can recover the whole object. The masks
are exact.

    python -m data.demo OUT_DIR [--images 240] [--size 128] [--seed 0]

Writes OUT_DIR/images/NAME.jpg, masks/NAME.png (0 background, then the lines of classes.txt), classes.txt, tags.csv and settings.json.
"""

import argparse
import colorsys
import itertools
import json
import math
import os
import tempfile
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


def ellipse(
    x: Field, y: Field, half_width: float, half_height: float | Field, power: float = 2
) -> Field:
    """Where the (super)ellipse around the origin is."""
    return np.abs(x / half_width) ** power + np.abs(y / half_height) ** power < 1


BODIES = {  # where the body of each kind is, about in the unit disc; x to the right, y down
    "fish": lambda x, y: (
        ellipse(x - 0.17, y, 0.8, 0.6) | ((x < -0.45) & (x > -0.95) & (np.abs(y) < -0.3 - x))
    ),
    "beetle": lambda x, y: ellipse(x, y - 0.12, 0.68, 0.82) | ellipse(x, y + 0.7, 0.4, 0.28),
    "kite": lambda x, y: ellipse(x, y + 0.2, 0.82, np.where(y < -0.2, 0.75, 1.15), 1.15),
    "mushroom": lambda x, y: (
        (ellipse(x, y - 0.12, 0.95, 0.95) & (y < 0.22)) | ellipse(x, y - 0.3, 0.38, 0.66, 4)
    ),
    "snail": lambda x, y: (
        ellipse(x + 0.14, y + 0.1, 0.7, 0.72)
        | ellipse(x, y - 0.62, 0.98, 0.2, 3)
        | ellipse(x - 0.76, y - 0.28, 0.2, 0.5, 3)
    ),
    "lantern": lambda x, y: (
        ellipse(x, y - 0.08, 0.7, 0.8, 3.5) | ellipse(x, y + 0.76, 0.34, 0.2, 5)
    ),
}
MARKS = {  # where the strokes of each kind's mark are, in the unit disc, and their colour
    "fish": (lambda x, y: np.sin(2.6 * math.pi * x) > 0, (0.05, 0.15, 0.65)),  # stripes
    "beetle": (
        lambda x, y: np.hypot((1.9 * x) % 1 - 0.5, (1.9 * y + 0.5) % 1 - 0.5) < 0.33,
        (0.08, 0.08, 0.10),
    ),  # dots
    "kite": (
        lambda x, y: (np.floor(2.2 * x) + np.floor(2.2 * y)) % 2 == 0,
        (0.80, 0.05, 0.10),
    ),  # checks
    "mushroom": (
        lambda x, y: np.cos(2.4 * math.pi * np.hypot(x, y)) > 0,
        (0.75, 0.0, 0.60),
    ),  # rings
    "snail": (
        lambda x, y: np.sin(3.4 * math.pi * np.hypot(x, y) + np.arctan2(y, x)) > 0,
        (0.0, 0.40, 0.20),
    ),  # a spiral
    "lantern": (lambda x, y: np.minimum(np.abs(x), np.abs(y)) < 0.24, (0.85, 0.40, 0.0)),  # a cross
}
KINDS = tuple(BODIES)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour as red, green and blue in [0, 1]; hue in turns, any number."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], rows: int, columns: int
) -> Field:
    """Noise of about unit deviation, interpolated from rows x columns independent values."""
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def draw_background(rng: np.random.Generator, side: int, hue: float) -> np.ndarray:
    """A gradient with blobs, scraps and lines in colours around the hue, under noise: (side, side, 3)."""

    def colour() -> np.ndarray:
        return hsv(hue + rng.normal(0, 0.06), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.95))

    ramp = smooth_noise(rng, (side, side), 2, 2)[..., None] * 0.4 + 0.5
    image = (colour() * ramp + colour() * (1 - ramp)).astype(np.float32)
    for _ in range(rng.integers(25, 45)):
        centre = rng.uniform(0, side, 2)
        shape = rng.integers(3)
        if shape == 0:
            axes = rng.uniform(0.02, 0.12, 2) * side
            cv2.ellipse(
                image, (tuple(centre), tuple(2 * axes), rng.uniform(0, 180)), colour().tolist(), -1
            )
        elif shape == 1:
            corners = centre + rng.uniform(-0.12, 0.12, (rng.integers(3, 6), 2)) * side
            cv2.fillPoly(image, [corners.astype(np.int32)], colour().tolist())
        else:
            end = centre + rng.uniform(-0.4, 0.4, 2) * side
            cv2.line(
                image,
                centre.astype(int),
                end.astype(int),
                colour().tolist(),
                int(rng.uniform(0.005, 0.025) * side) + 1,
            )
    fine = side // 4
    noise = 0.05 * smooth_noise(rng, (side, side), 12, 12) + 0.07 * smooth_noise(
        rng, (side, side), fine, fine
    )
    return image * (1 + noise[..., None])


def place_objects(
    rng: np.random.Generator, side: int, first_kind: int
) -> list[tuple[int, float, float, float, float, int]]:
    """Kind, x, y, radius, angle and flip of one to three objects that hardly touch; only one if there is no room, of first_kind."""
    count = rng.choice(len(COUNT_ODDS), p=COUNT_ODDS) + 1
    others = rng.permutation([kind for kind in range(len(KINDS)) if kind != first_kind])
    kinds = [first_kind, *others[: count - 1].tolist()]
    if count > 1 and rng.random() < 0.1:
        kinds[1] = first_kind
    for _ in range(PLACING_TRIES):
        radii = rng.uniform(*RADII[count - 1], count) * side
        centres = rng.uniform(0.9 * radii, side - 0.9 * radii, (2, count)).T
        pairs = itertools.combinations(range(count), 2)
        if all(
            np.hypot(*(centres[a] - centres[b])) > 0.93 * (radii[a] + radii[b]) for a, b in pairs
        ):
            break
    else:
        kinds = kinds[:1]
    return [
        (kind, x, y, radius, rng.uniform(-0.7, 0.7), 1 if rng.random() < 0.5 else -1)
        for kind, (x, y), radius in zip(kinds, centres.tolist(), radii.tolist())
    ]


def draw_object(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, hue: float, spot: tuple
) -> None:
    """Draw an object of `place_objects` into the image (side, side, 3) and its class id into the mask (side, side)."""
    kind, centre_x, centre_y, radius, angle, flip = spot
    box = tuple(
        slice(max(0, int(at - 1.35 * radius)), min(len(mask), int(at + 1.35 * radius) + 1))
        for at in (centre_y, centre_x)
    )
    down, right = np.mgrid[box].astype(np.float32)
    right, down = (right - centre_x) / radius, (down - centre_y) / radius
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = flip * (cos * right + sin * down), cos * down - sin * right
    bend_x, bend_y = rng.uniform(-0.045, 0.045, 2).tolist()  # no two objects are alike
    phase_x, phase_y = rng.uniform(0, 2 * math.pi, 2).tolist()
    x, y = (
        x + bend_x * np.sin(3 * y + phase_x),
        y * rng.uniform(1, 1.15) + bend_y * np.sin(3 * x + phase_y),
    )

    body = BODIES[KINDS[kind]](x, y)
    rim = body & ~cv2.erode(body.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    colour = hsv(hue, rng.uniform(0.55, 0.85), rng.uniform(0.6, 0.9))
    grain = 0.03 * smooth_noise(rng, x.shape, 64, 16)  # wider than high: a brushed surface
    paint = colour * (1 + rng.uniform(-0.12, 0.12) * x - 0.12 * y + grain)[..., None]

    strokes, mark_colour = MARKS[KINDS[kind]]
    x, y = (
        (x - rng.uniform(-0.25, 0.25)) / MARK_RADIUS,
        (y - rng.uniform(-0.25, 0.05)) / MARK_RADIUS,
    )
    distance = np.hypot(x, y)
    disc = distance < 1.1
    paint[disc] = 0.45 * paint[disc] + 0.55  # the body's own hue, paler
    paint[disc & (strokes(x, y) | (distance > 0.96))] = np.array(mark_colour) * rng.uniform(
        0.85, 1.1
    )
    paint[rim] = 0.6 * colour
    image[box][body] = paint[body]
    mask[box][body] = kind + 1


def draw_image(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) uint8 RGB and its mask (size, size) uint8, the same for the same numbers."""
    rng = np.random.default_rng([seed, index])
    side = size * SUPERSAMPLE
    hue = rng.random()
    image = draw_background(rng, side, hue)
    mask = np.zeros((side, side), np.uint8)
    for spot in place_objects(rng, side, index % len(KINDS)):
        # far from the background's hue, which is any hue, so a body's colour does not depend on its kind
        draw_object(rng, image, mask, hue + 0.5 + rng.uniform(-0.22, 0.22), spot)
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    small += 0.015 * rng.standard_normal(small.shape, dtype=np.float32)
    centre = SUPERSAMPLE // 2
    return (small.clip(0, 1) * 255).round().astype(np.uint8), mask[
        centre::SUPERSAMPLE, centre::SUPERSAMPLE
    ]


def write_files(folder: Path, images: int, size: int, seed: int) -> None:
    """Draw all images into a folder that does not exist, with one bright colour for each kind in the masks."""
    palette = [
        0,
        0,
        0,
        *(
            int(255 * channel)
            for i in range(len(KINDS))
            for channel in hsv(i / len(KINDS), 0.75, 0.95)
        ),
    ]
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for index in range(images):
        name = f"demo_{index:04d}"
        image, mask = draw_image(seed, index, size)
        Image.fromarray(image).save(folder / f"images/{name}.jpg", quality=JPEG_QUALITY)
        palette_image = Image.fromarray(mask)
        palette_image.putpalette(palette)
        palette_image.save(folder / f"masks/{name}.png")
        rows.append((name, [KINDS[value - 1] for value in np.unique(mask) if value]))
    (folder / "classes.txt").write_text("".join(f"{kind}\n" for kind in KINDS), encoding="utf-8")
    (folder / "tags.csv").write_text(format_tags(rows), encoding="utf-8", newline="")


def draw_dataset(out_dir: str | Path, images: int = 240, size: int = 128, seed: int = 0) -> None:
    """Draw the dataset into out_dir, unless it is there already.

    Images are size x size pixels; the kinds of the first objects take turns, so six images show every kind.
    Raises InputError for numbers out of range, and if out_dir holds anything else or cannot be written.
    """
    if images < 1 or size < MIN_SIZE or seed < 0:
        raise InputError(
            f"{out_dir}: cannot be drawn; give at least 1 image, a size of at least {MIN_SIZE} and a seed of at least 0"
        )
    out_dir = Path(out_dir).absolute()
    settings = json.dumps({"format": FORMAT, "pictures": images, "size": size, "seed": seed}) + "\n"
    try:
        if (out_dir / "settings.json").is_file() and (
            out_dir / "settings.json"
        ).read_bytes() == settings.encode():
            return
        if out_dir.exists() and any(out_dir.iterdir()):
            raise InputError(
                f"{out_dir}: exists and is not this demo dataset; delete it or choose another folder"
            )
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".demo.") as temporary:
            folder = (
                Path(temporary) / "demo"
            )  # inside, as other users may not enter the temporary folder itself
            write_files(folder, images, size, seed)
            (folder / "settings.json").write_text(settings)
            os.replace(folder, out_dir)
    except OSError as error:
        raise InputError(
            f"{out_dir}: cannot be written ({error.strerror}); choose another folder"
        ) from error


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
