"""Stage 1: train SIPE from image-level tags.

    python train_resnet50_SIPE.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the images and tags of the training list. Writes RUN_DIR/ckpt/final.pth, which make_cam.py reads, RUN_DIR/ckpt/last.pth to resume
from, and RUN_DIR/tensorboard. Several GPUs: torchrun --nproc_per_node N train_resnet50_SIPE.py ...
"""

import argparse
import functools
import os
import sys

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.datasets import MultiscaleImages, TrainingCrops, inference_loader
from data.images import read_mask, to_stored_frame
from data.registry import Dataset, Samples, open_dataset
from data.transforms import Scaling, normalize
from errors import InputError
from exchange import weights
from network.fusion import fuse_scales
from network.losses import classification_loss, consistency_loss
from network.sipe import SIPE, Localization
from tool import checkpoint, metrics, trainer
from tool.context import Context, cli_main, run_context, world_size
from tool.flags import add_recipe, positive_int, stage_parser
from tool.inference import find_class_prototypes, load_network, multiscale_cams, to_device
from tool.visualize import training_sheet

KEPT = (*trainer.KEPT, "resize_long", "backbone")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__)
    lr_help = "learning rate of the backbone; classifier and side branches take ten times this rate"
    trainer.add_flags(parser, batch_size=16, max_epochs=5, lr_help=lr_help)
    trainer.add_weights(
        parser,
        "; timm's own for its networks; none to train every layer and BatchNorm's statistics from scratch",
    )
    backbone = "resnet50 as published, or timm:NAME for a network of timm, such as timm:convnext_tiny.fb_in22k_ft_in1k; choose --lr for it"
    parser.add_argument("--backbone", default="resnet50", help=f"{backbone} (default resnet50)")
    add_recipe(parser, "sipe")
    resize_long = "range of the random long side before the crop, pixels (default 320 640)"
    parser.add_argument(
        "--resize_long",
        type=positive_int,
        nargs=2,
        default=[320, 640],
        metavar=("MIN", "MAX"),
        help=resize_long,
    )
    val_list = "after each epoch, print the mIoU of published IS-CAMs at one scale on this list; it reads pixel labels and chooses nothing"
    parser.add_argument("--val_list", help=f"{val_list} (default off)")
    return trainer.parse(parser, argv)


def build_model(args: argparse.Namespace, num_classes: int) -> SIPE:
    model = checkpoint.build_sipe(num_classes, args.backbone, args.weights != "none")
    if args.weights != "none":
        weights.load_pretrained(model.backbone, args.weights, args.backbone)
    return model


def train_step(run: trainer.Trainer, batch: dict) -> tuple[dict[str, torch.Tensor], Localization]:
    """One step of SGD; returns the losses with the gradient norm before clipping, and what the network found."""
    with run.context.autocast():
        out = run.network(
            normalize(batch["image"], batch["inside"]), batch["tags"], batch["inside"]
        )
        losses = {
            "cls": classification_loss(out.score, batch["tags"]),
            "gsc": consistency_loss(out.cam, out.is_cam),
        }
    norm = run.step(losses["cls"] + losses["gsc"], max_norm=1.0)
    return {**losses, "grad_norm": norm}, out


def validate(
    model: SIPE,
    dataset: Dataset,
    samples: Samples,
    labels: np.ndarray,
    context: Context,
    num_workers: int,
) -> float:
    """mIoU of the IS-CAM at scale 1, in percent; every process takes its share of the images."""
    model.eval()
    samples, labels = context.shard(samples), context.shard(labels)
    matrix = np.zeros((dataset.num_classes, dataset.num_classes), np.int64)
    loader = inference_loader(
        MultiscaleImages(samples, labels, Scaling((1.0,))), num_workers, pin_memory=context.is_cuda
    )
    for item in tqdm(loader, desc="validation", leave=False, disable=not context.is_main):
        keys, maps = multiscale_cams(model, [item], context)[0]
        label = fuse_scales(maps["is_cam"], item.size, True).argmax(0).numpy()
        prediction = keys.astype(np.uint8)[to_stored_frame(label, item.orientation)]
        truth = read_mask(samples[item.index].mask, dataset.num_classes, prediction.shape)
        matrix += metrics.confusion(truth, prediction, dataset.num_classes)
    model.train()
    miou = metrics.miou(sum(context.all_gather_object(matrix)))
    return float("nan") if miou is None else miou


