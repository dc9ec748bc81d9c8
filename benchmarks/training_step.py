"""A whole training step of SIPE: against its bare ResNet-50, and against itself with the authors' broadcasting.

    python -m benchmarks.training_step [--batch 4] [--crop 512] [--device auto]

A step is forward, losses, backward and optimizer, from uint8 crops on. The bare ResNet-50 is torchvision's under a linear head, with the
same frozen layers and the same stride taken away. SIPE has besides side branches, IPE and the clipping of the gradient, and gains from
BatchNorm as part of its convolutions and, on a CPU, from memory that is kept; a second bare network has both, too, so that it tells what
the method itself costs. Broadcasting has the first, as it goes through the same network.
"""

import argparse
import functools
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50

import train_resnet50_SIPE
from data.transforms import normalize
from network.losses import classification_loss
from network.resnet import WIDTHS, ResNet50, keep_statistics
from network.sipe import SIPE, Localization, general_cam
from tool import stage, training

from . import measure, release


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = measure.parser(__doc__, repeats=5)
    add_flags(parser)
    return parser.parse_args(argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What `sipe` and the other versions read."""
    parser.add_argument("--batch", type=int, default=4, help="pictures a step (default 4)")
    parser.add_argument("--crop", type=int, default=512, help="side of the crop, pixels (default 512)")
    parser.add_argument("--classes", type=int, default=21, help="classes with the background (default 21, as in VOC)")
    stage.add_device(parser)


class Broadcast(SIPE):
    """SIPE by the authors' broadcasting."""

    def forward(self, image: torch.Tensor, label: torch.Tensor, inside: torch.Tensor) -> Localization:
        logits, layer4, features = self.describe(image)
        valid = F.interpolate(release.full_masks(label, inside), logits.shape[2:], mode="nearest")
        cam = general_cam(logits) * valid
        with torch.autocast(cam.device.type, enabled=False):
            seeds = release.locate_seeds(cam, layer4.detach().float(), valid)
            is_cam = release.activate(release.pool_prototypes(seeds, features), features)
        return Localization(logits.float().mean((2, 3)), cam, is_cam, seeds)


class BareResNet50(nn.Module):
    """torchvision's network with what SIPE's backbone has frozen and taken away; its forward is its own."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.trunk = resnet50(weights=None, num_classes=num_classes - 1)
        self.trunk.layer4[0].conv2.stride = self.trunk.layer4[0].downsample[0].stride = (1, 1)
        for module in (self.trunk.conv1, self.trunk.bn1, self.trunk.layer1, self.trunk.layer2):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "BareResNet50":
        super().train(mode)
        keep_statistics(self)
        return self

    def backbone_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad and p.shape[0] != self.trunk.fc.out_features]

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.trunk.fc.parameters())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.trunk(image)


class FoldedResNet50(ResNet50):
    """SIPE's own backbone under the same head."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(WIDTHS[-1], num_classes - 1)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("fc.")]

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.fc.parameters())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(super().forward(image)[-1].mean((2, 3)))


def bare_step(model: nn.Module, batch: dict, course: training.Training) -> tuple[dict[str, torch.Tensor], None]:
    with course.run.autocast():
        loss = classification_loss(model(normalize(batch["image"], batch["inside"])), batch["label"])
    course.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    course.optimizer.step()
    return {"cls": loss}, None


def draw(batch: int, crop: int, classes: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as the loader gives it: noise, two classes a picture, an eighth of it padding."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (batch, 3, crop, crop), generator=generator, dtype=torch.uint8)
    label = torch.zeros(batch, classes - 1)
    label.scatter_(1, torch.rand(label.shape, generator=generator).topk(2).indices, 1)
    inside = torch.ones(batch, crop, crop, dtype=torch.bool)
    inside[:, : crop // 8] = False
    return {name: value.to(device) for name, value in {"image": image, "inside": inside, "label": label}.items()}


def prepare(args: Namespace, build: Callable[[int], nn.Module], step: Callable, as_stage: bool = False) -> measure.Work:
    """A course of training, and its first steps, one a call, always on one batch; as_stage: with the allocator of the stage."""
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    flags = train_resnet50_SIPE.parse_args(["--run_dir", str(folder), "--lr", "1e-6"])  # nothing is to be learnt
    run = stage.Stage(stage.choose_device(args.device), 0, 1, folder, stage.AMP[args.amp])
    course = training.Training(flags, run, {}, (), folder / "last.pth", folder / "final.pth", 1000, folder / "tensorboard")
    if as_stage and not run.on_gpu:
        stage.keep_freed_memory()
    stage.seed_everything(0)
    model = build(args.classes).to(run.device, memory_format=torch.channels_last).train()
    course.begin(model, model.backbone_parameters(), model.head_parameters())
    course.journal.close()
    batch = draw(args.batch, args.crop, args.classes, run.device)

    def work() -> dict[str, np.ndarray]:
        losses, found = step(model, batch, course)
        maps = {"seeds": found.seeds, "IS-CAM": found.is_cam} if found else {}
        return {name: value.detach().cpu().numpy() for name, value in (losses | maps).items()}

    return work


sipe = functools.partial(prepare, build=SIPE, step=train_resnet50_SIPE.train_step, as_stage=True)
VERSIONS = {
    "sipe": sipe,
    "bare": functools.partial(prepare, build=BareResNet50, step=bare_step),
    "folded": functools.partial(prepare, build=FoldedResNet50, step=bare_step, as_stage=True),
    "broadcast": functools.partial(prepare, build=Broadcast, step=train_resnet50_SIPE.train_step),
}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as args.folder:
        costs = measure.compare(VERSIONS, args)
    print(measure.line("step, bare ResNet-50", costs["sipe"], costs["bare"]))
    print(measure.line("step, our bare ResNet-50", costs["sipe"], costs["folded"]))
    print(measure.line("step, broadcasting", costs["sipe"], costs["broadcast"]))
    print(measure.told(measure.differences(costs["sipe"].result, costs["broadcast"].result)))


if __name__ == "__main__":
    sys.exit(stage.run(main))
