"""From images to network input: augmentation and scales on uint8, normalization last and on the device.

The augmentations are the published ones: random long side (SIPE section 4.1) or random factor (IRN), flip, random crop or padding.
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
    """Resize an image to a random long side, flip it with probability 1/2, and crop or pad it at a random place.

    image: (H, W, 3) uint8; resize_long: smallest and largest long side, pixels.
    Returns the crop (C, C, 3) uint8, 0 in the padding, and (C, C) bool, True inside the image.
    """
    scale = rng.integers(resize_long[0], resize_long[1] + 1) / max(image.shape[:2])
    return _flip_and_crop(resize(image, scale), crop_size, rng)


def augment_pair(
    image: np.ndarray,
    label: np.ndarray,
    scales: tuple[float, float],
    crop_size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resize an image and its label by a random factor, flip them with probability 1/2, and crop or pad them at a random place.

    image: (H, W, 3) uint8; label: (H, W) uint8; scales: smallest and largest factor.
    Returns as `augment` does, and the label's crop (C, C) uint8, IGNORE in the padding.
    """
    image = resize(image, rng.uniform(*scales))
    label = np.asarray(Image.fromarray(label).resize(image.shape[1::-1], Image.Resampling.NEAREST))
    crop, inside = _flip_and_crop(np.dstack([image, label]), crop_size, rng)
    return crop[..., :3], inside, np.where(inside, crop[..., 3], np.uint8(IGNORE))


def jitter(image: np.ndarray, max_shift: int, rng: np.random.Generator) -> np.ndarray:
    """Shift hue, saturation and value by up to `max_shift` each, on OpenCV's scales (180, 255, 255): (H, W, 3) uint8 -> the same."""
    shift = rng.integers(-max_shift, max_shift + 1, 3)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV) + shift
    hsv[..., 0] %= 180
    return cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)


def _flip_and_crop(
    image: np.ndarray, crop_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() < 0.5:
        image = image[:, ::-1]
    source, target = zip(*(_overlap(side, crop_size, rng) for side in image.shape[:2]))
    crop = np.zeros((crop_size, crop_size, image.shape[2]), np.uint8)
    inside = np.zeros((crop_size, crop_size), bool)
    crop[target] = image[source]
    inside[target] = True
    return crop, inside


def _overlap(side: int, crop_size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """The part of an image's side and the part of the crop's side that meet, at a random place."""
    offset = int(rng.integers(abs(side - crop_size) + 1))
    length = min(side, crop_size)
    larger, smaller = slice(offset, offset + length), slice(0, length)
    return (larger, smaller) if side > crop_size else (smaller, larger)


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (round(H * scale), round(W * scale), 3) uint8, at least 1 pixel: bicubic, antialiased."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Shrink an image (H, W, 3) uint8 until its longer side is at most max_side pixels; 0: never."""
    return resize(image, min(1.0, max_side / max(image.shape[:2]))) if max_side else image


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def normalize(image: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Normalize (B, 3, H, W) uint8 by ImageNet's mean and deviation -> float32, channels_last, 0 where `inside` (B, H, W) is False."""
    mean, std = (
        torch.tensor(values, device=image.device).view(3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    image = (
        image.contiguous(memory_format=torch.channels_last).float().div_(255).sub_(mean).div_(std)
    )
    return image if inside is None else image.mul_(inside[:, None])
