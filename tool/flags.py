"""The flags that commands share, and the values that they become."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.registry import DATASETS

from . import workers
from .options import PRECISIONS, ResultPolicy, TrainingDefaults, TrainingOptions

MAX_SCALE = 8
MAX_SIDE = 640  # pixels, the longest side in VOC and COCO
MOST_READERS = 8  # worker processes that a stage starts by default if its network does the work
PRACTICALLY_NO_MOMENTUM = 0.01

# a run resumes only with the flags that it began with; a script adds its own
RESUME_FLAGS = (
    "dataset",
    "weights",
    "seed",
    "batch_size",
    "max_epochs",
    "crop_size",
    "lr",
    "momentum",
    "wt_dec",
    "amp",
)


def number_type(
    kind: type, description: str, is_allowed: Callable[[Any], bool]
) -> Callable[[str], Any]:
    """An argparse type for allowed numbers; any other ends with a line that describes them."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is not {description}")
        return value

    return parse


positive_int = number_type(int, "a whole number from 1 up", lambda value: value >= 1)
non_negative_int = number_type(
    int, "a whole number from 0 up, below 2**32", lambda value: 0 <= value < 2**32
)
non_negative_float = number_type(float, "a number from 0 up", lambda value: 0 <= value < 2**32)
scale = number_type(
    float, f"a factor above 0, at most {MAX_SCALE}", lambda value: 0 < value <= MAX_SCALE
)


def command_parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as its help."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def stage_parser(
    doc: str, device: bool = True, max_workers: int | None = MOST_READERS
) -> argparse.ArgumentParser:
    """A parser with the flags that all stages share.

    Args:
        doc: the script's docstring.
        device: add --device and --amp.
        max_workers: most worker processes that the stage starts by default; None: no limit.
    """
    parser = command_parser(doc)
    parser.add_argument(
        "--dataset", choices=list(DATASETS), default="voc", help="kind of dataset (default voc)"
    )
    parser.add_argument("--dataset_root", help="folder of the dataset (default ./VOC2012 for voc)")
    parser.add_argument(
        "--run_dir",
        "--session_name",
        type=Path,
        help="folder for everything that this run writes; all its stages share it"
        " (default runs/DATASET)",
    )
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


def prepare_parser(doc: str, max_workers: int | None) -> argparse.ArgumentParser:
    """A parser with the flags of all commands that prepare a dataset.

    max_workers: as in `add_workers`.
    """
    parser = command_parser(doc)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of the dataset, or of its archives"
    )
    add_switch(parser, "--overwrite", "replace lists, tags and masks that are there")
    add_workers(parser, max_workers)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device and --amp."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (CUDA if there is one), cpu, cuda or cuda:N (default auto)",
    )
    parser.add_argument(
        "--amp",
        choices=PRECISIONS,
        default="off",
        help="precision of the convolutions; the rest stays in float32"
        " (default off: float32 as published, TF32 on GPUs that have it)",
    )


def add_workers(parser: argparse.ArgumentParser, max_workers: int | None = MOST_READERS) -> None:
    """Add --num_workers; max_workers: most of them by default, None: no limit."""
    limit = f", at most {max_workers}" if max_workers else ""
    parser.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=workers.default_count(max_workers),
        help="worker processes that read images, for each process of torchrun;"
        f" 0: the main process reads them (default: one a core{limit})",
    )


