"""Image-specific prototype exploration as pure functions (SIPE section 3.2).

Letters: B images, K classes with background first, D channels, H x W the grid, N = H * W cells. Everything is computed
in float32, also under autocast: half precision moves seeds between classes.
"""

import contextlib

import torch
import torch.nn.functional as F

EPSILON = 1e-5  # the authors' program adds it to every norm and maximum it divides by
MOST_PRODUCTS = 2**26  # of two cells, at a time: 256 MB
CLUSTERS, CERTAIN, UNRELATED = (
    12,
    0.9,
    0.05,
)  # LPCAM's: prototypes of a class, and between which probabilities the context's lie


def without_tf32() -> contextlib.AbstractContextManager:
    """float32 is float32 in the forward pass on GPUs too, whatever the caller's flags are: TF32 moves seeds. Compiled code keeps them."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    matmul, stack = torch.backends.cuda.matmul, contextlib.ExitStack()
    flag, on, off = (
        ("fp32_precision", "tf32", "ieee")
        if hasattr(matmul, "fp32_precision")
        else ("allow_tf32", True, False)
    )  # before 2.9
    if getattr(matmul, flag) == on:
        is_inherited = (
            getattr(torch.backends, flag, None) == on
        )  # then the flag must go on following the general one
        stack.callback(setattr, matmul, flag, "none" if is_inherited else on)
        setattr(matmul, flag, off)
    return stack


def peak_normalize(maps: torch.Tensor) -> torch.Tensor:
    """Scale each map to a spatial maximum of (nearly) 1: (..., H, W) >= 0 -> (..., H, W) in [0, 1)."""
    return maps / (maps.amax((-2, -1), keepdim=True) + EPSILON)


def add_background(cam: torch.Tensor) -> torch.Tensor:
    """Put 1 - (maximum over classes) in front: (B, K-1, H, W) in [0, 1] -> (B, K, H, W) in [0, 1] (SIPE section 3.1)."""
    return torch.cat([1 - cam.amax(1, keepdim=True), cam], 1)


def unit_cells(features: torch.Tensor) -> torch.Tensor:
    """Divide each cell's feature by its L2 norm: (B, D, H, W), any scale -> (B, D, H, W) of length (nearly) 1."""
    return features * _inverse_norms(features)


def _inverse_norms(features: torch.Tensor) -> torch.Tensor:
    """(B, D, ...) -> (B, 1, ...), above 0: what a cell's feature is multiplied by to have length (nearly) 1."""
    return (features.norm(dim=1, keepdim=True) + EPSILON).reciprocal()


