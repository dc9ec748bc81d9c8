"""SIPE: a classifier whose class activation maps are rebuilt from image-specific prototypes.

Chen, Yang, Lai, Xie, "Self-supervised Image-specific Prototype Exploration for Weakly Supervised
Semantic Segmentation", CVPR 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .prototypes import (
    activate,
    add_background,
    locate_seeds,
    peak_normalize,
    pool_prototypes,
)
from .recipe import RECIPES, follow_recipe
from .resnet import ResNet50
from .spatial import add_mirror, side_features
from .timm_maps import TimmMaps

# name -> (frozen) -> backbone. It turns images into maps, of which SIPE uses the last four, and has
# their numbers of channels as `widths`. Backbones of timm are named timm:NAME.
BACKBONES: dict[str, Callable[[bool], nn.Module]] = {"resnet50": ResNet50}
SIDE_WIDTHS = (128, 128, 256, 256)
MAX_PAIR_PIXELS = 640 * 480  # a larger image and its mirror take turns: half the memory


class FeatureMaps(NamedTuple):
    """What the convolutions compute, on the grid of the backbone's last map."""

    logits: torch.Tensor  # (B, K-1, H, W) of the classes
    layer4: torch.Tensor  # (B, D, H, W), the backbone's last map
    features: torch.Tensor  # (B, 768, H, W) float32, also under autocast: the hierarchical feature


class Localization(NamedTuple):
    """What SIPE finds in a batch, background first.

    H x W is the grid of the backbone's last map: stride 16 with ResNet-50.
    """

    score: torch.Tensor  # (B, K-1) classification logits
    cam: torch.Tensor  # (B, K, H, W) in [0, 1], general CAM
    is_cam: torch.Tensor  # (B, K, H, W) in [0, 1], image-specific CAM
    seeds: torch.Tensor  # (B, K, H, W) 0/1


