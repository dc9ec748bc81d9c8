"""IRN: class boundaries and displacements between cells, learned from confident labels.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import WIDTHS, ResNet50
from .spatial import add_mirror

CellPath = Sequence[tuple[int, int]]

STRIDE = 4  # of both outputs
EPSILON = 1e-5
EDGE_SCALES = (1, 1, 2, 4, 4)  # from the strides of the backbone's maps to the /4 grid
DISPLACEMENT_HEADS = (
    (64, 8, 1),
    (128, 16, 1),
    (256, 16, 1),
    (256, 16, 2),
    (256, 16, 2),
)  # width, groups, scale


class MeanShift(nn.Module):
    """Subtracts the dataset's mean displacement at inference."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, displacement: torch.Tensor) -> torch.Tensor:
        return displacement if self.training else displacement - self.running_mean.view(-1, 1, 1)


class IRN(nn.Module):
    """A frozen ImageNet ResNet-50 under an edge branch and a displacement branch (IRN section 4).

    Tensors have the names of the authors' irn.pth, which therefore loads as it is. Both outputs are float32, also under autocast; compute
    the losses and the random walk from them outside of it.
    """

    def __init__(self):
        super().__init__()
        self.resnet50 = ResNet50().requires_grad_(False)
        for i, (width, scale) in enumerate(zip(WIDTHS, EDGE_SCALES), 1):
            self.add_module(f"fc_edge{i}", _head(width, 32, 4, scale))
        self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)
        for i, (width, head) in enumerate(zip(WIDTHS, DISPLACEMENT_HEADS), 1):
            self.add_module(f"fc_dp{i}", _head(width, *head))
        self.fc_dp6 = _head(3 * 256, 256, 16, 2)
        self.fc_dp7 = nn.Sequential(
            *_head(64 + 128 + 256, 256, 16, 1), nn.Conv2d(256, 2, 1, bias=False), MeanShift(2)
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "IRN":
        super().train(mode)
        self.resnet50.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer: the displacement branch takes ten times the rate of the edge branch."""
        edge, displacement = (
            [p for name, p in self.named_parameters() if name.startswith(branch)]
            for branch in ("fc_edge", "fc_dp")
        )
        return [{"params": edge, "lr_scale": 1}, {"params": displacement, "lr_scale": 10}]

    def set_mean_displacement(self, mean: torch.Tensor) -> None:
        """Set the dataset's mean displacement (2,), which forward subtracts in eval mode."""
        self.fc_dp7[-1].running_mean.copy_(mean)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) normalised -> edge logits (B, 1, ceil(H/4), ceil(W/4)) and displacement (B, 2, ceil(H/4), ceil(W/4)) in cells.

        Displacement is (dy, dx).
        """
        with torch.no_grad():
            layers = self.resnet50(image)
        return self._edge(layers), self._displacement(layers)

    def _edge(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        heads = [getattr(self, f"fc_edge{i}")(layer) for i, layer in enumerate(layers, 1)]
        return self.fc_edge6(_join(heads)).float()

    def _displacement(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        stem, layer1, *coarser = (
            getattr(self, f"fc_dp{i}")(layer) for i, layer in enumerate(layers, 1)
        )
        return self.fc_dp7(_join([stem, layer1, self.fc_dp6(_join(coarser))])).float()

    @torch.no_grad()
    def find_edges(self, image: torch.Tensor, crop_size: int) -> torch.Tensor:
        """Class boundaries of whole images of one size: (B, 3, H, W) normalised -> (B, ceil(H/4), ceil(W/4)) in [0, 1].

        The logits of an image and its mirror are averaged. Sides shorter than the training crop are zero-padded to crop_size, as in
        training: group normalisation sees all of its input.
        """
        height, width = image.shape[2:]
        padding = (0, max(crop_size - width, 0), 0, max(crop_size - height, 0))
        logits = self._edge(self.resnet50(F.pad(torch.cat([image, image.flip(3)]), padding)))
        logits = logits[:, 0, : -(-height // STRIDE), : -(-width // STRIDE)]
        return (add_mirror(logits) / 2).sigmoid()


class PairSums(NamedTuple):
    """Sums over pairs of cells: of background, of one foreground class, and of two classes; each (3,) or (2,)."""

    affinity: torch.Tensor  # (3,) of -log(probability of what the label says)
    displacement: (
        torch.Tensor
    )  # (2,) of the absolute error, both axes; none for pairs of two classes
    count: torch.Tensor  # (3,) pairs


def sum_over_pairs(
    logits: torch.Tensor,
    displacement: torch.Tensor,
    label: torch.Tensor,
    paths: Sequence[CellPath],
    ignore_index: int = 255,
) -> PairSums:
    """The sums of which the inter-pixel losses are means (IRN section 3.3, equations 2 to 7).

    The affinity of a pair is 1 - the strongest edge on the path between its cells. Sources are the cells from which every path
    stays on the grid.

    Args:
        logits: (B, 1, h, w) of edges.
        displacement: (B, 2, h, w), (dy, dx) in cells.
        label: (B, h, w) class ids, 0 for background; pairs with ignore_index do not count.
        paths: cells (dy, dx), dy >= 0, from destination to source, as tool.random_walk.search_paths makes them.
    """
    height, width = label.shape[1:]
    reach = max(abs(dx) for path in paths for _, dx in path)
    rows, columns = height - reach, width - 2 * reach
    edge = logits.sigmoid()[:, 0]
    index = torch.arange(height * width, device=label.device).view(1, height, width)

    def at(maps: torch.Tensor, y: int, x: int) -> torch.Tensor:
        return maps[..., y : y + rows, reach + x : reach + x + columns]

    sums, offsets = (
        [],
        torch.tensor([path[0] for path in paths], device=label.device).view(-1, 2, 1, 1),
    )
    for path, offset in zip(paths, offsets):
        with torch.no_grad():  # find the strongest cell first: the gradient then needs no copy of the edges for every step of the path
            strongest, position = at(edge, *path[0]), at(index, *path[0])
            for cell in path[1:]:
                candidate = at(edge, *cell)
                position = torch.where(candidate > strongest, at(index, *cell), position)
                strongest = torch.maximum(candidate, strongest)
        affinity = 1 - edge.flatten(1).gather(1, position.flatten(1)).view(position.shape)
        source, target = at(label, 0, 0), at(label, *path[0])
        known = (source != ignore_index) & (target != ignore_index)
        background, foreground, different = (
            known & (source == target) & (source == 0),
            known & (source == target) & (source > 0),
            known & (source != target),
        )
        cost = -(torch.where(different, 1 - affinity, affinity) + EPSILON).log()
        error = (
            (at(displacement, 0, 0) - at(displacement, *path[0]) - offset * foreground[:, None])
            .abs()
            .sum(1)
        )
        parts = [(cost * kind).sum() for kind in (background, foreground, different)]
        parts += [(error * kind).sum() for kind in (background, foreground)]
        parts += [kind.sum() for kind in (background, foreground, different)]
        sums.append(torch.stack(parts))
    total = torch.stack(sums).sum(0)
    return PairSums(total[:3], total[3:5], total[5:].detach())


def inter_pixel_losses(sums: PairSums) -> dict[str, torch.Tensor]:
    """The four losses, each a mean over its own pairs; training adds them with a weight of 1/2 each (IRN equation 8)."""
    background, foreground, negative = sums.affinity / (sums.count + EPSILON)
    dp_background, dp_foreground = sums.displacement / (2 * sums.count[:2] + EPSILON)
    positive = (background + foreground) / 2
    return {
        "positive": positive,
        "negative": negative,
        "dp_foreground": dp_foreground,
        "dp_background": dp_background,
    }


def _head(width: int, out: int, groups: int, scale: int) -> nn.Sequential:
    layers = [nn.Conv2d(width, out, 1, bias=False), nn.GroupNorm(groups, out)]
    if scale > 1:
        layers.append(nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU())


def _join(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate maps of one stride, cut to the size of the first: upsampling may add a row or column."""
    height, width = maps[0].shape[2:]
    return torch.cat([one[:, :, :height, :width] for one in maps], 1)
