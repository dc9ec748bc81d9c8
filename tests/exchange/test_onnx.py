"""A network as an ONNX file: what onnxruntime computes, alone and in the example."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import NAMES, ROOT, call
from PIL import Image

import export_network
from data.images import read_image
from data.transforms import normalize, to_tensor
from tool.inference import load_model

FLOAT16_TOLERANCE = 3e-2  # of the largest logit


@pytest.fixture
def image_path(fixed_voc) -> Path:
    return fixed_voc / f"JPEGImages/{NAMES[0]}.jpg"


@pytest.fixture
def batches(image_path) -> list[torch.Tensor]:
    """Batches of other numbers and sizes of images than the one that is exported."""
    image = normalize(to_tensor(read_image(image_path))[None])
    return [torch.randn(3, 3, 51, 37), image]


@torch.no_grad()
def full_size_logits(checkpoint: Path, batch: torch.Tensor) -> torch.Tensor:
    """What a network computes, at the size of its images."""
    logits = load_model(checkpoint, "cpu").network(batch)
    return F.interpolate(logits, batch.shape[2:], mode="bilinear")


def assert_close(actual: np.ndarray, expected: torch.Tensor, tolerance: float) -> None:
    """The logits agree but for a share of the largest."""
    largest = expected.abs().max().item()
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=tolerance * largest)


def run_onnx(network: Path, batch: torch.Tensor) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(network)
    (logits,) = session.run(["logits"], {"image": batch.numpy()})
    return logits


@pytest.mark.skipif(export_network.IS_TOO_OLD, reason="needs PyTorch 2.8")
@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        pytest.param([], 1e-3, id="float32"),
        pytest.param(["--float16"], FLOAT16_TOLERANCE, id="float16", marks=pytest.mark.slow),
    ],
)
def test_an_onnx_network_finds_what_ours_does(
    flags, tolerance, shallow_checkpoint, batches, image_path, monkeypatch, tmp_path
):
    pytest.importorskip("onnxscript")
    call(export_network.main, "--ckpt", shallow_checkpoint, *flags)
    network = shallow_checkpoint.with_suffix(".onnx")
    for batch in batches:
        actual = run_onnx(network, batch)
        assert_close(actual, full_size_logits(shallow_checkpoint, batch), tolerance)

    command = ["onnx_predict.py", str(network), str(image_path), str(tmp_path / "mask.png")]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "examples/onnx_predict.py"))
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert (mask == actual[0].argmax(0)).mean() > 0.99


@torch.no_grad()
def test_a_network_in_float16_takes_and_gives_float32(shallow_checkpoint, batches):
    network = load_model(shallow_checkpoint, "cpu").network
    exported = export_network.FullSize(network, torch.float16).eval()
    for batch in batches:
        logits = exported(batch)
        assert logits.dtype == torch.float32
        expected = full_size_logits(shallow_checkpoint, batch)
        assert_close(logits.numpy(), expected, FLOAT16_TOLERANCE)
