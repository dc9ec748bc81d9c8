"""Train and score recipes on the same images under one protocol: mIoU of the IS-CAMs and of the labels that the dense CRF makes of them.

    python -m benchmarks.method --recipe sipe plus --seeds 1 2 3 --dataset_root VOC2012 --list train --out runs/method [--weights FILE]

One training a seed serves all recipes, which differ in what follows. It has half the published sizes: crops of 256, long sides of 160 to
320, five epochs, maps at scales 0.5 0.25 0.75 1.0. --full takes the published ones. Means are over the seeds, and so are differences to the
first recipe; their 95 % interval is a bootstrap over images. "frequent" is the mean over the background and the classes with at least 20
training images. Run the same command to resume.
"""

import functools
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

import eval_cam
import eval_seg
import make_cam
import make_seg_labels
import train_resnet50_SIPE
from data.registry import Sample, open_dataset
from network.recipe import RECIPES
from tool import metrics, outputs, workers
from tool.context import cli_main
from tool.flags import add_device, add_workers, command_parser, non_negative_int, positive_int

HALF = (
    ["--crop_size", "256", "--resize_long", "160", "320"],
    ["--scales", "0.5", "0.25", "0.75", "1.0"],
)
RESAMPLES, FREQUENT = 2000, 20
TRAINING = "plus"  # its checkpoint serves every recipe
KINDS = ("IS-CAM", "CRF labels")


def make_maps(args: Namespace, recipe: str, seed: int) -> Path:
    """Train unless that is done, localize and refine; returns the folder of the results."""
    folder, place = args.out / f"{recipe}_{seed}", ["--device", args.device, "--amp", args.amp]
    data = ["--dataset_root", str(args.dataset_root), "--num_workers", str(args.num_workers)]
    training, inference = ([], []) if args.full else HALF
    trained = args.out / f"training_{seed}"
    flags = [
        "--seed",
        str(seed),
        "--weights",
        args.weights,
        "--max_epochs",
        str(args.max_epochs),
        "--recipe",
        TRAINING,
    ]
    train_resnet50_SIPE.main([*data, *place, "--run_dir", str(trained), *flags, *training])
    listed = ["--run_dir", str(folder), "--list", args.list]
    make_cam.main(
        [
            *data,
            *place,
            *listed,
            "--ckpt",
            str(trained / "ckpt/final.pth"),
            "--recipe",
            recipe,
            *inference,
        ]
    )
    make_seg_labels.main([*data, *listed, "--refine", "crf"])
    return folder


def compare(sample: Sample, folder: Path, num_classes: int) -> tuple[str, np.ndarray]:
    """An image's name, and its confusion matrices by its IS-CAMs and by its CRF label: (2, K, K)."""
    _, maps = eval_cam.compare(sample, folder, ["is_cam"], num_classes)
    _, labels = eval_seg.compare(sample, folder / "seg_label", num_classes)
    return sample.name, np.stack([maps["is_cam"], labels["label"]])


def difference(counts: np.ndarray, rng: np.random.Generator) -> tuple[float, list[float]]:
    """By how much the mIoU of the second recipe is above that of the first, and the interval: counts (2, seeds, images, K, K)."""

    def gain(images: np.ndarray) -> float:
        totals = counts[:, :, images].sum(2)
        ours, other = (np.mean([metrics.miou(total) for total in recipe]) for recipe in totals)
        return float(other - ours)

    size = counts.shape[2]
    gains = [gain(rng.integers(size, size=size)) for _ in range(RESAMPLES)]
    return gain(np.arange(size)), [float(bound) for bound in np.percentile(gains, [2.5, 97.5])]


def summarize(counts: np.ndarray, frequent: np.ndarray) -> dict[str, Any]:
    """Mean and deviation over the seeds: counts (seeds, images, K, K); frequent (K,) bool."""
    ious = np.stack([metrics.iou(seed) for seed in counts.sum(1)])
    found = {"mIoU": np.nanmean(ious, 1), "frequent": np.nanmean(ious[:, frequent], 1)}
    return {
        name: {"mean": float(of.mean()), "deviation": float(of.std()), "of_seeds": of.tolist()}
        for name, of in found.items()
    }


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--recipe",
        nargs="+",
        choices=RECIPES,
        default=list(RECIPES),
        help="recipes, the one to compare with first (default all)",
    )
    add(
        "--seeds",
        nargs="+",
        type=non_negative_int,
        default=[1, 2, 3],
        help="seeds of the trainings (default 1 2 3)",
    )
    add("--dataset_root", type=Path, required=True, help="folder of VOC 2012, or of its part")
    add(
        "--list",
        default="train",
        help="images with masks: a list's name or a text file (default train)",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs/method"),
        help="folder of the results (default runs/method)",
    )
    add("--weights", default="imagenet", help="as of train_resnet50_SIPE.py (default imagenet)")
    add("--max_epochs", type=positive_int, default=5, help="epochs of the training (default 5)")
    add("--full", action="store_true", help="published sizes of crops, images and scales")
    add_device(parser)
    add_workers(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset("voc", args.dataset_root)
    samples = dataset.samples(args.list)
    tagged = dataset.tags(dataset.samples(dataset.spec.train_list)).sum(0)
    frequent, counts = np.array([True, *(tagged >= FREQUENT)]), []
    for recipe in args.recipe:
        folders = [make_maps(args, recipe, seed) for seed in args.seeds]
        work = [
            functools.partial(compare, folder=folder, num_classes=dataset.num_classes)
            for folder in folders
        ]
        matrices = [dict(workers.parallel_map(one, samples, args.num_workers)) for one in work]
        counts.append([[of_seed[name] for name in samples.names()] for of_seed in matrices])
    counts = np.array(counts).transpose(3, 0, 1, 2, 4, 5)  # kinds, recipes, seeds, images, K, K
    content: dict[str, Any] = {"list": args.list, "pictures": len(samples), "seeds": args.seeds}
    print(f"\n{len(samples)} images of {args.list}, seeds {' '.join(map(str, args.seeds))}\n")
    print(
        f"{'recipe':<10}{'maps':<12}{'mIoU':>7}{'+-':>6}{'frequent':>10}{'+-':>6}{'difference':>12}  95 % interval"
    )
    for kind, of_kind in zip(KINDS, counts):
        content[kind] = {}
        for recipe, of_recipe in zip(args.recipe, of_kind):
            row = content[kind][recipe] = summarize(of_recipe, frequent)
            text = "".join(
                f"{value['mean']:>{width}.2f}{value['deviation']:>6.2f}"
                for value, width in zip(row.values(), (7, 10))
            )
            if recipe != args.recipe[0]:
                gain, interval = difference(
                    np.stack([of_kind[0], of_recipe]), np.random.default_rng(0)
                )
                row |= {"difference": gain, "interval": interval}
                text += f"{gain:>12.2f}  {interval[0]:.2f} to {interval[1]:.2f}"
            print(f"{recipe:<10}{kind:<12}{text}")
    outputs.write_json(args.out / "method.json", content)


if __name__ == "__main__":
    sys.exit(cli_main(main))
