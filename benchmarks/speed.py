"""Compare the project's code with plain versions of the same formulas, and measure training and inference: time and peak memory.

    python -m benchmarks.speed [--section NAME ...] [--size small|published] [--minutes M] [--device auto|cpu|cuda] [--json FILE]

Versions of the same work run once in float32, and their results must agree. Then they take turns, and the median of their times counts. The
ratio is a version's time for an image divided by the first version's. MB is what a call adds, at its peak, to the memory held before it:
torch's own on a GPU, else the process's, without its workers, on Linux. TFLOP/s count a training step's convolutions and matrix products;
"of peak" divides them by those of one large bf16 matrix product in the same run. What fails is reported, and the rest runs. Images are
drawn, and networks have random weights, so no data is needed. "published" takes the sizes of VOC and COCO: many minutes on a CPU, and 9 GB.
--minutes only limits the repeats: each version runs at least once, and torch.compile may take minutes before that.
"""

import contextlib
import copy
import ctypes
import gc
import io
import math
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck, resnet50

import eval_cam
import make_cam
import train_irn
import train_resnet50_SIPE
import train_seg
from data.datasets import (
    BatchPlan,
    MultiscaleImages,
    ResumableBatches,
    TrainingCrops,
    inference_loader,
    present_classes,
    training_loader,
)
from data.demo import draw_dataset
from data.registry import Dataset, Samples, open_dataset
from data.transforms import Scaling, normalize
from errors import InputError
from network import deeplab, irn, losses, prototypes, resnet
from network.random_walk import random_walk, search_paths
from network.sipe import SIPE, Localization, general_cam, label_mask
from network.spatial import add_mirror
from tool import cam_file, inference, metrics, outputs
from tool.context import AMP, Context, check_precision, choose_device, cli_main
from tool.flags import add_device, add_workers, command_parser, positive_int
from tool.trainer import RunFiles, Trainer

STRIDE, NUM_CLASSES, SEED = 16, 21, 15
COUNTS = ("intersection", "truth", "prediction")  # pixels of each class
RADIUS, BETA, EXP_TIMES = 5, 10, 8  # random_walk's defaults
SIZES = {
    "small": Namespace(
        maps=(2, 5, 6, (16, 12)), batch=2, crop=48, side=32, cams=2, scales=(1.0, 2.0), loaded=16, evaluated=8, evaluated_size=(30, 40),
        walk=(16, 12), walk_cuda=(16, 12), throughput=2, cam_batches=(1, 2), network="deeplabv2_resnet50",
    ),
    "published": Namespace(
        maps=(16, 81, 32, (2048, 768)),  # COCO: images, classes, cells a side, channels of layer4 and of the hierarchical feature
        batch=4, crop=512, side=432,  # of a training step; a drawn image has as many pixels as VOC's usual 375x500
        cams=8, scales=(1.0, 0.5, 1.5, 2.0), loaded=128, evaluated=490, evaluated_size=(375, 500),  # numbers of images
        walk=(47, 63), walk_cuda=(94, 125),  # cells; the latter of an image of 375x500, whose dense matrix takes a CPU minutes
        throughput=16, cam_batches=(1, 2, 4, 8, 16), network="deeplabv2_resnet101",  # numbers of crops and of images a call
    ),
}  # fmt: skip

Outcome = Callable[[], dict[str, Any]]  # what a call found; read outside of its time
Work = Callable[[Context], Outcome]
Section = tuple[
    dict[str, Work], int | dict[str, int], dict[str, float]
]  # versions, images a call (of all or each), tolerances


def plain_features(model: SIPE, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SIPE.forward_features as the authors' program computes it: each BatchNorm after its convolution, side branches on all cells."""
    trunk, sides = model.resnet50, []
    layer = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(image))))
    for i in range(1, 5):
        for block in getattr(trunk, f"layer{i}"):
            layer = Bottleneck.forward(block, layer)
        sides.append(prototypes.unit_cells(getattr(model, f"side{i}")(layer.detach()).float()))
    features = [
        F.interpolate(side, layer.shape[2:], mode="bilinear", align_corners=False) for side in sides
    ]
    return model.classifier(layer), layer, torch.cat(features, 1)