def add_recipe(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add --recipe; None: that of the checkpoint."""
    from network.recipe import RECIPES  # imports torch, which most commands do without

    shown = default or "that of the checkpoint"
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default=default,
        help="sipe as published, or plus for other IS-CAMs of the same network;"
        f" see docs/results.md (default {shown})",
    )


def add_max_side(parser: argparse.ArgumentParser) -> None:
    """Add --max_side."""
    parser.add_argument(
        "--max_side",
        type=non_negative_int,
        default=MAX_SIDE,
        help="shrink larger images to this side first, in pixels, so that training and inference"
        f" see objects at one size; 0: never (default {MAX_SIDE}, as VOC and COCO)",
    )


def add_switch(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    """Add a boolean flag that is off by default; text: its help."""
    parser.add_argument(
        flag,
        action=argparse.BooleanOptionalAction,
        default=False,
        help=f"{text} (default off)",
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite and --strict."""
    add_switch(parser, "--overwrite", "delete the results in the output folder and make them again")
    add_switch(
        parser,
        "--strict",
        "stop at the first image that cannot be read,"
        " instead of naming all of them at the end, with status 3",
    )


def result_policy(args: argparse.Namespace) -> ResultPolicy:
    """The value of the flags that `add_results` adds."""
    return ResultPolicy(args.overwrite, args.strict)


def add_scales(parser: argparse.ArgumentParser, default: list[float], note: str = "") -> None:
    """Add --scales of inference; note: added to its help."""
    shown = " ".join(str(value) for value in default)
    parser.add_argument(
        "--scales",
        type=scale,
        nargs="+",
        default=default,
        help=f"sizes relative to the image, each used with its mirror{note} (default {shown})",
    )


def add_training_flags(
    parser: argparse.ArgumentParser, defaults: TrainingDefaults, lr_help: str
) -> None:
    """Add the flags that all training scripts share; lr_help: what the learning rate is of."""
    is_published = defaults.momentum < PRACTICALLY_NO_MOMENTUM
    momentum_note = "; the published numbers have practically none" if is_published else ""
    add = parser.add_argument
    add(
        "--list",
        "--train_list",
        help="training images: a list's name or a text file"
        " (default: train_aug of voc, train of coco, all tagged images of a folder)",
    )
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="resume from the last checkpoint; --no-resume starts over (default: resume)",
    )
    add(
        "--seed",
        type=non_negative_int,
        default=15,
        help="seed of weights, order and augmentation (default 15)",
    )
    add(
        "--batch_size",
        type=positive_int,
        default=defaults.batch_size,
        help=f"images a step, over all processes (default {defaults.batch_size})",
    )
    add(
        "--max_epochs",
        "--max_epoches",
        type=positive_int,
        default=defaults.max_epochs,
        help=f"passes over the images (default {defaults.max_epochs})",
    )
    add(
        "--crop_size",
        type=positive_int,
        default=512,
        help="side of the training crop in pixels, best a multiple of 16 (default 512)",
    )
    add(
        "--lr",
        type=non_negative_float,
        default=defaults.lr,
        help=f"{lr_help} (default {defaults.lr})",
    )
    add(
        "--momentum",
        type=non_negative_float,
        default=defaults.momentum,
        help=f"SGD's momentum{momentum_note} (default {defaults.momentum})",
    )
    add(
        "--wt_dec",
        type=non_negative_float,
        default=defaults.weight_decay,
        help=f"weight decay (default {defaults.weight_decay})",
    )
    add_switch(
        parser,
        "--compile",
        "compile the network with torch.compile,"
        " which takes minutes at the start and a C++ compiler",
    )
    add(
        "--save_every",
        type=non_negative_int,
        default=500,
        help="steps between checkpoints within an epoch; 0: none (default 500)",
    )
    add(
        "--log_every",
        "--print_freq",
        type=positive_int,
        default=50,
        help="steps between scalars in TensorBoard; images come every tenth time (default 50)",
    )


def add_weights(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Add --weights; note: what the script takes besides."""
    parser.add_argument(
        "--weights",
        default="imagenet",
        help="initial weights of the backbone: imagenet (torchvision's V1, downloaded once)"
        f" or a file of its state dict in torchvision's layout{note} (default imagenet)",
    )


def add_scale_range(parser: argparse.ArgumentParser, low: float, high: float) -> None:
    """Add --scales of training."""
    parser.add_argument(
        "--scales",
        type=scale,
        nargs=2,
        default=[low, high],
        metavar=("MIN", "MAX"),
        help="range of the random factor by which images are resized before the crop"
        f" (default {low} {high})",
    )


def parse_training(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """`parse_stage`; ends with argparse's error if a range is not in order."""
    args = parse_stage(parser, argv)
    for flag in ("scales", "resize_long"):
        low, high = getattr(args, flag, (0, 0))
        if low > high:
            parser.error(f"--{flag} takes the smallest and the largest value, in this order")
    return args


def training_options(args: argparse.Namespace) -> TrainingOptions:
    """The value of the flags that `add_training_flags` adds."""
    return TrainingOptions(
        batch_size=args.batch_size,
        max_epochs=args.max_epochs,
        crop_size=args.crop_size,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.wt_dec,
        seed=args.seed,
        resume=args.resume,
        save_every=args.save_every,
        log_every=args.log_every,
        num_workers=args.num_workers,
        compile=args.compile,
    )


def resume_arguments(args: argparse.Namespace, names: Sequence[str], digest: str) -> dict[str, Any]:
    """What must stay the same if a training resumes.

    Args:
        args: parsed flags.
        names: of the flags among them, such as RESUME_FLAGS.
        digest: of the classes, images and targets that the network learns from.
    """
    arguments = {name: getattr(args, name) for name in names}
    arguments["digest"] = digest
    return arguments