def _sum_by_resemblance(maps: torch.Tensor, cells: torch.Tensor, power: float = 1) -> torch.Tensor:
    """For each cell, the sum of maps (B, K, N) over all cells (B, D, N), weighted by the ReLU product with it, to a power: (B, K, N)."""
    at_a_time, sums = max(1, MOST_PRODUCTS // (len(cells) * cells.shape[2])), []
    for part in cells.split(at_a_time, 2):
        products = (cells.transpose(1, 2) @ part).relu_()
        sums.append(maps @ (products if power == 1 else products.pow_(power)))
    return torch.cat(sums, 2)


@torch.no_grad()
def locate_seeds(
    cam: torch.Tensor, features: torch.Tensor, valid: torch.Tensor, background_scale: float = 0.5
) -> torch.Tensor:
    """Give each cell to the class whose activation map best fits what the cell resembles.

    SIPE section 3.2.1, structure-aware seed locating: with s_i the ReLU cosine similarity of cell i to all N cells and m_k
    the map of class k, cell i is a seed of argmax_k <s_i, m_k> / (sum s_i + sum m_k - <s_i, m_k>). The paper weighs the
    background map by alpha = 0.5; the authors' program weighs its fit, and so do we: background_scale.

    Args:
        cam: (B, K, H, W) in [0, 1], background first.
        features: (B, D, H, W), any scale.
        valid: (B, K, H, W) 0/1 (or anything that broadcasts to it): class k is labelled and the cell is not padding.

    Returns:
        (B, K, H, W) 0/1, at most one class a cell; a cell won by an absent class stays empty. Carries no gradient.
    """
    with without_tf32(), torch.autocast(cam.device.type, enabled=False):
        cells, maps = features.float().flatten(2), cam.float().flatten(2)
        scale = _inverse_norms(cells)  # positive, so it can wait for the ReLU and what follows
        sums = _sum_by_resemblance(torch.cat([maps * scale, scale], 1), cells) * scale
        inter, resemblance = sums.split([maps.shape[1], 1], 1)
        union = resemblance + maps.sum(2, keepdim=True) - inter
        fit = inter / union.clamp_min(
            EPSILON
        )  # 0 / 0 where a cell without features meets a class without a map
        fit[:, 0] *= background_scale
        seeds = torch.zeros_like(fit).scatter_(1, fit.argmax(1, keepdim=True), 1)
        return seeds.view_as(cam) * valid


def pool_prototypes(seeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Average seed * feature over all H * W cells (SIPE section 3.2.2); the background has a prototype like any class.

    Args:
        seeds: (B, K, H, W) 0/1.
        features: (B, D, H, W), the hierarchical feature.

    Returns:
        (B, K, D); a class without a seed gets the zero vector. The mean is over all cells, not over the class's seeds: the
        length of a prototype says how large its class is, and does not matter to `activate`.
    """
    with without_tf32(), torch.autocast(seeds.device.type, enabled=False):
        return torch.einsum("bkhw,bdhw->bkd", seeds.float(), features.float()) / seeds[0, 0].numel()


def activate(prototypes: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """IS-CAM: the ReLU cosine similarity of every cell to every prototype (SIPE section 3.2.2).

    Args:
        prototypes: (B, K, D), any scale.
        features: (B, D, H, W), any scale.

    Returns:
        (B, K, H, W) in [0, 1], zero for a class whose prototype is the zero vector.
    """
    with without_tf32(), torch.autocast(features.device.type, enabled=False):
        prototypes, features = F.normalize(prototypes.float(), dim=2, eps=1e-8), features.float()
        scale = features.norm(dim=1, keepdim=True).clamp_min(1e-8).reciprocal()
        return (torch.einsum("bkd,bdhw->bkhw", prototypes, features) * scale).relu()


def contrast(is_cam: torch.Tensor, weight: float) -> torch.Tensor:
    """What a cell has of each class beyond weight times what it has of the background: IS-CAMs (B, K, H, W) -> the same.

    Against the prototype of the background, as LPCAM (CVPR 2023) subtracts the prototypes of context.
    """
    return torch.cat([is_cam[:, :1], (is_cam[:, 1:] - weight * is_cam[:, :1]).relu()], 1)


def spread(maps: torch.Tensor, features: torch.Tensor, power: float = 2) -> torch.Tensor:
    """Give each cell the mean of the maps over all cells, weighted by the ReLU cosine similarity to it, to a power.

    As the pixel correlation module of SEAM (CVPR 2020), without its learnt projection. maps (B, K, H, W), features (B, D, H, W) of any
    scale -> (B, K, H, W).
    """
    with without_tf32(), torch.autocast(maps.device.type, enabled=False):
        cells = unit_cells(features.float()).flatten(2)
        sums = _sum_by_resemblance(
            F.pad(maps.float().flatten(2), (0, 0, 0, 1), value=1), cells, power
        )
        return (sums[:, :-1] / (sums[:, -1:] + EPSILON)).view_as(maps)


def cluster(cells: torch.Tensor, count: int, steps: int = 20) -> torch.Tensor:
    """k-means by cosine similarity: cells (N, D) -> (at most count, D), the mean cell of each cluster."""
    unit = F.normalize(cells, dim=1)
    centres = unit[
        torch.linspace(0, len(unit) - 1, min(count, len(unit)), device=unit.device).round().long()
    ]
    for _ in range(steps):
        nearest = (unit @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, unit)
        centres = torch.where(
            sums.any(1, keepdim=True), F.normalize(sums, dim=1), centres
        )  # an empty one stays where it is
    sizes = nearest.bincount(minlength=len(centres))
    return (
        torch.zeros_like(centres).index_add_(0, nearest, cells)[sizes > 0] / sizes[sizes > 0, None]
    )


def class_prototype(
    strong: torch.Tensor, weak: torch.Tensor, classifier: torch.Tensor, index: int
) -> torch.Tensor:
    """What tells a class from its surroundings in all of its training images (LPCAM, CVPR 2023): (D,).

    The mean of the class's prototypes minus that of its context's. Prototypes are clusters of cells. Those of the class are the clusters of
    strong cells that the classifier gives to the class with certainty, or else the most certain one. Those of the context are the clusters
    of weak cells that it holds for related, but not for the class.
    The mean cosine similarity to several prototypes is the product with their mean, so one vector is enough.

    Args:
        strong, weak: (N, D), N at least 1, and (M, D) float32, cells of the last map where the class's CAM is above and below a threshold.
        classifier: (K-1, D) float32 weights. index: of the class among them.
    """

    def mean(prototypes: torch.Tensor) -> torch.Tensor:
        return F.normalize(prototypes, dim=1).sum(0) / max(len(prototypes), 1)

    with without_tf32():
        of_class, of_context = (
            cluster(cells, CLUSTERS) if len(cells) else cells for cells in (strong, weak)
        )
        certainty, doubt = (
            (prototypes @ classifier.T).softmax(1)[:, index]
            for prototypes in (of_class, of_context)
        )
        kept = of_class[(certainty > CERTAIN) | (certainty == certainty.max())]
        return mean(kept) - mean(of_context[(doubt > UNRELATED) & (doubt < CERTAIN)])
