"""Seeds, prototypes and IS-CAM with their gradients: matrix products against the authors' broadcasting.

    python -m benchmarks.prototypes [--batch 16] [--classes 81] [--device cpu]

The default sizes are COCO's in training at a crop of 512. Broadcasting, which has a mask of the crop's size for each class, too, needs some
13 GB there, and less with a smaller --batch.
"""

import argparse
import sys
from argparse import Namespace

import torch
import torch.nn.functional as F

from network import prototypes
from network.losses import consistency_loss
from network.sipe import general_cam, label_mask
from tool import stage

from . import measure, release

STRIDE = 16


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--batch", type=int, default=16, help="pictures (default 16)")
    parser.add_argument("--classes", type=int, default=81, help="classes with the background (default 81, as in COCO)")
    parser.add_argument("--grid", type=int, default=32, help="side of the grid, cells; the crop's is 16 times as long (default 32)")
    parser.add_argument(
        "--widths",
        type=int,
        nargs=2,
        default=[2048, 768],
        metavar=("SEED", "MAP"),
        help="channels of layer4 and of the hierarchical feature",
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def draw(args: Namespace) -> dict[str, torch.Tensor]:
    """What the network would hand over, smooth as its maps are: three classes a picture, a quarter of which is padding."""
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int) -> torch.Tensor:
        coarse = torch.randn(args.batch, channels, 4, 4, generator=generator)
        return F.interpolate(coarse, (args.grid, args.grid), mode="bicubic", align_corners=True)

    label = torch.zeros(args.batch, args.classes - 1)
    label.scatter_(1, torch.rand(label.shape, generator=generator).topk(min(3, args.classes - 1)).indices, 1)
    inside = torch.ones(args.batch, args.grid * STRIDE, args.grid * STRIDE, dtype=torch.bool)
    inside[:, : args.grid * STRIDE // 4] = False
    layer4, features = (smooth(width).relu().contiguous(memory_format=torch.channels_last) for width in args.widths)
    drawn = {"label": label, "inside": inside, "cam": general_cam(smooth(args.classes - 1)), "layer4": layer4, "features": features}
    return {name: value.to(stage.choose_device(args.device)) for name, value in drawn.items()}


def products(cam, layer4, features, label, inside) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    valid = label_mask(label) * F.interpolate(inside[:, None].float(), cam.shape[2:], mode="nearest")
    cam = cam * valid
    seeds = prototypes.locate_seeds(cam, layer4, valid)
    return cam, seeds, prototypes.activate(prototypes.pool_prototypes(seeds, features), features)


def broadcasting(cam, layer4, features, label, inside) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    valid = F.interpolate(release.full_masks(label, inside), cam.shape[2:], mode="nearest")
    cam = cam * valid
    seeds = release.locate_seeds(cam, layer4, valid)
    return cam, seeds, release.activate(release.pool_prototypes(seeds, features), features)


def forward_and_backward(formula, drawn: dict[str, torch.Tensor]) -> dict:
    leaf = drawn["features"].detach().requires_grad_()
    cam, seeds, is_cam = formula(**drawn | {"features": leaf})
    consistency_loss(cam, is_cam).backward()
    return {"seeds": seeds.cpu().numpy(), "IS-CAM": is_cam.detach().cpu().numpy(), "gradient": leaf.grad.cpu().numpy()}


def prepare(args: Namespace, formula) -> measure.Work:
    forward_and_backward(formula, draw(argparse.Namespace(batch=1, classes=3, grid=4, widths=[8, 8], device=args.device)))
    drawn = draw(args)
    return lambda: forward_and_backward(formula, drawn)


def ours(args: Namespace) -> measure.Work:
    return prepare(args, products)


def plain(args: Namespace) -> measure.Work:
    return prepare(args, broadcasting)


VERSIONS = {"products": ours, "broadcasting": plain}


def main(argv: list[str] | None = None) -> None:
    products, broadcasting = measure.compare(VERSIONS, parse_args(argv)).values()
    print(measure.line("prototypes", products, broadcasting))
    print(measure.told(measure.differences(products.result, broadcasting.result)))


if __name__ == "__main__":
    sys.exit(stage.run(main))
