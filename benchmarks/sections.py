"""What `benchmarks.speed` measures: each section builds versions of the same work."""

import copy
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import eval_cam
import make_cam
import train_irn
import train_resnet50_SIPE
import train_seg
from data.datasets import (
    BatchPlan,
    MultiscaleImage,
    MultiscaleImages,
    ResumableBatches,
    TrainingCrops,
    inference_loader,
    present_classes,
    training_loader,
)
from data.demo import draw_dataset
from data.images import IGNORE
from data.registry import Dataset, Sample, Samples, open_dataset
from data.transforms import Scaling, normalize
from network import irn, losses, resnet
from network.deeplab import build_network
from network.random_walk import random_walk
from network.sipe import SIPE, Localization
from tool import cam_file, checkpoint, flags, inference, metrics, trainer
from tool.context import Context

from . import plain
from .measuring import Outcome, Peak, Section, Work

STRIDE = 16  # of the maps
NUM_CLASSES = 21  # VOC's
SEED = 15
INPUT_BATCH = 16
RESIZE_LONG = (320, 640)
LARGEST_BATCH = 256
LEARNING_RATE = "1e-6"  # nothing is to be learned
EVALUATED_SCALES = (1.0, 0.5, 1.5, 2.0)


@dataclass(frozen=True)
class MapSizes:
    """Sizes of the tensors from which seeds, prototypes and IS-CAMs are computed."""

    batch: int
    classes: int
    side: int  # cells
    widths: tuple[int, int]  # channels of layer4 and of the hierarchical feature


@dataclass(frozen=True)
class Sizes:
    """The sizes at which the sections measure.

    Attributes:
        batch, crop: of a training step.
        side: pixels of a drawn image.
        cams, loaded, evaluated: numbers of images.
        evaluated_size: (H, W) of an evaluated image.
        walk, walk_on_gpu: cells.
        throughput: crops a step.
        cam_batches: images a call.
        network: of network.deeplab.
        peak_side: of the matrices that a CPU's peak is measured with.
        compiler: torch.compile's backend on a CPU; inductor needs a C++ compiler.
    """

    maps: MapSizes
    batch: int
    crop: int
    side: int
    cams: int
    scales: tuple[float, ...]
    loaded: int
    evaluated: int
    evaluated_size: tuple[int, int]
    walk: tuple[int, int]
    walk_on_gpu: tuple[int, int]
    throughput: int
    cam_batches: tuple[int, ...]
    network: str
    peak_side: int
    compiler: str


SIZES = {
    "small": Sizes(
        maps=MapSizes(batch=2, classes=5, side=6, widths=(16, 12)),
        batch=2,
        crop=48,
        side=32,
        cams=2,
        scales=(1.0, 2.0),
        loaded=16,
        evaluated=8,
        evaluated_size=(30, 40),
        walk=(16, 12),
        walk_on_gpu=(16, 12),
        throughput=2,
        cam_batches=(1, 2),
        network="deeplabv2_resnet50",
        peak_side=256,
        compiler="eager",
    ),
    "published": Sizes(
        maps=MapSizes(batch=16, classes=81, side=32, widths=(2048, 768)),  # COCO's
        batch=4,
        crop=512,
        side=432,  # as many pixels as VOC's usual 375x500
        cams=8,
        scales=(1.0, 0.5, 1.5, 2.0),
        loaded=128,
        evaluated=490,
        evaluated_size=(375, 500),
        walk=(47, 63),
        walk_on_gpu=(94, 125),  # of 375x500; its dense matrix takes a CPU minutes
        throughput=16,
        cam_batches=(1, 2, 4, 8, 16),
        network="deeplabv2_resnet101",
        peak_side=2048,
        compiler="inductor",
    ),
}


@dataclass(frozen=True)
class Setup:
    """What the sections share.

    Attributes:
        folder: an empty one, which goes away after the section.
        dataset_root: of VOC 2012; None: images are drawn.
    """

    context: Context
    sizes: Sizes
    peak: Peak
    folder: Path
    num_workers: int
    dataset_root: Path | None


