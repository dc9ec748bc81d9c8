"""What every training stage shares: flags, a recipe that a run keeps, checkpoints to go on from, and what is shown meanwhile."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from errors import InputError

from . import checkpoint, optim
from .journal import Journal
from .stage import Stage

# a run goes on only with the recipe that it began with; a stage adds its own flags
RECIPE = ("dataset", "weights", "seed", "batch_size", "max_epochs", "crop_size", "lr", "momentum", "wt_dec", "amp")


def add_flags(
    parser: argparse.ArgumentParser,
    batch_size: int,
    max_epochs: int,
    lr_help: str,
    lr: float | None = 0.1,
    momentum: float = 1e-4,
    wt_dec: float = 1e-4,
) -> None:
    """Give a training stage the flags that all of them have; the numbers are their defaults. lr None: the stage chooses, and says how."""
    parser.add_argument(
        "--list",
        "--train_list",
        help="training pictures: a list's name or a text file (default: train_aug of voc, train of coco, all tagged pictures of a folder)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from where the run was stopped; --no-resume starts over (default: resume)",
    )
    parser.add_argument("--seed", type=int, default=15, help="of weights, order and augmentation (default 15)")
    parser.add_argument(
        "--batch_size", type=int, default=batch_size, help=f"pictures a step, all processes together (default {batch_size})"
    )
    parser.add_argument(
        "--max_epochs", "--max_epoches", type=int, default=max_epochs, help=f"times that every picture is seen (default {max_epochs})"
    )
    parser.add_argument("--crop_size", type=int, default=512, help="side of the training crop, pixels, best a multiple of 16 (default 512)")
    parser.add_argument("--lr", type=float, default=lr, help=lr_help if lr is None else f"{lr_help} (default {lr})")
    published = "; the published numbers have practically none" if momentum < 0.01 else ""
    parser.add_argument("--momentum", type=float, default=momentum, help=f"of SGD{published} (default {momentum})")
    parser.add_argument("--wt_dec", type=float, default=wt_dec, help=f"weight decay (default {wt_dec})")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compile the network with torch.compile, which takes minutes at the start and a C++ compiler; a stopped run may go on with it "
        "or without (default off)",
    )
    parser.add_argument(
        "--save_every", type=int, default=500, help="save progress every so many steps too; 0: only after an epoch (default 500)"
    )
    parser.add_argument(
        "--log_every",
        "--print_freq",
        type=int,
        default=50,
        help="steps between scalars in TensorBoard; pictures come 10 times as rarely (default 50)",
    )


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with argparse's error where a number is out of its range."""
    for flag in ("batch_size", "max_epochs", "crop_size", "log_every"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} is at least 1")
    for flag in ("seed", "lr", "momentum", "wt_dec", "save_every"):
        if not 0 <= getattr(args, flag) < 2**32:
            parser.error(f"--{flag} is at least 0, and below 2 to the 32nd")


def check_scale_range(parser: argparse.ArgumentParser, scales: Sequence[float]) -> None:
    """End with argparse's error where a range of random factors is none."""
    if not 0 < scales[0] <= scales[1] <= 8:
        parser.error("--scales takes the smallest and the largest factor, above 0 and at most 8")


def check_batch(args: argparse.Namespace, pictures: int, processes: int) -> None:
    """Raise InputError where the pictures do not fill a batch or the processes cannot share it out."""
    if pictures < args.batch_size:
        raise InputError(f"--list {args.list}: {pictures} pictures do not fill a batch; use --batch_size {pictures} or less")
    if args.batch_size % processes:
        raise InputError(f"--batch_size {args.batch_size}: is not a multiple of the {processes} processes; choose one that is")


def recipe(args: argparse.Namespace, flags: Sequence[str], digest: str) -> dict[str, Any]:
    """What a run keeps to its end: these flags, and (the digest of) the pictures, labels and classes that it learns from."""
    return {name: getattr(args, name) for name in flags} | {"digest": digest}


