"""Dense CRF: labels that follow the image's own edges (Krähenbühl, Koltun, NIPS 2011).

The settings are those of SIPE's authors. pydensecrf is imported only when it is used, as nothing
else needs it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.images import IGNORE
from errors import InputError

ITERATIONS = 10
GAUSSIAN = {"sxy": 3, "compat": 3}
BILATERAL = {"sxy": 50, "srgb": 5, "compat": 10}
LABEL_CERTAINTY = 0.7
BACKGROUND_SCALE = 0.5
LEAST_PROBABILITY = 1e-5
SEGMENTATION = {  # DeepLab-v2's, for its networks
    "gaussian": {"sxy": 1, "compat": 3},
    "bilateral": {"sxy": 67, "srgb": 3, "compat": 4},
}
SETTINGS = {
    "iterations": ITERATIONS,
    "gaussian": GAUSSIAN,
    "bilateral": BILATERAL,
    "label_certainty": LABEL_CERTAINTY,
    "background_scale": BACKGROUND_SCALE,  # of inter-pixel labels
}
HOW_TO_INSTALL = (  # in two steps: pydensecrf2 pins a Cython that does not know Python 3.13
    "it needs a C++ compiler and Python's headers; install it with: "
    "python -m pip install -c requirements-crf.txt cython setuptools && "
    "python -m pip install --no-build-isolation -r requirements-crf.txt"
)


@dataclass(frozen=True)
class Terms:
    """The pairwise terms of the CRF and its number of iterations."""

    gaussian: dict[str, Any]
    bilateral: dict[str, Any]
    iterations: int


AUTHORS_TERMS = Terms(GAUSSIAN, BILATERAL, ITERATIONS)


def require() -> None:
    """Raise InputError if pydensecrf is not installed."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except (ImportError, ValueError) as error:  # ValueError: it was built for another numpy
        raise InputError(f"pydensecrf: cannot be imported ({error}); {HOW_TO_INSTALL}") from None


def refine_label(image: np.ndarray, label: np.ndarray, num_labels: int) -> np.ndarray:
    """Refine hard labels, each of which is right with probability 0.7.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) in 0..num_labels-1.

    Returns:
        Probabilities (num_labels, H, W) float32, of sum 1.
    """
    others = max(num_labels - 1, 1)
    energy_of_others = -np.log((1 - LABEL_CERTAINTY) / others)
    energy_of_label = -np.log(LABEL_CERTAINTY)
    is_label = np.arange(num_labels)[:, None, None] == label
    unary = np.where(is_label, energy_of_label, energy_of_others)
    return _infer(image, unary, AUTHORS_TERMS)


def refine_maps(
    image: np.ndarray,
    maps: np.ndarray,
    gaussian: dict[str, Any] = GAUSSIAN,
    bilateral: dict[str, Any] = BILATERAL,
    iterations: int = ITERATIONS,
) -> np.ndarray:
    """Refine soft maps.

    Args:
        image: (H, W, 3) uint8.
        maps: (k, H, W), at least 0.
        gaussian, bilateral: the pairwise terms; SEGMENTATION has those for the probabilities of
            a segmentation network.

    Returns:
        Probabilities (k, H, W) float32, of sum 1.
    """
    probability = maps / maps.sum(0).clip(LEAST_PROBABILITY)
    unary = -np.log(probability.clip(LEAST_PROBABILITY))
    return _infer(image, unary, Terms(gaussian, bilateral, iterations))


def inter_pixel_label(image: np.ndarray, maps: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Confident labels, from which IRN learns.

    A pixel is foreground if the CRF calls it so, and background if the CRF calls it so even when
    the background map is halved.

    Args:
        image: (H, W, 3) uint8.
        maps: (k, H, W) in [0, 1], background first.
        keys: (k,) their class ids.

    Returns:
        (H, W) uint8 class ids, 255 for uncertain pixels.
    """
    foreground = _refined_class_ids(image, maps, keys)
    halved = np.concatenate([maps[:1] * BACKGROUND_SCALE, maps[1:]])
    is_background = _refined_class_ids(image, halved, keys) == 0
    background_or_unknown = np.where(is_background, 0, IGNORE)
    return np.where(foreground > 0, foreground, background_or_unknown).astype(np.uint8)


def _refined_class_ids(image: np.ndarray, maps: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(H, W) the class ids of the strongest maps, after the CRF."""
    refined = refine_label(image, maps.argmax(0), len(keys))
    return keys[refined.argmax(0)]


def _infer(image: np.ndarray, unary: np.ndarray, terms: Terms) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    num_labels, height, width = unary.shape
    field = DenseCRF2D(width, height, num_labels)
    energy = unary.reshape(num_labels, -1)
    field.setUnaryEnergy(np.ascontiguousarray(energy, np.float32))
    field.addPairwiseGaussian(**terms.gaussian)
    field.addPairwiseBilateral(rgbim=np.array(image, order="C"), **terms.bilateral)
    return np.array(field.inference(terms.iterations)).reshape(unary.shape)
