"""The network: agreement with the authors' program, what trains and what stays frozen, inference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.transforms import normalize
from network import sipe
from network.losses import classification_loss, consistency_loss
from network.prototypes import activate, peak_normalize, unit_cells
from network.recipe import RECIPES, contrast, propagate
from network.sipe import SIPE, Localization, general_cam
from network.spatial import add_mirror, side_features
from tool import trainer
from tool.inference import load_network


def tiny_batch(size=64):
    torch.manual_seed(1)
    label = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    inside = torch.ones(2, size, size, dtype=torch.bool)
    inside[1, :, size // 2 :] = False
    return torch.randn(2, 3, size, size) * inside[:, None], label, inside


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SIPE(4).train()


@pytest.fixture(scope="module")
def reference_run(shared, release_checkpoint, device):
    """Four training steps on the reference batch, beside what the authors' program recorded."""
    golden = np.load(shared / "golden/train_step.npz", allow_pickle=False)
    golden = {name: golden[name] for name in golden.files}
    model = load_network(release_checkpoint)[0].train().to(device)
    inside, label, image = (
        torch.from_numpy(golden[name]).to(device) for name in ("inside", "label", "image_u8")
    )
    image = normalize(image.permute(0, 3, 1, 2), inside > 0)
    optimizer, schedule = trainer.make_optimizer(
        model.parameter_groups(), 0.1, int(golden["max_step"]), momentum=1e-4, weight_decay=1e-4
    )
    ours = {"cls": [], "gsc": [], "grad_norm": [], "lr": []}
    for step in range(4):
        found = model(image, label, inside > 0)
        losses = {
            "cls": classification_loss(found.score, label),
            "gsc": consistency_loss(found.cam, found.is_cam),
        }
        for name, loss in losses.items():
            ours[name].append(loss.item())
        if step == 0:
            ours["first"] = Localization(*(one.detach().cpu() for one in found))
        if step < 3:
            optimizer.zero_grad()
            sum(losses.values()).backward()
            if step == 0:
                ours["norms"] = {
                    name: p.grad.norm().item()
                    for name, p in model.named_parameters()
                    if p.grad is not None
                }
            ours["grad_norm"].append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
            ours["lr"].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return ours, golden


def test_first_step_agrees_with_the_authors_program(reference_run):
    ours, golden = reference_run
    first = ours["first"]
    assert torch.equal(first.seeds, torch.from_numpy(golden["seeds"]).float())
    for name, value in (("score", first.score), ("cam", first.cam), ("is_cam_raw", first.is_cam)):
        torch.testing.assert_close(value, torch.from_numpy(golden[name]), atol=1e-5, rtol=1e-5)
    for name in ("cls", "gsc"):
        assert ours[name][0] == pytest.approx(golden[name][0], rel=1e-5)


def test_gradients_agree_with_the_authors_program(reference_run):
    ours, golden = reference_run
    assert ours["norms"].keys() == set(golden["grad_names"].tolist())
    for name, norm in zip(golden["grad_names"], golden["grad_norms"]):
        assert ours["norms"][name] == pytest.approx(norm, rel=1e-3), name
    assert ours["grad_norm"] == pytest.approx(golden["grad_norm"], rel=1e-3)
    assert ours["lr"] == pytest.approx(golden["lr_backbone"])


def test_losses_after_steps_agree_with_the_authors_program(reference_run):
    """Within 1e-3 of the loss that is minimised. The classification loss alone falls to 1 % of it within two steps."""
    ours, golden = reference_run
    total = golden["cls"] + golden["gsc"]
    assert np.add(ours["cls"], ours["gsc"]) == pytest.approx(total, rel=1e-3)
    assert ours["gsc"] == pytest.approx(golden["gsc"], rel=1e-3)
    assert np.abs(ours["cls"] - golden["cls"]).max() <= 1e-3 * total.min()


def test_the_grid_has_stride_16(model):
    found = model(*tiny_batch())
    assert found.cam.shape == found.is_cam.shape == found.seeds.shape == (2, 4, 4, 4)
    assert found.score.shape == (2, 3)


def test_maps_are_masked_by_label_and_padding(model):
    found = model(*tiny_batch())
    for maps in (found.cam, found.seeds):
        assert maps[0, 2].abs().sum() == 0 and maps[1, (1, 3)].abs().sum() == 0
        assert maps[1, :, :, 2:].abs().sum() == 0


