"""A segmentation network as one ONNX file, to run without PyTorch.

    python export_network.py --ckpt runs/voc/ckpt/seg.pth [--float16]

Writes CKPT with the ending .onnx. Its input `image` (B, 3, H, W) float32, of any batch and size, is RGB in [0, 1] normalised
by `mean` and `std`; its output is `logits` (B, K, H, W) float32. Its metadata are `class_names`, background first, `mean` and `std`: JSON.
examples/onnx_predict.py runs it with onnxruntime. Needs pip install onnx onnxscript, and PyTorch 2.8.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from data.transforms import IMAGENET_MEAN, IMAGENET_STD
from errors import InputError
from tool.context import cli_main
from tool.flags import add_switch, command_parser
from tool.inference import load_model
from tool.outputs import atomic_write

IS_TOO_OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (
    2,
    8,
)  # it exports a network for one size of image


class FullSize(nn.Module):
    """A segmentation network with logits (B, K, H, W) of the size of its image (B, 3, H, W); both are float32, whatever it computes in."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image.to(self.dtype)).float()
        return F.interpolate(
            logits, image.shape[2:], mode="bilinear", align_corners=self.network.align_corners
        )


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of train_seg.py")
    parser.add_argument(
        "--format", choices=["onnx"], default="onnx", help="form of the network (default onnx)"
    )
    add_switch(parser, "--float16", "compute in float16, in a file of half the size")
    args = parser.parse_args(argv)
    if IS_TOO_OLD:
        raise InputError(
            f"PyTorch {torch.__version__}: exports a network for one size of image; install 2.8 or newer"
        )
    model = load_model(args.ckpt, "cpu")
    network = model.network
    class_names = model.class_names
    if model.needs_tags:
        raise InputError(
            f"{args.ckpt}: is SIPE, which needs tags; use --ckpt for a network of train_seg.py"
        )
    network = FullSize(network, torch.float16 if args.float16 else torch.float32).eval()
    free = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height"),
        3: torch.export.Dim("width"),
    }
    flags = {
        "input_names": ["image"],
        "output_names": ["logits"],
        "dynamic_shapes": (free,),
        "dynamo": True,
        "verbose": False,
    }
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's remarks on itself
            program = torch.onnx.export(network, (torch.zeros(2, 3, 96, 128),), **flags)
    except ImportError as error:
        raise InputError(
            f"onnx: cannot be imported ({error}); pip install onnx onnxscript"
        ) from None
    about = {"class_names": class_names, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    with atomic_write(args.ckpt.with_suffix(".onnx")) as temporary:
        program.save(temporary)
    print(f"wrote {args.ckpt.with_suffix('.onnx')}: {len(class_names)} classes")


if __name__ == "__main__":
    sys.exit(cli_main(main))
