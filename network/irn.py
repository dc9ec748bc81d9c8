"""IRN: class boundaries and displacements between cells, learned from confident labels.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations",
CVPR 2019.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .random_walk import CellPath
from .resnet import WIDTHS, ResNet50
from .spatial import add_mirror

STRIDE = 4  # of both outputs
EPSILON = 1e-5


class Head(NamedTuple):
    """The shape of a small head on a feature map."""

    width: int  # channels
    groups: int  # of its group normalisation
    scale: int  # from the stride of its input to that of its output


# one for each map of the backbone
EDGE_HEADS = (
    Head(32, 4, 1),
    Head(32, 4, 1),
    Head(32, 4, 2),
    Head(32, 4, 4),
    Head(32, 4, 4),
)
DISPLACEMENT_HEADS = (
    Head(64, 8, 1),
    Head(128, 16, 1),
    Head(256, 16, 1),
    Head(256, 16, 2),
    Head(256, 16, 2),
)


class MeanShift(nn.Module):
    """Subtracts the dataset's mean displacement at inference."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, displacement: torch.Tensor) -> torch.Tensor:
        if self.training:
            return displacement
        return displacement - self.running_mean.view(-1, 1, 1)


class IRN(nn.Module):
    """A frozen ImageNet ResNet-50 under an edge branch and a displacement branch (IRN section 4).

    Tensors have the names of the authors' irn.pth, which therefore loads as it is. Both outputs are
    float32, also under autocast; compute the losses and the random walk from them outside of it.
    """

    def __init__(self):
        super().__init__()
        self.resnet50 = ResNet50().requires_grad_(False)
        for i, (width, head) in enumerate(zip(WIDTHS, EDGE_HEADS), 1):
            self.add_module(f"fc_edge{i}", _build_head(width, head))
        self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)
        for i, (width, head) in enumerate(zip(WIDTHS, DISPLACEMENT_HEADS), 1):
            self.add_module(f"fc_dp{i}", _build_head(width, head))
        self.fc_dp6 = _build_head(3 * 256, Head(256, 16, 2))
        self.fc_dp7 = nn.Sequential(
            *_build_head(64 + 128 + 256, Head(256, 16, 1)),
            nn.Conv2d(256, 2, 1, bias=False),
            MeanShift(2),
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "IRN":
        super().train(mode)
        self.resnet50.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters: the displacement branch takes ten times the learning rate."""
        edge = [p for name, p in self.named_parameters() if name.startswith("fc_edge")]
        displacement = [p for name, p in self.named_parameters() if name.startswith("fc_dp")]
        return [{"params": edge, "lr_scale": 1}, {"params": displacement, "lr_scale": 10}]

    def set_mean_displacement(self, mean: torch.Tensor) -> None:
        """Set the dataset's mean displacement (2,), which forward subtracts in eval mode."""
        self.fc_dp7[-1].running_mean.copy_(mean)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find edge logits and displacements (dy, dx).

        image (B, 3, H, W) normalised -> edge logits (B, 1, ceil(H/4), ceil(W/4)) and displacement
        (B, 2, ceil(H/4), ceil(W/4)), cells.
        """
        with torch.no_grad():
            layers = self.resnet50(image)
        return self._edge(layers), self._displacement(layers)

    def _edge(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.fc_edge6(_join(self._apply_heads("fc_edge", layers))).float()

    def _displacement(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        stem, layer1, *coarser = self._apply_heads("fc_dp", layers)
        joined = self.fc_dp6(_join(coarser))
        return self.fc_dp7(_join([stem, layer1, joined])).float()

    def _apply_heads(self, prefix: str, layers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Apply the branch's own head to each map of the backbone."""
        maps = []
        for i, layer in enumerate(layers, 1):
            head = getattr(self, f"{prefix}{i}")
            maps.append(head(layer))
        return maps

    @torch.no_grad()
    def find_edges(self, image: torch.Tensor, crop_size: int) -> torch.Tensor:
        """Find the class boundaries of whole images, from their logits and those of their mirrors.

        Sides shorter than the training crop are zero-padded to crop_size, as in training: group
        normalisation depends on all of its input.

        Args:
            image: (B, 3, H, W) normalised, all of one size.
            crop_size: of the training, pixels.

        Returns:
            (B, ceil(H/4), ceil(W/4)) in [0, 1].
        """
        height, width = image.shape[2:]
        right = max(crop_size - width, 0)
        below = max(crop_size - height, 0)
        image_and_mirror = torch.cat([image, image.flip(3)])
        padded = F.pad(image_and_mirror, (0, right, 0, below))
        rows = math.ceil(height / STRIDE)
        columns = math.ceil(width / STRIDE)
        logits = self._edge(self.resnet50(padded))[:, 0, :rows, :columns]
        return (add_mirror(logits) / 2).sigmoid()


def _build_head(in_width: int, head: Head) -> nn.Sequential:
    layers = [
        nn.Conv2d(in_width, head.width, 1, bias=False),
        nn.GroupNorm(head.groups, head.width),
    ]
    if head.scale > 1:
        upsample = nn.Upsample(scale_factor=head.scale, mode="bilinear", align_corners=False)
        layers.append(upsample)
    layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _join(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate maps of one stride, cut to the size of the first.

    Upsampling may have added a row or a column to the others.
    """
    height, width = maps[0].shape[2:]
    cut = [feature[:, :, :height, :width] for feature in maps]
    return torch.cat(cut, 1)


class PairSums(NamedTuple):
    """Sums over pairs of cells: of background, of one foreground class, and of two classes.

    Pairs of two classes have no displacement.
    """

    affinity: torch.Tensor  # (3,) of -log(probability of what the target says)
    displacement: torch.Tensor  # (2,) of the absolute error, both axes
    count: torch.Tensor  # (3,) pairs


def sum_over_pairs(
    logits: torch.Tensor,
    displacement: torch.Tensor,
    target: torch.Tensor,
    paths: Sequence[CellPath],
    ignore_index: int = 255,
) -> PairSums:
    """Add up what the inter-pixel losses are means of (IRN section 3.3, equations 2 to 7).

    The affinity of a pair is 1 - the strongest edge on the path between its cells. Sources are the
    cells from which every path stays on the grid.

    Args:
        logits: (B, 1, h, w) of edges.
        displacement: (B, 2, h, w), (dy, dx) in cells.
        target: (B, h, w) class ids, 0 for background; pairs with ignore_index do not count.
        paths: from destination to source, as random_walk.search_paths makes them.
    """
    height, width = target.shape[1:]
    sources = _Sources.of(height, width, paths)
    edge = logits.sigmoid()[:, 0]
    index = torch.arange(height * width, device=target.device).view(1, height, width)
    ends = [path[0] for path in paths]
    offsets = torch.tensor(ends, device=target.device).view(-1, 2, 1, 1)
    sums = []
    for path, end, offset in zip(paths, ends, offsets):
        position = _strongest_position(edge.detach(), index, path, sources)
        strongest = edge.flatten(1).gather(1, position.flatten(1))
        affinity = 1 - strongest.view(position.shape)
        pairs = _compare(sources.at(target), sources.at(target, end), ignore_index)
        probability = torch.where(pairs.different, 1 - affinity, affinity)
        cost = -(probability + EPSILON).log()
        difference = sources.at(displacement) - sources.at(displacement, end)
        true_difference = offset * pairs.foreground[:, None]
        error = (difference - true_difference).abs().sum(1)
        parts = [(cost * kind).sum() for kind in pairs]
        parts += [(error * kind).sum() for kind in (pairs.background, pairs.foreground)]
        parts += [kind.sum() for kind in pairs]
        sums.append(torch.stack(parts))
    total = torch.stack(sums).sum(0)
    return PairSums(total[:3], total[3:5], total[5:].detach())


@dataclass(frozen=True)
class _Sources:
    """The cells of a grid from which every path stays on it."""

    rows: int
    columns: int
    left: int  # the first column

    @classmethod
    def of(cls, height: int, width: int, paths: Sequence[CellPath]) -> "_Sources":
        reach = max(abs(dx) for path in paths for _, dx in path)
        return cls(height - reach, width - 2 * reach, reach)

    def at(self, maps: torch.Tensor, cell: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Read maps (..., h, w) at a cell (dy, dx) seen from each source: (..., rows, columns)."""
        dy, dx = cell
        left = self.left + dx
        right = left + self.columns
        return maps[..., dy : dy + self.rows, left:right]


def _strongest_position(
    edge: torch.Tensor, index: torch.Tensor, path: CellPath, sources: _Sources
) -> torch.Tensor:
    """Find where on its path each source meets the strongest edge.

    With the position alone, the gradient needs no copy of the edges for every step of the path.

    Args:
        edge: (B, h, w).
        index: (1, h, w), the number of each cell.

    Returns:
        (B, rows, columns), numbers of cells.
    """
    strongest = sources.at(edge, path[0])
    position = sources.at(index, path[0])
    for cell in path[1:]:
        candidate = sources.at(edge, cell)
        position = torch.where(candidate > strongest, sources.at(index, cell), position)
        strongest = torch.maximum(candidate, strongest)
    return position


class _Pairs(NamedTuple):
    """Which pairs of cells count and what they are; each (B, rows, columns), bool."""

    background: torch.Tensor
    foreground: torch.Tensor  # of one class
    different: torch.Tensor  # of two classes, which may be the background


def _compare(source: torch.Tensor, end: torch.Tensor, ignore_index: int) -> _Pairs:
    """Compare the class ids of pairs of cells, each (B, rows, columns)."""
    is_labelled = (source != ignore_index) & (end != ignore_index)
    is_same = is_labelled & (source == end)
    return _Pairs(
        background=is_same & (source == 0),
        foreground=is_same & (source > 0),
        different=is_labelled & (source != end),
    )


def inter_pixel_losses(sums: PairSums) -> dict[str, torch.Tensor]:
    """The four losses, each a mean over its own pairs.

    Training adds them with a weight of 1/2 each (IRN equation 8).
    """
    background, foreground, negative = sums.affinity / (sums.count + EPSILON)
    dp_background, dp_foreground = sums.displacement / (2 * sums.count[:2] + EPSILON)
    positive = (background + foreground) / 2
    return {
        "positive": positive,
        "negative": negative,
        "dp_foreground": dp_foreground,
        "dp_background": dp_background,
    }
