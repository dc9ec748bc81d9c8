"""End with one line if PyTorch can use fewer GPUs than a chain asks for.

python -m tool.gpus N
"""

import sys

import torch

from errors import InputError

from .context import cli_main, has_usable_gpu
from .flags import command_parser, positive_int


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("needed", metavar="N", type=positive_int, help="number of GPUs")
    check_gpus(parser.parse_args(argv).needed)


def check_gpus(needed: int) -> None:
    """Raise InputError if PyTorch can use fewer GPUs."""
    count = torch.cuda.device_count() if has_usable_gpu() else 0
    if count < needed:
        raise InputError(
            f"--gpus {needed}: this machine has {count} CUDA GPUs that PyTorch can use;"
            " use as many, or leave --gpus out"
        )


if __name__ == "__main__":
    sys.exit(cli_main(main))
