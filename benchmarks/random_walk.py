"""The random walk by offsets against the dense transition matrix: time, memory and difference, in one run.

    python -m benchmarks.random_walk [--grid 94 125] [--maps 3] [--device cpu]

The default grid is that of a picture of 375x500. The dense formula needs some 1.5 GB and minutes there; --no-dense leaves it out.
"""

import argparse
import functools
import sys

import torch

from tool import stage
from tool.random_walk import random_walk, search_paths

from . import measure

BETA, EXP_TIMES, RADIUS = 10, 8, 5


def dense_walk(cam: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    """The same formula as it is written: the matrix of all pairs of cells, squared EXP_TIMES times."""
    height, width = edge.shape
    index = torch.arange(height * width, device=edge.device).view(height, width)
    matrix = torch.eye(height * width, device=edge.device)
    for path in search_paths(RADIUS):
        dy, dx = path[0]
        left, columns = max(0, -dx), width - abs(dx)

        def at(maps: torch.Tensor, y: int, x: int, size: tuple[int, int] = (height - dy, columns), left: int = left) -> torch.Tensor:
            return maps[y : y + size[0], left + x : left + x + size[1]]

        strongest = torch.stack([at(edge, *cell) for cell in path]).amax(0)
        source, target = at(index, 0, 0), at(index, dy, dx)
        matrix[source, target] = matrix[target, source] = (1 - strongest) ** BETA
    matrix /= matrix.sum(0)
    for _ in range(EXP_TIMES):
        matrix = matrix @ matrix
    return ((cam * (1 - edge)).flatten(1) @ matrix).view(cam.shape)


def offset_walk(cam: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    return random_walk(cam, edge, RADIUS, BETA, EXP_TIMES)


def prepare(args: argparse.Namespace, walk) -> measure.Work:
    """Random maps, and boundaries of which few are strong."""
    generator, device = torch.Generator().manual_seed(0), stage.choose_device(args.device)
    cam = torch.rand(args.maps, *args.grid, generator=generator).to(device)
    edge = (torch.rand(args.grid, generator=generator) ** 4).to(device)
    walk(cam[:, :8, :8], edge[:8, :8])  # first calls load libraries
    return lambda: walk(cam, edge).cpu().numpy()


VERSIONS = {"offsets": functools.partial(prepare, walk=offset_walk), "dense": functools.partial(prepare, walk=dense_walk)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = measure.parser(__doc__, repeats=1)
    parser.add_argument("--grid", type=int, nargs=2, default=[94, 125], metavar=("H", "W"), help="cells, a quarter of a picture's pixels")
    parser.add_argument("--maps", type=int, default=3, help="maps that walk (default 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True, help="measure the dense formula too (default on)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    costs = measure.compare(VERSIONS if args.dense else {"offsets": VERSIONS["offsets"]}, args)
    offsets, dense = costs["offsets"], costs.get("dense")
    if not dense:
        return print(f"{'random_walk':<28}{offsets.seconds:.3g} s; {offsets.megabytes:,.0f} MB")
    print(measure.line("random_walk", offsets, dense))
    print(measure.told({"of the maximum": abs(offsets.result - dense.result).max() / dense.result.max()}))


if __name__ == "__main__":
    sys.exit(stage.run(main))