class Training:
    """The course of one training, from the first step or from where it was stopped to its final checkpoint.

    Args:
        kept: what the run keeps to its end: its recipe, and (the digest of) what it learns from.
        class_names: noted in the checkpoints.
        last, final: the checkpoint to go on from, which goes away at the end, and the one that the next stage reads.
        epoch_steps: steps an epoch.
        log_dir: for TensorBoard.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        run: Stage,
        kept: dict[str, Any],
        class_names: tuple[str, ...],
        last: Path,
        final: Path,
        epoch_steps: int,
        log_dir: Path,
    ):
        self.args, self.run, self.kept, self.last, self.final = args, run, kept, last, final
        self.about = {"arguments": kept, "class_names": list(class_names)}
        self.epoch_steps, self.steps = epoch_steps, epoch_steps * args.max_epochs
        self.log_dir = log_dir
        self.step = self.start = 0
        self.is_complete = args.resume and final.is_file() and bool(self._read_own(final))
        self._before = None if self.is_complete or not (args.resume and last.is_file()) else self._read_own(last)

    def _read_own(self, path: Path) -> dict[str, Any]:
        """A checkpoint that this very run wrote. Raises InputError for one of another recipe."""
        content = checkpoint.read(path)
        before = checkpoint.arguments(content)
        changed = [name for name, value in self.kept.items() if before.get(name) != value]
        if changed:
            told = [f"--{name} {before.get(name)} (now {self.kept[name]})" for name in changed if name != "digest"]
            told = told or ["other pictures, tags, labels or classes than there are now"]
            raise InputError(f"{path}: was trained with {', '.join(told)}; use the same again, another --run_dir, or --no-resume")
        return content

    def begin(self, model: nn.Module, backbone: Iterable[nn.Parameter], heads: Iterable[nn.Parameter]) -> None:
        """Make the optimizer of both groups; put all back to where the stopped run left it, torch's generator too."""
        args = self.args
        self.scaler = torch.amp.GradScaler(self.run.device.type, enabled=self.run.amp is torch.float16)
        self.optimizer, self.schedule = optim.poly_sgd(
            backbone, heads, args.lr, self.steps, args.momentum, args.wt_dec, fused=not self.scaler.is_enabled()
        )
        self.parts = {"model": model, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        if not self.args.resume and self.run.is_main:  # what is left of an earlier training must not pass for this one
            self.last.unlink(missing_ok=True)
            self.final.unlink(missing_ok=True)
        if self._before:
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(self._before[name])
                torch.set_rng_state(self._before["rng"])
                if self.run.on_gpu:
                    torch.cuda.set_rng_state(self._before["gpu_rng"])
                self.start = self._before["step"]
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{self.last}: cannot be resumed ({reason}); use --no-resume to start over") from None
            self._before = None
        self.step = self.start
        is_main = self.run.is_main
        self.journal = Journal(self.log_dir if is_main else None, self.start, self.args.log_every, self.epoch_steps)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The network as the steps call it: spread over the processes, and compiled with --compile.

        It has the model's own weights. The model itself is what is saved, under its own names, and what whole pictures go through.
        """
        spread = DistributedDataParallel(model) if self.run.world_size > 1 else model
        return torch.compile(spread) if self.args.compile else spread

    def batches(self, loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
        """The rest of the batches, on the device, under a bar."""
        self.bar = tqdm(loader, initial=self.start, total=self.steps, desc="train", disable=not self.run.is_main)
        for batch in self.bar:
            self.step += 1
            yield {name: value.to(self.run.device, non_blocking=True) for name, value in batch.items()}

    @property
    def plan(self) -> str:
        """How long the training is and where it begins, in words."""
        return f"{self.steps} steps on {self.run.device}" + (f", from step {self.start}" if self.start else "")

    @property
    def epoch_ends(self) -> bool:
        return self.step % self.epoch_steps == 0

    def descend(self, loss: torch.Tensor, max_norm: float = math.inf) -> torch.Tensor:
        """One step down; returns the gradient's norm before it is clipped to max_norm."""
        return optim.descend(loss, self.optimizer, self.schedule, self.scaler, max_norm)

    def record(self, losses: dict[str, torch.Tensor], picture: Callable[[], np.ndarray], picture_name: str) -> None:
        """Show a step's losses and, more rarely, a picture; save the progress where it is due.

        Raises InputError where the weights to be saved are not finite any more.
        """
        step, save_every = self.step, self.args.save_every
        saves = self.epoch_ends or (save_every and step % save_every == 0)
        model: nn.Module = self.parts["model"]
        if saves and not all(weights.isfinite().all() for weights in model.parameters()):
            raise InputError(f"step {step}: the weights are not finite any more; train anew (--no-resume) with a smaller --lr")
        if self.journal.wants(step):
            lr = self.schedule.get_last_lr()[0]
            speed = (step - self.start) * self.args.batch_size / self.bar.format_dict["elapsed"]
            self.journal.scalars(step, {name: value.item() for name, value in losses.items()} | {"lr": lr, "images/s": speed}, self.bar)
        if self.journal.wants(step, pictures=True):
            self.journal.picture(step, f"train/{picture_name}", picture())
        if self.run.is_main and saves:
            progress = {"step": step, "rng": torch.get_rng_state()}
            if self.run.on_gpu:
                progress["gpu_rng"] = torch.cuda.get_rng_state()
            checkpoint.save(self.last, self.about | progress | {name: part.state_dict() for name, part in self.parts.items()})

    def finish(self) -> None:
        """Write the final checkpoint; the one to go on from is no longer needed."""
        self.journal.close()
        if self.run.is_main:
            checkpoint.save(self.final, self.about | {"model": self.parts["model"].state_dict()})
            self.last.unlink(missing_ok=True)
        self.run.say(f"wrote {self.final}")