class SIPE(nn.Module):
    """A classifier with side branches, and prototypes between its two kinds of map (SIPE figure 2).

    Under autocast only the convolutions run at lower precision. Hierarchical feature, maps, seeds,
    prototypes and scores are computed from their results in float32.

    Args:
        num_classes: K, background included (VOC 21, COCO 81).
        frozen: the backbone's BatchNorm statistics stay as they are, and of ResNet-50 also the
            stem, layer1 and layer2, as training from ImageNet weights needs it. False trains
            everything.
        backbone: a name of BACKBONES, or timm:NAME.
        recipe: a name of RECIPES: how `localize` makes IS-CAMs.

    Raises:
        ValueError: for another backbone; errors of TimmMaps.
    """

    def __init__(
        self,
        num_classes: int,
        frozen: bool = True,
        backbone: str = "resnet50",
        recipe: str = "sipe",
    ):
        super().__init__()
        self.recipe = RECIPES[recipe]
        network = build_backbone(backbone, frozen)
        self.backbone_name = backbone.partition(":")[0]  # "timm" for all networks of timm
        self.add_module(self.backbone_name, network)  # "resnet50" in the authors' checkpoints
        widths = network.widths[-4:]
        last_width = widths[-1]
        self.classifier = nn.Conv2d(last_width, num_classes - 1, 1, bias=False)
        no_prototypes = torch.zeros(num_classes - 1, last_width)
        self.register_buffer("class_prototypes", no_prototypes, persistent=False)
        for i, (width, side_width) in enumerate(zip(widths, SIDE_WIDTHS), 1):
            self.add_module(f"side{i}", nn.Conv2d(width, side_width, 1, bias=False))

    @property
    def backbone(self) -> nn.Module:
        return getattr(self, self.backbone_name)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters: the new layers take ten times the backbone's learning rate."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        prefix = f"{self.backbone_name}."
        new = [p for name, p in self.named_parameters() if not name.startswith(prefix)]
        return [{"params": backbone, "lr_scale": 1}, {"params": new, "lr_scale": 10}]

    def set_class_prototypes(self, prototypes: torch.Tensor) -> None:
        """Set the class prototypes (K-1, D), which `network.recipe.class_prototype` computes.

        Raises:
            ValueError: for another shape.
        """
        expected = self.class_prototypes.shape
        if prototypes.shape != expected:
            shapes = f"{tuple(prototypes.shape)}, expected {tuple(expected)}"
            raise ValueError(f"the class prototypes are {shapes}")
        self.class_prototypes.copy_(prototypes)

    def forward(
        self, image: torch.Tensor, label: torch.Tensor, inside: torch.Tensor
    ) -> Localization:
        """Training form: seeds by layer4's resemblance; label and padding mask every map.

        image (B, 3, H, W) normalised, 0 in the padding; label (B, K-1) 0/1; inside (B, H, W) 0/1,
        0 in the padding.
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
    def localize(self, image: torch.Tensor, tags: torch.Tensor) -> Localization:
        """Inference form: whole images with their mirrors.

        Seeds go by the resemblance of the hierarchical feature. The tags do not mask the CAM here:
        absent classes also take part in the background's 1 - max and compete for cells, and a cell
        won by an absent class belongs to nobody.

        Args:
            image: (B, 3, H, W) normalised, all of one size.
            tags: (B, K-1) 0/1.
        """
        logits, layer4, features = self._forward_mirrored(image)
        cam = general_cam(logits)
        seeds = locate_seeds(cam, features, label_mask(tags))
        published = activate(pool_prototypes(seeds, features), features)
        is_cam = follow_recipe(self.recipe, published, features, layer4, self.class_prototypes)
        return Localization(logits.mean((2, 3)), cam, is_cam, seeds)

    def _forward_mirrored(self, image: torch.Tensor) -> FeatureMaps:
        """Run images and their mirrors.

        Logits and hierarchical features of both are added up in float32. The last maps of the
        mirrors follow those of the images: (2B, D, h, w).
        """
        mirror = image.flip(3)
        if image[0, 0].numel() <= MAX_PAIR_PIXELS:
            logits, layer4, features = self.forward_features(torch.cat([image, mirror]))
        else:
            of_image = self.forward_features(image)
            of_mirror = self.forward_features(mirror)
            logits, layer4, features = map(torch.cat, zip(of_image, of_mirror))
        return FeatureMaps(add_mirror(logits.float()), layer4, add_mirror(features))

    def forward_features(self, image: torch.Tensor) -> FeatureMaps:
        """Run backbone, classifier and side branches; image (B, 3, H, W) normalised."""
        layers = self.backbone(image)[-4:]
        layer4 = layers[-1]
        sides = []
        for i, layer in enumerate(layers, 1):
            side = getattr(self, f"side{i}")
            sides.append(side_features(side, layer.detach(), layer4.shape[2:]))
        return FeatureMaps(self.classifier(layer4), layer4, torch.cat(sides, 1))


def build_backbone(name: str, frozen: bool) -> nn.Module:
    """Build a backbone from a name of BACKBONES or from timm:NAME.

    Raises:
        ValueError: for another name; errors of TimmMaps.
    """
    library, _, timm_name = name.partition(":")
    if library == "timm":
        return TimmMaps(timm_name, frozen)
    if name not in BACKBONES:
        raise ValueError(f"no such backbone; use {', '.join(BACKBONES)} or timm:NAME")
    return BACKBONES[name](frozen)


def general_cam(logits: torch.Tensor) -> torch.Tensor:
    """Make class activation maps with their background of class logits (SIPE section 3.1).

    (B, K-1, H, W) -> (B, K, H, W) in [0, 1].
    """
    return add_background(peak_normalize(logits.float().relu()))


def label_mask(tags: torch.Tensor) -> torch.Tensor:
    """Add the background, which every image has, to tags: (B, K-1) 0/1 -> (B, K, 1, 1) 0/1."""
    return F.pad(tags.float(), (1, 0), value=1)[:, :, None, None]
