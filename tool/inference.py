"""The Python surface: load any checkpoint, and find maps and masks in pictures.

model = load_model("runs/voc/ckpt/seg.pth")
mask = mask_of(model, picture)  # picture (H, W, 3) uint8 RGB, upright; mask (H, W) uint8 class ids of model.class_names
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from tqdm import tqdm

from data.annotations import checked, label_of
from data.datasets import Pyramid, Pyramids, inference_loader, pyramid_of
from data.registry import Entries
from data.transforms import enlarge, shrink, strongest
from errors import InputError
from network.sipe import SIPE

from . import cam_file, checkpoint, crf
from .context import Context, local_context
from .multiscale import likely_classes, multiscale_cams, multiscale_probability, to_device
from .outputs import Results


class Model(NamedTuple):
    """A network that is ready for inference."""

    network: nn.Module  # a segmentation network, or SIPE
    class_names: tuple[str, ...]  # background first
    context: Context  # its device and precision


def load_model(
    path: str | Path, device: str = "auto", amp: str = "off", class_names: tuple[str, ...] | None = None, recipe: str | None = None
) -> Model:
    """Load a checkpoint of train_seg.py or train_resnet50_SIPE.py, or of SIPE's authors.

    device, amp: as the flags of all stages. class_names: of the dataset, which must be the checkpoint's. recipe: of SIPE's IS-CAMs, in
    place of that of its training. Raises InputError for any other file or other classes, and for a device that is not there.
    """
    context = local_context(device, amp)
    network, class_names = checkpoint.load_network(path, class_names, recipe)
    return Model(to_device(network, context), class_names, context)


def maps_of(
    model: Model,
    picture: np.ndarray,
    tags: Iterable[str] = (),
    scales: Sequence[float] = (0.5, 1.0, 1.5),
    max_side: int = 640,
    use_crf: bool = False,
    full_size: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The class ids (k,) that matter to a picture, background first, and how strongly each pixel belongs to each: (k, H, W) in [0, 1].

    These are SIPE's IS-CAMs, or a segmentation network's probabilities. picture: (H, W, 3) uint8 RGB, upright. tags: the names of the
    classes in it, which only SIPE needs. scales, max_side, use_crf: as the flags of predict.py. full_size: False leaves the maps at
    the size that max_side allows.
    Raises InputError for a tag that is no class, and for SIPE without tags.
    """
    label = checked(label_of({*tags}, model.class_names, "tags")).astype(np.float32)
    if isinstance(model.network, SIPE) and not label.any():
        raise InputError("tags: SIPE must know the classes in a picture; pass their names")
    keys, maps = _segment(model, pyramid_of(picture, label, scales, max_side), max_side, use_crf)
    return keys, enlarge(maps, picture.shape[:2]) if full_size else maps


def mask_of(model: Model, picture: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    """The mask of a picture, (H, W) uint8 class ids: at each pixel the strongest of `maps_of`, which has the same arguments."""
    keys, maps = maps_of(model, picture, *args, full_size=False, **kwargs)
    return keys.astype(np.uint8)[strongest(maps, picture.shape[:2])]


def refine(picture: np.ndarray, maps: np.ndarray, crf_on: str = "labels", **terms: Any) -> np.ndarray:
    """Move the borders of maps to the picture's edges by the dense CRF.

    picture (H, W, 3) uint8, maps (k, H, W) at least 0, in the same frame. crf_on: start from the "labels", the strongest map of each
    pixel, or from the "maps" themselves; terms: as `crf.refine_maps` takes them, for maps. Returns probabilities (k, H, W) of sum 1.
    """
    return crf.refine_label(picture, maps.argmax(0), len(maps)) if crf_on == "labels" else crf.refine_maps(picture, maps, **terms)


def segment_all(
    model: Model, entries: Entries, labels: np.ndarray | None, args: argparse.Namespace, results: Results
) -> Iterator[tuple[Pyramid, np.ndarray, np.ndarray]]:
    """`maps_of` every picture on disk that can be read, not at full size, under a progress bar; args: scales, max_side, crf, num_workers.

    labels: (len(entries), K-1) 0/1, for SIPE. Yields each picture, the class ids and the maps, upright.
    """
    pyramids = Pyramids(entries, labels, args.scales, args.max_side, skip=True)
    loader = inference_loader(pyramids, args.num_workers, model.context.is_cuda)
    for item in results.readable(tqdm(loader, "masks", unit="picture", disable=not results.context.is_main)):
        yield item, *_segment(model, item, args.max_side, args.crf)


def _segment(model: Model, item: Pyramid, max_side: int, use_crf: bool) -> tuple[np.ndarray, np.ndarray]:
    network, picture = model.network, shrink(item.picture, max_side) if use_crf else None
    if isinstance(network, SIPE):
        keys, maps = multiscale_cams(network, [item], model.context)[0]
        maps = cam_file.fuse(maps["is_cam"], item.working_size, True, network.recipe.background).numpy()
        if use_crf:
            maps = refine(picture, maps)
    else:
        maps = multiscale_probability(network, item, model.context).numpy()
        keys = likely_classes(maps)
        maps = maps[keys]
        if use_crf:
            maps = refine(picture, maps, "maps", **(crf.SEGMENTATION | network.crf))
    return keys, maps
