"""From images to network input: augment and scale uint8 pixels, normalize last and on the device.

The augmentations are the published ones: random long side (SIPE section 4.1) or random factor
(IRN), flip, random crop or padding.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

from .images import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Scaling:
    """The sizes at which inference reads an image."""

    scales: tuple[float, ...]  # factors of the size after shrinking
    max_side: int = 0  # larger images are shrunk to it first; 0: never


def augment(
    image: np.ndarray, resize_long: tuple[int, int], crop_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image to a random long side, flip it at random, crop or pad it at a random place.

    image: (H, W, 3) uint8; resize_long: smallest and largest long side; crop_size: C, in pixels.
    Returns the crop (C, C, 3) uint8, 0 in the padding, and (C, C) bool, True inside the image.
    """
    smallest, largest = resize_long
    long_side = rng.integers(smallest, largest + 1)
    image = resize(image, long_side / max(image.shape[:2]))
    return _flip_and_crop(image, crop_size, rng)


def augment_pair(
    image: np.ndarray,
    target: np.ndarray,
    scales: tuple[float, float],
    crop_size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resize an image and its target by a random factor, flip and crop or pad both at random.

    image: (H, W, 3) uint8; target: (H, W) uint8; scales: smallest and largest factor.
    Returns as `augment` does, and the target's crop (C, C) uint8, IGNORE in the padding.
    """
    smallest, largest = scales
    image = resize(image, rng.uniform(smallest, largest))
    height, width = image.shape[:2]
    target = np.asarray(Image.fromarray(target).resize((width, height), Image.Resampling.NEAREST))
    image_and_target = np.dstack([image, target])
    crop, inside = _flip_and_crop(image_and_target, crop_size, rng)
    target_crop = np.where(inside, crop[..., 3], np.uint8(IGNORE))
    return crop[..., :3], inside, target_crop


def jitter(image: np.ndarray, max_shift: int, rng: np.random.Generator) -> np.ndarray:
    """Shift hue, saturation and value by up to `max_shift` each: (H, W, 3) uint8 -> the same.

    The scales are OpenCV's: hue is below 180, saturation and value are at most 255.
    """
    shift = rng.integers(-max_shift, max_shift + 1, 3)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV) + shift
    hsv[..., 0] %= 180  # hues form a circle
    hsv = hsv.clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _flip_and_crop(
    image: np.ndarray, crop_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image with probability 1/2, and crop or pad it at a random place, as `augment`."""
    if rng.random() < 0.5:
        image = image[:, ::-1]
    height, width, channels = image.shape
    rows = _place_crop(height, crop_size, rng)
    columns = _place_crop(width, crop_size, rng)
    crop = np.zeros((crop_size, crop_size, channels), np.uint8)
    inside = np.zeros((crop_size, crop_size), bool)
    crop[rows.in_crop, columns.in_crop] = image[rows.in_image, columns.in_image]
    inside[rows.in_crop, columns.in_crop] = True
    return crop, inside


@dataclass(frozen=True)
class _Overlap:
    """The part that an image and its crop share along one side."""

    in_image: slice
    in_crop: slice


def _place_crop(side: int, crop_size: int, rng: np.random.Generator) -> _Overlap:
    """Where a crop and an image's side meet, at a random place; the smaller lies in the larger."""
    offset = int(rng.integers(abs(side - crop_size) + 1))
    length = min(side, crop_size)
    in_larger = slice(offset, offset + length)
    in_smaller = slice(0, length)
    if side > crop_size:
        return _Overlap(in_image=in_larger, in_crop=in_smaller)
    return _Overlap(in_image=in_smaller, in_crop=in_larger)


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 by a factor: bicubic, antialiased.

    Returns (round(H * scale), round(W * scale), 3) uint8, at least 1 pixel a side.
    """
    height, width = image.shape[:2]
    new_height = max(1, round(height * scale))
    new_width = max(1, round(width * scale))
    if (new_height, new_width) == (height, width):
        return image
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Shrink an image (H, W, 3) uint8 to a longer side of at most max_side pixels; 0: never."""
    longer_side = max(image.shape[:2])
    if not max_side or longer_side <= max_side:
        return image
    return resize(image, max_side / longer_side)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def normalize(image: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Normalize (B, 3, H, W) uint8 by ImageNet's mean and deviation -> float32, channels_last.

    inside: (B, H, W) bool; the result is 0 where it is False.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=image.device).view(3, 1, 1)
    image = image.contiguous(memory_format=torch.channels_last).float()
    image = image.div_(255).sub_(mean).div_(std)
    if inside is not None:
        image = image.mul_(inside[:, None])
    return image
