"""The training loop that all training scripts share: optimizer, checkpoints, resuming, logging."""

import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from .options import TrainingOptions
from .results import check_images
from .workers import check_shared_memory

LATER_ARGUMENTS = {"backbone": "resnet50", "color_jitter": 0}  # of checkpoints that lack them
IMAGE_EVERY = 10  # times --log_every
CHECKPOINTS_OF_SPACE = 5  # last.pth has momentum, and is replaced only by a whole new one
POLY_POWER = 0.9
INPUT_CHANNELS = 5  # bytes a pixel that a batch passes: colours, inside, target


@dataclass(frozen=True)
class RunFiles:
    """Where a training writes.

    Attributes:
        final: the checkpoint for the next stage.
        last: the checkpoint to resume from, which is deleted at the end.
        logs: the folder of TensorBoard's files.
    """

    final: Path
    last: Path
    logs: Path

    @classmethod
    def of(cls, run_dir: Path, name: str) -> "RunFiles":
        """The files of the training called name ("irn", "seg"); SIPE's have the empty name."""
        ckpt = run_dir / "ckpt"
        logs = run_dir / "tensorboard"
        if not name:
            return cls(ckpt / "final.pth", ckpt / "last.pth", logs)
        return cls(ckpt / f"{name}.pth", ckpt / f"{name}_last.pth", logs / name)


@dataclass(frozen=True)
class TrainingJob:
    """What a training learns, and what its checkpoints note.

    Attributes:
        arguments: what must stay the same to resume; `flags.resume_arguments` makes it.
        class_names: background first.
        kind: of the network, one of checkpoint.KINDS.
    """

    files: RunFiles
    options: TrainingOptions
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    num_samples: int
    kind: str

    @property
    def epoch_steps(self) -> int:
        return self.num_samples // self.options.batch_size

    @property
    def steps(self) -> int:
        return self.epoch_steps * self.options.max_epochs

    def notes(self) -> dict[str, Any]:
        """What every checkpoint of this training says about itself."""
        return {
            "kind": self.kind,
            "arguments": self.arguments,
            "class_names": list(self.class_names),
        }


def check_batch(batch_size: int, num_samples: int, num_processes: int, list_name: str) -> None:
    """Raise InputError if the samples do not fill a batch, or the processes cannot share it."""
    if num_samples < batch_size:
        raise InputError(
            f"--list {list_name}: {num_samples} images do not fill a batch;"
            f" use --batch_size {num_samples} or less"
        )
    if batch_size % num_processes:
        raise InputError(
            f"--batch_size {batch_size}: is not a multiple of the {num_processes} processes;"
            " use one that is"
        )


def is_finished(job: TrainingJob, context: Context) -> bool:
    """Whether the final checkpoint of this training exists; then says so.

    Raises InputError for a final checkpoint with other arguments, and if another command is
    training it.
    """
    files = job.files
    outputs.lock(files.final, context)
    is_there = job.options.resume and files.final.is_file()
    if not _agree(is_there, files.final, context):
        return False
    _read_own(files.final, job.arguments)
    if context.is_main:
        files.last.unlink(missing_ok=True)  # a run that was killed at its end leaves it
    context.print(f"{files.final} is complete")
    return True


def _agree(value: Any, path: Path, context: Context) -> Any:
    """A value that every process read from a path.

    Raises InputError if they differ: the run folder is not shared, or its copies lag.
    """
    if len(set(context.all_gather_object(value))) > 1:
        raise InputError(
            f"{path}: processes see different checkpoints;"
            " use a --run_dir that all machines share, and start again"
        )
    return value


