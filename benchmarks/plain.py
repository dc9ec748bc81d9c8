"""Plain versions of the project's formulas.

These are torchvision's network, the authors' broadcasting, and dense matrices.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet

from data.datasets import MultiscaleImage, TrainingCrops
from data.images import IGNORE
from data.registry import Samples
from data.transforms import normalize
from network import prototypes
from network.losses import classification_loss
from network.random_walk import search_paths
from network.resnet import BLOCKS
from network.sipe import SIPE, Localization, general_cam, label_mask
from network.spatial import add_mirror
from tool import cam_file
from tool.context import Context
from tool.trainer import Trainer

RADIUS, BETA, EXP_TIMES = 5, 10, 8  # random_walk's defaults
BACKGROUND_SCALE = 0.5  # locate_seeds'
COUNTS = ("intersection", "truth", "prediction")  # pixels of each class


class BareResNet50(ResNet):
    """torchvision's network under a linear head.

    The layers that SIPE freezes are frozen, and the stride that it removes is removed.
    """

    def __init__(self, num_classes: int):
        super().__init__(Bottleneck, BLOCKS["resnet50"], num_classes=num_classes - 1)
        block = self.layer4[0]
        for conv in (block.conv2, block.downsample[0]):
            conv.stride = (1, 1)
        for module in (self.conv1, self.bn1, self.layer1, self.layer2):
            module.requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        trained = [p for p in self.parameters() if p.requires_grad]
        return [{"params": trained, "lr_scale": 1}]


def bare_step(run: Trainer, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """One step of SGD; returns no losses, and the norm of the gradient."""
    with run.context.autocast():
        score = run.network(normalize(batch["image"], batch["inside"]))
        loss = classification_loss(score, batch["tags"])
    return {}, run.step(loss)


def plain_features(model: SIPE, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SIPE.forward_features as the authors' program computes it.

    Each BatchNorm comes after its convolution, and side branches are computed on all cells.
    """
    trunk = model.resnet50
    layer = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(image))))
    sides = []
    for i in range(1, 5):
        for block in getattr(trunk, f"layer{i}"):
            layer = Bottleneck.forward(block, layer)
        side = getattr(model, f"side{i}")
        sides.append(prototypes.unit_cells(side(layer.detach()).float()))
    grid = layer.shape[2:]
    features = [resize(side, grid) for side in sides]
    return model.classifier(layer), layer, torch.cat(features, 1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class BroadcastSIPE(SIPE):
    """SIPE by the authors' broadcasting.

    Masks have the crop's size; all pairs of cells are multiplied with each map, and all features
    with each class.
    """

    def forward(self, image: Tensor, label: Tensor, inside: Tensor) -> Localization:
        logits, layer4, features = self.forward_features(image)
        with torch.autocast(logits.device.type, enabled=False):
            mask = label_mask(label) * inside[:, None].float()
            valid = F.interpolate(mask, logits.shape[2:], mode="nearest")
            cam = general_cam(logits) * valid
            seeds = broadcast_seeds(cam, layer4, valid)
            is_cam = broadcast_is_cam(seeds, features)
            return Localization(logits.float().mean((2, 3)), cam, is_cam, seeds)


@torch.no_grad()
def broadcast_seeds(cam: Tensor, layer4: Tensor, valid: Tensor) -> Tensor:
    """`prototypes.locate_seeds` with a tensor of B x K x N x N."""
    cells = layer4.float().flatten(2)
    cells = cells / (cells.norm(dim=1, keepdim=True) + prototypes.EPSILON)
    similarity = (cells.transpose(1, 2) @ cells).relu_()[:, None]
    maps = cam.flatten(2)[:, :, None]
    intersection = (similarity * maps).sum(3)  # of B x K x N x N
    union = similarity.sum(3) + maps.sum(3) - intersection
    fit = intersection / union
    fit[:, 0] *= BACKGROUND_SCALE
    best = fit.argmax(1, keepdim=True)
    seeds = torch.zeros_like(fit).scatter_(1, best, 1)
    return seeds.view_as(cam) * valid


def broadcast_is_cam(seeds: Tensor, features: Tensor) -> Tensor:
    """`prototypes.pool_prototypes` and `activate` with tensors of B x K x D x N."""
    of_each_class = features[:, None]
    pooled = (seeds[:, :, None] * of_each_class).mean((3, 4), keepdim=True)
    # F.cosine_similarity would keep several tensors of that size
    product = (of_each_class * pooled).sum(2)
    norms = features.norm(dim=1, keepdim=True) * pooled.norm(dim=2)
    cosine = product / norms.clamp_min(1e-8)
    return cosine.relu()


@torch.no_grad()
def plain_cams(model: SIPE, item: MultiscaleImage, context: Context) -> dict[str, Tensor]:
    """The maps of all classes at the image's size: "is_cam" and "cam", (K, H, W) each.

    Each scale goes alone through torchvision's network, and its maps to the CPU.
    """
    label = item.tags[None].to(context.device)
    totals = dict.fromkeys(cam_file.KINDS, 0)
    for image in item.images:
        image = normalize(image[None].to(context.device)).contiguous()
        with context.autocast():
            both = torch.cat([image, image.flip(3)])
            logits, _, features = plain_features(model, both)
        features = add_mirror(features)
        cam = general_cam(add_mirror(logits.float()))
        seeds = prototypes.locate_seeds(cam, features, label_mask(label))
        pooled = prototypes.pool_prototypes(seeds, features)
        maps = {"is_cam": prototypes.activate(pooled, features), "cam": cam}
        for kind, grid in maps.items():
            totals[kind] = totals[kind] + resize(grid.cpu(), item.size)[0]
    return {
        "is_cam": prototypes.peak_normalize(totals["is_cam"]),
        "cam": totals["cam"] / len(item.images),
    }


@dataclass(frozen=True)
class StoredMaps:
    """The maps of an image at full size, and its mask."""

    class_ids: np.ndarray  # (k,), background first
    maps: np.ndarray  # (k, H, W) float32
    mask: np.ndarray  # (H, W) uint8


def count_all_at_once(folder: Path, samples: Samples, num_classes: int) -> dict[str, np.ndarray]:
    """The counts of an evaluation, (K,) each, with all maps in memory and a loop over classes.

    The maps lie in folder/full-NAME.npz.
    """
    everything = []
    for sample in samples:
        arrays = np.load(folder / f"full-{sample.name}.npz", allow_pickle=False)
        mask = np.asarray(Image.open(sample.mask))
        everything.append(StoredMaps(arrays["keys"], arrays["maps"], mask))
    counts = {name: np.zeros(num_classes, int) for name in COUNTS}
    for stored in everything:
        prediction = stored.class_ids[stored.maps.argmax(0)]
        prediction[stored.mask == IGNORE] = IGNORE
        for class_id in range(num_classes):
            is_predicted = prediction == class_id
            is_true = stored.mask == class_id
            counts["intersection"][class_id] += (is_predicted & is_true).sum()
            counts["truth"][class_id] += is_true.sum()
            counts["prediction"][class_id] += is_predicted.sum()
    return counts


class FloatCrops(TrainingCrops):
    """TrainingCrops normalised in the worker: image (3, C, C) float32, inside (C, C) float32."""

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, Tensor]:
        item = super().__getitem__(epoch_and_index)
        image = normalize(item["image"][None], item["inside"][None])[0]
        return {**item, "image": image, "inside": item["inside"].float()}


