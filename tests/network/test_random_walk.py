"""The random walk: paths by hand, steps against the matrix of all pairs of cells, invariances."""

import itertools

import numpy as np
import pytest
import torch

from network.random_walk import random_walk, search_paths

Cell = tuple[int, int]


def draw(height: int, width: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random maps (count, h, w) and edges (h, w) below 0.8, float64."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    cam = torch.rand((count, height, width), **options)
    edge = torch.rand((height, width), **options)
    return cam, 0.8 * edge


def strongest_edge(edge: np.ndarray, source: Cell, target: Cell) -> float:
    """The largest value on the cells between two, less than one cell off the straight line."""
    (y0, x0), (y1, x1) = sorted((source, target))
    length = np.hypot(y1 - y0, x1 - x0)
    values = []
    for y in range(y0, y1 + 1):
        for x in range(min(x0, x1), max(x0, x1) + 1):
            area = abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0))
            if area / length < 1 - 1e-9:
                values.append(edge[y, x])
    return max(values)


def dense_transition(edge: np.ndarray, radius: int, beta: float) -> np.ndarray:
    """The matrix of one step between all pairs of cells, as the formula is written."""
    cells = list(np.ndindex(*edge.shape))
    affinity = np.eye(len(cells))
    for i, j in itertools.permutations(range(len(cells)), 2):
        distance = np.hypot(*np.subtract(cells[i], cells[j]))
        if distance < radius:
            affinity[i, j] = (1 - strongest_edge(edge, cells[i], cells[j])) ** beta
    return affinity / affinity.sum(0)


# the cells of some paths, from the source's row down; the comments say how far others are off it
PATHS = {
    (0, 3): ["####"],
    # the corners by 1.41 cells, their neighbours by 0.71
    (2, 2): ["##.", "###", ".##"],
    # by |3x + 2y| / 3.61: (0, -1) by 0.83, (0, -2) by 1.66, (2, 0) by 1.11
    (3, -2): [".##", ".##", "##.", "##."],
    # (1, 2) and (3, 1) by exactly one, and so no more on the path
    (4, 3): ["##..", "##..", ".##.", "..##", "..##"],
}


def drawn(path: tuple[Cell, ...]) -> list[str]:
    """The rows of the box around a path, with # for its cells."""
    dy, dx = path[0]
    rows = []
    for y in range(dy + 1):
        row = ""
        for x in range(min(dx, 0), max(dx, 0) + 1):
            row += "#" if (y, x) in path else "."
        rows.append(row)
    return rows


@pytest.mark.parametrize("end", PATHS, ids=str)
def test_the_cells_of_a_path_by_hand(end):
    paths = {path[0]: path for path in search_paths(10)}
    path = paths[end]
    assert drawn(path) == PATHS[end]
    assert len(path) == len(set(path))
    assert path[-1] == (0, 0)


def test_a_straight_path_goes_from_its_destination_to_its_source():
    paths = {path[0]: path for path in search_paths(5)}
    assert paths[0, 3] == ((0, 3), (0, 2), (0, 1), (0, 0))


@pytest.mark.parametrize(("radius", "count"), [(5, 34), (10, 152)])
def test_the_number_of_paths(radius, count):
    assert len(search_paths(radius)) == count


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (1, [2 / 3, 1 / 3]),
        (2, [0.8, 0.2]),
    ],
)
def test_a_step_by_hand(beta, expected):
    """Affinity 0.5 ** beta of the two cells, 1 of each to itself; exp_times 0 is a single step."""
    cam = torch.tensor([[[1.0, 0.0]]])
    edge = torch.tensor([[0.0, 0.5]])
    walked = random_walk(cam, edge, beta=beta, exp_times=0)
    torch.testing.assert_close(walked, torch.tensor([[expected]]))


SIZES = [(7, 8), (1, 1), (1, 3), (3, 1), (2, 2), (4, 2)]  # also smaller than the radius


@pytest.mark.parametrize(
    ("radius", "beta", "exp_times"),
    [
        (5, 10, 0),
        (5, 10, 3),
        (5, 10, 8),
        (2, 1, 2),
        (3, 2.5, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_walk_is_the_power_of_the_dense_matrix(size, radius, beta, exp_times):
    cam, edge = draw(*size)
    cam_before = cam.clone()
    edge_before = edge.clone()
    walked = random_walk(cam, edge, radius, beta, exp_times)
    assert torch.equal(cam, cam_before)
    assert torch.equal(edge, edge_before)
    transition = dense_transition(edge.numpy(), radius, beta)
    transitions = np.linalg.matrix_power(transition, 2**exp_times)
    start = (cam * (1 - edge)).flatten(1).numpy()
    expected = torch.from_numpy(start @ transitions).view_as(cam)
    torch.testing.assert_close(walked, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ["small", "medium"])
def test_the_walk_agrees_with_the_authors_program(shared, name, device):
    golden = np.load(shared / f"golden/random_walk_{name}.npz", allow_pickle=False)
    cam = torch.from_numpy(golden["cam"]).to(device)
    edge = torch.from_numpy(golden["edge"]).to(device)
    settings = {key: int(golden[key]) for key in ("radius", "beta", "exp_times")}
    walked = random_walk(cam, edge, **settings)
    assert (walked.dtype, walked.device) == (cam.dtype, cam.device)
    tolerance = 1e-4 * golden["rw"].max()
    np.testing.assert_allclose(walked.cpu().numpy(), golden["rw"], rtol=0, atol=tolerance)


ROWS, COLUMNS = np.indices((9, 9))


@pytest.mark.parametrize(
    "side",
    [ROWS - 4, COLUMNS - 4, COLUMNS - ROWS],
    ids=["row", "column", "diagonal"],  # a diagonal wall's cells touch by their corners alone
)
def test_a_wall_is_never_crossed(side):
    start = torch.from_numpy((side < 0).astype(float))
    wall = torch.from_numpy((side == 0).astype(float))
    walked = random_walk(start[None], wall)[0].numpy()
    np.testing.assert_allclose(walked[side < 0], 1)
    assert not walked[side >= 0].any()


def test_padding_with_edge_and_without_map_changes_nothing(device):
    cam, edge = draw(5, 6)
    other_cam, other_edge = draw(9, 10, count=3)
    padded_cam = torch.stack([torch.zeros_like(other_cam), other_cam])
    padded_cam[0, :2, :5, :6] = cam
    padded_edge = torch.stack([torch.ones_like(other_edge), other_edge])
    padded_edge[0, :5, :6] = edge
    walked = random_walk(padded_cam.to(device), padded_edge.to(device))[0].cpu()
    expected = random_walk(cam, edge)
    torch.testing.assert_close(walked[:2, :5, :6], expected, rtol=1e-11, atol=0)
    walked[:2, :5, :6] = 0
    assert not walked.any()
