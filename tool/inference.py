"""The Python surface: load any checkpoint, and find maps and masks in images.

Below it is what the stages share.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.annotations import encode_tags, read_classes, rows_or_raise
from data.datasets import (
    USUAL_PIXELS,
    MultiscaleImage,
    MultiscaleImages,
    inference_loader,
    present_classes,
    to_multiscale,
)
from data.registry import COCO, VOC
from data.transforms import Scaling, normalize, shrink
from errors import InputError
from network.deeplab import build_network
from network.fusion import fuse_scales
from network.irn import IRN
from network.recipe import RECIPES
from network.resnet import fold_batchnorm
from network.sipe import SIPE
from network.spatial import resize_maps

from . import cam_file, checkpoint, class_prototypes, crf
from .context import Context, local_context
from .flags import MAX_SIDE
from .outputs import sha256
from .results import Results
from .workers import check_shared_memory

SCALES = (0.5, 1.0, 1.5)
MIN_PROBABILITY = 0.1  # a class that stays below it everywhere does not matter to an image
DEFAULT_CROP = 512  # of authors' irn.pth, which does not note it


@dataclass(frozen=True)
class LoadedNetwork:
    """A network from a checkpoint.

    Attributes:
        class_names: background first.
        kind: checkpoint.SIPE_KIND or SEGMENTATION_KIND.
        files: the checkpoint, and the class prototypes beside it if the recipe uses them.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    kind: str
    files: tuple[Path, ...]

    @property
    def needs_tags(self) -> bool:
        """Whether the network must know the classes that are in an image."""
        return self.kind == checkpoint.SIPE_KIND

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file, for the settings.json of what the network makes."""
        names = ("checkpoint", "class_prototypes")
        return {name: sha256(path) for name, path in zip(names, self.files)}


@dataclass(frozen=True)
class LoadedModel(LoadedNetwork):
    """A network on its device, ready for inference at the context's precision."""

    context: Context


@dataclass(frozen=True)
class ImageMaps:
    """The maps of one image on the network's own grids, on the CPU, upright.

    Attributes:
        class_ids: (k,), background first.
        by_kind: "is_cam" and "cam": (k, h, w) in [0, 1] for each scale.
    """

    class_ids: np.ndarray
    by_kind: dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class InferenceOptions:
    """How a network sees images, and whether the dense CRF refines what it finds.

    Attributes:
        scales: sizes relative to the image, each used with its mirror.
        max_side: larger images are shrunk to this side first, in pixels; 0: never.
    """

    scales: Sequence[float] = SCALES
    max_side: int = MAX_SIDE
    use_crf: bool = False

    @property
    def scaling(self) -> Scaling:
        return Scaling(tuple(self.scales), self.max_side)


def load_model(
    path: str | Path,
    device: str = "auto",
    amp: str = "off",
    class_names: tuple[str, ...] | None = None,
    recipe: str | None = None,
) -> LoadedModel:
    """`load_network` on a device.

    device, amp and recipe are as the flags of the stages. Raises InputError as `load_network`
    does, and for the device.
    """
    return put_on_device(load_network(path, class_names, recipe), local_context(device, amp))


def put_on_device(loaded: LoadedNetwork, context: Context) -> LoadedModel:
    """Prepare a loaded network for inference on the device of a context, for good."""
    network = to_device(loaded.network, context)
    return LoadedModel(network, loaded.class_names, loaded.kind, loaded.files, context)