def dense_walk(cam: Tensor, edge: Tensor) -> Tensor:
    """The random walk as its formula is written: a power of the matrix of all pairs of cells."""
    height, width = edge.shape
    index = torch.arange(height * width, device=edge.device).view(height, width)
    matrix = torch.eye(height * width, device=edge.device)
    for path in search_paths(RADIUS):
        dy, dx = path[0]
        span = Span(rows=height - dy, columns=width - abs(dx), left=max(0, -dx))
        boundary = torch.stack([cut(edge, cell, span) for cell in path]).amax(0)
        affinity = (1 - boundary) ** BETA
        source = cut(index, (0, 0), span)
        target = cut(index, (dy, dx), span)
        matrix[source, target] = affinity
        matrix[target, source] = affinity
    transition = matrix / matrix.sum(0)
    walked = torch.linalg.matrix_power(transition, 2**EXP_TIMES)
    return ((cam * (1 - edge)).flatten(1) @ walked).view(cam.shape)


@dataclass(frozen=True)
class Span:
    """The cells that have another one at some offset on the grid."""

    rows: int
    columns: int
    left: int  # column of the first


def cut(grid: Tensor, cell: tuple[int, int], span: Span) -> Tensor:
    """The part of a grid (h, w) at which a path from each cell of the span has its cell (y, x)."""
    y, x = cell
    left = span.left + x
    return grid[y : y + span.rows, left : left + span.columns]
