"""A segmentation network as one ONNX file, to run without PyTorch.

    python export_network.py --ckpt runs/voc/ckpt/seg.pth [--float16]

Writes CKPT with the ending .onnx. Its input `image` (B, 3, H, W) float32, of any batch and size, is
RGB in [0, 1] normalised by `mean` and `std`; its output is `logits` (B, K, H, W) float32. Its
metadata are `class_names`, background first, `mean` and `std`: JSON. examples/onnx_predict.py runs
it with onnxruntime. Needs pip install onnx onnxscript, and PyTorch 2.8.
"""

import argparse
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

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
IS_TOO_OLD = TORCH_VERSION < (2, 8)  # older ones export a network for one size of image


class FullSize(nn.Module):
    """A segmentation network with logits of its image's size.

    Image (B, 3, H, W) -> logits (B, K, H, W), both float32; dtype: what it computes in.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image.to(self.dtype)).float()
        return F.interpolate(
            logits, image.shape[2:], mode="bilinear", align_corners=self.network.align_corners
        )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of train_seg.py")
    parser.add_argument(
        "--format", choices=["onnx"], default="onnx", help="form of the network (default onnx)"
    )
    add_switch(parser, "--float16", "compute in float16, in a file of half the size")
    return parser.parse_args(argv)


def export_onnx(network: nn.Module) -> torch.onnx.ONNXProgram:
    """Export a network for images of any number and size.

    Raises InputError if the packages that this needs are not installed.
    """
    example = torch.zeros(2, 3, 96, 128)
    dimensions = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height"),
        3: torch.export.Dim("width"),
    }
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's remarks on itself
            return torch.onnx.export(
                network,
                (example,),
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=(dimensions,),
                dynamo=True,
                verbose=False,
            )
    except ImportError as error:
        raise InputError(
            f"onnx: cannot be imported ({error}); pip install onnx onnxscript"
        ) from None


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if IS_TOO_OLD:
        raise InputError(
            f"PyTorch {torch.__version__}: exports a network for one size of image;"
            " install 2.8 or newer"
        )
    model = load_model(args.ckpt, "cpu")
    if model.needs_tags:
        raise InputError(
            f"{args.ckpt}: is SIPE, which needs tags; use --ckpt for a network of train_seg.py"
        )
    dtype = torch.float16 if args.float16 else torch.float32
    program = export_onnx(FullSize(model.network, dtype).eval())
    metadata = {"class_names": model.class_names, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    for name, value in metadata.items():
        program.model.metadata_props[name] = json.dumps(value)
    target = args.ckpt.with_suffix(".onnx")
    with atomic_write(target) as temporary:
        program.save(temporary)
    print(f"wrote {target}: {len(model.class_names)} classes")


if __name__ == "__main__":
    sys.exit(cli_main(main))
