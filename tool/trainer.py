"""The training loop that all training scripts share: flags, optimizer, checkpoints to resume from, logging."""

import argparse
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.datasets import (
    BatchPlan,
    LabelledCrops,
    ResumableBatches,
    TrainingCrops,
    training_loader,
)
from errors import InputError

from . import checkpoint, outputs
from .context import Context
from .flags import (
    add_switch,
    non_negative_float,
    non_negative_int,
    parse_stage,
    positive_int,
    scale,
)
from .results import check_images

# a run resumes only with the flags that it began with; a script adds its own
KEPT = (
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
LATER_FLAGS = {
    "backbone": "resnet50",
    "color_jitter": 0,
}  # what checkpoints without these flags were trained with


def add_flags(
    parser: argparse.ArgumentParser,
    batch_size: int,
    max_epochs: int,
    lr_help: str,
    lr: float = 0.1,
    momentum: float = 1e-4,
    wt_dec: float = 1e-4,
) -> None:
    """Add the flags that all training scripts share; the numbers are their defaults."""
    published = "; the published numbers have practically none" if momentum < 0.01 else ""
    add = parser.add_argument
    images = "training images: a list's name or a text file (default: train_aug of voc, train of coco, all tagged images of a folder)"
    add("--list", "--train_list", help=images)
    resume = "resume from the last checkpoint; --no-resume starts over (default: resume)"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    add(
        "--seed",
        type=non_negative_int,
        default=15,
        help="seed of weights, order and augmentation (default 15)",
    )
    add(
        "--batch_size",
        type=positive_int,
        default=batch_size,
        help=f"images a step, over all processes (default {batch_size})",
    )
    add(
        "--max_epochs",
        "--max_epoches",
        type=positive_int,
        default=max_epochs,
        help=f"passes over the images (default {max_epochs})",
    )
    add(
        "--crop_size",
        type=positive_int,
        default=512,
        help="side of the training crop in pixels, best a multiple of 16 (default 512)",
    )
    add("--lr", type=non_negative_float, default=lr, help=f"{lr_help} (default {lr})")
    add(
        "--momentum",
        type=non_negative_float,
        default=momentum,
        help=f"SGD's momentum{published} (default {momentum})",
    )
    add(
        "--wt_dec", type=non_negative_float, default=wt_dec, help=f"weight decay (default {wt_dec})"
    )
    add_switch(
        parser,
        "--compile",
        "compile the network with torch.compile, which takes minutes at the start and a C++ compiler",
    )
    add(
        "--save_every",
        type=non_negative_int,
        default=500,
        help="steps between checkpoints within an epoch; 0: none (default 500)",
    )
    log_every = "steps between scalars in TensorBoard; images come every tenth time (default 50)"
    add("--log_every", "--print_freq", type=positive_int, default=50, help=log_every)


def add_weights(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add --weights; more: what the script takes besides."""
    text = "initial weights of the backbone: imagenet (torchvision's V1, downloaded once) or a file of its state dict in torchvision's layout"
    parser.add_argument("--weights", default="imagenet", help=f"{text}{more} (default imagenet)")


def add_scale_range(parser: argparse.ArgumentParser, low: float, high: float) -> None:
    """Add --scales of training."""
    text = f"range of the random factor by which images are resized before the crop (default {low} {high})"
    parser.add_argument(
        "--scales", type=scale, nargs=2, default=[low, high], metavar=("MIN", "MAX"), help=text
    )


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """`parse_stage`; ends with argparse's error where a range is not in order."""
    args = parse_stage(parser, argv)
    for flag in ("scales", "resize_long"):
        low, high = getattr(args, flag, (0, 0))
        if low > high:
            parser.error(f"--{flag} takes the smallest and the largest value, in this order")
    return args


def check_batch(args: argparse.Namespace, images: int, processes: int) -> None:
    """Raise InputError where the images do not fill a batch, or the processes cannot share it."""
    if images < args.batch_size:
        raise InputError(
            f"--list {args.list}: {images} images do not fill a batch; use --batch_size {images} or less"
        )
    if args.batch_size % processes:
        raise InputError(
            f"--batch_size {args.batch_size}: is not a multiple of the {processes} processes; use one that is"
        )


def make_optimizer(
    groups: Iterable[Mapping[str, Any]],
    lr: float,
    steps: int,
    momentum: float,
    weight_decay: float,
    fused: bool = True,
) -> tuple[SGD, LRScheduler]:
    """SGD with lr times (1 - step / steps) ** 0.9.

    groups: of a network's `parameter_groups`: `params`, `lr_scale`, a factor of lr, and perhaps `weight_decay` in place of the common one.
    fused: one pass over all weights; not with a GradScaler, as its first overflow would leave the momentum uninitialised.
    """
    groups = [{**group, "lr": lr * group["lr_scale"]} for group in groups]
    optimizer = SGD(groups, momentum=momentum, weight_decay=weight_decay, fused=fused)
    return optimizer, PolynomialLR(optimizer, total_iters=steps, power=0.9)


def optimizer_step(
    loss: torch.Tensor,
    optimizer: SGD,
    schedule: LRScheduler,
    scaler: torch.amp.GradScaler,
    max_norm: float = math.inf,
) -> torch.Tensor:
    """Take one step; returns the gradient's norm before it is clipped to max_norm."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(
        (p for group in optimizer.param_groups for p in group["params"]), max_norm
    )
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if (
        scaler.get_scale() >= before
    ):  # otherwise fp16 overflowed and the optimizer skipped this step
        schedule.step()
    return norm


class RunFiles(NamedTuple):
    """Where a training writes: the checkpoint for the next stage, the one to resume from (deleted at the end), TensorBoard's files."""

    final: Path
    last: Path
    logs: Path

    @classmethod
    def of(cls, run_dir: Path, name: str) -> "RunFiles":
        """The files of the training called name ("irn", "seg"); of SIPE's own for the empty name."""
        ckpt, logs = run_dir / "ckpt", run_dir / "tensorboard"
        return cls(
            ckpt / f"{name or 'final'}.pth",
            ckpt / f"{name}_last.pth".removeprefix("_"),
            logs / name,
        )


Scalars = dict[str, list[ScalarEvent]]  # name -> its (wall_time, step, value)


def read_scalars(logs: Path) -> Scalars:
    """What a training logged to its folder for TensorBoard, without the images; empty where there is nothing."""
    if not [*logs.glob("*tfevents*")]:
        return {}
    log = EventAccumulator(str(logs), {"scalars": 0, "images": 1}).Reload()  # 0: all
    return {name: log.Scalars(name) for name in log.Tags()["scalars"]}


class Trainer:
    """A training from its first step, or from the last checkpoint, to its final checkpoint.

        trainer = Trainer(args, context, files, terms, class_names, len(samples), model, groups)
        for batch in trainer.batches(crops):
            out = trainer.network(batch["image"])
            trainer.step(loss(out))
            trainer.log({"loss": ...}, "image_name", draw_image)
        trainer.finish()

    Args:
        terms: what must stay the same to resume; `terms_of` makes it.
        class_names: background first, noted in the checkpoints.
        model: on the device; `network` is the same model spread over the processes and compiled.
        groups: the model's `parameter_groups()`.

    Raises InputError where the last checkpoint was trained on other terms.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        context: Context,
        files: RunFiles,
        terms: dict[str, Any],
        class_names: tuple[str, ...],
        num_images: int,
        model: nn.Module,
        groups: Iterable[Mapping[str, Any]],
    ):
        self.args, self.context, self.files, self.model, self.num_images = (
            args,
            context,
            files,
            model,
            num_images,
        )
        self.about = {"arguments": terms, "class_names": list(class_names)}
        self.epoch_steps = num_images // args.batch_size
        self.steps = self.epoch_steps * args.max_epochs
        self.scaler = torch.amp.GradScaler(
            context.device.type, enabled=context.amp is torch.float16
        )
        fused = not self.scaler.is_enabled()
        self.optimizer, self.schedule = make_optimizer(
            groups, args.lr, self.steps, args.momentum, args.wt_dec, fused
        )
        self.state = {
            "model": model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        self.start = _agree(self._resume(), files.last, context)
        self.current = self.start  # steps done, this one included
        size = sum(value.nbytes for value in model.state_dict().values())
        outputs.check_space(
            files.final.parent, 5 * size, context
        )  # the last one has momentum and is replaced only by a whole one
        spread = model
        if (
            context.world_size > 1
        ):  # buffers are BatchNorm's: frozen, SyncBatchNorm's, or rank 0's are saved
            is_new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
            keep_buffers = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
            spread = DistributedDataParallel(model, gradient_as_bucket_view=True, **keep_buffers)
        self.network = torch.compile(spread) if args.compile else spread
        self.logger = None  # while `batches` runs

    def _resume(self) -> int:
        """Restore the last checkpoint; returns the steps that are done."""
        if (
            not self.args.resume and self.context.is_main
        ):  # an earlier training's checkpoints must not pass for this one's
            self.files.last.unlink(missing_ok=True)
            self.files.final.unlink(missing_ok=True)
        if not self.args.resume or not self.files.last.is_file():
            return 0
        content = _read_own(self.files.last, self.about["arguments"])
        try:
            for name, part in self.state.items():
                part.load_state_dict(content[name])
            return content["step"]
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.files.last}: cannot be resumed ({reason}); use --no-resume to start over"
            ) from None

    @property
    def plan(self) -> str:
        """The number of steps, the device and the first step, in words."""
        return f"{self.steps} steps on {self.context.device}" + (
            f", from step {self.start}" if self.start else ""
        )

    @property
    def epoch_ends(self) -> bool:
        return self.current % self.epoch_steps == 0

    def batches(self, crops: TrainingCrops | LabelledCrops) -> Iterator[dict[str, torch.Tensor]]:
        """The remaining batches on the device, under a progress bar; a checkpoint is saved when the loop's body has run.

        Raises InputError before the first one where images cannot be read, by their headers.
        """
        args, context = self.args, self.context
        check_images(crops.samples, args.num_workers, context)
        plan = BatchPlan(self.num_images, args.batch_size, args.max_epochs, args.seed)
        sampler = ResumableBatches(plan, self.start, context.rank, context.world_size)
        loader = training_loader(crops, sampler, args.num_workers, pin_memory=context.is_cuda)
        self.bar = tqdm(
            loader, initial=self.start, total=self.steps, desc="train", disable=not context.is_main
        )
        if context.is_main:
            self.logger = Logger(self.files.logs, self.start + 1)
            context.stack.callback(self.logger, "close")  # also where the training is stopped
        for batch in self.bar:
            self.current += 1
            torch.manual_seed(
                hash((args.seed, self.current, context.rank)) % 2**63
            )  # dropout: each process, step and run its own
            yield {
                name: value.to(context.device, non_blocking=True) for name, value in batch.items()
            }
            if self.epoch_ends or (args.save_every and self.current % args.save_every == 0):
                self._save()

    def step(self, loss: torch.Tensor, max_norm: float = math.inf) -> torch.Tensor:
        """Take one step; returns the gradient's norm before it is clipped to max_norm."""
        return optimizer_step(loss, self.optimizer, self.schedule, self.scaler, max_norm)

    def log(
        self, values: dict[str, torch.Tensor], image_name: str, image: Callable[[], np.ndarray]
    ) -> None:
        """Log the values of a step every --log_every steps, and an image (H, W, 3) uint8 every tenth time."""
        if not self.logger or not self._is_due(self.args.log_every):
            return
        elapsed = self.bar.format_dict["elapsed"]
        scalars = {name: value.item() for name, value in values.items()}
        scalars |= {
            "lr": self.schedule.get_last_lr()[0],
            "images/s": (self.current - self.start) * self.args.batch_size / elapsed,
        }
        self.bar.set_postfix_str(
            ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        )
        for name, value in scalars.items():
            self.log_scalar(f"train/{name}", value)
        if self._is_due(10 * self.args.log_every):
            self.logger(
                "add_image", f"train/{image_name}", image(), self.current, dataformats="HWC"
            )

    def log_scalar(self, name: str, value: float) -> None:
        if self.logger:
            self.logger("add_scalar", name, value, self.current)

    def _is_due(self, every: int) -> bool:
        return self.current == 1 or self.current % every == 0 or self.epoch_ends

    def _save(self) -> None:
        if not all(weights.isfinite().all() for weights in self.model.parameters()):
            raise InputError(
                f"step {self.current}: the weights are not finite any more; start over (--no-resume) with a smaller --lr"
            )
        if self.context.is_main:
            state = {name: part.state_dict() for name, part in self.state.items()}
            checkpoint.save(self.files.last, self.about | {"step": self.current} | state)

    def finish(self) -> None:
        """Save the final checkpoint and delete the one to resume from."""
        if self.context.is_main:
            checkpoint.save(self.files.final, self.about | {"model": self.model.state_dict()})
            self.files.last.unlink(missing_ok=True)
        self.context.barrier()  # no process goes on before the checkpoint is there
        self.context.print(f"wrote {self.files.final}")


class Logger:
    """TensorBoard's event file; where it cannot be written, there is one warning, and the training goes on without it."""

    def __init__(self, folder: Path, first_step: int):
        self.folder, self.writer = folder, None
        threading.excepthook = _without_traceback
        self.writer = self._try(lambda: SummaryWriter(folder, purge_step=first_step))

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of the SummaryWriter, if there still is one."""
        if self.writer:
            self._try(lambda: getattr(self.writer, method)(*args, **kwargs))

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            self.writer = None
            tqdm.write(
                f"warning: {self.folder}: cannot be written ({error.strerror or error}); the training goes on without TensorBoard"
            )


def _without_traceback(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread raises an OSError a second time where it is called."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def terms_of(args: argparse.Namespace, flags: Sequence[str], digest: str) -> dict[str, Any]:
    """What a run keeps to its end: these flags, and the digest of the images, labels and classes that it learns from."""
    return {name: getattr(args, name) for name in flags} | {"digest": digest}


def is_finished(
    args: argparse.Namespace, files: RunFiles, terms: dict[str, Any], context: Context
) -> bool:
    """Whether the final checkpoint on these terms exists; then says so.

    Raises InputError for one on other terms, and where another command is training it.
    """
    outputs.lock(files.final, context)
    if not _agree(args.resume and files.final.is_file(), files.final, context):
        return False
    _read_own(files.final, terms)
    if context.is_main:
        files.last.unlink(missing_ok=True)  # a run that was killed at its end leaves it
    context.print(f"{files.final} is complete")
    return True


def _agree(value: Any, path: Path, context: Context) -> Any:
    """A value that every process found at a path. Raises InputError where they differ: the run folder is not shared, or its copies lag."""
    if len(set(context.all_gather_object(value))) > 1:
        raise InputError(
            f"{path}: processes see different checkpoints; use a --run_dir that all machines share, and start again"
        )
    return value


def _read_own(path: Path, terms: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint that was trained on these terms. Raises InputError for one on others."""
    content = checkpoint.read(path)
    before, terms = LATER_FLAGS | checkpoint.arguments(content), LATER_FLAGS | terms
    changed = [name for name, value in terms.items() if before.get(name) != value]
    if changed:
        flags = [
            f"--{name} {before.get(name)} (now {terms[name]})"
            for name in changed
            if name != "digest"
        ]
        reason = ", ".join(flags) or "other images, tags, labels or classes"
        raise InputError(
            f"{path}: was trained with {reason}; use the same again, another --run_dir, or --no-resume"
        )
    return content
