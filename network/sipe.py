"""SIPE: a classifier whose class activation maps are rebuilt from image-specific prototypes (CVPR 2022)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .prototypes import (
    activate,
    add_background,
    contrast,
    locate_seeds,
    peak_normalize,
    pool_prototypes,
    spread,
)
from .recipe import RECIPES
from .resnet import ResNet50
from .spatial import add_mirror, side_features
from .timm_maps import TimmMaps

# name -> (frozen) -> backbone: image to maps, of which SIPE uses the last four, whose `widths` it has; timm's come by "timm:NAME"
BACKBONES: dict[str, Callable[[bool], nn.Module]] = {"resnet50": ResNet50}
SIDE_WIDTHS = (128, 128, 256, 256)
MAX_PAIR_PIXELS = (
    640 * 480
)  # larger images and their mirrors go through the network one after the other: half the memory


class Localization(NamedTuple):
    """What SIPE finds in a batch; background first, on the grid of the backbone's last map: stride 16 with ResNet-50."""

    score: torch.Tensor  # (B, K-1) classification logits
    cam: torch.Tensor  # (B, K, H, W) in [0, 1], general CAM
    is_cam: torch.Tensor  # (B, K, H, W) in [0, 1], image-specific CAM
    seeds: torch.Tensor  # (B, K, H, W) 0/1


class SIPE(nn.Module):
    """A classifier (ResNet-50 in the paper) with side branches, and the prototypes between its two kinds of map (SIPE figure 2).

    Under autocast only the convolutions run at lower precision. Hierarchical feature, maps, seeds, prototypes and scores are computed
    from their results in float32.

    Args:
        num_classes: K, background included (VOC 21, COCO 81).
        pretrained: the backbone starts from ImageNet weights: all BatchNorm statistics stay frozen, and of ResNet-50 the stem, layer1
            and layer2. False trains everything.
        backbone: a name of BACKBONES, or timm:NAME. Raises ValueError for another one, and errors as TimmMaps does.
        recipe: a name of RECIPES: how `localize` makes IS-CAMs.
    """

    def __init__(
        self,
        num_classes: int,
        pretrained: bool = True,
        backbone: str = "resnet50",
        recipe: str = "sipe",
    ):
        super().__init__()
        self.recipe = RECIPES[recipe]
        kind, _, timm_name = backbone.partition(":")
        if kind != "timm" and backbone not in BACKBONES:
            raise ValueError(f"no such backbone; use {', '.join(BACKBONES)} or timm:NAME")
        network = (
            TimmMaps(timm_name, pretrained) if kind == "timm" else BACKBONES[backbone](pretrained)
        )
        self.add_module(kind, network)  # "resnet50" in the authors' checkpoints
        self.kind, widths = kind, network.widths[-4:]
        self.classifier = nn.Conv2d(widths[-1], num_classes - 1, 1, bias=False)
        prototypes = torch.zeros(
            num_classes - 1, widths[-1]
        )  # `prototypes.class_prototype` of each class
        self.register_buffer(
            "class_prototypes", prototypes, persistent=False
        )
        for i, (width, side_width) in enumerate(zip(widths, SIDE_WIDTHS), 1):
            self.add_module(f"side{i}", nn.Conv2d(width, side_width, 1, bias=False))

    @property
    def backbone(self) -> nn.Module:
        return getattr(self, self.kind)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer: classifier and side branches start from random weights and take ten times the rate."""
        heads = [p for name, p in self.named_parameters() if not name.startswith(f"{self.kind}.")]
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad], "lr_scale": 1},
            {"params": heads, "lr_scale": 10},
        ]

    def forward(
        self, image: torch.Tensor, label: torch.Tensor, inside: torch.Tensor
    ) -> Localization:
        """Training form: seeds by layer4's resemblance, every map masked by the label and by the crop's padding.

        image (B, 3, H, W) normalised, 0 in the padding; label (B, K-1) 0/1; inside (B, H, W) 0/1, 0 in the padding.
        """
        logits, layer4, features = self.forward_features(image)
        valid = label_mask(label) * F.interpolate(
            inside[:, None].float(), logits.shape[2:], mode="nearest"
        )
        cam = general_cam(logits) * valid
        seeds = locate_seeds(cam, layer4.detach(), valid)
        is_cam = activate(pool_prototypes(seeds, features), features)
        return Localization(logits.float().mean((2, 3)), cam, is_cam, seeds)

    @torch.no_grad()
    def localize(self, image: torch.Tensor, label: torch.Tensor) -> Localization:
        """Inference form: whole images of one size with their mirrors, seeds by the hierarchical feature's resemblance.

        image (B, 3, H, W) normalised; label (B, K-1) 0/1. The label does not mask the CAM here: absent classes also take part
        in the background's 1 - max and compete for cells, and a cell won by an absent class belongs to nobody.
        """
        logits, layer4, features = self._forward_mirrored(image)
        cam = general_cam(logits)
        seeds = locate_seeds(cam, features, label_mask(label))
        is_cam = activate(pool_prototypes(seeds, features), features)
        return Localization(
            logits.mean((2, 3)), cam, self._follow_recipe(is_cam, layer4, features), seeds
        )

    def _follow_recipe(
        self, is_cam: torch.Tensor, layer4: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """What the recipe makes of the published IS-CAMs (B, K, H, W)."""
        recipe, kinds = self.recipe, [is_cam]
        if recipe.contrast:
            kinds = [contrast(is_cam, recipe.contrast)]
        if recipe.class_prototypes:
            of_classes = activate(
                self.class_prototypes.expand(len(is_cam), -1, -1), add_mirror(layer4.float())
            )
            kinds.append(torch.cat([is_cam[:, :1], of_classes], 1))
        if recipe.affinity:
            kinds = spread(torch.cat(kinds, 1), features, recipe.affinity).chunk(len(kinds), 1)
        return sum(map(peak_normalize, kinds)) / len(kinds) if len(kinds) > 1 else kinds[0]

    def _forward_mirrored(
        self, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits and hierarchical feature of images plus those of their mirrors mirrored back, in float32; the last map of each alone."""
        both = [image, image.flip(3)]
        batches = [torch.cat(both)] if image[0, 0].numel() <= MAX_PAIR_PIXELS else both
        logits, layer4, features = (
            torch.cat(part) for part in zip(*(self.forward_features(images) for images in batches))
        )
        return add_mirror(logits.float()), layer4, add_mirror(features)

    def forward_features(
        self, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) normalised -> class logits (B, K-1, h, w), last map (B, D, h, w), hierarchical feature (B, 768, h, w).

        The last is float32, also under autocast.
        """
        layers = self.backbone(image)[-4:]
        grid = layers[-1].shape[2:]
        sides = [
            side_features(getattr(self, f"side{i}"), layer.detach(), grid)
            for i, layer in enumerate(layers, 1)
        ]
        return self.classifier(layers[3]), layers[3], torch.cat(sides, 1)


def general_cam(logits: torch.Tensor) -> torch.Tensor:
    """Class logits (B, K-1, H, W) -> class activation maps with background (B, K, H, W) in [0, 1] (SIPE section 3.1)."""
    return add_background(peak_normalize(logits.float().relu()))


def label_mask(label: torch.Tensor) -> torch.Tensor:
    """Image-level label (B, K-1) 0/1 -> (B, K, 1, 1) 0/1 with the background, which every image has."""
    return F.pad(label.float(), (1, 0), value=1)[:, :, None, None]
