"""The Python surface: load any checkpoint, and find maps and masks in images. Below it is what the stages share."""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.annotations import encode_tags, read_classes, rows_or_raise
from data.datasets import (
    MultiscaleImage,
    MultiscaleImages,
    inference_loader,
    present_classes,
    to_multiscale,
)
from data.registry import COCO, VOC, Samples
from data.transforms import Scaling, normalize, shrink
from errors import InputError
from network import deeplab
from network.fusion import fuse_scales
from network.irn import IRN
from network.prototypes import class_prototype
from network.resnet import fold_batchnorm
from network.sipe import SIPE, general_cam
from network.spatial import resize_maps

from . import cam_file, checkpoint, crf
from .context import Context, local_context
from .flags import MAX_SIDE
from .results import Results

PROTOTYPE_IMAGES, STRONG, MOST_CELLS = (
    100,
    0.1,
    (60, 40),
)  # of class prototypes: images, threshold of the CAM, strong and weak cells
SCALES = (0.5, 1.0, 1.5)
MIN_PROBABILITY = 0.1  # classes below it everywhere do not matter to an image


class Model(NamedTuple):  # ready for inference
    network: nn.Module  # a segmentation network, or SIPE
    class_names: tuple[str, ...]  # background first
    context: Context  # its device and precision


def load_model(
    path: str | Path,
    device: str = "auto",
    amp: str = "off",
    class_names: tuple[str, ...] | None = None,
    recipe: str | None = None,
) -> Model:
    """`load_network` on a device; device, amp, recipe: as the flags of the stages. Raises InputError as it does, and for the device."""
    context = local_context(device, amp)
    network, class_names = load_network(path, class_names, recipe)
    return Model(to_device(network, context), class_names, context)