def _read_own(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint that was trained with these arguments. Raises InputError for any other."""
    content = checkpoint.read(path)
    before = LATER_ARGUMENTS | checkpoint.arguments(content)
    now = LATER_ARGUMENTS | arguments
    changed = [name for name, value in now.items() if before.get(name) != value]
    if not changed:
        return content
    flags = []
    for name in changed:
        if name != "digest":
            flags.append(f"--{name} {before.get(name)} (now {now[name]})")
    reason = ", ".join(flags) or "other images, tags, labels or classes"
    raise InputError(
        f"{path}: was trained with {reason}; use the same again, another --run_dir, or --no-resume"
    )


def make_optimizer(
    groups: Iterable[Mapping[str, Any]], options: TrainingOptions, steps: int, fused: bool = True
) -> tuple[SGD, LRScheduler]:
    """SGD with a rate of lr times (1 - step / steps) ** 0.9.

    Args:
        groups: a network's `parameter_groups`: `params`, `lr_scale` (a factor of the rate), and
            perhaps `weight_decay` in place of the common one.
        fused: update all weights in one pass; not with a GradScaler, whose first overflow would
            leave the momentum uninitialised.
    """
    scaled = [{**group, "lr": options.lr * group["lr_scale"]} for group in groups]
    optimizer = SGD(
        scaled, momentum=options.momentum, weight_decay=options.weight_decay, fused=fused
    )
    return optimizer, PolynomialLR(optimizer, total_iters=steps, power=POLY_POWER)


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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    scale_before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    has_overflowed = scaler.get_scale() < scale_before  # of fp16: the step was skipped
    if not has_overflowed:
        schedule.step()
    return norm


class Trainer:
    """A training from its first step, or from the last checkpoint, to its final checkpoint.

        trainer = Trainer(job, model, context)
        for batch in trainer.batches(crops):
            out = trainer.network(batch["image"])
            trainer.step(loss(out))
            trainer.log({"loss": ...}, "image_name", draw_image)
        trainer.finish()

    Args:
        model: on the device; `network` is the same model, shared by the processes and compiled.

    Raises InputError if the last checkpoint was trained with other arguments.
    """

    def __init__(self, job: TrainingJob, model: nn.Module, context: Context):
        self.job = job
        self.model = model
        self.context = context
        is_fp16 = context.amp is torch.float16
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=is_fp16)
        self.optimizer, self.schedule = make_optimizer(
            model.parameter_groups(), job.options, job.steps, fused=not is_fp16
        )
        self.state = {
            "model": model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        self.start = _agree(self._resume(), job.files.last, context)
        self.current = self.start  # steps done, the current one included
        model_bytes = sum(value.nbytes for value in model.state_dict().values())
        folder = job.files.final.parent
        outputs.check_space(folder, CHECKPOINTS_OF_SPACE * model_bytes, context)
        self.network = self._share(model)
        self.log_file = None  # while `batches` runs

    def _resume(self) -> int:
        """Restore the last checkpoint; returns the number of steps that are done."""
        files = self.job.files
        if not self.job.options.resume:
            if self.context.is_main:  # older checkpoints must not pass for this training's
                files.last.unlink(missing_ok=True)
                files.final.unlink(missing_ok=True)
            return 0
        if not files.last.is_file():
            return 0
        content = _read_own(files.last, self.job.arguments)
        try:
            for name, part in self.state.items():
                part.load_state_dict(content[name])
            return content["step"]
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{files.last}: cannot be resumed ({reason}); use --no-resume to start over"
            ) from None

    def _share(self, model: nn.Module) -> nn.Module:
        """The model for all processes, compiled if the options say so."""
        shared = model
        if self.context.world_size > 1:
            # no buffers are sent: BatchNorm's are frozen, SyncBatchNorm's, or rank 0's are saved
            parameters = inspect.signature(DistributedDataParallel).parameters
            name = "forward_sync_buffers"
            if name not in parameters:
                name = "broadcast_buffers"  # of older versions of PyTorch
            shared = DistributedDataParallel(model, gradient_as_bucket_view=True, **{name: False})
        return torch.compile(shared) if self.job.options.compile else shared

    @property
    def plan(self) -> str:
        """The number of steps, the device and the first step, in words."""
        text = f"{self.job.steps} steps on {self.context.device}"
        if self.start:
            text += f", from step {self.start}"
        return text

    @property
    def epoch_ends(self) -> bool:
        return self.current % self.job.epoch_steps == 0

    @property
    def epochs_done(self) -> int:
        return self.current // self.job.epoch_steps

    def batches(self, crops: TrainingCrops | LabelledCrops) -> Iterator[dict[str, torch.Tensor]]:
        """The remaining batches on the device, under a progress bar.

        A checkpoint is saved when the loop's body has run. Raises InputError before the first
        batch if images cannot be read, by their headers, or if shared memory is too small.
        """
        options = self.job.options
        context = self.context
        check_images(crops.samples, options.num_workers, context)
        self._check_shared_memory()
        context.barrier()  # every process has checked before the workers of one fill it
        plan = BatchPlan(self.job.num_samples, options.batch_size, options.max_epochs, options.seed)
        sampler = ResumableBatches(plan, self.start, context.rank, context.world_size)
        loader = training_loader(crops, sampler, options.num_workers, pin_memory=context.is_cuda)
        self.bar = tqdm(
            loader,
            initial=self.start,
            total=self.job.steps,
            desc="train",
            disable=not context.is_main,
        )
        if context.is_main:
            self.log_file = TensorBoardFile(self.job.files.logs, self.start + 1)
            context.stack.callback(self.log_file.call, "close")  # also if the training stops
        for batch in self.bar:
            self.current += 1
            self._seed_dropout()
            yield {
                name: value.to(context.device, non_blocking=True) for name, value in batch.items()
            }
            is_due = options.save_every and self.current % options.save_every == 0
            if self.epoch_ends or is_due:
                self._save()

    def _check_shared_memory(self) -> None:
        """Raise InputError if the workers' batches do not fit into shared memory."""
        options = self.job.options
        own_batch = options.batch_size // self.context.world_size
        batch_bytes = own_batch * options.crop_size**2 * INPUT_CHANNELS
        check_shared_memory(options.num_workers, batch_bytes)

    def _seed_dropout(self) -> None:
        """Give each process, step and run random numbers of its own."""
        key = hash((self.job.options.seed, self.current, self.context.rank))
        torch.manual_seed(key % 2**63)

    def step(self, loss: torch.Tensor, max_norm: float = math.inf) -> torch.Tensor:
        """Take one step; returns the gradient's norm before it is clipped to max_norm."""
        return optimizer_step(loss, self.optimizer, self.schedule, self.scaler, max_norm)

    def log(
        self,
        values: dict[str, torch.Tensor],
        image_name: str,
        draw_image: Callable[[], np.ndarray],
    ) -> None:
        """Log the values of a step every --log_every steps, and an image every tenth time.

        draw_image: returns (H, W, 3) uint8.
        """
        log_every = self.job.options.log_every
        if not self.log_file or not self._is_due(log_every):
            return
        scalars = {name: value.item() for name, value in values.items()}
        scalars["lr"] = self.schedule.get_last_lr()[0]
        scalars["images/s"] = self._images_per_second()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        self.bar.set_postfix_str(shown)
        for name, value in scalars.items():
            self.log_scalar(f"train/{name}", value)
        if self._is_due(IMAGE_EVERY * log_every):
            self.log_file.call(
                "add_image", f"train/{image_name}", draw_image(), self.current, dataformats="HWC"
            )

    def log_scalar(self, name: str, value: float) -> None:
        """Log one value of the current step."""
        if self.log_file:
            self.log_file.call("add_scalar", name, value, self.current)

    def _images_per_second(self) -> float:
        images = (self.current - self.start) * self.job.options.batch_size
        return images / self.bar.format_dict["elapsed"]

    def _is_due(self, every: int) -> bool:
        return self.current == 1 or self.current % every == 0 or self.epoch_ends

    def _save(self) -> None:
        for weights in self.model.parameters():
            if not weights.isfinite().all():
                raise InputError(
                    f"step {self.current}: the weights are not finite any more;"
                    " start over (--no-resume) with a smaller --lr"
                )
        if self.context.is_main:
            state = {name: part.state_dict() for name, part in self.state.items()}
            content = self.job.notes() | {"step": self.current} | state
            checkpoint.save(self.job.files.last, content)

    def finish(self) -> None:
        """Save the final checkpoint and delete the one to resume from."""
        files = self.job.files
        if self.context.is_main:
            content = self.job.notes() | {"model": self.model.state_dict()}
            checkpoint.save(files.final, content)
            files.last.unlink(missing_ok=True)
        self.context.barrier()  # no process goes on before the checkpoint is there
        self.context.print(f"wrote {files.final}")


class TensorBoardFile:
    """TensorBoard's event file; if it cannot be written, there is one warning and no log."""

    def __init__(self, folder: Path, first_step: int):
        self.folder = folder
        self.writer = None
        threading.excepthook = _print_no_disk_error
        try:
            self.writer = SummaryWriter(folder, purge_step=first_step)
        except OSError as error:
            self._give_up(error)

    def call(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of the SummaryWriter, if there still is one."""
        if not self.writer:
            return
        try:
            getattr(self.writer, method)(*args, **kwargs)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.writer = None
        tqdm.write(
            f"warning: {self.folder}: cannot be written ({error.strerror or error});"
            " the training goes on without TensorBoard"
        )


def _print_no_disk_error(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's own thread raises a second time what TensorBoardFile has reported."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


Scalars = dict[str, list[ScalarEvent]]  # name -> its (wall_time, step, value)


def read_scalars(logs: Path) -> Scalars:
    """What a training logged for TensorBoard, without the images; empty if there is nothing."""
    if not any(logs.glob("*tfevents*")):
        return {}
    keep_all = 0
    keep_one = 1
    log = EventAccumulator(str(logs), {"scalars": keep_all, "images": keep_one}).Reload()
    return {name: log.Scalars(name) for name in log.Tags()["scalars"]}
