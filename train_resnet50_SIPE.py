"""Stage 1: train SIPE from image-level tags.

    python train_resnet50_SIPE.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the images and tags of the training list. Writes RUN_DIR/ckpt/final.pth, which make_cam.py
reads, RUN_DIR/ckpt/last.pth to resume from, and RUN_DIR/tensorboard. With --recipe plus, also
writes RUN_DIR/ckpt/class_prototypes.pth, which belongs to final.pth.
Several GPUs: torchrun --nproc_per_node N train_resnet50_SIPE.py ...
"""

import argparse
import functools
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.datasets import MultiscaleImages, TrainingCrops, inference_loader
from data.images import read_mask, to_stored_frame
from data.registry import Dataset, Samples, open_dataset
from data.transforms import Scaling, normalize
from errors import InputError
from exchange.weights import load_pretrained
from network.fusion import fuse_scales
from network.losses import classification_loss, consistency_loss
from network.recipe import RECIPES
from network.sipe import SIPE, Localization
from tool import checkpoint, class_prototypes, flags, inference, metrics, trainer
from tool.context import Context, cli_main, run_context, world_size
from tool.options import TrainingDefaults
from tool.visualize import training_sheet

RESUME_FLAGS = (*flags.RESUME_FLAGS, "resize_long", "backbone")
MAX_NORM = 1.0  # of the gradient
FROM_SCRATCH = "none"  # value of --weights


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    flags.add_training_flags(
        parser,
        TrainingDefaults(batch_size=16, max_epochs=5),
        "learning rate of the backbone; classifier and side branches take ten times this rate",
    )
    flags.add_weights(
        parser,
        "; timm's own for its networks;"
        " none to train every layer and BatchNorm's statistics from scratch",
    )
    parser.add_argument(
        "--backbone",
        default="resnet50",
        help="resnet50 as published, or timm:NAME for a network of timm, such as"
        " timm:convnext_tiny.fb_in22k_ft_in1k; choose --lr for it (default resnet50)",
    )
    flags.add_recipe(parser, "sipe")
    parser.add_argument(
        "--resize_long",
        type=flags.positive_int,
        nargs=2,
        default=[320, 640],
        metavar=("MIN", "MAX"),
        help="range of the random long side before the crop, pixels (default 320 640)",
    )
    parser.add_argument(
        "--val_list",
        help="after each epoch, print the mIoU of published IS-CAMs at one scale on this list;"
        " it reads masks and chooses nothing (default off)",
    )
    return flags.parse_training(parser, argv)


@dataclass(frozen=True)
class TaggedSamples:
    """Samples with their tags (N, K-1) float32 0/1."""

    samples: Samples
    tags: np.ndarray


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    samples = dataset.samples(args.list)
    trainer.check_batch(args.batch_size, len(samples), world_size(), args.list)
    data = TaggedSamples(samples, dataset.tags(samples))
    with run_context(args.run_dir, args.device, args.amp) as context:
        train(args, context, dataset, data)
        add_class_prototypes(args, context, dataset, data)


def train(
    args: argparse.Namespace, context: Context, dataset: Dataset, data: TaggedSamples
) -> None:
    """Train to the final checkpoint, unless it is there."""
    digest = dataset.digest(data.samples, data.tags.tobytes())
    job = trainer.TrainingJob(
        files=trainer.RunFiles.of(args.run_dir, ""),
        options=flags.training_options(args),
        arguments=flags.resume_arguments(args, RESUME_FLAGS, digest),
        class_names=dataset.class_names,
        num_samples=len(data.samples),
        kind=checkpoint.SIPE_KIND,
    )
    if trainer.is_finished(job, context):
        return
    if not args.resume and context.is_main:
        class_prototypes.delete_beside(job.files.final)
    validation = read_validation(args, dataset)
    torch.manual_seed(args.seed)
    model = build_model(args, dataset.num_classes, context)
    run = trainer.Trainer(job, model, context)
    context.print(f"{len(data.samples)} images, {dataset.num_classes - 1} classes, {run.plan}")
    if validation:
        context.print(
            f"validation reads the masks of {len(validation.samples)} images;"
            " nothing is chosen by it"
        )
    crops = TrainingCrops(data.samples, data.tags, args.resize_long, args.crop_size, args.seed)
    for batch in run.batches(crops):
        losses, out = train_step(run, batch)
        draw_sheet = functools.partial(
            training_sheet, batch["image"], out.cam, out.is_cam, batch["tags"]
        )
        run.log(losses, "image_cam_is_cam", draw_sheet)
        if run.epoch_ends and validation:
            miou = validate(model, dataset, validation, context, args.num_workers)
            context.print(
                f"after {run.epochs_done} epochs: IS-CAM mIoU {miou:.2f} at one scale (from masks)"
            )
            run.log_scalar("validation/is_cam_miou", miou)
    run.finish()


