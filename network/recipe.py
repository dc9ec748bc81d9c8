"""Named recipes: what differs from the published method in making IS-CAMs from the same network.

Letters as in prototypes.py. The functions below are pure; everything is computed in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .prototypes import (
    EPSILON,
    _sum_by_resemblance,
    activate,
    peak_normalize,
    unit_cells,
    without_tf32,
)
from .spatial import add_mirror

# of class prototypes, as in LPCAM
CLUSTERS = 12  # of the cells of a class, and of its context
CERTAIN = 0.9  # a cluster of this probability belongs to the class
UNRELATED = 0.05  # a cluster of this probability has nothing to do with it
CLUSTER_STEPS = 20


class Recipe(NamedTuple):
    """How IS-CAMs are made; the defaults are the published way.

    Attributes:
        contrast: share of the background's IS-CAM that is taken off the others (`contrast`).
        affinity: power of the similarity by which cells share their maps (`propagate`).
            None: they do not.
        class_prototypes: average the IS-CAMs with the maps of class prototypes
            (`class_prototype`), which come from all training images.
        background: strength of a constant background map; class maps have a maximum of 1. None:
            the background keeps its own IS-CAM.
        enlarged_background: the same if a scale is above 1, as maps of larger images are narrower.
            None: as background.
    """

    name: str
    contrast: float = 0.0
    affinity: float | None = None
    class_prototypes: bool = False
    background: float | None = None
    enlarged_background: float | None = None

    def background_at(self, scales: Sequence[float]) -> float | None:
        """Choose the background for maps that are averaged over these scales."""
        if max(scales) > 1 and self.enlarged_background is not None:
            return self.enlarged_background
        return self.background


PUBLISHED = Recipe("sipe")
PLUS = Recipe(
    "plus",
    contrast=0.5,
    affinity=2.0,
    class_prototypes=True,
    background=0.5,
    enlarged_background=0.35,
)
RECIPES = {recipe.name: recipe for recipe in (PUBLISHED, PLUS)}


def follow_recipe(
    recipe: Recipe,
    is_cam: torch.Tensor,
    features: torch.Tensor,
    last_map: torch.Tensor,
    class_prototypes: torch.Tensor,
) -> torch.Tensor:
    """Make a recipe's IS-CAMs from the published ones.

    Args:
        is_cam: (B, K, H, W) in [0, 1], published, background first.
        features: (B, D, H, W), the hierarchical feature, any scale.
        last_map: (2B, D', H, W), the backbone's, of the images and then of their mirrors.
        class_prototypes: (K-1, D'), `class_prototype` of each class.

    Returns:
        (B, K, H, W) in [0, 1], background first.
    """
    of_image = is_cam
    if recipe.contrast:
        of_image = contrast(is_cam, recipe.contrast)
    kinds = [of_image]
    if recipe.class_prototypes:
        prototypes = class_prototypes.expand(len(is_cam), -1, -1)
        of_classes = activate(prototypes, add_mirror(last_map.float()))
        kinds.append(torch.cat([is_cam[:, :1], of_classes], 1))
    if recipe.affinity:  # both kinds at once, as the similarity of the cells is the same
        propagated = propagate(torch.cat(kinds, 1), features, recipe.affinity)
        kinds = propagated.chunk(len(kinds), 1)
    if len(kinds) == 1:
        return kinds[0]
    return sum(peak_normalize(maps) for maps in kinds) / len(kinds)


def contrast(is_cam: torch.Tensor, weight: float) -> torch.Tensor:
    """Subtract `weight` times the background's map from each class's map, and clip at 0.

    IS-CAMs (B, K, H, W) in [0, 1], background first -> the same. It is the prototype of the
    background that counts here; LPCAM (CVPR 2023) subtracts prototypes of the context.
    """
    background = is_cam[:, :1]
    classes = is_cam[:, 1:]
    return torch.cat([background, (classes - weight * background).relu()], 1)


def propagate(maps: torch.Tensor, features: torch.Tensor, power: float = 2) -> torch.Tensor:
    """Give each cell the mean of the maps over all cells, weighted by their similarity to it.

    The weight is the ReLU cosine similarity to a power. This is the pixel correlation module of
    SEAM (CVPR 2020) without its learnt projection.

    Args:
        maps: (B, K, H, W).
        features: (B, D, H, W), any scale.

    Returns:
        (B, K, H, W).
    """
    with without_tf32(), torch.autocast(maps.device.type, enabled=False):
        cells = unit_cells(features.float()).flatten(2)
        maps_and_ones = F.pad(maps.float().flatten(2), (0, 0, 0, 1), value=1)
        sums = _sum_by_resemblance(maps_and_ones, cells, power)
        weighted_maps = sums[:, :-1]
        weights = sums[:, -1:]
        return (weighted_maps / (weights + EPSILON)).view_as(maps)


def cluster(cells: torch.Tensor, count: int) -> torch.Tensor:
    """Cluster cells by k-means on their cosine similarity.

    (N, D) -> (at most count, D), the mean cell of each cluster.
    """
    directions = F.normalize(cells, dim=1)
    count = min(count, len(cells))
    positions = torch.linspace(0, len(cells) - 1, count, device=cells.device)
    centres = directions[positions.round().long()]
    for _ in range(CLUSTER_STEPS):
        nearest = (directions @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, directions)
        has_cells = sums.any(1, keepdim=True)
        centres = torch.where(has_cells, F.normalize(sums, dim=1), centres)
    sizes = nearest.bincount(minlength=count)
    sums = torch.zeros_like(centres).index_add_(0, nearest, cells)
    has_cells = sizes > 0
    return sums[has_cells] / sizes[has_cells, None]


def class_prototype(
    strong: torch.Tensor, weak: torch.Tensor, classifier: torch.Tensor, index: int
) -> torch.Tensor:
    """Find what tells a class from its surroundings in all of its training images.

    As LPCAM (CVPR 2023): the mean of the class's prototypes minus the mean of its context's.
    Prototypes are clusters of cells. The class has the clusters of strong cells that the classifier
    gives to it with certainty, and always the most certain one. The context has the clusters of
    weak cells that are related to the class but do not belong to it. LPCAM averages the similarity
    to several prototypes. That is the product with their mean, so one vector is enough.

    Args:
        strong: (N, D) float32, N at least 1: cells of the last map where the class's CAM is above a
            threshold.
        weak: (M, D) float32, the same below the threshold.
        classifier: (K-1, D) float32, weights.
        index: of the class among them.

    Returns:
        (D,).
    """
    with without_tf32():
        of_class = cluster(strong, CLUSTERS)
        certainty = _probability(of_class, classifier, index)
        is_certain = (certainty > CERTAIN) | (certainty == certainty.max())
        prototype = _mean_direction(of_class[is_certain])
        if not len(weak):
            return prototype
        around = cluster(weak, CLUSTERS)
        doubt = _probability(around, classifier, index)
        is_context = (doubt > UNRELATED) & (doubt < CERTAIN)
        return prototype - _mean_direction(around[is_context])


def _probability(cells: torch.Tensor, classifier: torch.Tensor, index: int) -> torch.Tensor:
    """Of one class, by the classifier: cells (N, D) -> (N,)."""
    return (cells @ classifier.T).softmax(1)[:, index]


def _mean_direction(prototypes: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (D,), 0 without any prototype."""
    return F.normalize(prototypes, dim=1).sum(0) / max(len(prototypes), 1)