def maps_of(
    model: LoadedModel,
    image: np.ndarray,
    tags: Iterable[str] = (),
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The classes that matter to an image, and how strongly each pixel belongs to each.

    These are SIPE's IS-CAMs, or a segmentation network's probabilities.

    Args:
        image: (H, W, 3) uint8 RGB, upright.
        tags: the names of the classes in the image, which only SIPE needs.
        options: scales, max_side and use_crf, as in InferenceOptions.

    Returns:
        (k,) class ids, background first, and (k, H, W) in [0, 1].

    Raises InputError for tags that SIPE cannot use.
    """
    vector = rows_or_raise(encode_tags({*tags}, model.class_names, "tags")).astype(np.float32)
    if model.needs_tags and not vector.any():
        raise InputError("tags: SIPE must know the classes in an image; pass their names")
    how = InferenceOptions(**options)
    item = to_multiscale(image, vector, how.scaling)
    class_ids, maps = _segment(model, item, how)
    return class_ids, resize_maps(maps, image.shape[:2])


def mask_of(
    model: LoadedModel,
    image: np.ndarray,
    tags: Iterable[str] = (),
    **options: Any,
) -> np.ndarray:
    """The mask of an image, (H, W) uint8 class ids: the class of the strongest map at each pixel.

    The arguments are those of `maps_of`.
    """
    class_ids, maps = maps_of(model, image, tags, **options)
    return class_ids.astype(np.uint8)[maps.argmax(0)]


def refine(image: np.ndarray, maps: np.ndarray, crf_on: str = "labels", **terms: Any) -> np.ndarray:
    """Move the borders of maps to the edges of an image by the dense CRF.

    Args:
        image: (H, W, 3) uint8.
        maps: (k, H, W), at least 0.
        crf_on: start from the "labels", the strongest map of each pixel, or from the "maps".
        terms: of the CRF on maps, as `crf.refine_maps` takes them.

    Returns:
        Probabilities (k, H, W).
    """
    if crf_on == "labels":
        return crf.refine_label(image, maps.argmax(0), len(maps))
    return crf.refine_maps(image, maps, **terms)


def load_network(
    path: str | Path, class_names: tuple[str, ...] | None = None, recipe: str | None = None
) -> LoadedNetwork:
    """A segmentation network, or SIPE from our checkpoint or the authors'.

    Args:
        class_names: the dataset's, background first.
        recipe: of SIPE's IS-CAMs; None: the one that the run notes.

    Raises InputError for any other file, and for a checkpoint of other classes.
    """
    path = Path(path)
    content = checkpoint.read(path)
    tensors = content.get("net", content.get("model"))  # the authors' format, or ours
    if class_names:
        checkpoint.check_classes(content, class_names, path)
    else:
        class_names = checkpoint.class_names_of(content) or _authors_classes(tensors, path)
    kind = checkpoint.kind_of(content)
    if kind == checkpoint.IRN_KIND:
        raise InputError(
            f"{path}: is a checkpoint of IRN; use one of train_seg.py or train_resnet50_SIPE.py"
        )
    arguments = checkpoint.arguments(content)
    if kind == checkpoint.SEGMENTATION_KIND:
        network = _build_segmentation(arguments, len(class_names), path)
        checkpoint.load_tensors(network, tensors, path)
        return LoadedNetwork(network, class_names, kind, (path,))
    return _load_sipe(path, content, class_names, recipe)


def recipe_of(path: Path) -> str:
    """The recipe of a run of SIPE, which the checkpoint notes or the file beside it."""
    arguments = checkpoint.arguments(checkpoint.read(path))
    beside = class_prototypes.read_beside(path)
    return str(arguments.get("recipe") or beside.get("recipe", "sipe"))


def _build_segmentation(arguments: Mapping[str, Any], num_classes: int, path: Path) -> nn.Module:
    name = arguments.get("network")
    frozen = arguments.get("weights") != "none"
    try:
        return build_network(name, num_classes, arguments.get("output_stride"), frozen)
    except ValueError:
        raise InputError(
            f"{path}: holds an unknown network ({name}); use a checkpoint of train_seg.py"
        ) from None


def _load_sipe(
    path: Path, content: Mapping[str, Any], class_names: tuple[str, ...], recipe: str | None
) -> LoadedNetwork:
    """SIPE, with the class prototypes that its recipe needs."""
    tensors = content.get("net", content.get("model"))
    arguments = checkpoint.arguments(content)
    beside = class_prototypes.read_beside(path)
    noted = arguments.get("recipe") or beside.get("recipe", "sipe")
    name = recipe or str(noted)
    backbone = str(arguments.get("backbone", "resnet50"))
    try:
        network = checkpoint.build_sipe(len(class_names), backbone, recipe=name)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    checkpoint.load_tensors(network, tensors, path)
    files = (path,)
    if RECIPES[name].class_prototypes:
        inside = tensors.get("class_prototypes")  # of older checkpoints
        prototypes = beside.get("class_prototypes") if inside is None else inside
        expected = network.class_prototypes.shape
        if not torch.is_tensor(prototypes) or prototypes.shape != expected:
            raise InputError(
                f"{path}: holds no class prototypes;"
                f" train it with --recipe {name}, or use another recipe"
            )
        network.set_class_prototypes(prototypes)
        if inside is None:
            files = (path, class_prototypes.path_beside(path))
    return LoadedNetwork(network, class_names, checkpoint.SIPE_KIND, files)


def _authors_classes(tensors: object, path: Path) -> tuple[str, ...]:
    """The class names of the authors' checkpoints, which note none: VOC's or COCO's."""
    weight = tensors.get("classifier.weight") if isinstance(tensors, Mapping) else None
    if torch.is_tensor(weight) and weight.ndim:
        for spec in (VOC, COCO):
            names = read_classes(spec.classes)
            if len(weight) == len(names) - 1:
                return names
    raise InputError(
        f"{path}: holds no class names and is not an authors' checkpoint;"
        " use one of train_seg.py or train_resnet50_SIPE.py"
    )


@dataclass(frozen=True)
class LoadedIRN:
    """IRN, and the side of the crop that it was trained with, in pixels."""

    network: IRN
    crop_size: int


def load_irn(path: Path) -> LoadedIRN:
    """IRN from our checkpoint or the authors' irn.pth. Raises InputError for any other file."""
    content = checkpoint.read(path)
    network = IRN()
    checkpoint.load_tensors(network, content.get("model", content), path)
    crop_size = checkpoint.arguments(content).get("crop_size", DEFAULT_CROP)
    return LoadedIRN(network, crop_size)


def to_device(model: nn.Module, context: Context) -> nn.Module:
    """Prepare a network for inference on the device, for good."""
    folded = fold_batchnorm(model)
    return folded.to(context.device, memory_format=torch.channels_last)


def image_loader(images: MultiscaleImages, num_workers: int, context: Context) -> DataLoader:
    """Load images one at a time, in order.

    Raises InputError if shared memory is too small for images of 640x480.
    """
    pixels = USUAL_PIXELS * sum(scale**2 for scale in images.scaling.scales)
    check_shared_memory(num_workers, round(3 * pixels))
    context.barrier()  # every process has checked before the workers of one fill it
    return inference_loader(images, num_workers, pin_memory=context.is_cuda)


def multiscale_cams(
    model: SIPE, items: Sequence[MultiscaleImage], context: Context
) -> list[ImageMaps]:
    """The CAMs of images of one size, for the background and the tags of each."""
    tags = torch.stack([item.tags for item in items])
    class_ids = [present_classes(item.tags) for item in items]
    counts = [len(ids) for ids in class_ids]
    # the maps of absent classes are not worth copying: these pick (image, class) pairs
    with_background = F.pad(tags, (1, 0), value=1)
    present = [index.to(context.device) for index in with_background.nonzero(as_tuple=True)]
    tags = tags.to(context.device)
    on_device = _no_maps()
    for images in zip(*(item.images for item in items)):  # all images at one scale
        batch = torch.stack([image.to(context.device, non_blocking=True) for image in images])
        with context.autocast():
            out = model.localize(normalize(batch), tags)
        for kind, scales in on_device.items():
            maps = getattr(out, kind)
            scales.append(maps[tuple(present)])
    by_image = [ImageMaps(ids, _no_maps()) for ids in class_ids]
    for kind, scales in on_device.items():  # only now does the CPU wait for a GPU
        for maps in scales:
            for image_maps, part in zip(by_image, maps.cpu().split(counts)):
                image_maps.by_kind[kind].append(part)
    return by_image


def _no_maps() -> dict[str, list[torch.Tensor]]:
    return {kind: [] for kind in cam_file.KINDS}


@torch.no_grad()
def multiscale_probability(
    model: nn.Module, item: MultiscaleImage, context: Context
) -> torch.Tensor:
    """Class probabilities by a segmentation network, averaged over scales and mirrors.

    Returns (K, H, W) at the working size of the image, on the CPU.
    """
    total = 0
    for image in item.images:
        batch = normalize(image[None].to(context.device))
        with context.autocast():
            logits = model(torch.cat([batch, batch.flip(3)])).float()
        maps = F.interpolate(
            logits, item.working_size, mode="bilinear", align_corners=model.align_corners
        )
        if not model.mean_of_logits:
            maps = maps.softmax(1)
        straight, mirrored = maps
        total = total + straight + mirrored.flip(2)
    mean = total / (2 * len(item.images))
    if model.mean_of_logits:
        mean = mean.softmax(0)
    return mean.cpu()


def likely_classes(probability: np.ndarray) -> np.ndarray:
    """The classes that matter to an image, from probabilities (K, H, W): (k,) class ids.

    These are the background, the classes that win a pixel, and those that reach 0.1 somewhere.
    """
    highest = probability.reshape(len(probability), -1).max(1)
    matters = highest >= MIN_PROBABILITY
    matters[0] = True
    matters[np.unique(probability.argmax(0))] = True
    return np.flatnonzero(matters)


@dataclass(frozen=True)
class SegmentedImage:
    """An image and what a network found in it.

    Attributes:
        class_ids: (k,), background first.
        maps: (k, H, W) in [0, 1] at the working size of the image, upright.
    """

    item: MultiscaleImage
    class_ids: np.ndarray
    maps: np.ndarray


def segment_all(
    model: LoadedModel,
    images: MultiscaleImages,
    options: InferenceOptions,
    num_workers: int,
    results: Results,
) -> Iterator[SegmentedImage]:
    """Yield what `maps_of` finds in each image that can be read, at its working size."""
    loader = image_loader(images, num_workers, model.context)
    bar = tqdm(loader, "masks", unit="image", disable=not results.context.is_main)
    for item in results.readable(bar):
        class_ids, maps = _segment(model, item, options)
        yield SegmentedImage(item, class_ids, maps)


def _segment(
    model: LoadedModel, item: MultiscaleImage, options: InferenceOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Class ids (k,) and maps (k, H, W) of an image at working size."""
    if model.needs_tags:
        return _localize(model, item, options)
    network = model.network
    probability = multiscale_probability(network, item, model.context).numpy()
    class_ids = likely_classes(probability)
    maps = probability[class_ids]
    if options.use_crf:
        image = shrink(item.original, options.max_side)
        maps = refine(image, maps, "maps", **(crf.SEGMENTATION | network.crf))
    return class_ids, maps


def _localize(
    model: LoadedModel, item: MultiscaleImage, options: InferenceOptions
) -> tuple[np.ndarray, np.ndarray]:
    """`_segment` by SIPE."""
    (image_maps,) = multiscale_cams(model.network, [item], model.context)
    background = model.network.recipe.background_at(options.scales)
    maps = fuse_scales(image_maps.by_kind["is_cam"], item.working_size, True, background)
    maps = maps.numpy()
    if options.use_crf:
        image = shrink(item.original, options.max_side)
        maps = refine(image, maps)
    return image_maps.class_ids, maps