def maps_of(
    model: Model,
    image: np.ndarray,
    tags: Iterable[str] = (),
    scales: Sequence[float] = SCALES,
    max_side: int = MAX_SIDE,
    use_crf: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The class ids (k,) that matter to an image, background first, and how strongly each pixel belongs to each: (k, H, W) in [0, 1].

    These are SIPE's IS-CAMs, or a segmentation network's probabilities. image: (H, W, 3) uint8 RGB, upright. tags: the names of the
    classes in it, which only SIPE needs. The rest is as the flags of predict.py. Raises InputError for tags that SIPE cannot use.
    """
    label = rows_or_raise(encode_tags({*tags}, model.class_names, "tags")).astype(np.float32)
    if isinstance(model.network, SIPE) and not label.any():
        raise InputError("tags: SIPE must know the classes in an image; pass their names")
    keys, maps = _segment(
        model,
        to_multiscale(image, label, Scaling(tuple(scales), max_side)),
        scales,
        max_side,
        use_crf,
    )
    return keys, resize_maps(maps, image.shape[:2])


def mask_of(model: Model, image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    """The mask of an image, (H, W) uint8 class ids: at each pixel the strongest of `maps_of`, which has the same arguments."""
    keys, maps = maps_of(model, image, *args, **kwargs)
    return keys.astype(np.uint8)[maps.argmax(0)]


def refine(image: np.ndarray, maps: np.ndarray, crf_on: str = "labels", **terms: Any) -> np.ndarray:
    """Probabilities (k, H, W) of maps (k, H, W), at least 0, with borders at the edges of an image (H, W, 3) uint8, by the dense CRF.

    crf_on: start from the "labels", the strongest map of each pixel, or from the "maps", with terms as `crf.refine_maps` takes them.
    """
    return (
        crf.refine_label(image, maps.argmax(0), len(maps))
        if crf_on == "labels"
        else crf.refine_maps(image, maps, **terms)
    )


def load_network(
    path: Path, class_names: tuple[str, ...] | None = None, recipe: str | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """A segmentation network or SIPE (the authors' checkpoints too) and its class names, background first.

    class_names: the dataset's. recipe: of SIPE's IS-CAMs, in place of that of its training.
    Raises InputError for any other file, and for a checkpoint of other classes than the dataset's.
    """
    content = checkpoint.read(path)
    tensors = content.get("net", content.get("model"))  # the authors' format, or ours
    if class_names:
        checkpoint.check_classes(content, class_names, path)
    class_names = (
        class_names or checkpoint.class_names_of(content) or _authors_classes(tensors, path)
    )
    arguments = checkpoint.arguments(content)
    backbone, recipe = (
        str(arguments.get("backbone", "resnet50")),
        recipe or str(arguments.get("recipe", "sipe")),
    )
    try:
        model = deeplab.build(arguments, len(class_names)) or checkpoint.build_sipe(
            len(class_names), backbone, recipe=recipe
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    needs_prototypes = isinstance(model, SIPE) and model.recipe.class_prototypes
    if needs_prototypes and isinstance(tensors, Mapping) and "class_prototypes" not in tensors:
        raise InputError(
            f"{path}: holds no class prototypes; train it with --recipe {recipe}, or use another recipe"
        )
    checkpoint.load_tensors(model, tensors, path)
    return model, class_names


def _authors_classes(tensors: object, path: Path) -> tuple[str, ...]:
    """The class names of the authors' checkpoints, which hold none: VOC's or COCO's, by their number."""
    weight = tensors.get("classifier.weight") if isinstance(tensors, Mapping) else None
    for names in map(read_classes, (VOC.classes, COCO.classes)):
        if torch.is_tensor(weight) and weight.ndim and len(weight) == len(names) - 1:
            return names
    raise InputError(
        f"{path}: holds no class names and is not an authors' checkpoint; use one of train_seg.py or train_resnet50_SIPE.py"
    )


def load_irn(path: Path) -> tuple[IRN, int]:
    """IRN from our checkpoint or the authors' irn.pth, and the side of the crop that it was trained with. Raises InputError otherwise."""
    content, model = checkpoint.read(path), IRN()
    checkpoint.load_tensors(model, content.get("model", content), path)
    return model, checkpoint.arguments(content).get("crop_size", 512)


def to_device(model: nn.Module, context: Context) -> nn.Module:
    """Prepare a network for inference on the device, for good."""
    return fold_batchnorm(model).to(context.device, memory_format=torch.channels_last)


def multiscale_cams(
    model: SIPE, items: Sequence[MultiscaleImage], context: Context
) -> list[tuple[np.ndarray, dict[str, list[torch.Tensor]]]]:
    """The CAMs of images of one size.

    Returns, for each image, the kept class ids (k,), background first, and each kind of map ("is_cam", "cam"): (k, h, w) in [0, 1] a
    scale, on the CPU, upright.
    """
    label = torch.stack([item.tags for item in items])
    kept = F.pad(label, (1, 0), value=1).nonzero(as_tuple=True)  # most maps are not worth copying
    kept = tuple(index.to(context.device) for index in kept)
    label = label.to(context.device)
    keys = [present_classes(item.tags) for item in items]
    maps = {kind: [] for kind in cam_file.KINDS}
    for images in zip(*(item.images for item in items)):  # all images at one scale
        image = normalize(
            torch.stack([one.to(context.device, non_blocking=True) for one in images])
        )
        with context.autocast():
            out = model.localize(image, label)
        for kind, scales in maps.items():
            scales.append(getattr(out, kind)[kept])
    maps = {
        kind: [one.cpu().split([len(ids) for ids in keys]) for one in scales]
        for kind, scales in maps.items()
    }  # wait for a GPU once
    return [
        (ids, {kind: [parts[i] for parts in scales] for kind, scales in maps.items()})
        for i, ids in enumerate(keys)
    ]


@torch.no_grad()
def find_class_prototypes(
    model: SIPE, samples: Samples, labels: np.ndarray, seed: int, num_workers: int, context: Context
) -> torch.Tensor:
    """The prototypes of all classes, (K-1, D), from at most 100 training images of each; 0 without any.

    Images enter at half their size, with a long side of at most 320. The processes share the classes. Few
    cells an image are kept, so that a class takes about 0.2 GB at most with ResNet-50.
    """
    found, classifier = {}, model.classifier.weight.detach()[:, :, 0, 0].float()
    classes = context.shard(range(labels.shape[1]))
    for k in tqdm(classes, desc="class prototypes", unit="class", disable=not context.is_main):
        rng = np.random.default_rng((seed, k))
        chosen = rng.permutation(np.flatnonzero(labels[:, k]))[:PROTOTYPE_IMAGES]
        if not len(chosen):
            continue
        cells = [], []
        for item in inference_loader(
            MultiscaleImages(samples.select(chosen), None, Scaling((0.5,), MAX_SIDE)),
            num_workers,
            context.is_cuda,
        ):
            with context.autocast():
                logits, layer4, _ = model.forward_features(
                    normalize(item.images[0][None].to(context.device))
                )
            cam, grid = general_cam(logits)[0, k + 1].flatten(), layer4[0].float().flatten(1).T
            for kept, there, most in zip(cells, (cam > STRONG, cam <= STRONG), MOST_CELLS):
                places = rng.permutation(there.nonzero()[:, 0].cpu().numpy())[:most]
                kept.append(grid[torch.from_numpy(places).to(grid.device)])
        strong, weak = map(torch.cat, cells)
        if len(strong):
            found[k] = class_prototype(strong, weak, classifier, k).cpu()
    prototypes = torch.zeros(len(classifier), classifier.shape[1])
    for part in context.all_gather_object(found):
        for k, prototype in part.items():
            prototypes[k] = prototype
    return prototypes


@torch.no_grad()
def multiscale_probability(
    model: nn.Module, item: MultiscaleImage, context: Context
) -> torch.Tensor:
    """Class probabilities of an image by a segmentation network, averaged over scales and mirrors: (K, H, W) at the working size."""
    total = 0
    for image in item.images:
        image = normalize(image[None].to(context.device))
        with context.autocast():
            logits = model(torch.cat([image, image.flip(3)])).float()
        maps = F.interpolate(
            logits, item.working_size, mode="bilinear", align_corners=model.align_corners
        )
        straight, mirrored = maps if model.mean_of_logits else maps.softmax(1)
        total = total + straight + mirrored.flip(2)
    mean = total / (2 * len(item.images))
    return (mean.softmax(0) if model.mean_of_logits else mean).cpu()


def likely_classes(probability: np.ndarray) -> np.ndarray:
    """(k,) class ids that matter to an image, from probabilities (K, H, W): the background, what wins a pixel, what reaches 0.1."""
    matters = probability.reshape(len(probability), -1).max(1) >= MIN_PROBABILITY
    matters[[0, *np.unique(probability.argmax(0))]] = True
    return np.flatnonzero(matters)


def segment_all(
    model: Model,
    samples: Samples,
    labels: np.ndarray | None,
    args: argparse.Namespace,
    results: Results,
) -> Iterator[tuple[MultiscaleImage, np.ndarray, np.ndarray]]:
    """`maps_of` every image on disk that can be read, at working size, under a progress bar; args: scales, max_side, crf, num_workers.

    labels: (len(samples), K-1) 0/1, for SIPE.
    """
    scaling = Scaling(tuple(args.scales), args.max_side)
    images_at_scales = MultiscaleImages(samples, labels, scaling, skip_unreadable=True)
    loader = inference_loader(images_at_scales, args.num_workers, model.context.is_cuda)
    for item in results.readable(
        tqdm(loader, "masks", unit="image", disable=not results.context.is_main)
    ):
        yield item, *_segment(model, item, args.scales, args.max_side, args.crf)


def _segment(
    model: Model, item: MultiscaleImage, scales: Sequence[float], max_side: int, use_crf: bool
) -> tuple[np.ndarray, np.ndarray]:
    network, image = model.network, shrink(item.original, max_side) if use_crf else None
    if isinstance(network, SIPE):
        keys, maps = multiscale_cams(network, [item], model.context)[0]
        maps = fuse_scales(
            maps["is_cam"], item.working_size, True, network.recipe.background_at(scales)
        ).numpy()
        return keys, refine(image, maps) if use_crf else maps
    maps = multiscale_probability(network, item, model.context).numpy()
    keys = likely_classes(maps)
    return keys, refine(
        image, maps[keys], "maps", **(crf.SEGMENTATION | network.crf)
    ) if use_crf else maps[keys]
