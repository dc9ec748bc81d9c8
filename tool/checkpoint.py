"""Checkpoints: ours and the authors'. Nothing is ever unpickled.

Our format is a dict of plain values and tensors: `model` (state dict), `kind` (one of KINDS),
`class_names` and `arguments`; during training also `optimizer`, `schedule`, `scaler` and `step`.
The authors' format is {"net": state dict}.
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

SIPE_KIND = "sipe"
IRN_KIND = "irn"
SEGMENTATION_KIND = "segmentation"
KINDS = (SIPE_KIND, IRN_KIND, SEGMENTATION_KIND)
SHOWN_NAMES = 3  # of the classes in a message


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values. Raises InputError if the disk refuses."""
    with atomic_write(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error).splitlines()[0]) from None
        if not zipfile.is_zipfile(temporary):  # PyTorch 2.6 does not report a full disk at the end
            raise OSError("the disk is full")


def read(path: str | Path) -> dict[str, Any]:
    """Any file of torch.save that holds a dict of tensors and plain values.

    Raises InputError for a missing or damaged file. A file that would run code is refused unread.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on old file formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; train first or correct the path") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be read ({reason}); correct the path") from None
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        reason = type(error).__name__
        raise InputError(
            f"{path}: is damaged or holds objects other than tensors ({reason});"
            " use another checkpoint"
        ) from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds no checkpoint;"
            " use a file that a training script or the authors' program wrote"
        )
    return content


def load_tensors(model: nn.Module, tensors: Any, path: str | Path) -> None:
    """Load a state dict of any precision; tensors that the model lacks are ignored.

    Raises InputError with the first tensor that is missing or of another shape; only BatchNorm's
    counters may be missing.
    """
    expected = model.state_dict()
    given = _select(tensors, expected)
    for name, value in expected.items():
        is_optional = name.endswith("num_batches_tracked") and name not in given
        if is_optional:
            continue
        if not torch.is_tensor(given.get(name)):
            raise InputError(
                f"{path}: tensor {name} is missing; copy the file again or use another checkpoint"
            )
        allowed = {value.shape, value.shape or (1,)}  # old files hold scalars as (1,)
        if given[name].shape not in allowed:
            shapes = f"{tuple(given[name].shape)}, expected {tuple(value.shape)}"
            raise InputError(
                f"{path}: tensor {name} is {shapes};"
                " use a checkpoint of this network and number of classes"
            )
    try:
        model.load_state_dict(given, strict=False)
    except RuntimeError as error:  # tensors without values, such as sparse ones
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: cannot be loaded ({reason}); use another checkpoint") from None


def _select(tensors: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state dict with expected names; none if it is no dict."""
    if not isinstance(tensors, Mapping):
        return {}
    return {name: value for name, value in tensors.items() if name in expected}


def build_sipe(
    num_classes: int, backbone: str = "resnet50", frozen: bool = True, recipe: str = "sipe"
) -> SIPE:
    """SIPE on a backbone, with a recipe that a flag or a checkpoint names.

    Raises InputError if there is no such recipe or backbone.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe}: no such recipe; use one of {', '.join(RECIPES)}")
    try:
        return SIPE(num_classes, frozen, backbone, recipe)
    except ImportError as error:
        raise InputError(
            f"backbone {backbone}: timm cannot be imported ({error}); pip install timm"
        ) from None
    except ValueError as error:
        raise InputError(f"backbone {backbone}: {error}; use another backbone") from None


def kind_of(content: Mapping[str, Any]) -> str:
    """Which kind of network a checkpoint holds, one of KINDS.

    Checkpoints that note no kind are told apart by the arguments of their training; the authors'
    checkpoints are SIPE's.
    """
    kind = content.get("kind")
    if kind in KINDS:
        return kind
    return SEGMENTATION_KIND if "network" in arguments(content) else SIPE_KIND


def class_names_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a checkpoint of ours, background first; empty for any other."""
    names = content.get("class_names")
    if not isinstance(names, list) or len(names) < 2:
        return ()
    if not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def check_classes(
    content: Mapping[str, Any], class_names: tuple[str, ...], path: str | Path
) -> None:
    """Raise InputError if a checkpoint of ours was trained on other classes than these."""
    trained_on = class_names_of(content) or class_names
    if trained_on != class_names:
        raise InputError(
            f"{path}: was trained on the classes {_describe(trained_on)},"
            f" the dataset has {_describe(class_names)}; use the dataset that it was trained on"
        )


def _describe(class_names: tuple[str, ...]) -> str:
    """The number of classes without the background, and the first names."""
    names = class_names[1:]
    shown = list(names[:SHOWN_NAMES])
    if len(names) > SHOWN_NAMES:
        shown.append("...")
    return f"{len(names)} ({', '.join(shown)})"


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a checkpoint of ours was trained with; empty for any other."""
    value = content.get("arguments")
    return value if isinstance(value, dict) else {}
