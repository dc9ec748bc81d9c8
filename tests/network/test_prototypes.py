"""Seeds, prototypes and activations: by hand, by the authors' program, and invariances."""

from typing import NamedTuple

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


class Case(NamedTuple):
    """The arguments of `locate_seeds`."""

    cam: torch.Tensor
    features: torch.Tensor
    valid: torch.Tensor


def random_case(classes: int = 4, seed: int = 0) -> Case:
    """Two images of 5 x 7 cells with six channels; every class may be anywhere."""
    generator = torch.Generator().manual_seed(seed)
    cam = torch.rand(2, classes, 5, 7, generator=generator)
    features = torch.randn(2, 6, 5, 7, generator=generator)
    return Case(cam, features, torch.ones_like(cam))


def single_cell(*cam: float) -> Case:
    """One cell, which resembles nothing but itself, with a value of each class."""
    maps = torch.tensor(cam).view(1, len(cam), 1, 1)
    return Case(maps, torch.ones(1, 1, 1, 1), torch.ones_like(maps))


def broadcast_seeds(case: Case, background_scale: float = 0.5) -> torch.Tensor:
    """The same formula written out with its (B, K, N, N) tensors."""
    lengths = case.features.norm(dim=1, keepdim=True) + 1e-5
    cells = (case.features / lengths).flatten(2)
    similarity = (cells.transpose(1, 2) @ cells).relu()[:, None]
    maps = case.cam.flatten(2)[:, :, None]
    inter = (similarity * maps).sum(-1)
    union = similarity.sum(-1) + maps.sum(-1) - inter
    fit = inter / union
    fit[:, 0] *= background_scale
    winner = fit.argmax(1)
    seeds = [winner == k for k in range(case.cam.shape[1])]
    return torch.stack(seeds, 1).view_as(case.cam).float() * case.valid


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_agrees_with_the_authors_program(shared, dataset, device):
    arrays = np.load(shared / f"golden/ipe_{dataset}.npz", allow_pickle=False)
    golden = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}
    seeds = locate_seeds(golden["cam"], golden["seed_feature"], golden["valid"])
    assert torch.equal(seeds, golden["seeds"].float())
    prototypes = pool_prototypes(seeds, golden["feature"])
    torch.testing.assert_close(prototypes, golden["prototypes"], atol=1e-5, rtol=0)
    is_cam = activate(prototypes, golden["feature"])
    torch.testing.assert_close(is_cam, golden["is_cam"], atol=1e-5, rtol=0)


def test_seeds_are_the_same_when_cells_are_compared_in_parts(monkeypatch):
    case = random_case()
    whole = locate_seeds(*case)
    monkeypatch.setattr(prototypes, "MOST_PRODUCTS", 2 * 35 * 8)  # 8 of the 35 cells at a time
    assert torch.equal(locate_seeds(*case), whole)
    seeds_of_classes = whole.sum((0, 2, 3))[1:]
    assert (seeds_of_classes > 0).all()


def test_peak_normalize_scales_each_map_to_one():
    maps = torch.tensor([[[2.0, 1.0]], [[0.0, 0.0]]])
    expected = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]])
    torch.testing.assert_close(peak_normalize(maps), expected, atol=1e-5, rtol=0)


def test_background_is_what_no_class_claims():
    cam = torch.tensor([0.2, 0.7]).view(1, 2, 1, 1)
    torch.testing.assert_close(add_background(cam).flatten(), torch.tensor([0.3, 0.2, 0.7]))


def test_seeds_of_two_kinds_of_cells_by_hand():
    # cells 0 and 1 resemble each other, and so do cells 2 and 3
    features = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    # the background is active on cells 2 and 3, class 1 on cell 0 alone
    cam = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    shape = (1, 2, 1, 4)
    seeds = locate_seeds(cam.view(shape), features.view(shape), torch.ones(shape))
    assert seeds.flatten().tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_the_background_needs_twice_the_fit():
    case = single_cell(0.6, 0.4)  # fit 0.6 / 1 for the background, 0.4 / 1 for the class
    assert locate_seeds(*case).flatten().tolist() == [0, 1]
    assert locate_seeds(*case, background_scale=1).flatten().tolist() == [1, 0]


