"""What a training shows while it runs: TensorBoard's curves and pictures, and the text beside its bar."""

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class Journal:
    """Written by the main process alone; in the others (`folder` None) every call does nothing.

    Args:
        folder: for TensorBoard's files; what an earlier run wrote there after step `start` is hidden.
        every: steps between curves; pictures come ten times as rarely, and both at the first step and at the end of an epoch.
    """

    def __init__(self, folder: Path | None, start: int, every: int, epoch_steps: int):
        self.writer = SummaryWriter(folder, purge_step=start + 1) if folder else None
        self.every, self.epoch_steps = every, epoch_steps

    def wants(self, step: int, pictures: bool = False) -> bool:
        """Whether curves (or pictures) are due at this step, counted from 1."""
        every = self.every * 10 if pictures else self.every
        return self.writer is not None and (step == 1 or step % every == 0 or step % self.epoch_steps == 0)

    def scalars(self, step: int, values: dict[str, float], bar: tqdm) -> None:
        bar.set_postfix_str(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        for name, value in values.items():
            self.scalar(step, f"train/{name}", value)

    def scalar(self, step: int, name: str, value: float) -> None:
        if self.writer:
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture (H, W, 3) uint8."""
        if self.writer:
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self.writer:
            self.writer.close()
