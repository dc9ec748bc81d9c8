"""Image-specific prototype exploration as pure functions (SIPE section 3.2).

Letters: B images, K classes with background first, D channels, H x W the grid, N = H * W cells.
Everything is computed in float32, also under autocast: half precision moves seeds between classes.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

EPSILON = 1e-5  # the authors' program adds it to every norm and maximum it divides by
MOST_PRODUCTS = 2**26  # of two cells, at a time: 256 MB


class Tf32Flag(NamedTuple):
    """PyTorch's flag for TF32 in matrix products, and its values."""

    name: str  # in torch.backends.cuda.matmul
    on: str | bool
    off: str | bool


TF32_FLAG = Tf32Flag("fp32_precision", on="tf32", off="ieee")
OLD_TF32_FLAG = Tf32Flag("allow_tf32", on=True, off=False)  # before PyTorch 2.9


def without_tf32() -> contextlib.AbstractContextManager:
    """Switch TF32 off in the products of the forward pass: it moves seeds.

    float32 is then float32 on GPUs too, whatever the caller's flags are. Compiled code keeps them.
    """
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _tf32_off()


@contextlib.contextmanager
def _tf32_off() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    flag = TF32_FLAG
    if not hasattr(matmul, flag.name):
        flag = OLD_TF32_FLAG
    if getattr(matmul, flag.name) != flag.on:
        yield
        return
    before = flag.on
    if getattr(torch.backends, flag.name, None) == flag.on:
        before = "none"  # the flag goes on following PyTorch's general one
    setattr(matmul, flag.name, flag.off)
    try:
        yield
    finally:
        setattr(matmul, flag.name, before)


def peak_normalize(maps: torch.Tensor) -> torch.Tensor:
    """Scale each map to a spatial maximum of (nearly) 1.

    (..., H, W) >= 0 -> (..., H, W) in [0, 1).
    """
    return maps / (maps.amax((-2, -1), keepdim=True) + EPSILON)


def add_background(cam: torch.Tensor) -> torch.Tensor:
    """Put 1 - (maximum over classes) in front of the maps of the classes (SIPE section 3.1).

    (B, K-1, H, W) in [0, 1] -> (B, K, H, W) in [0, 1].
    """
    return torch.cat([1 - cam.amax(1, keepdim=True), cam], 1)


def unit_cells(features: torch.Tensor) -> torch.Tensor:
    """Divide each cell's feature by its L2 norm.

    (B, D, H, W), any scale -> (B, D, H, W) of length (nearly) 1.
    """
    return features * _inverse_norms(features)


def _inverse_norms(features: torch.Tensor) -> torch.Tensor:
    """Find the factor that gives each cell's feature length (nearly) 1.

    (B, D, ...) -> (B, 1, ...), above 0.
    """
    return (features.norm(dim=1, keepdim=True) + EPSILON).reciprocal()


def _sum_by_resemblance(maps: torch.Tensor, cells: torch.Tensor, power: float = 1) -> torch.Tensor:
    """Sum the maps over all cells, for each cell, weighted by how much the others resemble it.

    The weight of two cells is their ReLU product, to a power.

    Args:
        maps: (B, K, N).
        cells: (B, D, N).

    Returns:
        (B, K, N).
    """
    products_per_cell = len(cells) * cells.shape[2]
    cells_at_a_time = max(1, MOST_PRODUCTS // products_per_cell)
    sums = []
    for part in cells.split(cells_at_a_time, 2):
        weights = (cells.transpose(1, 2) @ part).relu_()
        if power != 1:
            weights.pow_(power)
        sums.append(maps @ weights)
    return torch.cat(sums, 2)


@torch.no_grad()
def locate_seeds(
    cam: torch.Tensor, features: torch.Tensor, valid: torch.Tensor, background_scale: float = 0.5
) -> torch.Tensor:
    """Give each cell to the class whose activation map best fits what the cell resembles.

    SIPE section 3.2.1, structure-aware seed locating: with s_i the ReLU cosine similarity of cell
    i to all N cells and m_k the map of class k, cell i is a seed of
    argmax_k <s_i, m_k> / (sum s_i + sum m_k - <s_i, m_k>). The paper weighs the background map by
    alpha = 0.5; the authors' program weighs its fit, and so do we: background_scale.

    Args:
        cam: (B, K, H, W) in [0, 1], background first.
        features: (B, D, H, W), any scale.
        valid: (B, K, H, W) 0/1 (or anything that broadcasts to it): class k is labelled and the
            cell is not padding.

    Returns:
        (B, K, H, W) 0/1, at most one class a cell; a cell won by an absent class stays empty.
        Carries no gradient.
    """
    with without_tf32(), torch.autocast(cam.device.type, enabled=False):
        cells, maps = features.float().flatten(2), cam.float().flatten(2)
        scale = _inverse_norms(cells)  # positive, so it can wait for the ReLU and what follows
        sums = _sum_by_resemblance(torch.cat([maps * scale, scale], 1), cells) * scale
        inter, resemblance = sums.split([maps.shape[1], 1], 1)
        union = resemblance + maps.sum(2, keepdim=True) - inter
        # 0 / 0 where a cell without features meets a class without a map
        fit = inter / union.clamp_min(EPSILON)
        fit[:, 0] *= background_scale
        seeds = torch.zeros_like(fit).scatter_(1, fit.argmax(1, keepdim=True), 1)
        return seeds.view_as(cam) * valid


def pool_prototypes(seeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Average seed * feature over all H * W cells (SIPE section 3.2.2).

    The background has a prototype like any class.

    Args:
        seeds: (B, K, H, W) 0/1.
        features: (B, D, H, W), the hierarchical feature.

    Returns:
        (B, K, D); a class without a seed gets the zero vector. The mean is over all cells, not
        over the class's seeds: the length of a prototype says how large its class is, and does
        not matter to `activate`.
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
