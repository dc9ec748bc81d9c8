"""IRN: agreement with the authors' program, what trains, edges of whole images, and the sums that the losses are made of."""

import math

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


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden/irn_step.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def reference_heads(shared):
    with np.load(shared / "golden/irn_heads.npz", allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def reference_step(shared, golden, reference_heads, device):
    """What the network finds on the reference crop, its losses and its gradients."""
    model = IRN().train().to(device)
    backbone = checkpoint.read(shared / "weights/resnet50_imagenet_fp16.pth")
    checkpoint.load_tensors(
        model,
        reference_heads | {f"resnet50.{name}": value for name, value in backbone.items()},
        "the reference weights",
    )
    logits, displacement = model(
        normalize(torch.from_numpy(golden["image"]).permute(2, 0, 1)[None].to(device))
    )
    label = torch.from_numpy(golden["label_quarter"].astype(np.int64))[None].to(device)
    sums = sum_over_pairs(logits, displacement, label, search_paths(10))
    losses = inter_pixel_losses(sums)
    (sum(losses.values()) / 2).backward()
    norms = {
        name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None
    }
    return {
        "edge_logit": logits.detach().cpu(),
        "displacement": displacement.detach().cpu(),
        "count": sums.count,
        "losses": losses,
        "norms": norms,
    }


def test_the_outputs_agree_with_the_authors_program(reference_step, golden):
    for name in ("edge_logit", "displacement"):
        torch.testing.assert_close(
            reference_step[name], torch.from_numpy(golden[name]), atol=1e-3, rtol=0
        )


def test_the_losses_agree_with_the_authors_program(reference_step, golden):
    assert reference_step["count"].tolist() == golden["n_pairs"].tolist()
    names = {
        "positive": "pos_loss",
        "negative": "neg_loss",
        "dp_foreground": "dp_fg_loss",
        "dp_background": "dp_bg_loss",
    }
    assert reference_step["losses"].keys() == names.keys()
    for ours, theirs in names.items():
        assert reference_step["losses"][ours].item() == pytest.approx(
            golden[theirs].item(), rel=1e-4
        )
    assert sum(loss.item() for loss in reference_step["losses"].values()) / 2 == pytest.approx(
        golden["total"].item(), rel=1e-4
    )


def test_the_gradients_agree_with_the_authors_program(reference_step, golden):
    assert reference_step["norms"].keys() == set(golden["grad_names"].tolist())
    for name, norm in zip(golden["grad_names"], golden["grad_norms"]):
        assert reference_step["norms"][name] == pytest.approx(norm, rel=1e-3), name


def test_the_names_are_the_authors(model, reference_heads):
    ours = model.state_dict()
    assert {name for name in ours if not name.startswith("resnet50.")} == reference_heads.keys()
    assert all(ours[name].shape == value.shape for name, value in reference_heads.items())


def test_only_the_heads_train_and_every_parameter_of_them_is_in_one_group(model):
    model.train()
    logits, displacement = model(torch.randn(1, 3, 64, 64))
    (logits.square().sum() + displacement.square().sum()).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("fc_")}
    groups = [parameter for group in model.parameter_groups() for parameter in group["params"]]
    assert len(groups) == len({id(p) for p in groups}) == len(trained)


def test_the_backbone_stays_as_it_is_in_training(model):
    before = {name: value.clone() for name, value in model.resnet50.state_dict().items()}
    assert model.train() is model and model.training and model.fc_dp6.training
    assert not any(module.training for module in model.resnet50.modules())
    model(torch.randn(1, 3, 32, 32))
    assert all(
        torch.equal(before[name], value) for name, value in model.resnet50.state_dict().items()
    )


def test_the_mean_displacement_is_taken_away_at_inference_alone(model):
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        edge, displacement = model.train()(image)
        model.set_mean_displacement(torch.tensor([2.0, -3.0]))
        assert torch.equal(model(image)[1], displacement)
        edge_after, centred = model.eval()(image)
        model.set_mean_displacement(torch.zeros(2))
    torch.testing.assert_close(centred, displacement - torch.tensor([2.0, -3.0]).view(2, 1, 1))
    assert torch.equal(edge_after, edge)


@pytest.mark.parametrize(
    ("height", "width"), [(33, 47), (81, 30), (90, 101)]
)  # within the crop, on one side, beyond it
def test_edges_cover_the_image(model, height, width):
    edges = model.eval().find_edges(torch.randn(1, 3, height, width), 80)
    assert edges.shape == (1, math.ceil(height / 4), math.ceil(width / 4))
    assert 0 <= edges.min() < edges.max() <= 1


def test_edges_are_those_of_the_padded_image_and_its_mirror(model):
    image = torch.randn(1, 3, 40, 52)

    def logits(image):
        padded = torch.zeros(1, 3, 64, 64)
        padded[:, :, :40, :52] = image
        return model(padded)[0][:, 0, :10, :13]

    edges = model.eval().find_edges(image, 64)
    with torch.no_grad():
        expected = ((logits(image) + logits(image.flip(3)).flip(2)) / 2).sigmoid()
    torch.testing.assert_close(edges, expected, atol=1e-5, rtol=0)


