"""The network: agreement with the authors' program, what trains and what stays, inference."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from data.transforms import normalize
from network import sipe
from network.losses import classification_loss, consistency_loss
from network.recipe import RECIPES, follow_recipe
from network.sipe import SIPE, Localization, general_cam
from tool import trainer
from tool.inference import load_network

TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


class Batch(NamedTuple):
    """The arguments of SIPE's training form."""

    image: torch.Tensor
    tags: torch.Tensor
    inside: torch.Tensor


def tiny_batch() -> Batch:
    """Two crops of 64 pixels; the right half of the second is padding."""
    torch.manual_seed(1)
    inside = torch.ones(2, 64, 64, dtype=torch.bool)
    inside[1, :, 32:] = False
    image = torch.randn(2, 3, 64, 64) * inside[:, None]
    return Batch(image, TAGS, inside)


@pytest.fixture(scope="module")
def shared_model() -> SIPE:
    torch.manual_seed(0)
    return SIPE(4)


@pytest.fixture
def model(shared_model: SIPE) -> SIPE:
    """In training form, without gradients."""
    shared_model.zero_grad()
    shared_model.recipe = RECIPES["sipe"]
    return shared_model.train()


class ReferenceRun(NamedTuple):
    """Four training steps on the reference batch, beside what the authors' program recorded."""

    golden: dict[str, np.ndarray]
    first: Localization  # of the first step
    norms: dict[str, float]  # of the first step's gradients
    values: dict[str, list[float]]  # of the losses, the gradient norm and the learning rate


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of a model by the names of its parameters, without those that have none."""
    named = model.named_parameters()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


@pytest.fixture(scope="module")
def reference_run(shared, release_checkpoint, device):
    arrays = np.load(shared / "golden/train_step.npz", allow_pickle=False)
    golden = {name: arrays[name] for name in arrays.files}
    model = load_network(release_checkpoint).network.train().to(device)
    inside = torch.from_numpy(golden["inside"]).to(device) > 0
    tags = torch.from_numpy(golden["label"]).to(device)
    pixels = torch.from_numpy(golden["image_u8"]).to(device)
    image = normalize(pixels.permute(0, 3, 1, 2), inside)
    options = SimpleNamespace(lr=0.1, momentum=1e-4, weight_decay=1e-4)  # those that matter here
    groups = model.parameter_groups()
    optimizer, schedule = trainer.make_optimizer(groups, options, int(golden["max_step"]))
    first = None
    norms = {}
    values = {"cls": [], "gsc": [], "grad_norm": [], "lr": []}
    for step in range(4):
        out = model(image, tags, inside)
        cls = classification_loss(out.score, tags)
        gsc = consistency_loss(out.cam, out.is_cam)
        values["cls"].append(cls.item())
        values["gsc"].append(gsc.item())
        if step == 3:
            break
        optimizer.zero_grad()
        (cls + gsc).backward()
        if step == 0:
            first = Localization(*(value.detach().cpu() for value in out))
            norms = {name: grad.norm().item() for name, grad in gradients(model).items()}
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        values["grad_norm"].append(norm.item())
        values["lr"].append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return ReferenceRun(golden, first, norms, values)


def test_first_step_agrees_with_the_authors_program(reference_run):
    golden, first, _, values = reference_run
    assert torch.equal(first.seeds, torch.from_numpy(golden["seeds"]).float())
    outputs = {"score": first.score, "cam": first.cam, "is_cam_raw": first.is_cam}
    for name, value in outputs.items():
        torch.testing.assert_close(value, torch.from_numpy(golden[name]), atol=1e-5, rtol=1e-5)
    for name in ("cls", "gsc"):
        assert values[name][0] == pytest.approx(golden[name][0], rel=1e-5)


def test_gradients_agree_with_the_authors_program(reference_run):
    golden, _, norms, values = reference_run
    assert norms.keys() == set(golden["grad_names"].tolist())
    for name, norm in zip(golden["grad_names"], golden["grad_norms"]):
        assert norms[name] == pytest.approx(norm, rel=1e-3), name
    assert values["grad_norm"] == pytest.approx(golden["grad_norm"], rel=1e-3)
    assert values["lr"] == pytest.approx(golden["lr_backbone"])


def test_losses_after_steps_agree_with_the_authors_program(reference_run):
    """Within 1e-3 of the loss that is minimised; the classification loss is soon 1 % of it."""
    golden, _, _, values = reference_run
    total = golden["cls"] + golden["gsc"]
    assert np.add(values["cls"], values["gsc"]) == pytest.approx(total, rel=1e-3)
    assert values["gsc"] == pytest.approx(golden["gsc"], rel=1e-3)
    assert np.abs(values["cls"] - golden["cls"]).max() <= 1e-3 * total.min()


def test_the_grid_has_stride_16(model):
    out = model(*tiny_batch())
    assert out.cam.shape == out.is_cam.shape == out.seeds.shape == (2, 4, 4, 4)
    assert out.score.shape == (2, 3)


def test_maps_are_masked_by_tags_and_padding(model):
    out = model(*tiny_batch())
    for maps in (out.cam, out.seeds):
        assert not maps[0, 2].any()
        assert not maps[1, (1, 3)].any()
        assert not maps[1, :, :, 2:].any()


def test_only_layer3_layer4_and_the_heads_train(model):
    batch = tiny_batch()
    out = model(*batch)
    loss = classification_loss(out.score, batch.tags) + consistency_loss(out.cam, out.is_cam)
    loss.backward()
    trained = {name.removeprefix("resnet50.").split(".")[0] for name in gradients(model)}
    assert trained == {"layer3", "layer4", "classifier", "side1", "side2", "side3", "side4"}


def test_consistency_trains_the_side_branches_through_the_is_cam_alone(model):
    batch = tiny_batch()
    classification_loss(model(*batch).score, batch.tags).backward()
    assert not any(name.startswith("side") for name in gradients(model))


def test_frozen_statistics_stay_as_they_are_in_training(model):
    statistics = model.resnet50.layer4[2].bn3.running_mean
    before = statistics.clone()
    model.train()(*tiny_batch())
    assert torch.equal(before, statistics)


def test_from_scratch_everything_trains_and_statistics_are_learned():
    torch.manual_seed(0)
    model = SIPE(4, frozen=False).train()
    before = model.resnet50.bn1.running_mean.clone()
    batch = tiny_batch()
    classification_loss(model(*batch).score, batch.tags).backward()
    assert model.resnet50.conv1.weight.grad.any()
    assert not torch.equal(before, model.resnet50.bn1.running_mean)


def test_bf16_autocast_trains(model):
    batch = tiny_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*batch)
        loss = classification_loss(out.score, batch.tags) + consistency_loss(out.cam, out.is_cam)
        maps = model.forward_features(batch.image)
    loss.backward()
    assert maps.logits.dtype == torch.bfloat16
    for value in (maps.features, out.score, out.cam, out.is_cam, loss):
        assert value.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(grad.isfinite().all() for grad in gradients(model).values())


def test_inference_lets_absent_classes_compete_and_gives_them_nothing(model):
    tags = torch.tensor([[1.0, 0.0, 0.0]])
    out = model.eval().localize(torch.randn(1, 3, 64, 64), tags)
    assert out.cam[0, 2:].any(), "the tags do not mask the CAM"
    assert not out.seeds[0, 2:].any()
    assert not out.is_cam[0, 2:].any()


def test_batched_inference_equals_a_single_image_at_a_time(model):
    model.eval()
    image = torch.randn(2, 3, 32, 48)
    batched = model.localize(image, TAGS).is_cam
    for i in range(2):
        single = model.localize(image[i : i + 1], TAGS[i : i + 1]).is_cam
        torch.testing.assert_close(batched[i : i + 1], single, atol=1e-4, rtol=0)


def test_general_cam_by_hand():
    logits = torch.tensor([[2.0, -1.0], [1.0, 4.0]]).view(1, 2, 1, 2)
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.25, 1.0]]).view(1, 3, 1, 2)
    torch.testing.assert_close(general_cam(logits), expected, atol=1e-5, rtol=0)


def test_large_images_and_their_mirrors_take_turns(model, monkeypatch):
    model.eval()
    image = torch.randn(2, 3, 48, 64)
    together = model.localize(image, TAGS)
    monkeypatch.setattr(sipe, "MAX_PAIR_PIXELS", 48 * 64 - 1)
    apart = model.localize(image, TAGS)
    for expected, value in zip(together, apart):
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_whole_step_compiles_without_a_break(model):
    """By torch.compile's tracer alone; its code generator needs a compiler."""
    batch = tiny_batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for value, expected in zip(compiled(*batch), model(*batch)):
        torch.testing.assert_close(value, expected)


def test_a_recipe_changes_the_is_cam_alone(model):
    model.eval()
    image = torch.randn(1, 3, 64, 64)
    tags = TAGS[:1]
    published = model.localize(image, tags)
    plus = RECIPES["plus"]
    prototypes = torch.randn(3, 2048)
    model.recipe = plus
    model.set_class_prototypes(prototypes)
    out = model.localize(image, tags)
    for name in ("score", "cam", "seeds"):
        assert torch.equal(getattr(out, name), getattr(published, name))
    _, layer4, features = model._forward_mirrored(image)
    expected = follow_recipe(plus, published.is_cam, features, layer4, prototypes)
    torch.testing.assert_close(out.is_cam, expected, atol=1e-5, rtol=0)
    assert not torch.equal(out.is_cam, published.is_cam)


def test_class_prototypes_are_no_part_of_the_state_dict(model):
    assert "class_prototypes" not in model.state_dict()
    with pytest.raises(ValueError, match="class prototypes"):
        model.set_class_prototypes(torch.zeros(2048))
