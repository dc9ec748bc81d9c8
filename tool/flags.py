"""The flags that commands share, and what their values mean."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.registry import DATASETS
from network.recipe import RECIPES

from .context import AMP

MAX_SCALE = 8
MAX_SIDE = 640  # pixels, the longest side in VOC and COCO


def _number(kind: type, wanted: str, is_allowed: Callable[[Any], bool]) -> Callable[[str], Any]:
    """An argparse type: numbers that are allowed; others end with a line that says what is wanted."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return parse


positive_int = _number(int, "a whole number from 1 up", lambda value: value >= 1)
non_negative_int = _number(
    int, "a whole number from 0 up, below 2**32", lambda value: 0 <= value < 2**32
)
non_negative_float = _number(float, "a number from 0 up", lambda value: 0 <= value < 2**32)
scale = _number(
    float, f"a factor above 0, at most {MAX_SCALE}", lambda value: 0 < value <= MAX_SCALE
)


def command_parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as its help."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def stage_parser(
    doc: str, device: bool = True, max_workers: int | None = 8
) -> argparse.ArgumentParser:
    """A parser with the flags that all stages share; max_workers: most worker processes that the stage starts by default."""
    parser = command_parser(doc)
    parser.add_argument(
        "--dataset", choices=list(DATASETS), default="voc", help="kind of dataset (default voc)"
    )
    parser.add_argument("--dataset_root", help="folder of the dataset (default ./VOC2012 for voc)")
    run_dir = (
        "folder for everything that this run writes; all its stages share it (default runs/DATASET)"
    )
    parser.add_argument("--run_dir", "--session_name", type=Path, help=run_dir)
    if device:
        add_device(parser)
    add_workers(parser, max_workers)
    return parser


def parse_stage(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags of a stage and fill in the defaults that depend on the dataset."""
    args = parser.parse_args(argv)
    if args.dataset_root is None and args.dataset != "voc":
        parser.error(f"--dataset {args.dataset} needs --dataset_root")
    args.dataset_root = args.dataset_root or "./VOC2012"
    args.run_dir = args.run_dir or Path("runs") / args.dataset
    return args


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device and --amp."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (CUDA if there is one), cpu, cuda or cuda:N (default auto)",
    )
    amp = "precision of the convolutions; the rest stays in float32 (default off: float32 as published, TF32 on GPUs that have it)"
    parser.add_argument("--amp", choices=AMP, default="off", help=amp)


def add_workers(parser: argparse.ArgumentParser, max_workers: int | None = 8) -> None:
    """Add --num_workers; max_workers: most of them by default."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cores = max(
        1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    )  # torchrun's processes share a machine
    text = "worker processes that read images, for each process of torchrun; 0: the main process reads them"
    text += f" (default: one a core{f', at most {max_workers}' if max_workers else ''})"
    parser.add_argument(
        "--num_workers", type=non_negative_int, default=min(max_workers or cores, cores), help=text
    )


def add_recipe(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add --recipe; None: that of the checkpoint."""
    text = "sipe as published, or plus for other IS-CAMs of the same network; see docs/results.md"
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default=default,
        help=f"{text} (default {default or 'that of the checkpoint'})",
    )


def add_max_side(parser: argparse.ArgumentParser) -> None:
    """Add --max_side."""
    text = "shrink larger images to this side first, in pixels, so that training and inference see objects at one size; 0: never"
    parser.add_argument(
        "--max_side",
        type=non_negative_int,
        default=MAX_SIDE,
        help=f"{text} (default {MAX_SIDE}, as VOC and COCO)",
    )


def add_switch(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    """Add a boolean flag that is off by default; text: its help."""
    parser.add_argument(
        flag, action=argparse.BooleanOptionalAction, default=False, help=f"{text} (default off)"
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite and --strict."""
    add_switch(parser, "--overwrite", "delete the results in the output folder and make them again")
    add_switch(
        parser,
        "--strict",
        "stop at the first image that cannot be read, instead of naming all of them at the end, with status 3",
    )


def add_scales(parser: argparse.ArgumentParser, default: list[float], note: str = "") -> None:
    """Add --scales of inference; note: added to its help."""
    text = f"sizes relative to the image, each used with its mirror{note} (default {' '.join(map(str, default))})"
    parser.add_argument("--scales", type=scale, nargs="+", default=default, help=text)
