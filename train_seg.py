"""Stage 8: train a segmentation network on pseudo labels.

    python train_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the images of the training list and RUN_DIR/seg_label (or --label_dir: any folder of NAME.png
with class ids, 255 for unknown pixels). Writes RUN_DIR/ckpt/seg.pth, which infer_seg.py and
predict.py read, RUN_DIR/ckpt/seg_last.pth to resume from, and RUN_DIR/tensorboard/seg.
Several GPUs: torchrun --nproc_per_node N train_seg.py ...
"""

import argparse
import functools
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.datasets import CropOptions, LabelledCrops
from data.images import IGNORE, image_size, read_mask
from data.registry import Dataset, Sample, Samples, open_dataset
from data.transforms import normalize
from errors import InputError
from exchange.weights import load_pretrained
from network.deeplab import NETWORKS, build_network, checkpoint_blocks
from network.losses import class_weights, segmentation_loss
from tool import checkpoint, flags, label_file, trainer
from tool.context import Context, cli_main, run_context, world_size
from tool.options import TrainingDefaults
from tool.visualize import segmentation_sheet
from tool.workers import parallel_map

FROM_SCRATCH = "none"  # value of --weights
WIDERESNET38 = "deeplabv1_wideresnet38"
DEFAULTS_OF_HEAD = {  # where its training differs
    # it sums 36 taps of an unnormalised feature: 1e-3 diverges
    "deeplabv2": {"lr": 2.5e-4},
    "deeplabv1": {
        "batch_size": 10,
        "max_epochs": 19,
        "crop_size": 448,
        "scales": [0.5, 1.5],
        "color_jitter": 10,
    },
}
RESUME_FLAGS = (
    *flags.RESUME_FLAGS,
    "network",
    "output_stride",
    "scales",
    "max_side",
    "class_balance",
    "color_jitter",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    add_flags(parser)
    network = parser.parse_known_args(argv)[0].network
    parser.set_defaults(**DEFAULTS_OF_HEAD.get(head_of(network), {}))
    args = flags.parse_training(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    check_flags(parser, args)
    return args


def head_of(network: str) -> str:
    return network.split("_")[0]


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_training_flags(
        parser,
        TrainingDefaults(batch_size=16, max_epochs=30, lr=1e-3, momentum=0.9, weight_decay=5e-4),
        "learning rate of the backbone; the classifier takes ten times this rate;"
        " deeplabv2: 0.00025",
    )
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default="deeplabv2_resnet101",
        help="head and backbone; the paper's are deeplabv2_resnet101 and"
        f" {WIDERESNET38} (default deeplabv2_resnet101). The latter's defaults are --batch_size 10"
        " --max_epochs 19 --crop_size 448 --scales 0.5 1.5 --color_jitter 10",
    )
    parser.add_argument(
        "--output_stride",
        type=int,
        choices=(8, 16),
        default=8,
        help="pixels per cell of the network's output; 16 takes a third of the time,"
        " with coarser borders (default 8)",
    )
    flags.add_weights(parser, "; WideResNet38's: see docs/stages.md; none to train it from scratch")
    flags.add_switch(
        parser,
        "--checkpointing",
        "compute the backbone's blocks once more for the gradient"
        " instead of keeping their maps: less memory",
    )
    parser.add_argument(
        "--label_dir",
        type=Path,
        help="folder of the labels NAME.png (default RUN_DIR/seg_label)",
    )
    flags.add_scale_range(parser, 0.5, 2.0)
    flags.add_max_side(parser)
    parser.add_argument(
        "--class_balance",
        type=flags.non_negative_float,
        default=0.0,
        help="weigh each class by 1 / (its share of the pixels) to this power:"
        " 0 weighs all pixels alike, 1 all classes (default 0)",
    )
    parser.add_argument(
        "--color_jitter",
        type=flags.non_negative_int,
        default=0,
        help="largest shift of hue (of 180), saturation and value (of 255), at random;"
        " 0: none (default 0)",
    )


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with argparse's error if flags do not fit together."""
    if args.class_balance > 1:
        parser.error("--class_balance is from 0 to 1")
    if args.checkpointing and args.weights == FROM_SCRATCH:
        parser.error(
            "--checkpointing would count BatchNorm's statistics twice with --weights none;"
            " use one of them"
        )
    if args.network != WIDERESNET38:
        return
    if args.output_stride == 16:
        parser.error("--output_stride 16 is for ResNets; WideResNet38 has 8")
    if args.weights == "imagenet":
        parser.error(
            "--weights imagenet: torchvision has no WideResNet38; pass MXNet's"
            " ilsvrc-cls_rna-a1_cls1000_ep-0001.params, the same as .pth, or res38_cls.pth,"
            " or none to train from scratch"
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    samples = dataset.samples(args.list)
    label_file.check_folder(args.label_dir, dataset.class_names)
    if head_of(args.network) == "deeplabv3" and args.batch_size < 2 * world_size():
        raise InputError(
            f"--batch_size {args.batch_size}: DeepLab-v3 needs 2 images a process or more"
            " for BatchNorm; use more"
        )
    with run_context(args.run_dir, args.device, args.amp) as context:
        train(args, context, dataset, samples)


def train(args: argparse.Namespace, context: Context, dataset: Dataset, samples: Samples) -> None:
    """Train to the final checkpoint, unless it is there."""
    labels = scan_labels(samples, args, dataset.num_classes, context)
    samples = labels.samples
    trainer.check_batch(args.batch_size, len(samples), context.world_size, args.list)
    digest = dataset.digest(samples, labels.digests)
    job = trainer.TrainingJob(
        files=trainer.RunFiles.of(args.run_dir, "seg"),
        options=flags.training_options(args),
        arguments=flags.resume_arguments(args, RESUME_FLAGS, digest),
        class_names=dataset.class_names,
        num_samples=len(samples),
        kind=checkpoint.SEGMENTATION_KIND,
    )
    if trainer.is_finished(job, context):
        return
    torch.manual_seed(args.seed)
    model = build_model(args, dataset.num_classes, context)
    run = trainer.Trainer(job, model, context)
    weight = class_weights(torch.from_numpy(labels.counts), args.class_balance)
    weight = weight.to(context.device)
    options = CropOptions(
        tuple(args.scales), args.crop_size, args.seed, args.max_side, args.color_jitter
    )
    crops = LabelledCrops(samples, args.label_dir, dataset.num_classes, options)
    context.print(
        f"{len(samples)} images, {dataset.num_classes - 1} classes, {args.network}, {run.plan}"
    )
    for batch in run.batches(crops):
        losses, logits = train_step(run, batch, weight)
        draw_sheet = functools.partial(segmentation_sheet, batch["image"], batch["target"], logits)
        run.log(losses, "image_label_prediction", draw_sheet)
    run.finish()


def build_model(args: argparse.Namespace, num_classes: int, context: Context) -> nn.Module:
    """The network with its initial weights, on the device, ready to train."""
    is_pretrained = args.weights != FROM_SCRATCH
    model = build_network(args.network, num_classes, args.output_stride, is_pretrained)
    if is_pretrained:
        backbone_name = args.network.split("_")[-1]
        load_pretrained(model.backbone, args.weights, backbone_name)
    if args.checkpointing:
        checkpoint_blocks(model)
    model.to(context.device, memory_format=torch.channels_last).train()
    if context.world_size > 1 and context.is_cuda:
        # statistics that are learned are those of the whole batch, as on one GPU
        for name, part in model.named_children():
            if name != "backbone" or not is_pretrained:
                setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(part))
    return model


def train_step(
    run: trainer.Trainer, batch: dict[str, torch.Tensor], weight: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One step of SGD; returns the loss with the gradient norm, and the logits (B, K, h, w).

    weight: (K,) of each class.
    """
    context = run.context
    with context.autocast():
        logits = run.network(normalize(batch["image"], batch["inside"]))
    total, count = segmentation_loss(
        logits, batch["target"], weight, IGNORE, run.model.align_corners
    )
    # the mean over the pixels of all processes
    loss = total / context.all_reduce_mean(count).clamp(min=1)
    norm = run.step(loss)
    return {"loss": context.all_reduce_mean(loss), "grad_norm": norm}, logits.detach()


@dataclass(frozen=True)
class LabelScan:
    """What one label holds.

    Attributes:
        index: of its sample.
        counts: (K,) int64 pixels of each class.
    """

    index: int
    digest: bytes
    counts: np.ndarray


@dataclass(frozen=True)
class ScannedLabels:
    """The samples that have labelled pixels, the digests of all labels, and the pixels by class.

    Attributes:
        counts: (K,) int64.
    """

    samples: Samples
    digests: bytes
    counts: np.ndarray


def scan_labels(
    samples: Samples, args: argparse.Namespace, num_classes: int, context: Context
) -> ScannedLabels:
    """Read every label once before training.

    Raises InputError for a label that is missing, unreadable, of another size than its image or
    of unknown classes, and if no pixel at all has a label.
    """
    work = functools.partial(
        scan_label, samples=samples, label_dir=args.label_dir, num_classes=num_classes
    )
    mine = context.shard(range(len(samples)))
    results = parallel_map(work, mine, args.num_workers)
    own_scans = list(tqdm(results, desc="labels", unit="image", disable=not context.is_main))
    scans: list[LabelScan] = []
    for part in context.all_gather_object(own_scans):
        scans += part
    scans.sort(key=lambda scan: scan.index)
    useful = [scan.index for scan in scans if scan.counts.any()]
    if not useful:
        raise InputError(
            f"{args.label_dir}: all pixels of the {len(samples)} labels are 255;"
            " make the labels again"
        )
    if len(useful) < len(samples):
        context.print(
            f"{len(samples) - len(useful)} images are left out: all pixels of their labels are 255"
        )
    digests = b"".join(scan.digest for scan in scans)
    counts = sum(scan.counts for scan in scans)
    return ScannedLabels(samples.select(useful), digests, counts)


def scan_label(index: int, samples: Samples, label_dir: Path, num_classes: int) -> LabelScan:
    """Read the label of one sample."""
    sample: Sample = samples[index]
    path = label_file.path_of(label_dir, sample.name)
    label = read_mask(path, num_classes, image_size(sample.image))
    counts = np.bincount(label.ravel(), minlength=256)[:num_classes]
    return LabelScan(index, hashlib.sha256(label).digest(), counts)


if __name__ == "__main__":
    sys.exit(cli_main(main))
