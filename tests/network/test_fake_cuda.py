"""The GPU's path without a GPU: at the published sizes, PyTorch's fake tensors raise where devices or dtypes do not fit."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from data.transforms import normalize
from network import deeplab, losses
from network.irn import IRN, inter_pixel_losses, sum_over_pairs
from network.sipe import SIPE
from tool import cam_file
from tool.random_walk import random_walk, search_paths


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
def autocast(request, monkeypatch):
    monkeypatch.setattr("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    cam_file._interpolation.cache_clear()  # fake and real matrices must not meet
    with FakeTensorMode(), torch.device("cuda"):
        yield lambda: torch.autocast("cuda", dtype=request.param, enabled=request.param != torch.float32)
    cam_file._interpolation.cache_clear()


def crops(batch: int, size: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised crops, and where they are inside the picture."""
    image, inside = torch.zeros(batch, 3, size, size, dtype=torch.uint8), torch.ones(batch, size, size, dtype=torch.bool)
    return normalize(image, inside), inside


@pytest.mark.parametrize("num_classes", [21, 81])
def test_sipe_trains_and_localizes(autocast, num_classes):
    model, label = SIPE(num_classes).train(), torch.zeros(16, num_classes - 1)
    with autocast():
        out = model(*[crops(16)[0], label, crops(16)[1]])
        loss = losses.classification_loss(out.score, label) + losses.consistency_loss(out.cam, out.is_cam)
    assert (loss.dtype, loss.device.type) == (torch.float32, "cuda")
    assert {one.dtype for one in out} == {torch.float32}
    for height, width in ((750, 1000), (188, 250)):
        with autocast():
            out = model.eval().localize(normalize(torch.zeros(1, 3, height, width, dtype=torch.uint8)), label[:1])
        assert out.is_cam.shape == (1, num_classes, -(-height // 16), -(-width // 16))
        maps = cam_file.fuse([out.is_cam[0], out.is_cam[0, :, ::2]], (375, 500), normalize=True)
        assert (maps.shape, maps.device.type) == ((num_classes, 375, 500), "cuda")


@pytest.mark.parametrize("network", deeplab.NETWORKS)
def test_segmentation_networks_train(autocast, network):
    size = 448 if "wideresnet" in network else 512
    model = deeplab.build({"network": network, "output_stride": 8}, 21).train()
    image, _ = crops(10, size)
    with autocast():
        logits = model(image)
    total, count = losses.segmentation_loss(
        logits, torch.zeros(10, size, size, dtype=torch.uint8), torch.ones(21), align_corners=model.align_corners
    )
    assert logits.shape == (10, 21, size // 8, size // 8) and total.dtype == count.dtype == torch.float32


def test_irn_trains_finds_edges_and_maps_walk(autocast):
    model, (image, _) = IRN().train(), crops(32)
    with autocast():
        logits, displacement = model(image)
    sums = sum_over_pairs(logits, displacement, torch.zeros(32, 128, 128, dtype=torch.uint8), search_paths(10)[:4])
    assert {loss.dtype for loss in inter_pixel_losses(sums).values()} == {torch.float32}
    with autocast():
        edge = model.eval().find_edges(normalize(torch.zeros(1, 3, 375, 500, dtype=torch.uint8)), 512)
    assert edge.shape == (1, 94, 125)
    walked = random_walk(torch.zeros(3, 94, 125), edge[0], exp_times=1)
    assert (walked.shape, walked.dtype, walked.device.type) == ((3, 94, 125), torch.float32, "cuda")
