"""Train and score recipes on the same images: mIoU of the IS-CAMs and of the CRF's labels.

    python -m benchmarks.method --recipe sipe plus --seeds 1 2 3 --dataset_root VOC2012 \\
        --list train --out runs/method [--weights FILE]

One training per seed serves all recipes; they differ in what follows. It has half the published
sizes: crops of 256, long sides of 160 to 320, five epochs, maps at scales 0.5 0.25 0.75 1.0.
--full takes the published ones. Means are over the seeds, and so are differences to the first
recipe; their 95 % interval is a bootstrap over images. "frequent" is the mean over the background
and the classes with at least 20 training images. Run the same command to resume.
"""

import functools
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import eval_cam
import eval_seg
import make_cam
import make_seg_labels
import train_resnet50_SIPE
from data.registry import Dataset, Sample, Samples, open_dataset
from network.recipe import RECIPES
from tool import metrics, outputs, workers
from tool.context import cli_main
from tool.flags import add_device, add_workers, command_parser, non_negative_int, positive_int

HALF_TRAINING = ("--crop_size", "256", "--resize_long", "160", "320")
HALF_INFERENCE = ("--scales", "0.5", "0.25", "0.75", "1.0")
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles
FREQUENT = 20  # training images
TRAINING = "plus"  # its class prototypes serve every recipe
KINDS = ("IS-CAM", "CRF labels")
# of the table, with their widths
COLUMNS = (("mIoU", 7), ("+-", 6), ("frequent", 10), ("+-", 6), ("difference", 12))