def test_only_layer3_layer4_and_the_heads_train(model):
    found = model(*tiny_batch())
    label = tiny_batch()[1]
    (classification_loss(found.score, label) + consistency_loss(found.cam, found.is_cam)).backward()
    trained = {
        name.removeprefix("resnet50.").split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    model.zero_grad()
    assert trained == {"layer3", "layer4", "classifier", "side1", "side2", "side3", "side4"}


def test_consistency_trains_the_side_branches_through_the_is_cam_alone(model):
    classification_loss(model(*tiny_batch()).score, tiny_batch()[1]).backward()
    assert all(getattr(model, f"side{i}").weight.grad is None for i in range(1, 5))
    model.zero_grad()


def test_pretrained_statistics_stay_frozen_in_training(model):
    before = model.resnet50.layer4[2].bn3.running_mean.clone()
    model.train()(*tiny_batch())
    assert torch.equal(before, model.resnet50.layer4[2].bn3.running_mean)


def test_from_scratch_everything_trains_and_statistics_are_learned():
    torch.manual_seed(0)
    model = SIPE(4, frozen=False).train()
    before = model.resnet50.bn1.running_mean.clone()
    image, label, inside = tiny_batch()
    classification_loss(model(image, label, inside).score, label).backward()
    assert model.resnet50.conv1.weight.grad.abs().sum() > 0
    assert not torch.equal(before, model.resnet50.bn1.running_mean)


def test_bf16_autocast_trains(model):
    image, label, inside = tiny_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(image, label, inside > 0)
        loss = classification_loss(found.score, label) + consistency_loss(found.cam, found.is_cam)
        logits, _, features = model.forward_features(image)
    loss.backward()
    assert (logits.dtype, features.dtype, found.score.dtype, loss.dtype) == (
        torch.bfloat16,
        *[torch.float32] * 3,
    )
    assert found.cam.dtype == found.is_cam.dtype == torch.float32 and torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_inference_lets_absent_classes_compete_and_gives_them_nothing(model):
    model.eval()
    found = model.localize(torch.randn(1, 3, 64, 64), torch.tensor([[1.0, 0.0, 0.0]]))
    assert found.cam[0, 2:].abs().sum() > 0  # not masked by the label
    assert found.seeds[0, 2:].sum() == 0 and found.is_cam[0, 2:].sum() == 0
    model.train()


def test_batched_inference_equals_one_image_at_a_time(model):
    model.eval()
    image, label = torch.randn(2, 3, 32, 48), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    both = model.localize(image, label)
    for i in range(2):
        one = model.localize(image[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(both.is_cam[i : i + 1], one.is_cam, atol=1e-4, rtol=0)
    model.train()


def test_general_cam_by_hand():
    logits = torch.tensor([[2.0, -1.0], [1.0, 4.0]]).view(1, 2, 1, 2)
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.25, 1.0]]).view(1, 3, 1, 2)
    torch.testing.assert_close(general_cam(logits), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 48), (31, 47), (33, 64), (16, 24), (17, 1), (8, 12)])
def test_a_side_branch_is_computed_where_interpolation_reads_it(size):
    """Against all cells, then resized; at its own size nothing is resized."""
    torch.manual_seed(0)
    side, layer, grid = (
        torch.nn.Conv2d(6, 5, 1, bias=False),
        torch.randn(2, 6, *size),
        torch.Size((8, 12)),
    )
    expected = F.interpolate(unit_cells(side(layer)), grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(side_features(side, layer, grid), expected, atol=1e-6, rtol=0)


def test_large_images_and_their_mirrors_take_turns(model, monkeypatch):
    image, label = torch.randn(2, 3, 48, 64), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    model.eval()
    together = model.localize(image, label)
    monkeypatch.setattr(sipe, "MAX_PAIR_PIXELS", 48 * 64 - 1)
    for one, other in zip(model.localize(image, label), together):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    model.train()


@pytest.mark.slow
def test_the_whole_step_compiles_without_a_break(model):
    """By torch.compile's tracer alone; its code generator needs a compiler."""
    batch = tiny_batch()
    found, expected = torch.compile(model, backend="eager", fullgraph=True)(*batch), model(*batch)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


def test_a_recipe_changes_the_is_cam_alone(model):
    image, label = torch.randn(1, 3, 64, 64), torch.tensor([[1.0, 0.0, 1.0]])
    published, recipe = model.eval().localize(image, label), RECIPES["plus"]
    model.recipe = recipe
    without = model.localize(image, label)
    model.set_class_prototypes(torch.randn(3, 2048))
    other = model.localize(image, label)
    model.recipe = RECIPES["sipe"]
    _, layer4, features = model._forward_mirrored(image)
    of_image = propagate(contrast(published.is_cam, recipe.contrast), features, recipe.affinity)
    of_class = propagate(
        activate(model.class_prototypes[None], add_mirror(layer4)), features, recipe.affinity
    )
    torch.testing.assert_close(
        other.is_cam[:, 1:],
        (peak_normalize(of_image[:, 1:]) + peak_normalize(of_class)) / 2,
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        without.is_cam[:, 1:], peak_normalize(of_image[:, 1:]) / 2, atol=1e-5, rtol=0
    )
    assert (
        not torch.equal(other.is_cam, published.is_cam)
        and "class_prototypes" not in model.state_dict()
    )
    assert all(
        torch.equal(getattr(other, name), getattr(published, name))
        for name in ("score", "cam", "seeds")
    )
    model.train()
