"""Stage 8: train a segmentation network on pseudo labels.

    python train_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the images of the training list and RUN_DIR/seg_label (or --label_dir: any folder of NAME.png with class ids, 255 where unknown).
Writes RUN_DIR/ckpt/seg.pth, which infer_seg.py and predict.py read, RUN_DIR/ckpt/seg_last.pth to resume from, and
RUN_DIR/tensorboard/seg. Several GPUs: torchrun --nproc_per_node N train_seg.py ...
"""

import argparse
import functools
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.datasets import CropOptions, LabelledCrops
from data.images import IGNORE, image_size, read_mask
from data.registry import Dataset, Samples, open_dataset
from data.transforms import normalize
from errors import InputError
from exchange.weights import load_pretrained
from network.deeplab import NETWORKS, build, checkpoint_blocks
from network.losses import class_weights, segmentation_loss
from tool import label_file, trainer
from tool.context import Context, cli_main, run_context, world_size
from tool.flags import add_max_side, add_switch, non_negative_float, non_negative_int, stage_parser
from tool.visualize import segmentation_sheet
from tool.workers import parallel_map

WIDERESNET38 = {
    "batch_size": 10,
    "max_epochs": 19,
    "crop_size": 448,
    "scales": [0.5, 1.5],
    "color_jitter": 10,
}
# where a head's training differs; deeplabv2 sums 36 taps of an unnormalised feature: 1e-3 diverges
DEFAULTS = {"deeplabv2": {"lr": 2.5e-4}, "deeplabv1": WIDERESNET38}
KEPT = (
    *trainer.KEPT,
    "network",
    "output_stride",
    "scales",
    "max_side",
    "class_balance",
    "color_jitter",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__)
    lr = "learning rate of the backbone; the classifier takes ten times this rate; deeplabv2: 0.00025"
    trainer.add_flags(
        parser, batch_size=16, max_epochs=30, lr_help=lr, lr=1e-3, momentum=0.9, wt_dec=5e-4
    )
    network = "head and backbone; the paper's are deeplabv2_resnet101 and deeplabv1_wideresnet38 (default deeplabv2_resnet101). The latter's"
    network += " defaults are --batch_size 10 --max_epochs 19 --crop_size 448 --scales 0.5 1.5 --color_jitter 10"
    parser.add_argument("--network", choices=NETWORKS, default="deeplabv2_resnet101", help=network)
    stride = "pixels per cell of the network's output; 16 takes a third of the time, with coarser borders (default 8)"
    parser.add_argument("--output_stride", type=int, choices=(8, 16), default=8, help=stride)
    trainer.add_weights(
        parser, "; WideResNet38's: see docs/stages.md; none to train it from scratch"
    )
    add_switch(
        parser,
        "--checkpointing",
        "compute the backbone's blocks once more for the gradient instead of keeping their maps: less memory",
    )
    parser.add_argument(
        "--label_dir", type=Path, help="folder of the labels NAME.png (default RUN_DIR/seg_label)"
    )
    trainer.add_scale_range(parser, 0.5, 2.0)
    add_max_side(parser)
    balance = "weigh each class by 1 / (its share of the pixels) to this power: 0 weighs all pixels alike, 1 all classes (default 0)"
    parser.add_argument("--class_balance", type=non_negative_float, default=0.0, help=balance)
    jitter = "largest shift of hue (of 180), saturation and value (of 255), at random; 0: none (default 0)"
    parser.add_argument("--color_jitter", type=non_negative_int, default=0, help=jitter)
    head = parser.parse_known_args(argv)[0].network.split("_")[0]
    parser.set_defaults(**DEFAULTS.get(head, {}))
    args = trainer.parse(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    if args.class_balance > 1:
        parser.error("--class_balance is from 0 to 1")
    if args.checkpointing and args.weights == "none":
        parser.error(
            "--checkpointing would count BatchNorm's statistics twice with --weights none; use one of them"
        )
    if args.network == "deeplabv1_wideresnet38" and args.output_stride == 16:
        parser.error("--output_stride 16 is for ResNets; WideResNet38 has 8")
    if args.network == "deeplabv1_wideresnet38" and args.weights == "imagenet":
        where = (
            "MXNet's ilsvrc-cls_rna-a1_cls1000_ep-0001.params, the same as .pth, or res38_cls.pth"
        )
        parser.error(
            f"--weights imagenet: torchvision has no WideResNet38; pass {where}, or none to train from scratch"
        )
    return args


def scan_label(
    index: int, samples: Samples, target_dir: Path, num_classes: int
) -> tuple[int, bytes, np.ndarray]:
    """The index of an image, a digest of its label, and the label's pixels of each class, (K,) int64."""
    sample = samples[index]
    path = label_file.path_of(target_dir, sample.name)
    label = read_mask(path, num_classes, image_size(sample.image))
    return (
        index,
        hashlib.sha256(label).digest(),
        np.bincount(label.ravel(), minlength=256)[:num_classes],
    )


def scan_labels(
    samples: Samples, args: argparse.Namespace, num_classes: int, context: Context
) -> tuple[Samples, bytes, np.ndarray]:
    """Read every label once before training: the images that have labelled pixels, all digests, and the pixels of each class.

    Raises InputError for a label that is missing, unreadable, of another size than its image or of unknown classes, and where no
    pixel at all has a label.
    """
    work = functools.partial(
        scan_label, samples=samples, target_dir=args.label_dir, num_classes=num_classes
    )
    results = parallel_map(work, context.shard(range(len(samples))), args.num_workers)
    mine = list(tqdm(results, desc="labels", unit="image", disable=not context.is_main))
    scanned = sorted(
        (one for part in context.all_gather_object(mine) for one in part), key=lambda one: one[0]
    )
    useful = [index for index, _, counts in scanned if counts.any()]
    if not useful:
        raise InputError(
            f"{args.label_dir}: all pixels of the {len(samples)} labels are 255; make the labels again"
        )
    if len(useful) < len(samples):
        context.print(
            f"{len(samples) - len(useful)} images are left out: all pixels of their labels are 255"
        )
    return (
        samples.select(useful),
        b"".join(digest for _, digest, _ in scanned),
        sum(counts for *_, counts in scanned),
    )


def train_step(
    run: trainer.Trainer, batch: dict, weight: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One step of SGD; returns the loss with the gradient norm, and the class logits (B, K, h, w)."""
    context = run.context
    with context.autocast():
        logits = run.network(normalize(batch["image"], batch["inside"]))
    total, count = segmentation_loss(
        logits, batch["target"], weight, IGNORE, run.model.align_corners
    )
    loss = total / context.all_reduce_mean(count).clamp(
        min=1
    )  # the mean over the pixels of all processes
    norm = run.step(loss)
    return {"loss": context.all_reduce_mean(loss), "grad_norm": norm}, logits.detach()


def train(args: argparse.Namespace, context: Context, dataset: Dataset, samples: Samples) -> None:
    samples, digests, counts = scan_labels(samples, args, dataset.num_classes, context)
    trainer.check_batch(args, len(samples), context.world_size)
    files = trainer.RunFiles.of(args.run_dir, "seg")
    terms = trainer.terms_of(args, KEPT, dataset.digest(samples, digests))
    if trainer.is_finished(args, files, terms, context):
        return
    torch.manual_seed(args.seed)
    model = build(vars(args), dataset.num_classes)
    if args.weights != "none":
        load_pretrained(model.backbone, args.weights, args.network.split("_")[-1])
    if args.checkpointing:
        checkpoint_blocks(model)
    model.to(context.device, memory_format=torch.channels_last).train()
    if context.world_size > 1 and context.is_cuda:
        for name, part in model.named_children():
            if (
                name != "backbone" or args.weights == "none"
            ):  # statistics that are learned are the whole batch's, as on one GPU
                setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(part))
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

    weight = class_weights(torch.from_numpy(counts), args.class_balance).to(context.device)
    options = CropOptions(
        tuple(args.scales), args.crop_size, args.seed, args.max_side, args.color_jitter
    )
    crops = LabelledCrops(samples, args.label_dir, dataset.num_classes, options)
    context.print(
        f"{len(samples)} images, {dataset.num_classes - 1} classes, {args.network}, {run.plan}"
    )
    for batch in run.batches(crops):
        losses, logits = train_step(run, batch, weight)
        image = functools.partial(segmentation_sheet, batch["image"], batch["target"], logits)
        run.log(losses, "image_label_prediction", image)
    run.finish()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    args.list = args.list or dataset.spec.train_list
    samples = dataset.samples(args.list)
    label_file.check_folder(args.label_dir, dataset.class_names)
    if args.network.startswith("deeplabv3") and args.batch_size < 2 * world_size():
        raise InputError(
            f"--batch_size {args.batch_size}: DeepLab-v3 needs 2 images a process or more for BatchNorm; use more"
        )
    with run_context(args) as context:
        train(args, context, dataset, samples)


if __name__ == "__main__":
    sys.exit(cli_main(main))