class Difference(NamedTuple):
    """How far the mIoU of a recipe is above that of the first one."""

    gain: float
    interval: list[float]  # low and high


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--recipe",
        nargs="+",
        choices=RECIPES,
        default=list(RECIPES),
        help="recipes, the one to compare with first (default all)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=non_negative_int,
        default=[1, 2, 3],
        help="seeds of the trainings (default 1 2 3)",
    )
    parser.add_argument(
        "--dataset_root", type=Path, required=True, help="folder of VOC 2012, or of its part"
    )
    parser.add_argument(
        "--list",
        default="train",
        help="images with masks: a list's name or a text file (default train)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/method"),
        help="folder of the results (default runs/method)",
    )
    parser.add_argument(
        "--weights", default="imagenet", help="as of train_resnet50_SIPE.py (default imagenet)"
    )
    parser.add_argument(
        "--max_epochs", type=positive_int, default=5, help="epochs of the training (default 5)"
    )
    parser.add_argument(
        "--full", action="store_true", help="published sizes of crops, images and scales"
    )
    add_device(parser)
    add_workers(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset("voc", args.dataset_root)
    samples = dataset.samples(args.list)
    frequent = find_frequent(dataset)
    of_recipes = []
    for recipe in args.recipe:
        folders = [make_results(args, recipe, seed) for seed in args.seeds]
        of_recipes.append([count(folder, dataset, samples, args) for folder in folders])
    counts = np.array(of_recipes)  # (recipes, seeds, images, kinds, K, K)

    print_heading(args, len(samples))
    content: dict[str, Any] = {"list": args.list, "pictures": len(samples), "seeds": args.seeds}
    for i, kind in enumerate(KINDS):
        content[kind] = compare_recipes(args.recipe, counts[:, :, :, i], frequent)
        for recipe, row in content[kind].items():
            print_row(recipe, kind, row)
    outputs.write_json(args.out / "method.json", content)


def find_frequent(dataset: Dataset) -> np.ndarray:
    """(K,) bool: the background, and the classes that enough training images have."""
    train_samples = dataset.samples(dataset.spec.train_list)
    images_of_class = dataset.tags(train_samples).sum(0)
    return np.array([True, *(images_of_class >= FREQUENT)])


def make_results(args: Namespace, recipe: str, seed: int) -> Path:
    """Train unless that is done, localize and refine; returns the folder of the results."""
    folder = args.out / f"{recipe}_{seed}"
    trained = args.out / f"training_{seed}"
    data = ["--dataset_root", str(args.dataset_root), "--num_workers", str(args.num_workers)]
    on_device = [*data, "--device", args.device, "--amp", args.amp]
    results = ["--run_dir", str(folder), "--list", args.list]

    training = [*on_device, "--run_dir", str(trained), "--recipe", TRAINING]
    training += ["--seed", str(seed), "--weights", args.weights]
    training += ["--max_epochs", str(args.max_epochs)]
    inference = [*on_device, *results, "--recipe", recipe]
    inference += ["--ckpt", str(trained / "ckpt/final.pth")]
    if not args.full:
        training += HALF_TRAINING
        inference += HALF_INFERENCE

    train_resnet50_SIPE.main(training)
    make_cam.main(inference)
    make_seg_labels.main([*data, *results, "--refine", "crf"])
    return folder


def count(folder: Path, dataset: Dataset, samples: Samples, args: Namespace) -> list[np.ndarray]:
    """The confusion matrices of each image, in the order of the samples: (2, K, K) each."""
    work = functools.partial(compare, folder=folder, num_classes=dataset.num_classes)
    by_name = dict(workers.parallel_map(work, samples, args.num_workers))
    return [by_name[name] for name in samples.names()]


def compare(sample: Sample, folder: Path, num_classes: int) -> tuple[str, np.ndarray]:
    """An image's name, and its confusion matrices of each of KINDS: (2, K, K)."""
    _, maps = eval_cam.compare(sample, folder, ["is_cam"], num_classes)
    _, labels = eval_seg.compare(sample, folder / "seg_label", num_classes)
    return sample.name, np.stack([maps["is_cam"], labels["label"]])


def compare_recipes(
    recipes: list[str], counts: np.ndarray, frequent: np.ndarray
) -> dict[str, dict[str, Any]]:
    """The row of each recipe, from counts (recipes, seeds, images, K, K)."""
    rows = {}
    for i, recipe in enumerate(recipes):
        row = summarize(counts[i], frequent)
        if recipe != recipes[0]:
            pair = np.stack([counts[0], counts[i]])
            row |= difference(pair, np.random.default_rng(0))._asdict()
            row["difference"] = row.pop("gain")
        rows[recipe] = row
    return rows


def summarize(counts: np.ndarray, frequent: np.ndarray) -> dict[str, Any]:
    """Mean and deviation over the seeds: counts (seeds, images, K, K); frequent (K,) bool."""
    ious = np.stack([metrics.iou(of_seed) for of_seed in counts.sum(1)])
    means = {"mIoU": np.nanmean(ious, 1), "frequent": np.nanmean(ious[:, frequent], 1)}
    summary = {}
    for name, of_seeds in means.items():
        summary[name] = {
            "mean": float(of_seeds.mean()),
            "deviation": float(of_seeds.std()),
            "of_seeds": of_seeds.tolist(),
        }
    return summary


def difference(counts: np.ndarray, rng: np.random.Generator) -> Difference:
    """Compare the second recipe with the first: counts (2, seeds, images, K, K)."""
    num_images = counts.shape[2]
    gains = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(num_images, size=num_images)
        gains.append(gain_on(chosen, counts))
    bounds = np.percentile(gains, INTERVAL)
    gain = gain_on(np.arange(num_images), counts)
    return Difference(gain, [float(bound) for bound in bounds])


def gain_on(images: np.ndarray, counts: np.ndarray) -> float:
    """By how much the mean mIoU of the second recipe is above the first's on these images."""
    first, second = counts[:, :, images].sum(2)  # (seeds, K, K) each
    return mean_miou(second) - mean_miou(first)


def mean_miou(matrices: np.ndarray) -> float:
    return float(np.mean([metrics.miou(matrix) for matrix in matrices]))


def print_heading(args: Namespace, num_images: int) -> None:
    seeds = " ".join(map(str, args.seeds))
    print(f"\n{num_images} images of {args.list}, seeds {seeds}\n")
    columns = "".join(f"{title:>{width}}" for title, width in COLUMNS)
    print(f"{'recipe':<10}{'maps':<12}{columns}  95 % interval")


def print_row(recipe: str, kind: str, row: dict[str, Any]) -> None:
    miou = row["mIoU"]
    frequent = row["frequent"]
    text = f"{miou['mean']:>7.2f}{miou['deviation']:>6.2f}"
    text += f"{frequent['mean']:>10.2f}{frequent['deviation']:>6.2f}"
    if "difference" in row:
        low, high = row["interval"]
        text += f"{row['difference']:>12.2f}  {low:.2f} to {high:.2f}"
    print(f"{recipe:<10}{kind:<12}{text}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
