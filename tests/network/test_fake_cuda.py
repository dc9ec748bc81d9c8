"""The GPU's path without a GPU: at the published sizes, PyTorch's fake tensors raise where devices or dtypes do not fit."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from data.transforms import normalize
from network import deeplab, fusion, losses
from network.fusion import fuse_scales
from network.irn import IRN, inter_pixel_losses, sum_over_pairs
from network.random_walk import random_walk, search_paths
from network.recipe import RECIPES
from network.sipe import SIPE


def is_possible() -> bool:
    try:
        with FakeTensorMode():
            torch.empty(1, device="cuda").uniform_()
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not is_possible(), reason="random fake tensors of this version of PyTorch need a GPU"
)
CUDA = torch.device(
    "cuda"
)  # the code itself runs outside of it: a tensor that it makes without a device is the CPU's, and raises


@pytest.fixture(
    params=[torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"]
)
def autocast(request, monkeypatch):
    monkeypatch.setattr(
        "torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    fusion._interpolation.cache_clear()  # fake and real matrices must not meet
    with FakeTensorMode():
        yield lambda: torch.autocast(
            "cuda", dtype=request.param, enabled=request.param != torch.float32
        )
    fusion._interpolation.cache_clear()


def whole_image(*size: int) -> torch.Tensor:
    return normalize(torch.zeros(1, 3, *size, dtype=torch.uint8, device=CUDA))


def crops(batch: int, size: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised crops, and where they are inside the image."""
    image = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=CUDA)
    inside = torch.ones(batch, size, size, dtype=torch.bool, device=CUDA)
    return normalize(image, inside), inside


@pytest.mark.parametrize("num_classes", [21, 81])
def test_sipe_trains_and_localizes(autocast, num_classes):
    with CUDA:
        model, label = SIPE(num_classes).train(), torch.zeros(16, num_classes - 1)
    image, inside = crops(16)
    with autocast():
        out = model(image, label, inside)
        loss = losses.classification_loss(out.score, label) + losses.consistency_loss(
            out.cam, out.is_cam
        )
    assert (loss.dtype, loss.device.type) == (torch.float32, "cuda")
    assert {one.dtype for one in out} == {torch.float32}
    for (height, width), model.recipe in zip(((750, 1000), (188, 250)), RECIPES.values()):
        with autocast():
            out = model.eval().localize(whole_image(height, width), label[:1])
        assert out.is_cam.shape == (1, num_classes, -(-height // 16), -(-width // 16))
        maps = fuse_scales([out.is_cam[0], out.is_cam[0, :, ::2]], (375, 500), normalize=True)
        assert (maps.shape, maps.device.type) == ((num_classes, 375, 500), "cuda")


@pytest.mark.parametrize("network", deeplab.NETWORKS)
def test_segmentation_networks_train(autocast, network):
    size = 448 if "wideresnet" in network else 512
    with CUDA:
        model, weight = (
            deeplab.build_network(network, 21).train(),
            torch.ones(21),
        )
    image, inside = crops(10, size)
    with autocast():
        logits = model(image)
    total, count = losses.segmentation_loss(
        logits, inside.byte(), weight, align_corners=model.align_corners
    )
    assert (
        logits.shape == (10, 21, size // 8, size // 8)
        and total.dtype == count.dtype == torch.float32
    )


def test_irn_trains_finds_edges_and_maps_walk(autocast):
    with CUDA:
        model = IRN().train()
    image, inside = crops(32)
    with autocast():
        logits, displacement = model(image)
    sums = sum_over_pairs(logits, displacement, inside[:, ::4, ::4].byte(), search_paths(10)[:4])
    assert {loss.dtype for loss in inter_pixel_losses(sums).values()} == {torch.float32}
    with autocast():
        edge = model.eval().find_edges(whole_image(375, 500), 512)
    assert edge.shape == (1, 94, 125)
    walked = random_walk(torch.zeros(3, 94, 125, device=CUDA), edge[0], exp_times=1)
    assert (walked.shape, walked.dtype, walked.device.type) == ((3, 94, 125), torch.float32, "cuda")
