"""The random walk: its paths by hand, its steps against the matrix of all pairs of cells, and what it leaves as it is."""

import itertools

import numpy as np
import pytest
import torch

from network.random_walk import random_walk, search_paths


def draw(
    height: int, width: int, count: int = 2, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random maps (count, h, w) and edges (h, w), float64."""
    generator = torch.Generator().manual_seed(seed)
    cam, edge = (
        torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in ((count, height, width), (height, width))
    )
    return cam, 0.8 * edge


def strongest_edge(edge: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> float:
    """The largest value on the cells between two that lie less than one cell off the straight line."""
    (y0, x0), (y1, x1) = source, target
    box = itertools.product(
        range(min(y0, y1), max(y0, y1) + 1), range(min(x0, x1), max(x0, x1) + 1)
    )
    length = np.hypot(y1 - y0, x1 - x0)
    return max(
        edge[y, x]
        for y, x in box
        if abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / length < 1 - 1e-9
    )


def dense_walk(
    cam: torch.Tensor, edge: torch.Tensor, radius: int, beta: float, exp_times: int
) -> torch.Tensor:
    """The formula as it is written, with the matrix of all pairs of cells."""
    edge, cells = edge.numpy(), list(np.ndindex(*edge.shape))
    affinity = np.eye(len(cells))
    for i, j in itertools.permutations(range(len(cells)), 2):
        if np.hypot(*np.subtract(cells[i], cells[j])) < radius:
            affinity[i, j] = (1 - strongest_edge(edge, cells[i], cells[j])) ** beta
    transition = np.linalg.matrix_power(affinity / affinity.sum(0), 2**exp_times)
    walked = (cam.numpy() * (1 - edge)).reshape(len(cam), -1) @ transition
    return torch.from_numpy(walked.reshape(cam.shape))


def test_paths_by_hand():
    paths = {path[0]: path for path in search_paths(5)}
    assert paths[0, 3] == ((0, 3), (0, 2), (0, 1), (0, 0))
    # (0, 2) and (2, 0) lie 1.41 cells off the diagonal, (0, 1) and the like 0.71
    assert set(paths[2, 2]) == {(2, 2), (2, 1), (1, 2), (1, 1), (1, 0), (0, 1), (0, 0)}
    # off the line to (3, -2) by |3x + 2y| / 3.61: (0, -1) by 0.83, (0, -2) by 1.66, (2, 0) by 1.11
    assert set(paths[3, -2]) == {
        (3, -2),
        (3, -1),
        (2, -2),
        (2, -1),
        (1, -1),
        (1, 0),
        (0, -1),
        (0, 0),
    }
    # (1, 2) and (3, 1) lie exactly one cell off the line to (4, 3), and so no more on the path
    (steep,) = (path for path in search_paths(10) if path[0] == (4, 3))
    assert set(steep) == {
        (4, 3),
        (4, 2),
        (3, 3),
        (3, 2),
        (2, 2),
        (2, 1),
        (1, 1),
        (1, 0),
        (0, 1),
        (0, 0),
    }


@pytest.mark.parametrize(("beta", "expected"), [(1, [2 / 3, 1 / 3]), (2, [0.8, 0.2])])
def test_one_step_by_hand(beta, expected):
    # affinity 0.5 ** beta of the two cells, 1 of each to itself; exp_times 0 is a single step
    found = random_walk(
        torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0.0, 0.5]]), beta=beta, exp_times=0
    )
    torch.testing.assert_close(found, torch.tensor([[expected]]))


@pytest.mark.parametrize(
    ("radius", "beta", "exp_times"),
    [(5, 10, 0), (5, 10, 3), (5, 10, 8), (2, 1, 2), (3, 2.5, 4)],
    ids=str,
)
@pytest.mark.parametrize(
    "size", [(7, 8), (1, 1), (1, 3), (3, 1), (2, 2), (4, 2)], ids=str
)  # also smaller than the radius
def test_walk_is_the_power_of_the_dense_matrix(size, radius, beta, exp_times):
    cam, edge = draw(*size)
    before = cam.clone(), edge.clone()
    found = random_walk(cam, edge, radius, beta, exp_times)
    assert torch.equal(cam, before[0]) and torch.equal(edge, before[1])
    torch.testing.assert_close(
        found, dense_walk(cam, edge, radius, beta, exp_times), rtol=1e-11, atol=1e-15
    )


@pytest.mark.parametrize("name", ["small", "medium"])
def test_walk_agrees_with_the_authors_program(shared, name, device):
    golden = np.load(shared / f"golden/random_walk_{name}.npz", allow_pickle=False)
    cam, edge = (torch.from_numpy(golden[key]).to(device) for key in ("cam", "edge"))
    found = random_walk(cam, edge, *(int(golden[key]) for key in ("radius", "beta", "exp_times")))
    assert (found.dtype, found.device) == (cam.dtype, cam.device)
    np.testing.assert_allclose(
        found.cpu().numpy(), golden["rw"], rtol=0, atol=1e-4 * golden["rw"].max()
    )


@pytest.mark.parametrize("wall", ["row", "column", "diagonal"])
def test_a_wall_is_never_crossed(wall):
    y, x = np.indices((9, 9))
    side = {"row": y - 4, "column": x - 4, "diagonal": x - y}[
        wall
    ]  # a diagonal wall's cells touch by their corners alone
    start = torch.from_numpy((side < 0) * 1.0)
    found = random_walk(start[None], torch.from_numpy((side == 0) * 1.0))[0].numpy()
    np.testing.assert_allclose(found[side < 0], 1)
    assert not found[side >= 0].any()


def test_padding_with_edge_and_without_map_changes_nothing(device):
    cam, edge = draw(5, 6)
    padded_cam, padded_edge = (
        torch.zeros(2, 3, 9, 10, dtype=torch.float64),
        torch.ones(2, 9, 10, dtype=torch.float64),
    )
    padded_cam[0, :2, :5, :6], padded_edge[0, :5, :6] = cam, edge
    padded_cam[1], padded_edge[1] = draw(9, 10, count=3)
    found = random_walk(padded_cam.to(device), padded_edge.to(device))[0].cpu()
    torch.testing.assert_close(found[:2, :5, :6], random_walk(cam, edge), rtol=1e-11, atol=0)
    found[:2, :5, :6] = 0
    assert not found.any()
