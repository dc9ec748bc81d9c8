"""Seeds, prototypes and activations: worked values, agreement with the authors' program, invariances."""

import numpy as np
import pytest
import torch

from network import prototypes
from network.prototypes import (
    activate,
    add_background,
    locate_seeds,
    peak_normalize,
    pool_prototypes,
)
from network.recipe import class_prototype, cluster, contrast, propagate


def random_case(batch=2, classes=4, channels=6, height=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cam = torch.rand(batch, classes, height, width, generator=generator)
    features = torch.randn(batch, channels, height, width, generator=generator)
    return cam, features, torch.ones_like(cam)


def broadcast_seeds(cam, features, valid, background_scale=0.5):
    """The same formula written out with its (B, K, N, N) tensors."""
    classes = cam.shape[1]
    cells = features / (features.norm(dim=1, keepdim=True) + 1e-5)
    cells = cells.flatten(2)
    similarity = (cells.transpose(1, 2) @ cells).relu()[:, None]
    maps = cam.flatten(2)[:, :, None]
    inter = (similarity * maps).sum(-1)
    union = similarity.sum(-1) + maps.sum(-1) - inter
    fit = inter / union
    fit[:, 0] *= background_scale
    winner = fit.argmax(1)
    return torch.stack([winner == k for k in range(classes)], 1).view_as(cam).float() * valid


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_agrees_with_the_authors_program(shared, dataset, device):
    golden = np.load(shared / f"golden/ipe_{dataset}.npz", allow_pickle=False)
    golden = {name: torch.from_numpy(golden[name]).to(device) for name in golden.files}
    seeds = locate_seeds(golden["cam"], golden["seed_feature"], golden["valid"])
    prototypes = pool_prototypes(seeds, golden["feature"])
    assert torch.equal(seeds, golden["seeds"].float())
    torch.testing.assert_close(prototypes, golden["prototypes"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        activate(prototypes, golden["feature"]), golden["is_cam"], atol=1e-5, rtol=0
    )


def test_seeds_are_the_same_when_cells_are_compared_in_parts(monkeypatch):
    torch.manual_seed(0)
    cam, features, valid = torch.rand(2, 4, 5, 7), torch.randn(2, 6, 5, 7), torch.ones(2, 4, 5, 7)
    whole = locate_seeds(cam, features, valid)
    monkeypatch.setattr(prototypes, "MOST_PRODUCTS", 2 * 35 * 8)  # 8 of the 35 cells at a time
    assert torch.equal(locate_seeds(cam, features, valid), whole)
    assert (whole.sum((0, 2, 3))[1:] > 0).all()


def test_peak_normalize_scales_each_map_to_one():
    maps = torch.tensor([[[2.0, 1.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(
        peak_normalize(maps), torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]]), atol=1e-5, rtol=0
    )


def test_background_is_what_no_class_claims():
    cam = torch.tensor([0.2, 0.7]).view(1, 2, 1, 1)
    torch.testing.assert_close(add_background(cam).flatten(), torch.tensor([0.3, 0.2, 0.7]))


def test_seeds_of_two_kinds_of_cells_by_hand():
    # cells 0 and 1 look alike, cells 2 and 3 look alike; class 1 is active on cell 0 alone, the background on cells 2 and 3
    features = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).view(1, 2, 1, 4)
    cam = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]).view(1, 2, 1, 4)
    seeds = locate_seeds(cam, features, torch.ones(1, 2, 1, 4))
    assert seeds.flatten().tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_the_background_needs_twice_the_fit():
    # a cell that resembles nothing but itself: fit 0.6 / 1 for the background, 0.4 / 1 for the class
    cam, features = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1)
    assert locate_seeds(cam, features, torch.ones(1, 2, 1, 1)).flatten().tolist() == [0, 1]
    assert locate_seeds(
        cam, features, torch.ones(1, 2, 1, 1), background_scale=1
    ).flatten().tolist() == [1, 0]


def test_a_cell_won_by_an_absent_class_stays_empty():
    cam, features = torch.tensor([0.1, 0.2, 0.9]).view(1, 3, 1, 1), torch.ones(1, 1, 1, 1)
    valid = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert locate_seeds(cam, features, valid).sum() == 0


def test_padding_is_never_seeded():
    cam, features, valid = random_case()
    valid[..., 3:, :] = 0
    seeds = locate_seeds(cam * valid, features, valid)
    assert seeds[..., 3:, :].sum() == 0 and seeds[..., :3, :].sum() == 2 * 3 * 7


def test_matrix_products_give_the_seeds_of_the_broadcast_formula():
    for seed in range(5):
        case = random_case(classes=7, seed=seed)
        assert torch.equal(locate_seeds(*case), broadcast_seeds(*case))


def test_the_scale_of_features_does_not_matter():
    cam, features, valid = random_case()
    seeds = locate_seeds(cam, features, valid)
    assert torch.equal(seeds, locate_seeds(cam, 100 * features, valid))
    prototypes = pool_prototypes(seeds, features)
    torch.testing.assert_close(
        activate(prototypes, features), activate(50 * prototypes, 100 * features)
    )


