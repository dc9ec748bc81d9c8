"""From pictures to network input: augmentation and scales on uint8, normalization last and on the device.

The augmentations are the published ones: random long side (SIPE section 4.1) or random factor (IRN), flip, random crop or padding.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .images import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def augment(picture: np.ndarray, resize_long: tuple[int, int], crop_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Resize a picture to a random long side, flip it with probability 1/2, and crop or pad it at a random place.

    picture: (H, W, 3) uint8; resize_long: smallest and largest long side, pixels.
    Returns the crop (C, C, 3) uint8, 0 in the padding, and (C, C) bool, True inside the picture.
    """
    scale = rng.integers(resize_long[0], resize_long[1] + 1) / max(picture.shape[:2])
    return _flip_and_crop(resize(picture, scale), crop_size, rng)


def augment_pair(
    picture: np.ndarray, label: np.ndarray, scales: tuple[float, float], crop_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resize a picture and its label by a random factor, flip them with probability 1/2, and crop or pad them at a random place.

    picture: (H, W, 3) uint8; label: (H, W) uint8; scales: smallest and largest factor.
    Returns as `augment` does, and the label's crop (C, C) uint8, IGNORE in the padding.
    """
    picture = resize(picture, rng.uniform(*scales))
    label = np.asarray(Image.fromarray(label).resize(picture.shape[1::-1], Image.Resampling.NEAREST))
    crop, inside = _flip_and_crop(np.dstack([picture, label]), crop_size, rng)
    return crop[..., :3], inside, np.where(inside, crop[..., 3], np.uint8(IGNORE))


def jitter(picture: np.ndarray, max_shift: int, rng: np.random.Generator) -> np.ndarray:
    """Shift hue, saturation and value by up to `max_shift` each, on OpenCV's scales (180, 255, 255): (H, W, 3) uint8 -> the same."""
    shift = rng.integers(-max_shift, max_shift + 1, 3)
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV) + shift
    hsv[..., 0] %= 180
    return cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)


def _flip_and_crop(picture: np.ndarray, crop_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    source, target = zip(*(_overlap(side, crop_size, rng) for side in picture.shape[:2]))
    crop = np.zeros((crop_size, crop_size, picture.shape[2]), np.uint8)
    inside = np.zeros((crop_size, crop_size), bool)
    crop[target] = picture[source]
    inside[target] = True
    return crop, inside


def _overlap(side: int, crop_size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """The part of a picture's side and the part of the crop's side that meet, at a random place."""
    offset = int(rng.integers(abs(side - crop_size) + 1))
    length = min(side, crop_size)
    larger, smaller = slice(offset, offset + length), slice(0, length)
    return (larger, smaller) if side > crop_size else (smaller, larger)


def resize(picture: np.ndarray, scale: float) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (round(H * scale), round(W * scale), 3) uint8, at least 1 pixel: bicubic, antialiased."""
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    if (height, width) == picture.shape[:2]:
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def shrink(picture: np.ndarray, max_side: int) -> np.ndarray:
    """Shrink a picture (H, W, 3) uint8 until its longer side is at most max_side pixels; 0: never."""
    return resize(picture, min(1.0, max_side / max(picture.shape[:2]))) if max_side else picture


def strongest(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which of the maps (k, h, w) float32, k < 256, is the strongest when they are resized as by `enlarge`: (H, W) uint8.

    Two maps at a time: all maps of a large photograph would take gigabytes, and with numpy's argmax eval_cam.py takes 1.1 times as long.
    """
    label, highest = np.zeros(size, np.uint8), enlarge(maps[:1], size)[0].copy()
    for i in range(1, len(maps)):
        one = enlarge(maps[i : i + 1], size)[0]
        label[one > highest] = i
        np.maximum(highest, one, out=highest)
    return label


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps (k, h, w) float32 of a picture that was shrunk to (k, H, W), bilinear."""
    if maps.shape[1:] == tuple(size):
        return maps
    return F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)[0].numpy()


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor."""
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())


def normalize(image: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Normalize (B, 3, H, W) uint8 by ImageNet's mean and deviation -> float32, channels_last, 0 where `inside` (B, H, W) is False."""
    mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    image = image.contiguous(memory_format=torch.channels_last).float().div_(255).sub_(mean).div_(std)
    return image if inside is None else image.mul_(inside[:, None])