RADIUS = 3  # of the pairs below, on a grid of 7x9 cells


def tiny_problem():
    """Edge logits that are all different, displacements, and labels of background, two classes and nothing known."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.permutation(126).reshape(2, 1, 7, 9) / 30 - 2).requires_grad_()
    displacement = torch.from_numpy(rng.normal(size=(2, 2, 7, 9)) * 2).requires_grad_()
    return logits, displacement, torch.from_numpy(rng.choice([0, 8, 12, 255], (2, 7, 9)))


def sums_by_hand(logits, displacement, label):
    """Pair by pair: the source and every cell nearer than RADIUS below it or to its right, over the cells of a line between them."""
    edge = 1 / (1 + np.exp(-logits.detach().numpy()[:, 0]))
    displacement, label = displacement.detach().numpy(), label.numpy()
    reach = RADIUS - 1
    affinities, errors, count = np.zeros(3), np.zeros(2), np.zeros(3)
    for b in range(2):
        for y in range(7 - reach):
            for x in range(reach, 9 - reach):
                for path in search_paths(RADIUS):
                    dy, dx = path[0]
                    source, target = label[b, y, x], label[b, y + dy, x + dx]
                    if 255 in (source, target):
                        continue
                    affinity = 1 - max(edge[b, y + py, x + px] for py, px in path)
                    kind = 2 if source != target else int(source > 0)
                    affinities[kind] -= np.log((1 - affinity if kind == 2 else affinity) + EPSILON)
                    count[kind] += 1
                    if kind < 2:
                        between = displacement[b, :, y, x] - displacement[b, :, y + dy, x + dx]
                        errors[kind] += np.abs(between - kind * np.array([dy, dx])).sum()
    return affinities, errors, count


def test_sums_over_pairs_by_hand():
    problem = tiny_problem()
    sums, expected = sum_over_pairs(*problem, search_paths(RADIUS)), sums_by_hand(*problem)
    assert (expected[2] > 0).all()
    for ours, by_hand in zip(sums, expected):
        assert ours.detach().numpy() == pytest.approx(by_hand)


def test_pairs_with_an_unknown_cell_do_not_count():
    logits, displacement, label = tiny_problem()
    label[:, :, ::2] = 255
    before = sum_over_pairs(logits, displacement, label, search_paths(RADIUS))
    shifted = displacement.detach().clone()
    shifted[:, :, :, ::2] += 100
    after = sum_over_pairs(logits, shifted, label, search_paths(RADIUS))
    assert before.count.sum() > 0
    assert torch.equal(before.displacement, after.displacement)
    nothing = sum_over_pairs(
        logits, displacement, torch.full_like(label, 255), search_paths(RADIUS)
    )
    assert not any(sums.any() for sums in nothing)


def test_the_gradient_of_the_losses():
    logits, displacement, label = tiny_problem()
    paths = search_paths(RADIUS)

    def loss(logits, displacement):
        return sum(inter_pixel_losses(sum_over_pairs(logits, displacement, label, paths)).values())

    assert torch.autograd.gradcheck(loss, (logits, displacement), fast_mode=True)


def test_the_strongest_edge_takes_the_whole_gradient():
    logits = torch.full((1, 1, 3, 5), -4.0)
    logits[0, 0, 0, 3] = 1.0  # between source and target
    logits.requires_grad_()
    label = torch.full((1, 3, 5), 255)
    label[0, 0, [2, 4]] = 0
    sums = sum_over_pairs(logits, torch.zeros(1, 2, 3, 5), label, [((0, 2), (0, 1), (0, 0))])
    sums.affinity.sum().backward()
    assert logits.grad.nonzero().tolist() == [[0, 0, 0, 3]]
    assert sums.affinity[0].item() == pytest.approx(
        -math.log(1 - torch.sigmoid(torch.tensor(1.0)).item()), rel=1e-4
    )


def test_losses_by_hand():
    sums = PairSums(
        torch.tensor([4.0, 6.0, 10.0]), torch.tensor([8.0, 20.0]), torch.tensor([2.0, 3.0, 5.0])
    )
    losses = {name: loss.item() for name, loss in inter_pixel_losses(sums).items()}
    expected = {
        "positive": (4 / 2 + 6 / 3) / 2,
        "negative": 10 / 5,
        "dp_foreground": 20 / 6,
        "dp_background": 8 / 4,
    }
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("only", [0, 8, 255])
def test_losses_without_pairs_of_a_kind_are_finite_and_so_are_their_gradients(only):
    logits, displacement, label = tiny_problem()
    losses = inter_pixel_losses(
        sum_over_pairs(logits, displacement, torch.full_like(label, only), search_paths(RADIUS))
    )
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["negative"] == 0
    assert logits.grad.isfinite().all() and displacement.grad.isfinite().all()