class Broadcast(SIPE):
    """SIPE by the authors' broadcasting: masks of the crop's size, all pairs of cells times each map, all features times each class."""

    def forward(self, image: Tensor, label: Tensor, inside: Tensor) -> Localization:
        logits, layer4, features = self.forward_features(image)
        with torch.autocast(logits.device.type, enabled=False):
            valid = F.interpolate(
                label_mask(label) * inside[:, None].float(), logits.shape[2:], mode="nearest"
            )
            cam = general_cam(logits) * valid
            with torch.no_grad():
                cells, maps = layer4.float().flatten(2), cam.flatten(2)[:, :, None]
                cells = cells / (cells.norm(dim=1, keepdim=True) + prototypes.EPSILON)
                similarity = (cells.transpose(1, 2) @ cells).relu_()[:, None]
                inter = (similarity * maps).sum(3)  # B x K x N x N
                fit = inter / (similarity.sum(3) + maps.sum(3) - inter)
                fit[:, 0] *= 0.5
                seeds = (
                    torch.zeros_like(fit).scatter_(1, fit.argmax(1, keepdim=True), 1).view_as(cam)
                    * valid
                )
            pooled = (seeds[:, :, None] * features[:, None]).mean((3, 4))  # B x K x D x N
            product = (features[:, None] * pooled[..., None, None]).sum(
                2
            )  # F.cosine_similarity would keep several tensors of that size
            norms = features.norm(dim=1)[:, None] * pooled.norm(dim=2)[..., None, None]
            return Localization(
                logits.float().mean((2, 3)), cam, (product / norms.clamp_min(1e-8)).relu(), seeds
            )