def build_model(args: argparse.Namespace, num_classes: int, context: Context) -> SIPE:
    """SIPE with its initial weights, on the device, ready to train."""
    is_pretrained = args.weights != FROM_SCRATCH
    model = checkpoint.build_sipe(num_classes, args.backbone, frozen=is_pretrained)
    if is_pretrained:
        load_pretrained(model.backbone, args.weights, args.backbone)
    model = model.to(context.device, memory_format=torch.channels_last).train()
    learns_statistics = not is_pretrained and not args.backbone.startswith("timm:")
    if learns_statistics and context.world_size > 1 and context.is_cuda:
        # statistics of the whole batch, as on one GPU
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def train_step(
    run: trainer.Trainer, batch: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], Localization]:
    """One step of SGD; returns the losses with the gradient norm, and what the network found."""
    with run.context.autocast():
        image = normalize(batch["image"], batch["inside"])
        out = run.network(image, batch["tags"], batch["inside"])
        cls = classification_loss(out.score, batch["tags"])
        gsc = consistency_loss(out.cam, out.is_cam)
    norm = run.step(cls + gsc, MAX_NORM)
    return {"cls": cls, "gsc": gsc, "grad_norm": norm}, out


def read_validation(args: argparse.Namespace, dataset: Dataset) -> TaggedSamples | None:
    """The samples of --val_list; every mask must exist before the training starts."""
    if not args.val_list:
        return None
    samples = dataset.samples(args.val_list)
    for sample in samples:
        if not os.path.isfile(sample.mask):
            raise InputError(
                f"{sample.mask}: no such mask; use a --val_list of images that have one"
            )
    return TaggedSamples(samples, dataset.tags(samples))


def validate(
    model: SIPE, dataset: Dataset, data: TaggedSamples, context: Context, num_workers: int
) -> float:
    """mIoU of the IS-CAM at scale 1, in percent; every process takes its share of the images."""
    model.eval()
    samples = context.shard(data.samples)
    images = MultiscaleImages(samples, context.shard(data.tags), Scaling((1.0,)))
    loader = inference_loader(images, num_workers, pin_memory=context.is_cuda)
    matrix = np.zeros((dataset.num_classes, dataset.num_classes), np.int64)
    bar = tqdm(loader, desc="validation", leave=False, disable=not context.is_main)
    for item in bar:
        (image_maps,) = inference.multiscale_cams(model, [item], context)
        maps = fuse_scales(image_maps.by_kind["is_cam"], item.size, True)
        strongest = to_stored_frame(maps.argmax(0).numpy(), item.orientation)
        prediction = image_maps.class_ids.astype(np.uint8)[strongest]
        truth = read_mask(samples[item.index].mask, dataset.num_classes, prediction.shape)
        matrix += metrics.confusion(truth, prediction, dataset.num_classes)
    model.train()
    miou = metrics.miou(sum(context.all_gather_object(matrix)))
    return float("nan") if miou is None else miou


def add_class_prototypes(
    args: argparse.Namespace, context: Context, dataset: Dataset, data: TaggedSamples
) -> None:
    """Write the recipe's class prototypes beside the final checkpoint, unless they are there.

    Raises InputError if the run has another recipe already.
    """
    path = trainer.RunFiles.of(args.run_dir, "").final
    before = inference.recipe_of(path)
    context.barrier()  # every process has read it
    if before == args.recipe:
        return
    if before != "sipe":
        raise InputError(
            f"{path}: its recipe is {before}; pass --recipe {before}, or use another --run_dir"
        )
    if not RECIPES[args.recipe].class_prototypes:
        return
    loaded = inference.load_network(path, dataset.class_names, "sipe")
    model = inference.to_device(loaded.network, context)
    sampling = class_prototypes.Sampling(args.seed, args.num_workers)
    prototypes = class_prototypes.find_class_prototypes(
        model, data.samples, data.tags, sampling, context
    )
    if context.is_main:
        class_prototypes.save(path, prototypes, args.recipe, dataset.class_names)
    context.barrier()
    without = []
    for name, prototype in zip(dataset.class_names[1:], prototypes):
        if not prototype.any():
            without.append(name)
    if without:
        context.print(
            f"no image shows these classes strongly enough for a prototype: {', '.join(without)}"
        )
    context.print(f"wrote {class_prototypes.path_beside(path)} for the recipe {args.recipe}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
