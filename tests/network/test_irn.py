"""IRN: agreement with the authors' program, what trains, edges of whole images, sums over pairs."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from data.transforms import normalize
from network.irn import EPSILON, IRN, PairSums, inter_pixel_losses, sum_over_pairs
from network.random_walk import search_paths
from tool import checkpoint


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IRN()


def read_arrays(path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def golden(shared):
    return read_arrays(shared / "golden/irn_step.npz")


@pytest.fixture(scope="module")
def reference_heads(shared):
    arrays = read_arrays(shared / "golden/irn_heads.npz")
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


class ReferenceStep(NamedTuple):
    """What the network finds on the reference crop."""

    outputs: dict[str, torch.Tensor]  # edge_logit and displacement
    count: list[int]  # pairs of each kind
    losses: dict[str, float]
    norms: dict[str, float]  # of the gradients


@pytest.fixture(scope="module")
def reference_step(shared, golden, reference_heads, device):
    model = IRN().train().to(device)
    tensors = dict(reference_heads)
    backbone = checkpoint.read(shared / "weights/resnet50_imagenet_fp16.pth")
    for name, value in backbone.items():
        tensors[f"resnet50.{name}"] = value
    checkpoint.load_tensors(model, tensors, "the reference weights")
    pixels = torch.from_numpy(golden["image"]).permute(2, 0, 1)[None]
    logits, displacement = model(normalize(pixels.to(device)))
    target = torch.from_numpy(golden["label_quarter"].astype(np.int64))[None].to(device)
    sums = sum_over_pairs(logits, displacement, target, search_paths(10))
    losses = inter_pixel_losses(sums)
    (sum(losses.values()) / 2).backward()
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            norms[name] = parameter.grad.norm().item()
    return ReferenceStep(
        {"edge_logit": logits.detach().cpu(), "displacement": displacement.detach().cpu()},
        sums.count.tolist(),
        {name: loss.item() for name, loss in losses.items()},
        norms,
    )


@pytest.mark.parametrize("name", ["edge_logit", "displacement"])
def test_the_outputs_agree_with_the_authors_program(reference_step, golden, name):
    expected = torch.from_numpy(golden[name])
    torch.testing.assert_close(reference_step.outputs[name], expected, atol=1e-3, rtol=0)


def test_the_losses_agree_with_the_authors_program(reference_step, golden):
    assert reference_step.count == golden["n_pairs"].tolist()
    expected = {
        "positive": golden["pos_loss"].item(),
        "negative": golden["neg_loss"].item(),
        "dp_foreground": golden["dp_fg_loss"].item(),
        "dp_background": golden["dp_bg_loss"].item(),
    }
    assert reference_step.losses == pytest.approx(expected, rel=1e-4)
    total = sum(reference_step.losses.values()) / 2
    assert total == pytest.approx(golden["total"].item(), rel=1e-4)


def test_the_gradients_agree_with_the_authors_program(reference_step, golden):
    assert reference_step.norms.keys() == set(golden["grad_names"].tolist())
    for name, norm in zip(golden["grad_names"], golden["grad_norms"]):
        assert reference_step.norms[name] == pytest.approx(norm, rel=1e-3), name


def test_the_names_are_the_authors(model, reference_heads):
    shapes = {}
    for name, value in model.state_dict().items():
        if not name.startswith("resnet50."):
            shapes[name] = value.shape
    assert shapes == {name: value.shape for name, value in reference_heads.items()}


def test_only_the_heads_train_and_every_parameter_of_them_is_in_one_group(model):
    model.train()
    logits, displacement = model(torch.randn(1, 3, 64, 64))
    (logits.square().sum() + displacement.square().sum()).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("fc_")}
    grouped = []
    for group in model.parameter_groups():
        grouped += group["params"]
    assert len(grouped) == len(set(grouped)) == len(trained)


def test_the_displacement_branch_learns_ten_times_as_fast_as_the_edge_branch(model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in model.parameter_groups():
        for parameter in group["params"]:
            expected = 10 if names[parameter].startswith("fc_dp") else 1
            assert group["lr_scale"] == expected


def test_the_backbone_stays_as_it_is_in_training(model):
    before = {name: value.clone() for name, value in model.resnet50.state_dict().items()}
    assert model.train() is model
    assert model.training and model.fc_dp6.training
    assert not any(module.training for module in model.resnet50.modules())
    model(torch.randn(1, 3, 32, 32))
    for name, value in model.resnet50.state_dict().items():
        assert torch.equal(before[name], value), name


def test_the_mean_displacement_is_taken_away_at_inference_alone(model):
    image = torch.randn(1, 3, 32, 32)
    mean = torch.tensor([2.0, -3.0])
    with torch.no_grad():
        edge, displacement = model.train()(image)
        model.set_mean_displacement(mean)
        assert torch.equal(model(image)[1], displacement)
        edge_after, centred = model.eval()(image)
        model.set_mean_displacement(torch.zeros(2))
    torch.testing.assert_close(centred, displacement - mean.view(2, 1, 1))
    assert torch.equal(edge_after, edge)


@pytest.mark.parametrize(
    ("height", "width"),
    [(33, 47), (81, 30), (90, 101)],
    ids=["within the crop", "beyond it on one side", "beyond it"],
)
def test_edges_cover_the_image(model, height, width):
    edges = model.eval().find_edges(torch.randn(1, 3, height, width), 80)
    assert edges.shape == (1, math.ceil(height / 4), math.ceil(width / 4))
    assert 0 <= edges.min() < edges.max() <= 1


def test_edges_are_those_of_the_padded_image_and_its_mirror(model):
    image = torch.randn(1, 3, 40, 52)

    def edge_logits(image: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(1, 3, 64, 64)
        padded[:, :, :40, :52] = image
        return model(padded)[0][:, 0, :10, :13]

    edges = model.eval().find_edges(image, 64)
    with torch.no_grad():
        straight = edge_logits(image)
        mirrored = edge_logits(image.flip(3)).flip(2)
    expected = ((straight + mirrored) / 2).sigmoid()
    torch.testing.assert_close(edges, expected, atol=1e-5, rtol=0)


RADIUS = 3  # of the pairs below, on a grid of 7x9 cells
PATHS = search_paths(RADIUS)


class Problem(NamedTuple):
    """What the sums are of; the logits and displacements want a gradient."""

    logits: torch.Tensor
    displacement: torch.Tensor
    target: torch.Tensor

    def sums(self) -> PairSums:
        return sum_over_pairs(*self, PATHS)


def tiny_problem() -> Problem:
    """Edge logits that are all different, and targets of background, two classes and no label."""
    rng = np.random.default_rng(0)
    logits = rng.permutation(126).reshape(2, 1, 7, 9) / 30 - 2
    displacement = rng.normal(size=(2, 2, 7, 9)) * 2
    target = rng.choice([0, 8, 12, 255], (2, 7, 9))
    return Problem(
        torch.from_numpy(logits).requires_grad_(),
        torch.from_numpy(displacement).requires_grad_(),
        torch.from_numpy(target),
    )


def problem_of_class(class_id: int) -> Problem:
    problem = tiny_problem()
    return problem._replace(target=torch.full_like(problem.target, class_id))


def sums_by_hand(problem: Problem) -> PairSums:
    """Pair by pair: a source, and every cell nearer than RADIUS below it or to its right."""
    affinities = np.zeros(3)
    errors = np.zeros(2)
    count = np.zeros(3)
    edges = problem.logits.detach().sigmoid().numpy()[:, 0]
    displacements = problem.displacement.detach().numpy()
    reach = RADIUS - 1
    sources = itertools.product(range(7 - reach), range(reach, 9 - reach))
    pairs = list(itertools.product(sources, PATHS))
    for edge, displacement, target in zip(edges, displacements, problem.target.numpy()):
        for (y, x), path in pairs:
            dy, dx = path[0]
            source = target[y, x]
            end = target[y + dy, x + dx]
            if 255 in (source, end):
                continue
            strongest = max(edge[y + path_y, x + path_x] for path_y, path_x in path)
            if source != end:
                affinities[2] -= np.log(strongest + EPSILON)
                count[2] += 1
                continue
            kind = int(source > 0)
            affinities[kind] -= np.log(1 - strongest + EPSILON)
            count[kind] += 1
            difference = displacement[:, y, x] - displacement[:, y + dy, x + dx]
            errors[kind] += np.abs(difference - kind * np.array([dy, dx])).sum()
    return PairSums(affinities, errors, count)


def test_sums_over_pairs_by_hand():
    problem = tiny_problem()
    expected = sums_by_hand(problem)
    assert (expected.count > 0).all()
    for value, by_hand in zip(problem.sums(), expected):
        assert value.detach().numpy() == pytest.approx(by_hand)


def test_pairs_with_an_unlabelled_cell_do_not_count():
    problem = tiny_problem()
    problem.target[:, :, ::2] = 255
    shifted = problem.displacement.detach().clone()
    shifted[:, :, :, ::2] += 100
    before = problem.sums()
    after = problem._replace(displacement=shifted).sums()
    assert before.count.sum() > 0
    assert torch.equal(before.displacement, after.displacement)


def test_without_labels_the_sums_are_zero():
    assert not any(value.any() for value in problem_of_class(255).sums())


def test_the_gradient_of_the_losses():
    problem = tiny_problem()

    def loss(logits: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        sums = Problem(logits, displacement, problem.target).sums()
        return sum(inter_pixel_losses(sums).values())

    leaves = (problem.logits, problem.displacement)
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_the_strongest_edge_takes_the_whole_gradient():
    logits = torch.full((1, 1, 3, 5), -4.0)
    logits[0, 0, 0, 3] = 1.0  # between source and destination
    logits.requires_grad_()
    target = torch.full((1, 3, 5), 255)
    target[0, 0, [2, 4]] = 0
    path = ((0, 2), (0, 1), (0, 0))
    sums = sum_over_pairs(logits, torch.zeros(1, 2, 3, 5), target, [path])
    sums.affinity.sum().backward()
    assert logits.grad.nonzero().tolist() == [[0, 0, 0, 3]]
    strongest = 1 / (1 + math.exp(-1))
    assert sums.affinity[0].item() == pytest.approx(-math.log(1 - strongest), rel=1e-4)


def test_losses_by_hand():
    sums = PairSums(
        affinity=torch.tensor([4.0, 6.0, 10.0]),
        displacement=torch.tensor([8.0, 20.0]),
        count=torch.tensor([2.0, 3.0, 5.0]),
    )
    losses = {name: loss.item() for name, loss in inter_pixel_losses(sums).items()}
    expected = {
        "positive": (4 / 2 + 6 / 3) / 2,
        "negative": 10 / 5,
        "dp_foreground": 20 / 6,
        "dp_background": 8 / 4,
    }
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("class_id", [0, 8, 255])
def test_losses_without_pairs_of_a_kind_are_finite_and_so_are_their_gradients(class_id):
    problem = problem_of_class(class_id)
    losses = inter_pixel_losses(problem.sums())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["negative"] == 0
    assert problem.logits.grad.isfinite().all()
    assert problem.displacement.grad.isfinite().all()