def draw_labels(
    batch: int, classes: int, tags: int, side: int, padded: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Labels (B, K-1) 0/1 of so many tags an image, and inside (B, side, side) bool with so many padded rows."""
    label, inside = torch.zeros(batch, classes - 1), torch.ones(batch, side, side, dtype=torch.bool)
    label.scatter_(1, torch.rand(label.shape, generator=generator).topk(tags).indices, 1)
    inside[:, :padded] = False
    return {"tags": label, "inside": inside}


def map_section(args: Namespace) -> Section:
    """Seeds, prototypes and IS-CAM with the gradient, against the authors' broadcasting."""
    (batch, classes, grid, widths), generator = args.sizes.maps, torch.Generator().manual_seed(0)

    def smooth(channels: int) -> Tensor:
        return F.interpolate(
            torch.randn(batch, channels, 4, 4, generator=generator),
            (grid, grid),
            mode="bicubic",
            align_corners=True,
        )

    drawn = draw_labels(batch, classes, 3, grid * STRIDE, grid * STRIDE // 4, generator)
    label, inside, logits = (
        value.to(args.context.device) for value in (*drawn.values(), smooth(classes - 1))
    )
    layer4, features = (
        smooth(width).relu().to(args.context.device, memory_format=torch.channels_last)
        for width in widths
    )

    def forward_and_backward(context: Context, model: type[SIPE]) -> Outcome:
        leaf = features.detach().requires_grad_()
        out = model.forward(
            Namespace(forward_features=lambda image: (logits, layer4, leaf)), None, label, inside
        )
        losses.consistency_loss(out.cam, out.is_cam).backward()
        return lambda: {"seeds": out.seeds, "IS-CAM": out.is_cam, "gradient": leaf.grad}

    versions = {
        name: partial(forward_and_backward, model=model)
        for name, model in (("products", SIPE), ("broadcasting", Broadcast))
    }
    return versions, batch, {"seeds": 0, "IS-CAM": 1e-5, "gradient": 1e-6}


def bare_resnet50(num_classes: int) -> nn.Module:
    """torchvision's network under a linear head, with the layers that SIPE freezes frozen and the stride that it removes removed."""
    network = resnet50(weights=None, num_classes=num_classes - 1)
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    nn.ModuleList([network.conv1, network.bn1, network.layer1, network.layer2]).requires_grad_(
        False
    )
    return network


def bare_step(run: Trainer, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    with run.context.autocast():
        loss = losses.classification_loss(
            run.network(normalize(batch["image"], batch["inside"])), batch["tags"]
        )
    return {}, run.step(loss)


@dataclass
class Step:
    """A training step of a network from uint8 crops on, always of the same batch; at the context's precision, if it has none of its own."""

    run: Trainer
    batch: dict[str, Tensor]
    step: Callable  # a training script's
    own: Context | None = None
    tf32: bool = True  # False: not even where the context allows it

    def __call__(self, context: Context) -> Outcome:
        self.run.context = self.own or context
        with torch.backends.cudnn.flags(
            enabled=True, allow_tf32=self.tf32 and torch.backends.cudnn.allow_tf32
        ):
            losses, out = self.step(self.run, self.batch)
        self.run.optimizer.zero_grad(
            set_to_none=True
        )  # gradients then count as memory of every step
        return lambda: (
            losses
            | ({"seeds": out.seeds, "IS-CAM": out.is_cam} if isinstance(out, Localization) else {})
        )

    def operations(self, context: Context) -> int:
        """Floating-point operations for one image: of the network as it is, as the counter does not see compiled code."""
        one = replace(self, batch={name: value[:1] for name, value in self.batch.items()})
        with (
            mock.patch.object(self.run, "network", self.run.model),
            FlopCounterMode(display=False) as counter,
        ):
            one(context)
        return counter.get_total_flops()


def prepare_step(
    args: Namespace,
    batch: dict,
    model: nn.Module,
    step: Callable = train_resnet50_SIPE.train_step,
    **precision: Any,
) -> Step:
    """The step of a training script with this network; precision: `own` and `tf32` of Step."""
    flags = train_resnet50_SIPE.parse_args(
        ["--run_dir", str(args.folder), "--lr", "1e-6"]
    )  # nothing is to be learned
    model.to(args.context.device, memory_format=torch.channels_last).train()
    resnet.freeze_batchnorm(model)
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr_scale": 1}]
    context = precision.get("own", args.context)
    return Step(
        Trainer(flags, context, RunFiles.of(args.folder, ""), {}, (), 1000, model, groups),
        batch,
        step,
        **precision,
    )


def draw_batch(device: torch.device | str, batch: int, crop: int) -> dict[str, Tensor]:
    """A batch of SIPE's training."""
    generator = torch.Generator().manual_seed(0)
    drawn = draw_labels(batch, NUM_CLASSES, 2, crop, crop // 8, generator)
    drawn["image"] = torch.randint(
        256, (batch, 3, crop, crop), generator=generator, dtype=torch.uint8
    )
    return {name: value.to(device) for name, value in drawn.items()}


def step_section(args: Namespace) -> Section:
    """A step of SIPE, against torchvision's bare ResNet-50 and against broadcasting."""
    batch, versions = draw_batch(args.context.device, args.sizes.batch, args.sizes.crop), {}
    for name, build, *step in (
        ("SIPE", SIPE),
        ("bare ResNet-50", bare_resnet50, bare_step),
        ("broadcasting", Broadcast),
    ):
        torch.manual_seed(0)
        versions[name] = prepare_step(args, batch, build(NUM_CLASSES), *step)
    return (
        versions,
        args.sizes.batch,
        {"seeds": 0, "cls": 1e-5, "gsc": 1e-5, "IS-CAM": 1e-5, "grad_norm": 0.1},
    )


def largest_batch(run: Callable[[int], Any], batch: int) -> int:
    """Double a batch that fits until memory runs out, at most to 256."""
    run(batch)  # any error but for want of memory shows here
    try:
        while batch < 256:
            run(2 * batch)
            batch *= 2
    except RuntimeError:  # torch's OutOfMemoryError is one; short of memory, cuDNN raises others
        torch.cuda.empty_cache()
    return batch


def throughput_section(args: Namespace) -> Section:
    """A step of SIPE at each precision, compiled, and on a GPU at the largest batch that fits; and of torchvision's bare ResNet-50."""
    context, draw = args.context, partial(draw_batch, args.context.device, crop=args.sizes.crop)
    full, half = (replace(context, amp=amp) for amp in (None, torch.bfloat16))
    prepare = partial(prepare_step, args, draw(args.sizes.throughput))
    versions = {"SIPE float32": prepare(SIPE(NUM_CLASSES), own=full, tf32=False)}
    if context.is_cuda:
        versions["SIPE TF32"] = prepare(SIPE(NUM_CLASSES), own=full)
    if args.peak["peak_precision"] == "bfloat16":
        versions |= {
            name: prepare(SIPE(NUM_CLASSES), own=half)
            for name in ("SIPE bf16", "SIPE bf16 compiled")
        }
        run = versions["SIPE bf16 compiled"].run
        backend = (
            "inductor" if context.is_cuda or args.size == "published" else "eager"
        )  # on a CPU, inductor needs a C++ compiler
        run.network = torch.compile(run.model, backend=backend)
        versions["ResNet-50 bf16"] = prepare(bare_resnet50(NUM_CLASSES), bare_step, own=half)
        if context.is_cuda:
            step = prepare(SIPE(NUM_CLASSES), own=half)
            step.batch = draw(
                largest_batch(
                    lambda size: replace(step, batch=draw(size))(context), args.sizes.throughput
                )
            )
            versions[f"SIPE bf16, {len(step.batch['image'])}"] = step
    return versions, {name: len(step.batch["image"]) for name, step in versions.items()}, {}


def dense_section(args: Namespace, network: str = "") -> Section:
    """A step of IRN or of the segmentation network at stride 8, with random labels of pixels; crops hold all of IRN's pairs of cells."""
    network, device = network or args.sizes.network, args.context.device
    batch = draw_batch(
        device, args.sizes.batch, max(args.sizes.crop, 2 * irn.STRIDE * train_irn.RADIUS)
    )
    batch["target"] = torch.randint(
        NUM_CLASSES, batch["inside"].shape, dtype=torch.uint8, device=device
    )
    model = irn.IRN() if network == "IRN" else deeplab.build_network(network, NUM_CLASSES)
    segmentation_step = partial(train_seg.train_step, weight=torch.ones(NUM_CLASSES, device=device))
    step = train_irn.train_step if network == "IRN" else segmentation_step
    return {network: prepare_step(args, batch, model, step)}, args.sizes.batch, {}


def open_images(args: Namespace, count: int) -> tuple[Dataset, Samples, np.ndarray]:
    """VOC or a drawn dataset, the first of its training images, and their labels."""
    root = args.dataset_root or args.folder / "drawn"
    if not args.dataset_root:
        draw_dataset(root, count, args.sizes.side)
    dataset = open_dataset("voc" if args.dataset_root else "folder", root)
    samples = dataset.samples(dataset.spec.train_list)[:count]
    return dataset, samples, dataset.tags(samples)


def cam_section(args: Namespace) -> Section:
    """Maps of whole images: make_cam.py, against one image and one scale at a time through torchvision's network.

    The plain way brings the maps of all classes to the image's size on the CPU, and stores those of its tags uncompressed, in float32.
    """
    dataset, samples, labels = open_images(args, args.sizes.cams)
    flags = [
        "--dataset_root",
        str(dataset.root),
        "--run_dir",
        str(args.folder),
        "--num_workers",
        str(args.num_workers),
    ]
    flags = make_cam.parse_args([*flags, "--scales", *map(str, args.sizes.scales)])
    torch.manual_seed(0)
    plain = SIPE(dataset.num_classes).eval().to(args.context.device)
    folded = inference.to_device(copy.deepcopy(plain), args.context)

    def whole(context: Context) -> Outcome:
        make_cam.make_cams(
            folded, samples, labels, flags, Namespace(context=context, readable=iter)
        )
        files = (cam_file.load(cam_file.path_of(args.folder, name)) for name in samples.names())
        return lambda: {
            f"{kind} {file.path.stem}": file.maps(kind) for file in files for kind in cam_file.KINDS
        }

    @torch.no_grad()
    def one_by_one(context: Context) -> Outcome:
        for item in inference_loader(
            MultiscaleImages(samples, labels, Scaling(tuple(flags.scales))),
            args.num_workers,
            pin_memory=context.is_cuda,
        ):
            total = dict.fromkeys(cam_file.KINDS, 0)
            for image in item.images:
                image = normalize(image[None].to(context.device)).contiguous()
                with context.autocast():
                    logits, _, features = plain_features(plain, torch.cat([image, image.flip(3)]))
                features, cam = add_mirror(features), general_cam(add_mirror(logits.float()))
                seeds = prototypes.locate_seeds(
                    cam, features, label_mask(item.tags[None].to(context.device))
                )
                is_cam = prototypes.activate(prototypes.pool_prototypes(seeds, features), features)
                for kind, grid in zip(cam_file.KINDS, (is_cam, cam)):
                    total[kind] = (
                        total[kind]
                        + F.interpolate(
                            grid.cpu(), item.size, mode="bilinear", align_corners=False
                        )[0]
                    )
            total = {
                "is_cam": prototypes.peak_normalize(total["is_cam"]),
                "cam": total["cam"] / len(flags.scales),
            }
            kept = {kind: maps[present_classes(item.tags)].numpy() for kind, maps in total.items()}
            np.savez(args.folder / f"plain-{samples[item.index].name}.npz", **kept)
        files = (
            (name, np.load(args.folder / f"plain-{name}.npz", allow_pickle=False))
            for name in samples.names()
        )
        return lambda: {
            f"{kind} {name}": file[kind] for name, file in files for kind in cam_file.KINDS
        }

    tolerances = {f"{kind} {name}": 1e-4 for kind in cam_file.KINDS for name in samples.names()}
    return {"make_cam": whole, "one by one": one_by_one}, len(samples), tolerances


def batch_section(args: Namespace) -> Section:
    """Maps of whole images, so many of one size at a time."""
    counts = {f"{count} a call": count for count in args.sizes.cam_batches}
    drawn = [
        draw_batch("cpu", max(counts.values()), round(scale * args.sizes.side))
        for scale in args.sizes.scales
    ]
    items = [
        Namespace(images=images, tags=label)
        for label, *images in zip(drawn[0]["tags"], *(one["image"] for one in drawn))
    ]
    torch.manual_seed(0)
    model = inference.to_device(SIPE(NUM_CLASSES), args.context)

    def work(context: Context, count: int) -> Outcome:
        _, maps = inference.multiscale_cams(model, items[:count], context)[0]
        return lambda: {
            "CAM": torch.cat([one.flatten() for one in maps["cam"]])
        }  # of the first image, which all calls share

    return (
        {name: partial(work, count=count) for name, count in counts.items()},
        counts,
        {"CAM": 1e-4},
    )


def evaluation_section(args: Namespace) -> Section:
    """eval_cam.py's counts, image by image, against all maps in memory, at full size in float32, and a loop over classes."""
    count, size, folder, rng = (
        args.sizes.evaluated,
        args.sizes.evaluated_size,
        args.folder,
        np.random.default_rng(0),
    )
    samples = Samples.of((str(i), "", str(folder / f"{i}.png")) for i in range(count))
    for i, sample in enumerate(samples):
        keys = np.array(
            [0, *sorted(rng.choice(np.arange(1, NUM_CLASSES), 1 + i % 2, replace=False))]
        )
        coarse, path = (
            rng.random((4, 6, len(keys)), dtype=np.float32),
            cam_file.path_of(folder, sample.name),
        )
        grids = [
            cv2.resize(coarse, [max(1, round(side * scale / STRIDE)) for side in size[::-1]])
            for scale in (1.0, 0.5, 1.5, 2.0)
        ]
        cam_file.save(path, keys, size, is_cam=[grid.transpose(2, 0, 1) for grid in grids])
        maps = cam_file.load(path).is_cam
        np.savez(folder / f"full-{i}.npz", keys=keys, maps=maps)
        mask = keys[np.roll(maps, size[1] // 10, 2).argmax(0)].astype(
            np.uint8
        )  # about as right as maps are
        mask[:: max(size[0] // 20, 2)] = 255
        Image.fromarray(mask).save(sample.mask)

    def streaming(context: Context) -> Outcome:
        compare = partial(
            eval_cam.compare, run_dir=folder, kinds=["is_cam"], num_classes=NUM_CLASSES
        )
        matrix = metrics.evaluate(compare, samples, context, args.num_workers)[0]["is_cam"]
        return lambda: dict(zip(COUNTS, (matrix.diagonal().copy(), matrix.sum(1), matrix.sum(0))))

    def all_at_once(context: Context) -> Outcome:
        arrays, counts = (
            (np.load(folder / f"full-{i}.npz", allow_pickle=False) for i in range(count)),
            np.zeros((3, NUM_CLASSES), int),
        )
        everything = [
            (one["keys"], one["maps"], np.asarray(Image.open(sample.mask)))
            for one, sample in zip(arrays, samples)
        ]
        for keys, maps, mask in everything:
            label = np.where(mask == 255, 255, keys[maps.argmax(0)])
            for k in range(NUM_CLASSES):
                counts[:, k] += [
                    part.sum() for part in ((label == k) & (mask == k), mask == k, label == k)
                ]
        return lambda: dict(zip(COUNTS, counts))

    return {"eval_cam": streaming, "all at once": all_at_once}, count, dict.fromkeys(COUNTS, 0)


class FloatCrops(TrainingCrops):
    """TrainingCrops that normalise in the worker: image (3, C, C) float32, inside (C, C) float32."""

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, Tensor]:
        item = super().__getitem__(epoch_and_index)
        return item | {
            "image": normalize(item["image"][None], item["inside"][None])[0],
            "inside": item["inside"].float(),
        }


def input_section(args: Namespace) -> Section:
    """The training loader up to normalised crops on the device, against normalising to float32 in its workers."""
    _, samples, labels = open_images(args, args.sizes.loaded)
    batches = ResumableBatches(BatchPlan(len(samples), 16, 1, SEED))

    def load(context: Context, kind: type[TrainingCrops]) -> Outcome:
        images, insides, crops = [], [], kind(samples, labels, (320, 640), args.sizes.crop, SEED)
        for batch in training_loader(crops, batches, args.num_workers, pin_memory=context.is_cuda):
            image, inside, _ = (
                value.to(context.device, non_blocking=True) for value in batch.values()
            )
            images.append(
                (normalize(image, inside) if image.dtype == torch.uint8 else image).mean((2, 3))
            )
            insides.append(inside.float().mean((1, 2)))
        return lambda: {"image": torch.cat(images), "inside": torch.cat(insides)}

    versions = {
        "bytes": partial(load, kind=TrainingCrops),
        "floats": partial(load, kind=FloatCrops),
    }
    return versions, 16 * len(batches), {"image": 1e-5, "inside": 0}


def dense_walk(cam: Tensor, edge: Tensor) -> Tensor:
    """The formula as it is written: a power of the matrix of all pairs of cells."""
    height, width = edge.shape
    index = torch.arange(height * width, device=edge.device).view(height, width)
    matrix = torch.eye(height * width, device=edge.device)
    for path in search_paths(RADIUS):
        dy, dx = path[0]
        rows, columns, left = height - dy, width - abs(dx), max(0, -dx)
        strongest = torch.stack(
            [edge[y : y + rows, left + x : left + x + columns] for y, x in path]
        ).amax(0)
        source, target = (
            index[:rows, left : left + columns],
            index[dy:, left + dx : left + dx + columns],
        )
        matrix[source, target] = matrix[target, source] = (1 - strongest) ** BETA
    matrix = torch.linalg.matrix_power(matrix / matrix.sum(0), 2**EXP_TIMES)
    return ((cam * (1 - edge)).flatten(1) @ matrix).view(cam.shape)


def walk_section(args: Namespace) -> Section:
    """The random walk by offsets, against the dense transition matrix; three random maps, and boundaries of which few are strong."""
    grid, generator = (
        args.sizes.walk_cuda if args.context.is_cuda else args.sizes.walk,
        torch.Generator().manual_seed(0),
    )
    drawn = torch.rand(3, *grid, generator=generator), torch.rand(grid, generator=generator) ** 4
    cam, edge = (value.to(args.context.device) for value in drawn)

    def work(context: Context, formula: Callable) -> Outcome:
        maps = formula(cam, edge)
        return lambda: {"maps": maps / maps.max()}

    return (
        {
            "offsets": partial(work, formula=random_walk),
            "dense matrix": partial(work, formula=dense_walk),
        },
        1,
        {"maps": 1e-3},
    )


SECTIONS = {
    "prototypes": map_section,
    "training_step": step_section,
    "cams": cam_section,
    "evaluation": evaluation_section,
}
SECTIONS |= {
    "input": input_section,
    "random_walk": walk_section,
    "throughput": throughput_section,
    "cam_batches": batch_section,
}
SECTIONS |= {"irn": partial(dense_section, network="IRN"), "deeplab": dense_section}


def memory(context: Context, peak: bool = False) -> float:
    """Megabytes that are held now, where the peak begins, or were held at the peak; 0 where the system does not say."""
    if context.is_cuda:
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError, AttributeError):
        if not peak:
            ctypes.CDLL(None).malloc_trim(
                0
            )  # freed memory that a call could take would hide what it takes
            Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return 0


def call(work: Work, context: Context, with_memory: bool = False) -> tuple[Outcome, float, float]:
    """Outcome, seconds, and the megabytes that the call added at its peak."""
    synchronize = torch.cuda.synchronize if context.is_cuda else lambda: None
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars would run through the table
        synchronize()
        before = memory(context) if with_memory else 0
        start = time.perf_counter()
        results = work(context)
        synchronize()
        seconds = time.perf_counter() - start
    return results, seconds, memory(context, peak=True) - before


def largest_differences(
    versions: dict[str, Work], names: Iterable[str], device: torch.device
) -> dict[str, float]:
    """How far the results of all versions lie from the project's, in float32; CAM files are written without rounding for it."""
    found, exact = [], partial(cam_file.save, dtype=np.float32)
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        mock.patch.object(cam_file, "save", exact),
    ):
        for work in versions.values():
            results = call(work, Context(device))[0]()
            found.append(
                {
                    name: torch.as_tensor(results[name]).detach().double().cpu()
                    for name in names
                    if name in results
                }
            )
    return {
        name: max(
            (found[0][name] - one[name]).abs().max().item() for one in found[1:] if name in one
        )
        for name in found[0]
    }


def measure_peak(context: Context) -> dict[str, Any]:
    """TFLOP/s of one large matrix product, the best of five, in bf16 if the processor has it."""
    side, precision = 8192 if context.is_cuda else 2048, torch.float32
    with contextlib.suppress(InputError):
        check_precision("bf16", context.device)
        precision = torch.bfloat16
    matrix = torch.randn(side, side, device=context.device).to(precision)
    seconds = min(call(lambda context: matrix @ matrix, context)[1] for _ in range(5))
    return {
        "peak_tflops": 2 * side**3 / seconds / 1e12,
        "peak_precision": str(precision).removeprefix("torch."),
    }


def measure(build: Callable[[Namespace], Section], args: Namespace) -> dict[str, Any]:
    """The rows of a section, the differences of its results, and which of them are too large or which versions failed."""
    start, context = time.perf_counter(), args.context
    versions, images, tolerances = build(args)
    images = images if isinstance(images, dict) else dict.fromkeys(versions, images)
    differences = largest_differences(versions, tolerances, context.device) if tolerances else {}
    problems = [
        f"{name} differs by {value:.1e}"
        for name, value in differences.items()
        if not value <= tolerances[name]
    ]
    runs, operations = {}, {}
    for name, work in versions.items():
        try:
            if isinstance(work, Step):
                operations[name] = images[name] * work.operations(context)
            if (
                context.is_cuda or context.amp or not tolerances
            ):  # not called at this precision yet: choose the kernels
                call(work, context)
            runs[name] = []
        except Exception as error:  # the other versions may well work
            problems.append(f"{name}: {error!r:.200}")
    for repeat in range(args.repeats):
        if repeat and time.perf_counter() - start > args.time_box:
            break
        for name in list(runs):
            try:
                runs[name].append(call(versions[name], context, with_memory=repeat == 0)[1:])
            except Exception as error:
                problems.append(f"{name}: {error!r:.200}")
                del runs[name]
    rows, rates, first = [], {}, next(iter(versions))
    for name, results in runs.items():
        seconds = float(np.median([seconds for seconds, _ in results]))
        rates[name], tflops = images[name] / seconds, operations.get(name, 0) / seconds / 1e12
        row = {
            "version": name,
            "seconds": seconds,
            "ratio": rates[first] / rates[name] if first in rates else None,
        }
        row |= {
            "megabytes": results[0][1],
            "images": images[name],
            "images_per_second": rates[name],
            "runs": len(results),
        }
        rows.append(
            row
            | (
                {"tflops": tflops, "share_of_peak": tflops / args.peak["peak_tflops"]}
                if tflops
                else {}
            )
        )
    return {"rows": rows, "differences": differences, "error": ", ".join(problems) or None}


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--section",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="what to compare (default: everything)",
    )
    add(
        "--size",
        choices=SIZES,
        default="small",
        help="small: seconds, to see that all works; published: to measure (default small)",
    )
    add(
        "--repeats",
        type=positive_int,
        default=3,
        help="timed calls of each version, of which the median counts (default 3)",
    )
    add(
        "--time_box",
        type=positive_int,
        default=3600,
        help="seconds after which a section stops repeating (default 3600)",
    )
    add(
        "--minutes",
        type=positive_int,
        help="minutes for the repeats, shared equally by the sections (default: no limit)",
    )
    add(
        "--json",
        type=Path,
        help="file for the numbers, rewritten after each section (default: none)",
    )
    add(
        "--dataset_root",
        type=Path,
        help="folder of VOC 2012 for cams and input (default: drawn images)",
    )
    add_device(parser)
    add_workers(parser)
    args = parser.parse_args(argv)
    args.time_box = (
        min(args.time_box, 60 * args.minutes / len(args.section)) if args.minutes else args.time_box
    )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    context = args.context = Context(choose_device(args.device), amp=AMP[args.amp])
    machine = (
        torch.cuda.get_device_name(context.device)
        if context.is_cuda
        else f"CPU, {torch.get_num_threads()} threads"
    )
    peak = args.peak = measure_peak(context)
    content = (
        {"machine": machine, "torch": torch.__version__, "size": args.size, "amp": args.amp}
        | peak
        | {"sections": {}}
    )
    print(
        f"{machine}; sizes: {args.size}; amp {args.amp}; peak {peak['peak_tflops']:.3g} TFLOP/s in {peak['peak_precision']}"
    )
    print(
        f"{'section':<15}{'version':<20}{'seconds':>10}{'ratio':>9}{'MB':>9}{'images/s':>12}{'TFLOP/s':>10}{'of peak':>9}"
    )
    for name in args.section:
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = measure(
                    SECTIONS[name],
                    Namespace(**vars(args) | {"folder": Path(folder), "sizes": SIZES[args.size]}),
                )
        except Exception as error:  # the next section may well work
            result = {"rows": [], "differences": {}, "error": f"{error!r:.200}"}
        content["sections"][name] = result
        for row in result["rows"]:
            numbers = f"{row['seconds']:>10.4g}{row['ratio'] or math.nan:>9.2f}{row['megabytes']:>9,.0f}{row['images_per_second']:>12.4g}"
            numbers += (
                f"{row['tflops']:>10.3g}{row['share_of_peak']:>9.1%}" if "tflops" in row else ""
            )
            print(f"{name:<15}{row['version']:<20}{numbers}", flush=True)
        if result["error"]:
            print(f"{name:<15}FAILED: {result['error']}", flush=True)
        if args.json:
            outputs.write_json(args.json, content)
        gc.collect()
        torch.cuda.empty_cache()
    if any(result["error"] for result in content["sections"].values()):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(cli_main(main))
