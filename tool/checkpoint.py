"""Checkpoints: our own, the authors' and a backbone's. Nothing is ever unpickled.

Our format is a dict of plain values and tensors: `model` (state dict), `class_names`, `arguments`; while training also
`optimizer`, `schedule`, `scaler`, `step`, `rng`. The authors' is {"net": state dict}.
"""

import hashlib
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errors import InputError

from .files import atomic_write


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all. Raises InputError where the disk refuses."""
    with atomic_write(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # torch's way to say that the disk refuses
            raise OSError(str(error).splitlines()[0]) from None


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
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: refused, it is damaged or holds objects other than tensors; use a checkpoint from a source that you trust"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error):
        raise InputError(f"{path}: not a whole checkpoint; copy or make it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no checkpoint; give a file that a training stage or the authors' program wrote")
    return content


def load_model(model: nn.Module, path: str | Path, class_names: tuple[str, ...], names_of: Callable[[str], list[str]]) -> None:
    """Fill a model from our format or from the authors'.

    names_of: every name that the authors' format has for one of our tensors; each must be there, the same under all of them.
    Raises InputError that names the file and the first tensor that is missing or of another shape or meant for other classes.
    """
    content = read(path)
    if "net" in content:
        tensors, wanted = content["net"], model.state_dict()
        for name in wanted:
            for alias in names_of(name):
                _check(tensors, alias, wanted[name], path)
                if not torch.equal(tensors[alias], tensors[name]):
                    raise InputError(f"{path}: {alias} differs from {name}, of which it should be a copy; copy or make the file again")
    elif "model" in content:
        tensors = content["model"]
        check_classes(content, class_names, path)
    else:
        raise InputError(f"{path}: has neither 'model' (our format) nor 'net' (the authors' format); give a SIPE checkpoint")
    fill(model, tensors, path)


def check_classes(content: Mapping[str, Any], class_names: tuple[str, ...], path: str | Path) -> None:
    """Raise InputError where a checkpoint in our format was trained on other classes than these."""
    trained_on = class_names_of(content) or class_names
    if trained_on != class_names:
        raise InputError(
            f"{path}: was trained on {len(trained_on) - 1} classes ({_few(trained_on[1:])}), "
            f"the dataset has {len(class_names) - 1} ({_few(class_names[1:])}); use the dataset that it was trained on"
        )


def class_names_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that a checkpoint in our format holds, background first; none for another one."""
    found = content.get("class_names")
    return tuple(found) if isinstance(found, list) and all(isinstance(name, str) for name in found) else ()


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a checkpoint in our format was trained with; none for another one."""
    found = content.get("arguments")
    return found if isinstance(found, dict) else {}


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Fill a ResNet from a state dict in torchvision's layout, in any precision; its ImageNet head `fc` is left out.

    Raises InputError where a tensor is missing, of another shape, or of a deeper or shallower ResNet.
    """
    content = read(path)
    tensors = content.get("state_dict", content)
    theirs, ours = (
        {".".join(str(name).split(".")[:2]) for name in names if str(name).startswith("layer")}
        for names in (tensors, backbone.state_dict())
    )
    if theirs and theirs != ours:
        depth, block = ("deeper", min(theirs - ours)) if theirs - ours else ("shallower", min(ours - theirs))
        raise InputError(f"{path}: is of a {depth} network than this one ({block}); give weights of the same depth")
    fill(backbone, tensors, path)


def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Copy tensors into a model by name, after checking that every one is there and fits."""
    wanted = model.state_dict()
    for name, value in wanted.items():
        if not name.endswith("num_batches_tracked") or name in tensors:
            _check(tensors, name, value, path)
    with torch.no_grad():
        for name, value in wanted.items():
            if name in tensors:
                value.copy_(tensors[name].view_as(value))


def fingerprint(path: str | Path) -> str:
    """The file's SHA-256: tells one checkpoint's maps from another's."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); train first or correct the path") from None


def _check(tensors: Mapping[str, torch.Tensor], name: str, like: torch.Tensor, path: str | Path) -> None:
    if not isinstance(tensors, Mapping) or name not in tensors or not torch.is_tensor(tensors[name]):
        raise InputError(f"{path}: tensor {name} is missing; copy the file again or give another checkpoint")
    if (tensors[name].shape or (1,)) != (like.shape or (1,)):  # old files hold scalars as (1,)
        raise InputError(
            f"{path}: tensor {name} is {tuple(tensors[name].shape)}, expected {tuple(like.shape)}; "
            "give a checkpoint of this network for this dataset's number of classes"
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
