"""The GPU's path without a GPU, at the published sizes.

PyTorch's fake tensors raise if devices or dtypes do not fit.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from data.transforms import normalize
from network import deeplab, fusion, losses
from network.fusion import fuse_scales
from network.irn import IRN, inter_pixel_losses, sum_over_pairs
from network.random_walk import random_walk, search_paths
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
# Networks and inputs are made on it, the code itself runs outside of it: a tensor that the code
# makes without a device is the CPU's, and raises.
CUDA = torch.device("cuda")


@pytest.fixture(
    params=[torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"]
)
def autocast(request, monkeypatch):
    no_gpu = "torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available"
    monkeypatch.setattr(no_gpu, lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    is_enabled = request.param != torch.float32
    fusion._interpolation.cache_clear()  # fake and real matrices must not meet
    with FakeTensorMode():
        yield lambda: torch.autocast("cuda", dtype=request.param, enabled=is_enabled)
    fusion._interpolation.cache_clear()


def whole_image(*size: int) -> torch.Tensor:
    return normalize(torch.zeros(1, 3, *size, dtype=torch.uint8, device=CUDA))


def crops(batch: int, size: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised crops, and where they are inside the image."""
    image = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=CUDA)
    inside = torch.ones(batch, size, size, dtype=torch.bool, device=CUDA)
    return normalize(image, inside), inside


@pytest.mark.parametrize("num_classes", [21, 81])
def test_sipe_trains(autocast, num_classes):
    with CUDA:
        model = SIPE(num_classes).train()
        tags = torch.zeros(16, num_classes - 1)
    image, inside = crops(16)
    with autocast():
        out = model(image, tags, inside)
        cls = losses.classification_loss(out.score, tags)
        loss = cls + losses.consistency_loss(out.cam, out.is_cam)
    assert (loss.dtype, loss.device.type) == (torch.float32, "cuda")
    assert {value.dtype for value in out} == {torch.float32}


@pytest.mark.parametrize(("recipe", "size"), [("sipe", (750, 1000)), ("plus", (188, 250))])
@pytest.mark.parametrize("num_classes", [21, 81])
def test_sipe_localizes_and_maps_are_fused(autocast, num_classes, size, recipe):
    with CUDA:
        model = SIPE(num_classes, recipe=recipe).eval()
        tags = torch.zeros(1, num_classes - 1)
    height, width = size
    with autocast():
        out = model.localize(whole_image(height, width), tags)
    assert out.is_cam.shape == (1, num_classes, -(-height // 16), -(-width // 16))
    maps = fuse_scales([out.is_cam[0], out.is_cam[0, :, ::2]], (375, 500), normalize=True)
    assert (maps.shape, maps.device.type) == ((num_classes, 375, 500), "cuda")


@pytest.mark.parametrize("network", deeplab.NETWORKS)
def test_segmentation_networks_train(autocast, network):
    size = 448 if "wideresnet" in network else 512
    with CUDA:
        model = deeplab.build_network(network, 21).train()
        weight = torch.ones(21)
    image, inside = crops(10, size)
    with autocast():
        logits = model(image)
    assert logits.shape == (10, 21, size // 8, size // 8)
    target = inside.byte()
    sums = losses.segmentation_loss(logits, target, weight, align_corners=model.align_corners)
    assert {value.dtype for value in sums} == {torch.float32}


def test_irn_trains_finds_edges_and_maps_walk(autocast):
    with CUDA:
        model = IRN().train()
    image, inside = crops(32)
    with autocast():
        logits, displacement = model(image)
    target = inside[:, ::4, ::4].byte()
    sums = sum_over_pairs(logits, displacement, target, search_paths(10)[:4])
    assert {loss.dtype for loss in inter_pixel_losses(sums).values()} == {torch.float32}
    with autocast():
        edge = model.eval().find_edges(whole_image(375, 500), 512)
    assert edge.shape == (1, 94, 125)
    walked = random_walk(torch.zeros(3, 94, 125, device=CUDA), edge[0], exp_times=1)
    assert walked.shape == (3, 94, 125)
    assert (walked.dtype, walked.device.type) == (torch.float32, "cuda")