def test_the_order_of_classes_does_not_matter():
    cam, features, valid = random_case()
    order = [0, 3, 1, 2]
    assert torch.equal(
        locate_seeds(cam, features, valid)[:, order],
        locate_seeds(cam[:, order], features, valid[:, order]),
    )


def test_a_prototype_is_the_mean_over_all_cells_and_zero_without_seeds():
    features = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 2, 2)
    seeds = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(1, 2, 2, 2)
    prototypes = pool_prototypes(seeds, features)
    assert prototypes.flatten().tolist() == [2, 0]
    assert activate(prototypes, features)[0, 1].abs().sum() == 0


def test_activation_is_the_cosine_clipped_at_zero():
    features = torch.tensor([[1.0, 0.0, -1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]).view(1, 2, 2, 2)
    is_cam = activate(torch.tensor([[[2.0, 0.0]]]), features)
    torch.testing.assert_close(is_cam.flatten(), torch.tensor([1.0, 0.0, 0.0, 0.5**0.5]))


def test_contrast_takes_the_background_off_the_classes():
    is_cam = torch.tensor([0.4, 0.9, 0.1, 0.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(contrast(is_cam, 0.5).flatten(), torch.tensor([0.4, 0.7, 0.0, 0.0]))


@pytest.mark.parametrize("products", [2**26, 5])
def test_spread_is_the_mean_over_cells_by_their_similarity(monkeypatch, products):
    monkeypatch.setattr(prototypes, "MOST_PRODUCTS", products)  # few: one cell after the other
    features = torch.tensor([[1.0, 1.0, 0.0, -2.0], [0.0, 1.0, 3.0, 0.0]]).view(
        1, 2, 2, 2
    )  # at 0, 45, 90 and 180 degrees
    maps = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.8]]).view(1, 2, 2, 2)
    wanted = torch.tensor(
        [[1 / 1.5, 0.5 / 2, 0, 0], [0.4 / 1.5, 0.8 / 2, 0.8 / 1.5, 0.8]]
    )  # cos(45) ** 2 = 0.5
    torch.testing.assert_close(
        propagate(maps, features, 2)[0].flatten(1), wanted, atol=1e-4, rtol=0
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            propagate(maps, features, 2)[0].flatten(1), wanted, atol=1e-4, rtol=0
        )
    torch.testing.assert_close(
        propagate(maps, features, 1)[0, 0, 0, 0],
        torch.tensor(1 / (1 + 0.5**0.5)),
        atol=1e-4,
        rtol=0,
    )


def test_clusters_are_the_means_of_cells_of_like_direction():
    cells = torch.tensor([[2.0, 0.2], [4.0, 0.0], [0.1, 1.0], [0.0, 3.0], [3.0, 0.1]])
    found = cluster(cells, 2)
    torch.testing.assert_close(
        found[found[:, 0].argsort()], torch.tensor([[0.05, 2.0], [3.0, 0.1]])
    )
    assert (
        len(cluster(cells[:1], 12)) == 1 and len(cluster(torch.ones(5, 2), 12)) == 1
    )  # no empty ones


def test_a_class_prototype_leaves_out_what_other_classes_show_and_subtracts_the_context():
    classifier = torch.tensor([[9.0, 0.0, 1.0, 0.0], [0.0, 9.0, 1.0, 0.0]])
    of_class, shared, of_other, context = (
        torch.eye(4)[0],
        torch.eye(4)[2],
        torch.eye(4)[1],
        torch.eye(4)[3],
    )
    found = class_prototype(
        torch.stack([of_class, of_class, shared]), torch.stack([of_other, context]), classifier, 0
    )
    torch.testing.assert_close(
        found, of_class - context
    )  # shared: certain by half; the other class: unrelated
    torch.testing.assert_close(
        class_prototype(shared[None], of_other[None], classifier, 0), shared
    )  # the most certain one is kept


def test_seeds_carry_no_gradient():
    cam, features, valid = random_case()
    assert not locate_seeds(cam.requires_grad_(), features.requires_grad_(), valid).requires_grad


def test_autocast_changes_nothing():
    cam, features, valid = random_case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seeds = locate_seeds(cam, features, valid)
        prototypes = pool_prototypes(seeds, features)
        is_cam = activate(prototypes, features)
    assert torch.equal(seeds, locate_seeds(cam, features, valid))
    assert is_cam.dtype == torch.float32 and torch.equal(
        is_cam, activate(pool_prototypes(seeds, features), features)
    )


def test_tf32_is_off_whatever_the_callers_flags_are(monkeypatch):
    seen, real, matmul = [], prototypes._inverse_norms, torch.backends.cuda.matmul
    flag, on = (
        ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    )
    monkeypatch.setattr(
        prototypes,
        "_inverse_norms",
        lambda features: (seen.append(getattr(matmul, flag)), real(features))[1],
    )
    for owner in [matmul] + [torch.backends] * hasattr(
        torch.backends, flag
    ):  # set for products alone, or for everything
        before, own = getattr(owner, flag), getattr(matmul, flag)
        setattr(owner, flag, on)
        try:
            locate_seeds(*random_case())
            assert seen and on not in seen and getattr(matmul, flag) == on
        finally:
            setattr(owner, flag, before)
        assert getattr(matmul, flag) == own, "an inherited flag was kept"
