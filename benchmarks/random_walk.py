"""The random walk by offsets against the dense transition matrix: time, memory and difference, in one run.

    python -m benchmarks.random_walk [--grid 94 125] [--maps 3] [--device cpu]

The default grid is that of a picture of 375x500. The dense formula needs some 1.5 GB and minutes there; --no-dense leaves it out.
Memory is the growth of the process's peak (on a GPU: of torch's), each way in a process of its own.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

import torch

from errors import InputError
from tool import stage
from tool.random_walk import random_walk, search_paths

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


def measure(walk, grid: tuple[int, int], maps: int, device: str, sender: Connection) -> None:
    """Send the seconds, MB and result of one way, on random maps and boundaries of which few are strong."""
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(maps, *grid, generator=generator).to(device)
    edge = (torch.rand(grid, generator=generator) ** 4).to(device)
    offset_walk(cam[:, :8, :8], edge[:8, :8])  # first calls load libraries
    (torch.rand(64, 64, device=device) @ torch.rand(64, 64, device=device)).sum().item()
    before, start = peak(device), time.perf_counter()
    walked = walk(cam, edge).cpu()
    seconds = time.perf_counter() - start
    sender.send((seconds, peak(device) - before, walked.numpy()))


def peak(device: str) -> float:
    """The most memory that this process has held so far, MB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=[94, 125], metavar=("H", "W"), help="cells, a quarter of a picture's pixels")
    parser.add_argument("--maps", type=int, default=3, help="maps that walk (default 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True, help="measure the dense formula too (default on)")
    args = parser.parse_args(argv)
    stage.choose_device(args.device)
    context, found = multiprocessing.get_context("spawn"), {}
    for name, walk in {"offsets": offset_walk, **({"dense": dense_walk} if args.dense else {})}.items():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(walk, tuple(args.grid), args.maps, args.device, sender))
        process.start()
        sender.close()
        try:
            found[name] = receiver.recv()
        except EOFError:
            raise InputError(f"{name}: its process died, perhaps for lack of memory; use a smaller --grid, or --no-dense") from None
        process.join()
        print(f"{name:<8} {found[name][0]:>10.2f} s {found[name][1]:>10.0f} MB", flush=True)
    if args.dense:
        (fast, small, ours), (slow, large, theirs) = found["offsets"], found["dense"]
        difference = abs(ours - theirs).max() / theirs.max()
        print(f"{slow / fast:.0f} times faster, 1/{large / max(small, 1):.0f} of the memory, difference {difference:.1e} of the maximum")


if __name__ == "__main__":
    sys.exit(stage.run(main))
