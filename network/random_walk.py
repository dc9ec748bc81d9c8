"""The random walk that carries class activation maps up to class boundaries, without the matrix of all pairs of cells.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (IRN, CVPR 2019), section 3.
"""

import functools

import torch

NO_THREADS_BELOW = 32768  # elements, torch's own grain

CellPath = tuple[tuple[int, int], ...]


@functools.cache
def search_paths(radius: int) -> tuple[CellPath, ...]:
    """The path from a cell to every cell nearer than `radius` in one half plane (34 of them for radius 5, 152 for 10).

    A path holds the cells (dy, dx), dy >= 0, that lie less than one cell off the straight line; its destination comes first
    and its source (0, 0) last.
    """
    reach = range(-radius + 1, radius)
    offsets = [
        (dy, dx)
        for dy in range(radius)
        for dx in reach
        if (dy or dx > 0) and dy**2 + dx**2 < radius**2
    ]
    return tuple(_path(dy, dx) for dy, dx in offsets)


def _path(dy: int, dx: int) -> CellPath:
    box = ((y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1))
    near = [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]
    return tuple(sorted(near, key=lambda cell: -cell[0] - abs(cell[1])))


@torch.no_grad()
def random_walk(
    cam: torch.Tensor, edge: torch.Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8
) -> torch.Tensor:
    """Let maps spread for 2 ** exp_times steps over cells that no class boundary divides.

    The affinity of two cells nearer than `radius` is (1 - strongest edge on the path between them) ** beta, and 1 of a cell to
    itself; a step makes of each cell the mean of its neighbours, weighted by affinity. The maps start as cam * (1 - edge).
    This is the product with the 2 ** exp_times-th power of the dense transition matrix, exact up to rounding; only the affinities
    of neighbours are ever held.

    Args:
        cam: (K, h, w) or, for several images, (B, K, h, w), at least 0. Images of unlike size may share a batch:
            cells where edge is 1 and cam is 0 take no part.
        edge: (h, w) or (B, h, w) in [0, 1].

    Returns:
        Maps like cam.
    """
    if cam.ndim == 4 and cam.device.type == "cpu":
        return torch.stack(
            [random_walk(*image, radius, beta, exp_times) for image in zip(cam, edge)]
        )
    edge = edge.unsqueeze(
        -3
    ).double()  # a boundary lets through so little a step that float32 rounds it away
    start = cam * (1 - edge)
    pairs = [_neighbours(edge, path, beta) for path in search_paths(radius)]
    total = torch.ones_like(edge)
    for source, target, affinity in pairs:
        total[source] += affinity
        total[target] += affinity
    # on a CPU few maps at a time: so small a step is over before torch could share it out to threads
    few = len(start) if cam.device.type != "cpu" else max(1, NO_THREADS_BELOW // edge.numel())
    return torch.cat([_walk(part, pairs, total, 2**exp_times) for part in start.split(few)]).to(
        cam.dtype
    )


def _walk(
    start: torch.Tensor,
    pairs: list[tuple[tuple, tuple, torch.Tensor]],
    total: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Take so many steps, from one buffer to the other and back."""
    now, after = start.clone(), torch.empty_like(start)
    there, back = (_moves(pairs, *buffers) for buffers in ((now, after), (after, now)))
    for _ in range(steps):
        after.copy_(now)
        for gathered, affinity, spread in there:
            gathered.addcmul_(affinity, spread)
        after.div_(total)
        now, after, there, back = after, now, back, there
    return now


def _moves(
    pairs: list[tuple[tuple, tuple, torch.Tensor]], now: torch.Tensor, after: torch.Tensor
) -> list[tuple[torch.Tensor, ...]]:
    """A step's parts, both ways of every pair: where it adds, the affinity, what it adds."""
    ways = (
        (one, other, affinity)
        for source, target, affinity in pairs
        for one, other in ((source, target), (target, source))
    )
    return [(after[one], affinity, now[other]) for one, other, affinity in ways]


def _neighbours(
    edge: torch.Tensor, path: CellPath, beta: float
) -> tuple[tuple, tuple, torch.Tensor]:
    """All pairs of cells at one offset: where the sources lie, where the targets lie, and their affinity (..., 1, h', w')."""
    height, width = edge.shape[-2:]
    dy, dx = path[0]
    rows, columns = max(height - dy, 0), max(width - abs(dx), 0)

    def window(y: int, x: int) -> tuple:
        left = x - min(dx, 0)
        return ..., slice(y, y + rows), slice(left, left + columns)

    strongest = edge[window(0, 0)]
    for cell in path[:-1]:
        strongest = torch.maximum(strongest, edge[window(*cell)])
    return window(0, 0), window(dy, dx), (1 - strongest) ** beta
