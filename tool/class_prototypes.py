"""The prototypes of all classes that a recipe adds to SIPE (LPCAM, CVPR 2023), and their file.

RUN_DIR/ckpt/class_prototypes.pth lies beside the checkpoint that it belongs to. It holds
`class_prototypes` (K-1, D) float32, zero for a class without one, `recipe`, `class_names`, and
`checkpoint`: the SHA-256 of that checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.datasets import MultiscaleImages, inference_loader
from data.registry import Samples
from data.transforms import Scaling, normalize
from errors import InputError
from network.recipe import class_prototype
from network.sipe import SIPE, general_cam

from . import checkpoint
from .context import Context
from .flags import MAX_SIDE
from .outputs import sha256

FILE_NAME = "class_prototypes.pth"
MOST_IMAGES = 100  # of a class
SCALE = 0.5
STRONG = 0.1  # threshold of the class's CAM
MOST_STRONG_CELLS = 60  # of an image
MOST_WEAK_CELLS = 40


@dataclass(frozen=True)
class Sampling:
    """How cells are drawn: the seed, and the worker processes that read images."""

    seed: int
    num_workers: int


@dataclass(frozen=True)
class Cells:
    """Cells of the last map in which the CAM of a class is above and below the threshold.

    Both are (number, D) float32.
    """

    strong: torch.Tensor
    weak: torch.Tensor


@torch.no_grad()
def find_class_prototypes(
    model: SIPE, samples: Samples, tags: np.ndarray, sampling: Sampling, context: Context
) -> torch.Tensor:
    """The prototypes of all classes, from at most 100 training images of each.

    Images enter at half their size, with a long side of at most 320. The processes share the
    classes. Only some cells of an image enter, so that a class takes at most about 0.2 GB with
    ResNet-50.

    Args:
        model: on the device, ready for inference.
        tags: (N, K-1) 0/1.

    Returns:
        (K-1, D) float32, 0 for a class that no image shows strongly enough.
    """
    classifier = model.classifier.weight.detach()[:, :, 0, 0].float()
    own: dict[int, torch.Tensor] = {}
    classes = context.shard(range(tags.shape[1]))
    bar = tqdm(classes, desc="class prototypes", unit="class", disable=not context.is_main)
    for index in bar:
        rng = np.random.default_rng((sampling.seed, index))
        chosen = rng.permutation(np.flatnonzero(tags[:, index]))[:MOST_IMAGES]
        if not len(chosen):
            continue
        images = MultiscaleImages(samples.select(chosen), None, Scaling((SCALE,), MAX_SIDE))
        loader = inference_loader(images, sampling.num_workers, context.is_cuda)
        parts = [draw_cells(model, item.images[0], index, rng, context) for item in loader]
        strong = torch.cat([part.strong for part in parts])
        weak = torch.cat([part.weak for part in parts])
        if len(strong):
            own[index] = class_prototype(strong, weak, classifier, index).cpu()
    prototypes = torch.zeros(len(classifier), classifier.shape[1])
    for part in context.all_gather_object(own):
        for index, prototype in part.items():
            prototypes[index] = prototype
    return prototypes


def draw_cells(
    model: SIPE, image: torch.Tensor, index: int, rng: np.random.Generator, context: Context
) -> Cells:
    """Draw cells of an image (3, H, W) uint8 for the class of this index among the K-1."""
    batch = normalize(image[None].to(context.device))
    with context.autocast():
        logits, layer4, _ = model.forward_features(batch)
    cam = general_cam(logits)[0, index + 1].flatten()
    cells = layer4[0].float().flatten(1).T
    is_strong = cam > STRONG
    strong = _draw(cells, is_strong, MOST_STRONG_CELLS, rng)
    weak = _draw(cells, cam <= STRONG, MOST_WEAK_CELLS, rng)
    return Cells(strong, weak)


def _draw(
    cells: torch.Tensor, mask: torch.Tensor, most: int, rng: np.random.Generator
) -> torch.Tensor:
    """At most so many of the cells (N, D) where the mask (N,) is true, in random order."""
    places = mask.nonzero()[:, 0].cpu().numpy()
    chosen = rng.permutation(places)[:most]
    return cells[torch.from_numpy(chosen).to(cells.device)]


def path_beside(ckpt: Path) -> Path:
    """Where the class prototypes of a checkpoint lie."""
    return Path(ckpt).with_name(FILE_NAME)


def save(ckpt: Path, prototypes: torch.Tensor, recipe: str, class_names: tuple[str, ...]) -> None:
    """Write the class prototypes that belong to a checkpoint."""
    content = {
        "recipe": recipe,
        "class_names": list(class_names),
        "checkpoint": sha256(ckpt),
        "class_prototypes": prototypes,
    }
    checkpoint.save(path_beside(ckpt), content)


def delete_beside(ckpt: Path) -> None:
    """Delete the class prototypes of a checkpoint that is trained anew."""
    path_beside(ckpt).unlink(missing_ok=True)


def read_beside(ckpt: Path) -> dict[str, Any]:
    """The class prototypes that belong to a checkpoint.

    Empty if the file is missing or belongs to another checkpoint.

    Raises InputError for a damaged file.
    """
    path = path_beside(ckpt)
    if not path.is_file():
        return {}
    content = checkpoint.read(path)
    if not torch.is_tensor(content.get("class_prototypes")):
        raise InputError(
            f"{path}: holds no class prototypes; delete it and run stage 1 with its recipe again"
        )
    if content.get("checkpoint") != sha256(ckpt):
        return {}
    return content