def test_a_cell_won_by_an_absent_class_stays_empty():
    case = single_cell(0.1, 0.2, 0.9)
    case.valid[:, 2] = 0
    assert locate_seeds(*case).sum() == 0


def test_padding_is_never_seeded():
    cam, features, valid = random_case()
    valid[..., 3:, :] = 0
    seeds = locate_seeds(cam * valid, features, valid)
    assert seeds[..., 3:, :].sum() == 0
    assert seeds[..., :3, :].sum() == 2 * 3 * 7


@pytest.mark.parametrize("seed", range(5))
def test_matrix_products_give_the_seeds_of_the_broadcast_formula(seed):
    case = random_case(classes=7, seed=seed)
    assert torch.equal(locate_seeds(*case), broadcast_seeds(case))


def test_the_scale_of_features_does_not_matter():
    cam, features, valid = random_case()
    seeds = locate_seeds(cam, features, valid)
    assert torch.equal(seeds, locate_seeds(cam, 100 * features, valid))
    prototypes = pool_prototypes(seeds, features)
    is_cam = activate(prototypes, features)
    torch.testing.assert_close(is_cam, activate(50 * prototypes, 100 * features))


def test_the_order_of_classes_does_not_matter():
    cam, features, valid = random_case()
    order = [0, 3, 1, 2]
    seeds = locate_seeds(cam, features, valid)
    reordered = locate_seeds(cam[:, order], features, valid[:, order])
    assert torch.equal(seeds[:, order], reordered)


def test_a_prototype_is_the_mean_over_all_cells_and_zero_without_seeds():
    features = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 2, 2)
    seeds = torch.zeros(1, 2, 2, 2)
    seeds[0, 0] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    prototypes = pool_prototypes(seeds, features)
    assert prototypes.flatten().tolist() == [2, 0]
    assert activate(prototypes, features)[0, 1].abs().sum() == 0


def test_activation_is_the_cosine_clipped_at_zero():
    features = torch.tensor([[1.0, 0.0, -1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    is_cam = activate(torch.tensor([[[2.0, 0.0]]]), features.view(1, 2, 2, 2))
    torch.testing.assert_close(is_cam.flatten(), torch.tensor([1.0, 0.0, 0.0, 0.5**0.5]))


def test_seeds_carry_no_gradient():
    cam, features, valid = random_case()
    seeds = locate_seeds(cam.requires_grad_(), features.requires_grad_(), valid)
    assert not seeds.requires_grad


def test_autocast_changes_nothing():
    cam, features, valid = random_case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seeds = locate_seeds(cam, features, valid)
        is_cam = activate(pool_prototypes(seeds, features), features)
    assert torch.equal(seeds, locate_seeds(cam, features, valid))
    assert is_cam.dtype == torch.float32
    assert torch.equal(is_cam, activate(pool_prototypes(seeds, features), features))


def tf32_flag() -> prototypes.Tf32Flag:
    if hasattr(torch.backends.cuda.matmul, prototypes.TF32_FLAG.name):
        return prototypes.TF32_FLAG
    return prototypes.OLD_TF32_FLAG


@pytest.mark.parametrize("is_general", [False, True], ids=["products alone", "everything"])
def test_tf32_is_off_whatever_the_callers_flags_are(monkeypatch, is_general):
    matmul = torch.backends.cuda.matmul
    flag = tf32_flag()
    owner = torch.backends if is_general else matmul
    if not hasattr(owner, flag.name):
        pytest.skip("PyTorch before 2.9 has no general flag")
    seen = []
    real = prototypes._inverse_norms

    def note_the_flag(features: torch.Tensor) -> torch.Tensor:
        seen.append(getattr(matmul, flag.name))
        return real(features)

    monkeypatch.setattr(prototypes, "_inverse_norms", note_the_flag)
    before = getattr(owner, flag.name)
    own = getattr(matmul, flag.name)
    setattr(owner, flag.name, flag.on)
    try:
        locate_seeds(*random_case())
        assert seen
        assert flag.on not in seen
        assert getattr(matmul, flag.name) == flag.on
    finally:
        setattr(owner, flag.name, before)
    assert getattr(matmul, flag.name) == own, "an inherited flag stays inherited"