def same_for_all(versions: dict[str, Work], images: int) -> dict[str, int]:
    """The images of a call, if all versions handle as many."""
    return dict.fromkeys(versions, images)


def draw_tags(shape: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
    """Tags (B, K-1) 0/1, so many of each image."""
    order = torch.rand(shape, generator=generator)
    chosen = order.topk(count).indices
    return torch.zeros(shape).scatter_(1, chosen, 1)


def pad_above(batch: int, side: int, padded_rows: int) -> Tensor:
    """Where crops are not padded, (B, side, side) bool, with so many padded rows."""
    inside = torch.ones(batch, side, side, dtype=torch.bool)
    inside[:, :padded_rows] = False
    return inside


def draw_batch(device: torch.device | str, batch: int, crop: int) -> dict[str, Tensor]:
    """A batch of SIPE's training."""
    generator = torch.Generator().manual_seed(0)
    tags = draw_tags((batch, NUM_CLASSES - 1), 2, generator)
    shape = (batch, 3, crop, crop)
    image = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    inside = pad_above(batch, crop, crop // 8)
    tensors = {"image": image, "inside": inside, "tags": tags}
    return {name: value.to(device) for name, value in tensors.items()}


# prototypes


class Features(NamedTuple):
    """Stands for a SIPE whose backbone gives these features, whatever the image is."""

    logits: Tensor
    layer4: Tensor
    hierarchical: Tensor

    def forward_features(self, image: None) -> "Features":
        return self


def map_section(setup: Setup) -> Section:
    """Seeds, prototypes and IS-CAM with the gradient, against the authors' broadcasting."""
    sizes = setup.sizes.maps
    device = setup.context.device
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int) -> Tensor:
        coarse = torch.randn(sizes.batch, channels, 4, 4, generator=generator)
        grid = (sizes.side, sizes.side)
        return F.interpolate(coarse, grid, mode="bicubic", align_corners=True)

    crop = sizes.side * STRIDE
    tags = draw_tags((sizes.batch, sizes.classes - 1), 3, generator).to(device)
    inside = pad_above(sizes.batch, crop, crop // 4).to(device)
    logits = smooth(sizes.classes - 1).to(device)
    layer4, hierarchical = (
        smooth(width).relu().to(device, memory_format=torch.channels_last) for width in sizes.widths
    )

    def forward_and_backward(context: Context, model: type[SIPE]) -> Outcome:
        leaf = hierarchical.detach().requires_grad_()
        out = model.forward(Features(logits, layer4, leaf), None, tags, inside)
        losses.consistency_loss(out.cam, out.is_cam).backward()
        return lambda: {"seeds": out.seeds, "IS-CAM": out.is_cam, "gradient": leaf.grad}

    versions = {
        "products": partial(forward_and_backward, model=SIPE),
        "broadcasting": partial(forward_and_backward, model=plain.BroadcastSIPE),
    }
    tolerances = {"seeds": 0, "IS-CAM": 1e-5, "gradient": 1e-6}
    return Section(versions, same_for_all(versions, sizes.batch), tolerances)


# training steps

Tensors = dict[str, Tensor]
# a batch -> losses by name, and what the network found
TrainStep = Callable[[trainer.Trainer, Tensors], tuple[Tensors, Any]]


@dataclass
class Step:
    """A training step of a network from uint8 crops on, always of the same batch.

    Attributes:
        train_step: a training script's.
        own: the context to run in; None: the caller's.
        allow_tf32: False: not even if the context allows it.
    """

    run: trainer.Trainer
    batch: dict[str, Tensor]
    train_step: TrainStep
    own: Context | None = None
    allow_tf32: bool = True

    def __call__(self, context: Context) -> Outcome:
        self.run.context = self.own or context
        allow_tf32 = self.allow_tf32 and torch.backends.cudnn.allow_tf32
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow_tf32):
            results, out = self.train_step(self.run, self.batch)
        # gradients then count as memory of every step
        self.run.optimizer.zero_grad(set_to_none=True)
        if isinstance(out, Localization):
            results = {**results, "seeds": out.seeds, "IS-CAM": out.is_cam}
        return lambda: results

    def count_operations(self, context: Context) -> int:
        """Floating-point operations for one image.

        They are of the network as it is: the counter does not see compiled code.
        """
        first = {name: value[:1] for name, value in self.batch.items()}
        one_image = replace(self, batch=first)
        with (
            mock.patch.object(self.run, "network", self.run.model),
            FlopCounterMode(display=False) as counter,
        ):
            one_image(context)
        return counter.get_total_flops()


def prepare_step(
    setup: Setup,
    batch: dict[str, Tensor],
    model: nn.Module,
    train_step: TrainStep = train_resnet50_SIPE.train_step,
    **precision: Any,
) -> Step:
    """A training step with this network; precision: `own` and `allow_tf32` of Step."""
    args = train_resnet50_SIPE.parse_args(["--run_dir", str(setup.folder), "--lr", LEARNING_RATE])
    model.to(setup.context.device, memory_format=torch.channels_last).train()
    resnet.freeze_batchnorm(model)
    job = trainer.TrainingJob(
        files=trainer.RunFiles.of(setup.folder, ""),
        options=flags.training_options(args),
        arguments={},
        class_names=(),
        num_samples=1000,
        kind=checkpoint.SIPE_KIND,
    )
    run = trainer.Trainer(job, model, precision.get("own") or setup.context)
    return Step(run, batch, train_step, **precision)


def step_section(setup: Setup) -> Section:
    """A step of SIPE, against torchvision's bare ResNet-50 and against broadcasting."""
    sizes = setup.sizes
    batch = draw_batch(setup.context.device, sizes.batch, sizes.crop)

    def prepare(build: Callable[[int], nn.Module], *train_step: TrainStep) -> Step:
        torch.manual_seed(0)
        return prepare_step(setup, batch, build(NUM_CLASSES), *train_step)

    versions = {
        "SIPE": prepare(SIPE),
        "bare ResNet-50": prepare(plain.BareResNet50, plain.bare_step),
        "broadcasting": prepare(plain.BroadcastSIPE),
    }
    tolerances = {"seeds": 0, "cls": 1e-5, "gsc": 1e-5, "IS-CAM": 1e-5, "grad_norm": 0.1}
    return Section(versions, same_for_all(versions, sizes.batch), tolerances)


def throughput_section(setup: Setup) -> Section:
    """A step of SIPE at each precision, compiled, and of torchvision's bare ResNet-50.

    On a GPU also at the largest batch that fits.
    """
    sizes = setup.sizes
    context = setup.context
    full = replace(context, amp=None)
    half = replace(context, amp=torch.bfloat16)
    draw = partial(draw_batch, context.device, crop=sizes.crop)
    prepare = partial(prepare_step, setup, draw(sizes.throughput))

    versions = {"SIPE float32": prepare(SIPE(NUM_CLASSES), own=full, allow_tf32=False)}
    if context.is_cuda:
        versions["SIPE TF32"] = prepare(SIPE(NUM_CLASSES), own=full)
    if setup.peak.precision == "bfloat16":
        versions["SIPE bf16"] = prepare(SIPE(NUM_CLASSES), own=half)
        compiled = prepare(SIPE(NUM_CLASSES), own=half)
        compiler = "inductor" if context.is_cuda else sizes.compiler
        compiled.run.network = torch.compile(compiled.run.model, backend=compiler)
        versions["SIPE bf16 compiled"] = compiled
        bare = plain.BareResNet50(NUM_CLASSES)
        versions["ResNet-50 bf16"] = prepare(bare, plain.bare_step, own=half)
    if context.is_cuda and setup.peak.precision == "bfloat16":
        step = prepare(SIPE(NUM_CLASSES), own=half)

        def run(batch: int) -> None:
            replace(step, batch=draw(batch))(context)

        largest = largest_batch(run, sizes.throughput)
        step.batch = draw(largest)
        versions[f"SIPE bf16, {largest}"] = step
    images = {name: len(step.batch["image"]) for name, step in versions.items()}
    return Section(versions, images)


def largest_batch(run: Callable[[int], Any], batch: int) -> int:
    """Double a batch that fits until memory runs out, at most to 256."""
    run(batch)  # any error but for want of memory shows here
    try:
        while batch < LARGEST_BATCH:
            run(2 * batch)
            batch *= 2
    except RuntimeError:  # torch's OutOfMemoryError is one; short of memory, cuDNN raises others
        torch.cuda.empty_cache()
    return batch


def irn_section(setup: Setup) -> Section:
    """A step of IRN; crops hold all of its pairs of cells."""
    return dense_section(setup, "IRN", irn.IRN(), train_irn.train_step)


def deeplab_section(setup: Setup) -> Section:
    """A step of the segmentation network at stride 8."""
    name = setup.sizes.network
    weight = torch.ones(NUM_CLASSES, device=setup.context.device)
    train_step = partial(train_seg.train_step, weight=weight)
    return dense_section(setup, name, build_network(name, NUM_CLASSES), train_step)


def dense_section(setup: Setup, name: str, model: nn.Module, train_step: TrainStep) -> Section:
    """A step that learns from targets of pixels, which are random."""
    device = setup.context.device
    crop = max(setup.sizes.crop, train_irn.LEAST_CROP)
    batch = draw_batch(device, setup.sizes.batch, crop)
    shape = batch["inside"].shape
    batch["target"] = torch.randint(NUM_CLASSES, shape, dtype=torch.uint8, device=device)
    versions = {name: prepare_step(setup, batch, model, train_step)}
    return Section(versions, same_for_all(versions, setup.sizes.batch))


# maps of whole images


class TrainingImages(NamedTuple):
    """The first training images of a dataset."""

    dataset: Dataset
    samples: Samples
    tags: np.ndarray  # (N, K-1)


def open_images(setup: Setup, count: int) -> TrainingImages:
    """Images of VOC, or drawn ones."""
    if setup.dataset_root:
        dataset = open_dataset("voc", setup.dataset_root)
    else:
        root = setup.folder / "drawn"
        draw_dataset(root, count, setup.sizes.side)
        dataset = open_dataset("folder", root)
    samples = dataset.samples(dataset.spec.train_list)[:count]
    return TrainingImages(dataset, samples, dataset.tags(samples))


@dataclass(frozen=True)
class AllReadable:
    """Stands for a stage's Results if every image can be read."""

    context: Context

    def readable(self, items: Iterable[Any]) -> Iterator[Any]:
        return iter(items)


def cam_section(setup: Setup) -> Section:
    """Maps of whole images: make_cam.py, against one image and one scale at a time.

    The plain way goes through torchvision's network, brings the maps of all classes to the image's
    size on the CPU, and stores those of its tags uncompressed, in float32.
    """
    found = open_images(setup, setup.sizes.cams)
    names = found.samples.names()
    args = cam_arguments(setup, found.dataset)
    images = MultiscaleImages(found.samples, found.tags, Scaling(tuple(args.scales)))
    torch.manual_seed(0)
    unfolded = SIPE(found.dataset.num_classes).eval().to(setup.context.device)
    folded = inference.to_device(copy.deepcopy(unfolded), setup.context)

    def whole(context: Context) -> Outcome:
        model = inference.LoadedModel(
            folded, found.dataset.class_names, checkpoint.SIPE_KIND, (), context
        )
        make_cam.make_cams(model, images, args, AllReadable(context))
        return lambda: read_cams(setup.folder, names)

    def one_by_one(context: Context) -> Outcome:
        loader = inference_loader(images, setup.num_workers, pin_memory=context.is_cuda)
        for item in loader:
            maps = plain.plain_cams(unfolded, item, context)
            class_ids = present_classes(item.tags)
            present = {kind: of_kind[class_ids].numpy() for kind, of_kind in maps.items()}
            np.savez(plain_path(setup.folder, names[item.index]), **present)
        return lambda: read_plain_cams(setup.folder, names)

    versions = {"make_cam": whole, "one by one": one_by_one}
    tolerances = dict.fromkeys(cam_keys(names), 1e-4)
    return Section(versions, same_for_all(versions, len(names)), tolerances)


def cam_arguments(setup: Setup, dataset: Dataset) -> Namespace:
    """The arguments of make_cam.py."""
    scales = [str(scale) for scale in setup.sizes.scales]
    return make_cam.parse_args(
        [
            *("--dataset_root", str(dataset.root)),
            *("--run_dir", str(setup.folder)),
            *("--num_workers", str(setup.num_workers)),
            *("--scales", *scales),
        ]
    )


def cam_key(kind: str, name: str) -> str:
    return f"{kind} {name}"


def cam_keys(names: list[str]) -> list[str]:
    return [cam_key(kind, name) for kind in cam_file.KINDS for name in names]


def plain_path(folder: Path, name: str) -> Path:
    return folder / f"plain-{name}.npz"


def read_cams(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The maps in CAM files."""
    maps = {}
    for name in names:
        file = cam_file.load(cam_file.path_of(folder, name))
        for kind in cam_file.KINDS:
            maps[cam_key(kind, name)] = file.maps(kind)
    return maps


def read_plain_cams(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    maps = {}
    for name in names:
        with np.load(plain_path(folder, name), allow_pickle=False) as arrays:
            for kind in cam_file.KINDS:
                maps[cam_key(kind, name)] = arrays[kind]
    return maps


def batch_section(setup: Setup) -> Section:
    """Maps of whole images, so many of one size at a time."""
    sizes = setup.sizes
    items = draw_items(max(sizes.cam_batches), sizes)
    torch.manual_seed(0)
    model = inference.to_device(SIPE(NUM_CLASSES), setup.context)

    def work(context: Context, count: int) -> Outcome:
        first, *_ = inference.multiscale_cams(model, items[:count], context)
        maps = [grid.flatten() for grid in first.by_kind["cam"]]  # of the image in all calls
        return lambda: {"CAM": torch.cat(maps)}

    images = {f"{count} a call": count for count in sizes.cam_batches}
    versions = {name: partial(work, count=count) for name, count in images.items()}
    return Section(versions, images, {"CAM": 1e-4})


def draw_items(count: int, sizes: Sizes) -> list[MultiscaleImage]:
    """Images of one size at all scales."""
    sides = [round(scale * sizes.side) for scale in sizes.scales]
    batches = [draw_batch("cpu", count, side) for side in sides]
    size = (sizes.side, sizes.side)
    items = []
    for index in range(count):
        item = MultiscaleImage(
            index=index,
            images=[batch["image"][index] for batch in batches],
            tags=batches[0]["tags"][index],
            size=size,
            working_size=size,
            orientation=1,
            original=np.zeros((*size, 3), np.uint8),
        )
        items.append(item)
    return items


# evaluation


def evaluation_section(setup: Setup) -> Section:
    """eval_cam.py's counts, image by image, against a loop over classes with all maps in memory.

    The latter are at full size in float32.
    """
    sizes = setup.sizes
    folder = setup.folder
    rows = ((str(i), "", str(folder / f"{i}.png")) for i in range(sizes.evaluated))
    samples = Samples.of(rows)
    rng = np.random.default_rng(0)
    for i, sample in enumerate(samples):
        others = rng.choice(np.arange(1, NUM_CLASSES), 1 + i % 2, replace=False)
        class_ids = np.array([0, *sorted(others)])
        draw_evaluated(folder, sample, class_ids, sizes.evaluated_size, rng)

    def streaming(context: Context) -> Outcome:
        compare = partial(
            eval_cam.compare, run_dir=folder, kinds=["is_cam"], num_classes=NUM_CLASSES
        )
        evaluation = metrics.evaluate(compare, samples, context, setup.num_workers)
        matrix = evaluation.totals["is_cam"]
        counts = (matrix.diagonal().copy(), matrix.sum(1), matrix.sum(0))
        return lambda: dict(zip(plain.COUNTS, counts))

    def all_at_once(context: Context) -> Outcome:
        counts = plain.count_all_at_once(folder, samples, NUM_CLASSES)
        return lambda: counts

    versions = {"eval_cam": streaming, "all at once": all_at_once}
    tolerances = dict.fromkeys(plain.COUNTS, 0)
    return Section(versions, same_for_all(versions, sizes.evaluated), tolerances)


def draw_evaluated(
    folder: Path,
    sample: Sample,
    class_ids: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Write the CAM file of an image, its maps at full size, and a mask."""
    coarse = rng.random((4, 6, len(class_ids)), dtype=np.float32)
    grids = []
    for scale in EVALUATED_SCALES:
        height, width = (max(1, round(side * scale / STRIDE)) for side in size)
        grids.append(cv2.resize(coarse, (width, height)).transpose(2, 0, 1))
    path = cam_file.path_of(folder, sample.name)
    cam_file.save(path, cam_file.CamGrids(class_ids, size, is_cam=grids))
    maps = cam_file.load(path).is_cam
    np.savez(folder / f"full-{sample.name}.npz", keys=class_ids, maps=maps)

    shifted = np.roll(maps, size[1] // 10, 2)  # so the maps are about as right as usual
    mask = class_ids[shifted.argmax(0)].astype(np.uint8)
    mask[:: max(size[0] // 20, 2)] = IGNORE
    Image.fromarray(mask).save(sample.mask)


# input


def input_section(setup: Setup) -> Section:
    """The training loader up to normalised crops on the device.

    Against normalising to float32 in its workers.
    """
    found = open_images(setup, setup.sizes.loaded)
    batches = ResumableBatches(BatchPlan(len(found.samples), INPUT_BATCH, epochs=1, seed=SEED))

    def load(context: Context, kind: type[TrainingCrops]) -> Outcome:
        crops = kind(found.samples, found.tags, RESIZE_LONG, setup.sizes.crop, SEED)
        loader = training_loader(crops, batches, setup.num_workers, pin_memory=context.is_cuda)
        images = []
        insides = []
        for batch in loader:
            image = batch["image"].to(context.device, non_blocking=True)
            inside = batch["inside"].to(context.device, non_blocking=True)
            if image.dtype == torch.uint8:
                image = normalize(image, inside)
            images.append(image.mean((2, 3)))
            insides.append(inside.float().mean((1, 2)))
        return lambda: {"image": torch.cat(images), "inside": torch.cat(insides)}

    versions = {
        "bytes": partial(load, kind=TrainingCrops),
        "floats": partial(load, kind=plain.FloatCrops),
    }
    images = same_for_all(versions, INPUT_BATCH * len(batches))
    return Section(versions, images, {"image": 1e-5, "inside": 0})


# random walk


def walk_section(setup: Setup) -> Section:
    """The random walk by offsets, against the dense transition matrix.

    There are three random maps, and boundaries of which few are strong.
    """
    context = setup.context
    grid = setup.sizes.walk_on_gpu if context.is_cuda else setup.sizes.walk
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(3, *grid, generator=generator).to(context.device)
    edge = (torch.rand(grid, generator=generator) ** 4).to(context.device)

    def work(context: Context, formula: Callable[[Tensor, Tensor], Tensor]) -> Outcome:
        maps = formula(cam, edge)
        return lambda: {"maps": maps / maps.max()}

    versions = {
        "offsets": partial(work, formula=random_walk),
        "dense matrix": partial(work, formula=plain.dense_walk),
    }
    return Section(versions, same_for_all(versions, 1), {"maps": 1e-3})


SECTIONS: dict[str, Callable[[Setup], Section]] = {
    "prototypes": map_section,
    "training_step": step_section,
    "cams": cam_section,
    "evaluation": evaluation_section,
    "input": input_section,
    "random_walk": walk_section,
    "throughput": throughput_section,
    "cam_batches": batch_section,
    "irn": irn_section,
    "deeplab": deeplab_section,
}
