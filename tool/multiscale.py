"""What a network finds in a picture at several scales, each with its mirror image."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.datasets import Pyramid, Pyramids, inference_loader, kept_classes
from data.registry import Entries
from data.transforms import normalize
from network.prototypes import class_prototype
from network.resnet import fold_batchnorm
from network.sipe import SIPE, general_cam

from . import cam_file
from .context import Context

PROTOTYPE_PICTURES, STRONG, MOST_CELLS = 100, 0.1, (60, 40)  # of class prototypes: pictures, threshold of the CAM, strong and weak cells
MIN_PROBABILITY = 0.1  # classes below it everywhere do not matter to a picture


def to_device(model: nn.Module, context: Context) -> nn.Module:
    """Prepare a network for inference on the device, for good."""
    return fold_batchnorm(model).to(context.device, memory_format=torch.channels_last)


def multiscale_cams(model: SIPE, items: Sequence[Pyramid], context: Context) -> list[tuple[np.ndarray, dict[str, list[torch.Tensor]]]]:
    """The CAMs of pictures of one size.

    Returns, for each picture, the kept class ids (k,), background first, and each kind of map ("is_cam", "cam"): (k, h, w) in [0, 1] a
    scale, on the CPU, upright.
    """
    label = torch.stack([item.label for item in items])
    kept = F.pad(label, (1, 0), value=1).nonzero(as_tuple=True)  # most maps are not worth copying
    kept = tuple(index.to(context.device) for index in kept)
    label = label.to(context.device)
    keys = [kept_classes(item.label) for item in items]
    maps = {kind: [] for kind in cam_file.KINDS}
    for images in zip(*(item.images for item in items)):  # all pictures at one scale
        image = normalize(torch.stack([one.to(context.device, non_blocking=True) for one in images]))
        with context.autocast():
            out = model.localize(image, label)
        for kind, scales in maps.items():
            scales.append(getattr(out, kind)[kept])
    maps = {kind: [one.cpu().split([len(ids) for ids in keys]) for one in scales] for kind, scales in maps.items()}  # wait for a GPU once
    return [(ids, {kind: [parts[i] for parts in scales] for kind, scales in maps.items()}) for i, ids in enumerate(keys)]


@torch.no_grad()
def find_class_prototypes(model: SIPE, entries: Entries, labels: np.ndarray, seed: int, num_workers: int, context: Context) -> torch.Tensor:
    """The prototypes of all classes, (K-1, D), from at most 100 training pictures of each, at half their size; 0 without any.

    The processes share the classes. Few cells a picture are kept, so that a class takes at most 50 MB.
    """
    found, classifier = {}, model.classifier.weight.detach()[:, :, 0, 0].float()
    classes = context.shard(range(labels.shape[1]))
    for k in tqdm(classes, desc="class prototypes", unit="class", disable=not context.is_main):
        rng = np.random.default_rng((seed, k))
        chosen = rng.permutation(np.flatnonzero(labels[:, k]))[:PROTOTYPE_PICTURES]
        cells = [], []
        for item in inference_loader(Pyramids(entries.select(chosen), None, [0.5]), num_workers, context.is_cuda):
            with context.autocast():
                logits, layer4, _ = model.forward_features(normalize(item.images[0][None].to(context.device)))
            cam, grid = general_cam(logits)[0, k + 1].flatten(), layer4[0].float().flatten(1).T
            for kept, there, most in zip(cells, (cam > STRONG, cam <= STRONG), MOST_CELLS):
                places = rng.permutation(there.nonzero()[:, 0].cpu().numpy())[:most]
                kept.append(grid[torch.from_numpy(places).to(grid.device)])
        strong, weak = (torch.cat(kept) if kept else kept for kept in cells)
        if len(strong):
            found[k] = class_prototype(strong, weak, classifier, k).cpu()
    prototypes = torch.zeros(len(classifier), classifier.shape[1])
    for part in context.all_gather_object(found):
        for k, prototype in part.items():
            prototypes[k] = prototype
    return prototypes


@torch.no_grad()
def multiscale_probability(model: nn.Module, item: Pyramid, context: Context) -> torch.Tensor:
    """Class probabilities of a picture by a segmentation network, averaged over scales and mirrors: (K, H, W) at the working size."""
    total = 0
    for image in item.images:
        image = normalize(image[None].to(context.device))
        with context.autocast():
            logits = model(torch.cat([image, image.flip(3)])).float()
        maps = F.interpolate(logits, item.working_size, mode="bilinear", align_corners=model.align_corners)
        straight, mirrored = maps if model.mean_of_logits else maps.softmax(1)
        total = total + straight + mirrored.flip(2)
    mean = total / (2 * len(item.images))
    return (mean.softmax(0) if model.mean_of_logits else mean).cpu()


def likely_classes(probability: np.ndarray) -> np.ndarray:
    """(k,) class ids that matter to a picture, from probabilities (K, H, W): the background, what wins a pixel, what reaches 0.1."""
    matters = probability.reshape(len(probability), -1).max(1) >= MIN_PROBABILITY
    matters[[0, *np.unique(probability.argmax(0))]] = True
    return np.flatnonzero(matters)
