"""Clips: frames in, a video out, by ffmpeg, which the optional package imageio-ffmpeg brings along."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError, UnreadableError

from .outputs import atomic_write

TYPES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")


def read_frames(path: Path) -> Iterator[Any]:
    """First the frames per second and (H, W), then one frame after the other, (H, W, 3) uint8 RGB, upright.

    Raises UnreadableError for a file that cannot be decoded, and InputError where imageio-ffmpeg is missing.
    """
    try:
        from imageio_ffmpeg import read_frames

        frames = read_frames(str(path))
        about = next(frames)
        yield about["fps"], about["size"][::-1]
        for frame in frames:
            yield np.frombuffer(frame, np.uint8).reshape(*about["size"][::-1], 3)
    except ImportError as error:
        raise InputError(f"{path}: imageio_ffmpeg cannot be imported ({error}); pip install imageio-ffmpeg") from None
    except (OSError, RuntimeError) as error:
        raise UnreadableError(f"{path}: cannot be decoded ({str(error).splitlines()[0]}); convert it to an .mp4") from None


@contextlib.contextmanager
def write_frames(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that adds a frame (H, W, 3) uint8 RGB to a new .mp4, whose sides are made even."""
    from imageio_ffmpeg import write_frames

    about = {"fps": fps, "macro_block_size": 2, "output_params": ["-f", "mp4"]}
    with atomic_write(path) as temporary, contextlib.closing(write_frames(str(temporary), size[::-1], **about)) as video:
        video.send(None)
        yield lambda frame: video.send(np.ascontiguousarray(frame))
