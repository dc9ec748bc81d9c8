"""Clips: a mask a frame, and a clip of overlays."""

import os
import subprocess
from pathlib import Path

import pytest
from common import call, refused, stop_after, times_below

import predict
from tool import inference

SETTINGS = {"settings.json"}


def frames(number: int) -> set[str]:
    """The masks of a clip's frames."""
    return {f"clip_{i:06}.png" for i in range(number)}


def draw_clip(path: Path, pattern: str, number: int) -> None:
    """A clip of so many frames of one of ffmpeg's test patterns."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    source = ["-f", "lavfi", "-i", f"{pattern}=size=64x48:rate=10"]
    subprocess.run([ffmpeg, "-y", *source, "-frames:v", str(number), path], check=True)


@pytest.mark.filterwarnings(  # imageio_ffmpeg leaves its pipes to be collected
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_clip_gets_a_mask_a_frame_and_an_overlay_and_resumes(
    shallow_checkpoint, tmp_path, monkeypatch
):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    clip = tmp_path / "clip.mp4"
    out = tmp_path / "out"
    draw_clip(clip, "testsrc", 5)
    flags = [clip, "--ckpt", shallow_checkpoint, "--output_dir", out]
    flags += ["--device", "cpu", "--scales", 1.0]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, inference, "mask_of", 2)
        call(predict.main, *flags)
    stopped = times_below(out)
    assert stopped.keys() == SETTINGS | frames(2)

    call(predict.main, *flags)
    resumed = times_below(out)
    assert resumed.keys() == SETTINGS | frames(5) | {"clip_overlay.mp4"}
    assert stopped.items() <= resumed.items()
    call(predict.main, *flags)
    assert times_below(out) == resumed
    assert ffmpeg.count_frames_and_secs(str(out / "clip_overlay.mp4")) == (5, 0.5)

    draw_clip(clip, "testsrc2", 3)
    os.utime(clip, (1, 1))  # another clip, and an older one
    call(predict.main, *flags)
    replaced = times_below(out)
    assert replaced.keys() == SETTINGS | frames(3) | {"clip_overlay.mp4"}
    for name in replaced.keys() - SETTINGS:
        assert replaced[name] > resumed[name]

    clip.write_bytes(clip.read_bytes()[:500])
    with refused(clip):
        call(predict.main, *flags, "--strict")
