"""Dense CRF: labels that follow the picture's own edges (Krähenbühl, Koltun, NIPS 2011), with the settings of SIPE's authors.

pydensecrf is imported only where it is used, as nothing else needs it.
"""

import numpy as np

from data.images import IGNORE
from errors import InputError

ITERATIONS = 10
GAUSSIAN = {"sxy": 3, "compat": 3}
BILATERAL = {"sxy": 50, "srgb": 5, "compat": 10}
LABEL_CERTAINTY = 0.7
BACKGROUND_SCALE = 0.5
SEGMENTATION = {"gaussian": {"sxy": 1, "compat": 3}, "bilateral": {"sxy": 67, "srgb": 3, "compat": 4}}  # DeepLab-v2's, for its networks
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


def require() -> None:
    """Raise InputError where pydensecrf is not installed."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except (ImportError, ValueError) as error:  # the latter: built for another numpy
        raise InputError(f"pydensecrf: cannot be imported ({error}); {HOW_TO_INSTALL}") from None


def refine_label(picture: np.ndarray, label: np.ndarray, num_labels: int) -> np.ndarray:
    """Refine hard labels, each of which is right with probability 0.7.

    picture (H, W, 3) uint8, label (H, W) in 0..num_labels-1. Returns probabilities (num_labels, H, W) float32, of sum 1.
    """
    others = -np.log((1 - LABEL_CERTAINTY) / max(num_labels - 1, 1))
    unary = np.where(np.arange(num_labels)[:, None, None] == label, -np.log(LABEL_CERTAINTY), others)
    return _infer(picture, unary)


def refine_maps(
    picture: np.ndarray, maps: np.ndarray, gaussian: dict = GAUSSIAN, bilateral: dict = BILATERAL, iterations: int = ITERATIONS
) -> np.ndarray:
    """Refine soft maps: picture (H, W, 3) uint8, maps (k, H, W) at least 0 -> probabilities (k, H, W) float32, of sum 1.

    gaussian, bilateral: the pairwise terms; SEGMENTATION has those for a segmentation network's probabilities.
    """
    probability = maps / maps.sum(0).clip(1e-5)
    return _infer(picture, -np.log(probability.clip(1e-5)), gaussian, bilateral, iterations)


def inter_pixel_label(picture: np.ndarray, maps: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Confident labels: what the CRF calls foreground, and what it calls background even when the background map is halved.

    picture (H, W, 3) uint8, maps (k, H, W) in [0, 1], background first, keys (k,) their class ids. Returns (H, W) uint8 class
    ids, 255 where uncertain.
    """
    foreground = keys[refine_label(picture, maps.argmax(0), len(keys)).argmax(0)]
    halved = np.concatenate([maps[:1] * BACKGROUND_SCALE, maps[1:]])
    background = keys[refine_label(picture, halved.argmax(0), len(keys)).argmax(0)] == 0
    return np.where(foreground > 0, foreground, np.where(background, 0, IGNORE)).astype(np.uint8)


def _infer(
    picture: np.ndarray, unary: np.ndarray, gaussian: dict = GAUSSIAN, bilateral: dict = BILATERAL, iterations: int = ITERATIONS
) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    num_labels, height, width = unary.shape
    field = DenseCRF2D(width, height, num_labels)
    field.setUnaryEnergy(np.ascontiguousarray(unary.reshape(num_labels, -1), np.float32))
    field.addPairwiseGaussian(**gaussian)
    field.addPairwiseBilateral(rgbim=np.array(picture, order="C"), **bilateral)
    return np.array(field.inference(iterations)).reshape(unary.shape)
