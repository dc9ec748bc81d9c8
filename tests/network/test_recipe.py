"""What recipes make of IS-CAMs: worked values of each step, and the steps together."""

from typing import NamedTuple

import pytest
import torch

from network import prototypes
from network.prototypes import activate, peak_normalize
from network.recipe import (
    PLUS,
    PUBLISHED,
    RECIPES,
    class_prototype,
    cluster,
    contrast,
    follow_recipe,
    propagate,
)


def test_contrast_takes_the_background_off_the_classes():
    is_cam = torch.tensor([0.4, 0.9, 0.1, 0.0]).view(1, 4, 1, 1)
    expected = torch.tensor([0.4, 0.7, 0.0, 0.0])
    torch.testing.assert_close(contrast(is_cam, 0.5).flatten(), expected)


# four cells at 0, 45, 90 and 180 degrees
FEATURES = torch.tensor(
    [
        [1.0, 1.0, 0.0, -2.0],
        [0.0, 1.0, 3.0, 0.0],
    ]
).view(1, 2, 2, 2)
MAPS = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],
        [0.2, 0.4, 0.6, 0.8],
    ]
).view(1, 2, 2, 2)
# weighted by the square of the cosine, which is 0.5 for 45 degrees
PROPAGATED = torch.tensor(
    [
        [1 / 1.5, 0.5 / 2, 0, 0],
        [0.4 / 1.5, 0.8 / 2, 0.8 / 1.5, 0.8],
    ]
)


@pytest.mark.parametrize("products", [2**26, 5], ids=["at once", "cell by cell"])
@pytest.mark.parametrize("is_autocast", [False, True], ids=["float32", "bf16"])
def test_propagate_takes_the_mean_over_cells_by_their_similarity(
    monkeypatch, products, is_autocast
):
    monkeypatch.setattr(prototypes, "MOST_PRODUCTS", products)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        propagated = propagate(MAPS, FEATURES, 2)
    torch.testing.assert_close(propagated[0].flatten(1), PROPAGATED, atol=1e-4, rtol=0)


@pytest.mark.parametrize("products", [2**26, 5], ids=["at once", "cell by cell"])
def test_propagate_by_the_similarity_itself(monkeypatch, products):
    monkeypatch.setattr(prototypes, "MOST_PRODUCTS", products)
    first_cell = propagate(MAPS, FEATURES, 1)[0, 0, 0, 0]
    expected = torch.tensor(1 / (1 + 0.5**0.5))
    torch.testing.assert_close(first_cell, expected, atol=1e-4, rtol=0)


def test_clusters_are_the_means_of_cells_of_like_direction():
    cells = torch.tensor([[2.0, 0.2], [4.0, 0.0], [0.1, 1.0], [0.0, 3.0], [3.0, 0.1]])
    clusters = cluster(cells, 2)
    by_first_channel = clusters[clusters[:, 0].argsort()]
    torch.testing.assert_close(by_first_channel, torch.tensor([[0.05, 2.0], [3.0, 0.1]]))


@pytest.mark.parametrize("cells", [torch.ones(1, 2), torch.ones(5, 2)], ids=["few", "equal"])
def test_no_cluster_is_empty(cells):
    assert len(cluster(cells, 12)) == 1


# the classifier knows two classes by a channel each, and both by the third
CLASSIFIER = torch.tensor([[9.0, 0.0, 1.0, 0.0], [0.0, 9.0, 1.0, 0.0]])
OF_CLASS, OF_OTHER, SHARED, CONTEXT = torch.eye(4)


def test_a_class_prototype_leaves_out_what_other_classes_show_and_subtracts_the_context():
    strong = torch.stack([OF_CLASS, OF_CLASS, SHARED])  # the last is certain by half
    weak = torch.stack([OF_OTHER, CONTEXT])  # the first is unrelated
    prototype = class_prototype(strong, weak, CLASSIFIER, 0)
    torch.testing.assert_close(prototype, OF_CLASS - CONTEXT)


def test_the_most_certain_prototype_counts_in_any_case():
    prototype = class_prototype(SHARED[None], OF_OTHER[None], CLASSIFIER, 0)
    torch.testing.assert_close(prototype, SHARED)


def test_without_weak_cells_there_is_no_context():
    prototype = class_prototype(OF_CLASS[None], torch.empty(0, 4), CLASSIFIER, 0)
    torch.testing.assert_close(prototype, OF_CLASS)


class Problem(NamedTuple):
    """The arguments of `follow_recipe`."""

    is_cam: torch.Tensor
    features: torch.Tensor
    last_map: torch.Tensor
    class_prototypes: torch.Tensor


def random_problem() -> Problem:
    """Three classes in two images of 4 x 5 cells, and the mirrors of these images."""
    torch.manual_seed(0)
    return Problem(
        is_cam=torch.rand(2, 4, 4, 5),
        features=torch.randn(2, 6, 4, 5),
        last_map=torch.randn(4, 7, 4, 5),
        class_prototypes=torch.randn(3, 7),
    )


def of_image(problem: Problem) -> torch.Tensor:
    """The part of plus that is of the image alone, by its steps."""
    contrasted = contrast(problem.is_cam, PLUS.contrast)
    propagated = propagate(contrasted, problem.features, PLUS.affinity)
    return peak_normalize(propagated[:, 1:])


def test_plus_is_the_mean_of_contrasted_maps_and_those_of_class_prototypes():
    problem = random_problem()
    result = follow_recipe(PLUS, *problem)
    straight, mirrored = problem.last_map.chunk(2)
    prototypes = problem.class_prototypes.expand(2, 3, 7)
    activated = activate(prototypes, straight + mirrored.flip(3))
    of_classes = peak_normalize(propagate(activated, problem.features, PLUS.affinity))
    expected = (of_image(problem) + of_classes) / 2
    torch.testing.assert_close(result[:, 1:], expected, atol=1e-5, rtol=0)


def test_a_class_without_a_prototype_gets_half_of_its_map():
    problem = random_problem()
    problem = problem._replace(class_prototypes=torch.zeros(3, 7))
    result = follow_recipe(PLUS, *problem)
    torch.testing.assert_close(result[:, 1:], of_image(problem) / 2, atol=1e-5, rtol=0)


def test_the_published_recipe_changes_nothing():
    problem = random_problem()
    assert torch.equal(follow_recipe(PUBLISHED, *problem), problem.is_cam)


@pytest.mark.parametrize(
    ("scales", "background"),
    [([1.0, 0.5], "background"), ([0.5, 1.5], "enlarged_background")],
    ids=["at most the image's", "larger"],
)
def test_the_background_depends_on_the_largest_scale(scales, background):
    for recipe in RECIPES.values():
        assert recipe.background_at(scales) == getattr(recipe, background)
