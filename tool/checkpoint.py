"""Checkpoints: ours, the authors' and a backbone's. Nothing is ever unpickled.

Our format is a dict of plain values and tensors: `model` (state dict), `class_names`, `arguments`; during training also
`optimizer`, `schedule`, `scaler`, `step`. The authors' format is {"net": state dict}.
"""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errors import InputError
from network.recipe import RECIPES
from network.sipe import SIPE

from .outputs import atomic_write


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values. Raises InputError where the disk refuses."""
    with atomic_write(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error).splitlines()[0]) from None
        if not zipfile.is_zipfile(
            temporary
        ):  # PyTorch 2.6 says nothing where the last bytes find no room
            raise OSError("the disk is full")


def read(path: str | Path) -> dict[str, Any]:
    """Any file of torch.save that holds a dict of tensors and plain values.

    Raises InputError for a missing or damaged file, and for one that would run code: it is refused unread.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on old file formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; train first or correct the path") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); correct the path"
        ) from None
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        reason = type(error).__name__
        raise InputError(
            f"{path}: is damaged or holds objects other than tensors ({reason}); use another checkpoint"
        ) from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds no checkpoint; use a file that a training script or the authors' program wrote"
        )
    return content


def load_tensors(model: nn.Module, tensors: Any, path: str | Path) -> None:
    """Load a state dict of any precision; tensors that the model lacks are ignored.

    Raises InputError with the first tensor that is missing or of another shape; only BatchNorm's counters may be missing.
    """
    wanted = model.state_dict()
    tensors = (
        {name: value for name, value in tensors.items() if name in wanted}
        if isinstance(tensors, Mapping)
        else {}
    )
    for name, value in wanted.items():
        if not torch.is_tensor(tensors.get(name)):
            if name.endswith("num_batches_tracked") and name not in tensors:
                continue
            raise InputError(
                f"{path}: tensor {name} is missing; copy the file again or use another checkpoint"
            )
        if tensors[name].shape not in {
            value.shape,
            value.shape or (1,),
        }:  # old files hold scalars as (1,)
            shapes = f"{tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
            raise InputError(
                f"{path}: tensor {name} is {shapes}; use a checkpoint of this network and number of classes"
            )
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # tensors without values, such as sparse ones
        raise InputError(
            f"{path}: cannot be loaded ({str(error).splitlines()[-1].strip()}); use another checkpoint"
        ) from None


def build_sipe(
    num_classes: int, backbone: str = "resnet50", pretrained: bool = True, recipe: str = "sipe"
) -> SIPE:
    """SIPE on a backbone, by a recipe that a flag or a checkpoint names. Raises InputError where it cannot be had."""
    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe}: no such recipe; use one of {', '.join(RECIPES)}")
    try:
        return SIPE(num_classes, pretrained, backbone, recipe)
    except ImportError as error:
        raise InputError(
            f"backbone {backbone}: timm cannot be imported ({error}); pip install timm"
        ) from None
    except ValueError as error:
        raise InputError(f"backbone {backbone}: {error}; use another backbone") from None


def class_names_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a checkpoint of ours, background first; empty for another one."""
    names = content.get("class_names")
    return (
        tuple(names)
        if isinstance(names, list)
        and len(names) > 1
        and all(isinstance(name, str) for name in names)
        else ()
    )


def check_classes(
    content: Mapping[str, Any], class_names: tuple[str, ...], path: str | Path
) -> None:
    """Raise InputError where a checkpoint of ours was trained on other classes than these."""
    trained_on = class_names_of(content) or class_names
    if trained_on != class_names:
        theirs, ours = (
            f"{len(names) - 1} ({', '.join(names[1:4])}{', ...' * (len(names) > 4)})"
            for names in (trained_on, class_names)
        )
        raise InputError(
            f"{path}: was trained on the classes {theirs}, the dataset has {ours}; use the dataset that it was trained on"
        )


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a checkpoint of ours was trained with; empty for another one."""
    found = content.get("arguments")
    return found if isinstance(found, dict) else {}