def validation_set(args: argparse.Namespace, dataset: Dataset) -> tuple[Samples, np.ndarray] | None:
    """Images and labels of --val_list; every mask must exist before the training starts."""
    if not args.val_list:
        return None
    samples = dataset.samples(args.val_list)
    for sample in samples:
        if not os.path.isfile(sample.mask):
            raise InputError(
                f"{sample.mask}: no such mask; use a --val_list of images that have one"
            )
    return samples, dataset.tags(samples)


def train(
    args: argparse.Namespace,
    context: Context,
    dataset: Dataset,
    samples: Samples,
    labels: np.ndarray,
) -> None:
    files = trainer.RunFiles.of(args.run_dir, "")
    terms = trainer.terms_of(args, KEPT, dataset.digest(samples, labels.tobytes()))
    if trainer.is_finished(args, files, terms, context):
        return
    validation = validation_set(args, dataset)
    torch.manual_seed(args.seed)
    model = (
        build_model(args, dataset.num_classes)
        .to(context.device, memory_format=torch.channels_last)
        .train()
    )
    if (
        args.weights == "none"
        and context.world_size > 1
        and context.is_cuda
        and not args.backbone.startswith("timm:")
    ):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(
            model
        )  # statistics of the whole batch, as on one GPU; it would spoil timm's
    run = trainer.Trainer(
        args,
        context,
        files,
        terms,
        dataset.class_names,
        len(samples),
        model,
        model.parameter_groups(),
    )
    context.print(f"{len(samples)} images, {dataset.num_classes - 1} classes, {run.plan}")
    if validation:
        context.print(
            f"validation reads the pixel labels of {len(validation[0])} images; nothing is chosen by it"
        )
    for batch in run.batches(
        TrainingCrops(samples, labels, args.resize_long, args.crop_size, args.seed)
    ):
        losses, out = train_step(run, batch)
        image = functools.partial(
            training_sheet, batch["image"], out.cam, out.is_cam, batch["tags"]
        )
        run.log(losses, "image_cam_is_cam", image)
        if run.epoch_ends and validation:
            miou = validate(model, dataset, *validation, context, args.num_workers)
            context.print(
                f"after {run.current // run.epoch_steps} epochs: IS-CAM mIoU {miou:.2f} at one scale (from pixel labels)"
            )
            run.log_scalar("validation/is_cam_miou", miou)
    run.finish()


def follow_recipe(
    args: argparse.Namespace,
    context: Context,
    dataset: Dataset,
    samples: Samples,
    labels: np.ndarray,
) -> None:
    """Note a recipe other than the published one in the final checkpoint, with its class prototypes; the training is the same.

    Raises InputError where the checkpoint notes another one than the published one already.
    """
    path = trainer.RunFiles.of(args.run_dir, "").final
    content = checkpoint.read(path)
    before = content["arguments"].get("recipe", "sipe")
    if before == args.recipe:
        return
    if before != "sipe":
        raise InputError(
            f"{path}: its recipe is {before}; pass --recipe {before}, or use another --run_dir"
        )
    model, _ = load_network(path, dataset.class_names, "sipe")
    prototypes = find_class_prototypes(
        to_device(model, context), samples, labels, args.seed, args.num_workers, context
    )
    if context.is_main:
        content["arguments"]["recipe"], content["model"]["class_prototypes"] = (
            args.recipe,
            prototypes,
        )
        checkpoint.save(path, content)
    context.barrier()
    without = [
        name for name, prototype in zip(dataset.class_names[1:], prototypes) if not prototype.any()
    ]
    if without:
        context.print(
            f"no image shows these classes strongly enough for a prototype: {', '.join(without)}"
        )
    context.print(f"wrote {path} with the recipe {args.recipe}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    samples = dataset.samples(args.list)
    trainer.check_batch(args, len(samples), world_size())
    labels = dataset.tags(samples)
    with run_context(args) as context:
        train(args, context, dataset, samples, labels)
        follow_recipe(args, context, dataset, samples, labels)


if __name__ == "__main__":
    sys.exit(cli_main(main))
