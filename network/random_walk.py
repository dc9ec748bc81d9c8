"""The random walk that carries class activation maps up to class boundaries.

It does without the matrix of all pairs of cells. Ahn, Cho, Kwak, "Weakly Supervised Learning of
Instance Segmentation with Inter-pixel Relations" (IRN, CVPR 2019), section 3.
"""

import functools
from typing import NamedTuple

import torch

NO_THREADS_BELOW = 32768  # elements; torch computes smaller tensors in one thread

CellPath = tuple[tuple[int, int], ...]  # cells (dy, dx) from a destination to its source (0, 0)


@functools.cache
def search_paths(radius: int) -> tuple[CellPath, ...]:
    """Find the paths from a cell to every cell nearer than `radius` in one half plane.

    There are 34 of them for radius 5 and 152 for radius 10. A path holds the cells (dy, dx),
    dy >= 0, that lie less than one cell off the straight line. Its destination comes first and its
    source (0, 0) last.
    """
    paths = []
    for dy in range(radius):
        for dx in range(-radius + 1, radius):
            is_ahead = dy > 0 or dx > 0
            is_near = dy**2 + dx**2 < radius**2
            if is_ahead and is_near:
                paths.append(_path_from(dy, dx))
    return tuple(paths)


def _path_from(dy: int, dx: int) -> CellPath:
    """Find the cells less than one cell off the line from (dy, dx) to (0, 0), farthest first."""
    squared_length = dy**2 + dx**2
    left = min(dx, 0)
    right = max(dx, 0)
    cells = []
    for y in range(dy + 1):
        for x in range(left, right + 1):
            distance_times_length = dy * x - dx * y
            if distance_times_length**2 < squared_length:
                cells.append((y, x))
    cells.sort(key=_steps_to_source, reverse=True)
    return tuple(cells)


def _steps_to_source(cell: tuple[int, int]) -> int:
    dy, dx = cell
    return dy + abs(dx)


@torch.no_grad()
def random_walk(
    cam: torch.Tensor, edge: torch.Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8
) -> torch.Tensor:
    """Let maps walk 2 ** exp_times steps over cells that no class boundary divides.

    The affinity of two cells nearer than `radius` is (1 - strongest edge on the path between them)
    ** beta, and 1 of a cell to itself. A step makes of each cell the mean of its neighbours,
    weighted by affinity. The maps start as cam * (1 - edge). This is the product with the
    2 ** exp_times-th power of the dense transition matrix, exact up to rounding, but only the
    affinities of neighbours are ever in memory.

    Args:
        cam: (K, h, w) or, for several images, (B, K, h, w), at least 0. Images of unlike size may
            share a batch: cells of edge 1 and cam 0 take no part.
        edge: (h, w) or (B, h, w) in [0, 1].

    Returns:
        Maps like cam.
    """
    is_cpu = cam.device.type == "cpu"
    if is_cpu and cam.ndim == 4:
        walked = []
        for maps_of_image, edge_of_image in zip(cam, edge):
            maps = random_walk(maps_of_image, edge_of_image, radius, beta, exp_times)
            walked.append(maps)
        return torch.stack(walked)
    # float64: a boundary lets through so little a step that float32 rounds it away
    edge = edge.unsqueeze(-3).double()
    start = cam * (1 - edge)
    pairs = [_pairs_along(path, edge, beta) for path in search_paths(radius)]
    total = torch.ones_like(edge)
    for pair in pairs:
        total[pair.source] += pair.affinity
        total[pair.target] += pair.affinity
    maps_at_a_time = len(start)
    if is_cpu:  # one thread then takes a step, as sharing it out would take longer
        maps_at_a_time = max(1, NO_THREADS_BELOW // edge.numel())
    parts = start.split(maps_at_a_time)
    walked = [_walk(part, pairs, total, 2**exp_times) for part in parts]
    return torch.cat(walked).to(cam.dtype)


class Pairs(NamedTuple):
    """All pairs of cells at one offset."""

    source: tuple  # index of the sources in maps (..., h, w)
    target: tuple  # index of the targets
    affinity: torch.Tensor  # (..., 1, h', w')


def _pairs_along(path: CellPath, edge: torch.Tensor, beta: float) -> Pairs:
    """Pair the cells at the two ends of a path, wherever it fits on the grid.

    edge: (..., 1, h, w) in [0, 1].
    """
    height, width = edge.shape[-2:]
    dy, dx = path[0]
    rows = max(height - dy, 0)
    columns = max(width - abs(dx), 0)

    def window(cell: tuple[int, int]) -> tuple:
        y, x = cell
        left = x - min(dx, 0)
        return ..., slice(y, y + rows), slice(left, left + columns)

    source = (0, 0)
    strongest = edge[window(source)]
    for cell in path[:-1]:
        strongest = torch.maximum(strongest, edge[window(cell)])
    affinity = (1 - strongest) ** beta
    return Pairs(window(source), window(path[0]), affinity)


class Step(NamedTuple):
    """A step from the maps in one buffer to those in another.

    A move (receiver, affinity, giver) adds affinity * giver to the receiver; both are views of the
    buffers. It is a plain tuple because a walk unpacks thousands: a named one takes 4 % longer.
    """

    before: torch.Tensor
    after: torch.Tensor
    moves: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def _walk(start: torch.Tensor, pairs: list[Pairs], total: torch.Tensor, steps: int) -> torch.Tensor:
    """Take so many steps, from one buffer to the other and back."""
    first = start.clone()
    second = torch.empty_like(start)
    there_and_back = (
        _prepare_step(first, second, pairs),
        _prepare_step(second, first, pairs),
    )
    for i in range(steps):
        step = there_and_back[i % 2]
        step.after.copy_(step.before)
        for receiver, affinity, giver in step.moves:
            receiver.addcmul_(affinity, giver)
        step.after.div_(total)
    return step.after


def _prepare_step(before: torch.Tensor, after: torch.Tensor, pairs: list[Pairs]) -> Step:
    """Slice the buffers once for all steps: both ways of every pair."""
    moves = []
    for source, target, affinity in pairs:
        moves.append((after[source], affinity, before[target]))
        moves.append((after[target], affinity, before[source]))
    return Step(before, after, moves)
