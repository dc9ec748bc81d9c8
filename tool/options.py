"""The values that flags become, so that libraries need no argparse."""

from dataclasses import dataclass

PRECISIONS = ("off", "bf16", "fp16")  # of --amp


@dataclass(frozen=True)
class ResultPolicy:
    """What a stage does with results that are there, and with images that cannot be read.

    Attributes:
        overwrite: delete the results in the output folder and make them again.
        strict: stop at the first unreadable image instead of naming all of them at the end.
    """

    overwrite: bool = False
    strict: bool = False


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained, whatever it learns.

    Attributes:
        batch_size: images a step, over all processes.
        crop_size: side of the training crop in pixels.
        lr: the learning rate that a network's parameter groups scale.
        save_every: steps between checkpoints within an epoch; 0: none.
        log_every: steps between scalars in TensorBoard; images come every tenth time.
        num_workers: worker processes that read images, for each process of torchrun.
    """

    batch_size: int
    max_epochs: int
    crop_size: int
    lr: float
    momentum: float
    weight_decay: float
    seed: int
    resume: bool
    save_every: int
    log_every: int
    num_workers: int
    compile: bool


@dataclass(frozen=True)
class TrainingDefaults:
    """The defaults of a training script's flags."""

    batch_size: int
    max_epochs: int
    lr: float = 0.1
    momentum: float = 1e-4
    weight_decay: float = 1e-4
