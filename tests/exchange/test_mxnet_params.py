"""MXNet's files of weights, written here as their format is described."""

import itertools
import struct

import numpy as np
import pytest
import torch
from common import refused

from errors import InputError
from exchange import weights
from network.wideresnet import WideResNet38

DTYPES = ("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8")
MXNETS = {
    "bias": "beta",
    "weight": "gamma",
    "running_mean": "moving_mean",
    "running_var": "moving_var",
}
VERSION_0 = 0xF993FAC7
DEVICE = struct.pack("<ii", 1, 0)  # its type and number


def array_bytes(values: np.ndarray, version: int) -> bytes:
    """An array as MXNet writes it.

    Before version 1 it begins with its number of dimensions, from version 2 on it may be sparse.
    """
    packed = b""
    if version >= 1:
        packed += struct.pack("<I", VERSION_0 + version)
    if version >= 2:
        packed += struct.pack("<i", 0)  # dense
    side = "q" if version else "I"
    packed += struct.pack(f"<I{values.ndim}{side}", values.ndim, *values.shape)
    if values.ndim:
        dtype = DTYPES.index(values.dtype.str)
        packed += DEVICE + struct.pack("<i", dtype) + values.tobytes()
    return packed


def params_bytes(arrays: dict[str, np.ndarray], version: int = 2) -> bytes:
    packed = header(len(arrays))
    for values in arrays.values():
        packed += array_bytes(values, version)
    packed += struct.pack("<Q", len(arrays))
    for name in arrays:
        packed += struct.pack("<Q", len(name)) + name.encode()
    return packed


def header(number: int) -> bytes:
    return struct.pack("<QQQ", 0x112, 0, number)


def mxnets_name(name: str) -> str:
    """MXNet's name of one of our tensors."""
    *place, tensor = name.split(".")
    if place[-1].startswith("bn"):
        tensor = MXNETS[tensor]
    kind = "aux" if tensor.startswith("moving") else "arg"
    if len(place) == 1:
        return f"{kind}:{place[0]}_{tensor}"
    group, _, number = place[0].removeprefix("b").partition("_")
    layer, branch = place[1].split("_")
    layer = layer.replace("conv", "res")
    block = f"b{number}" if number else "a"
    return f"{kind}:{layer}{group}{block}_{branch}_{tensor}"


@pytest.fixture
def tensors(narrow_wideresnet) -> dict[str, torch.Tensor]:
    """Random weights of a WideResNet38."""
    with torch.device("meta"):
        shapes = WideResNet38().state_dict()
    tensors = {}
    for name, value in shapes.items():
        if not name.endswith("num_batches_tracked"):
            tensors[name] = torch.rand(value.shape).half()
    return tensors


def assert_loads(path, tensors: dict[str, torch.Tensor]) -> None:
    """A network gets these tensors from a file."""
    model = WideResNet38()
    weights.load_pretrained(model, str(path), "wideresnet38")
    loaded = model.state_dict()
    assert [name for name, value in tensors.items() if not loaded[name].equal(value.float())] == []


def test_pytorchs_format_gives_the_network(tensors, tmp_path):
    classifier = {"fc8.weight": torch.ones(1)}
    torch.save({"state_dict": tensors | classifier}, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", tensors)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_mxnets_format_gives_the_same_network(version, tensors, tmp_path):
    dtypes = itertools.cycle(("<f2", "<f4", "<f8"))
    arrays = {}
    for name, value in tensors.items():
        arrays[mxnets_name(name)] = value.numpy().astype(next(dtypes))
    for i, dtype in enumerate(("|u1", "<i4", "|i1", "<i8")):
        arrays[f"arg:linear{i}_weight"] = np.ones((2, 2), dtype)
    arrays["arg:linear_bias"] = np.array(1, np.float32)  # without dimensions nothing follows
    (tmp_path / "a.params").write_bytes(params_bytes(arrays, version))
    assert_loads(tmp_path / "a.params", tensors)


def test_names_are_mxnets(tensors):
    names = {mxnets_name(name) for name in tensors}
    assert "arg:res3b1_branch2b1_weight" in names
    assert "aux:bn2a_branch2a_moving_mean" in names
    assert "arg:bn7_gamma" in names


WHOLE = params_bytes({"arg:conv1a_weight": np.zeros((2, 3), np.float32)})
SPARSE = struct.pack("<IiIq", VERSION_0 + 2, 1, 1, 3) + DEVICE + bytes(99)


def of_shape(*shape: int) -> bytes:
    """The beginning of an array, and zeros."""
    sides = struct.pack(f"<{len(shape)}q", *shape)
    return struct.pack("<IiI", VERSION_0 + 2, 0, len(shape)) + sides + DEVICE + bytes(99)


def of_dtype(number: int) -> bytes:
    return struct.pack("<II", 1, 2) + DEVICE + struct.pack("<i", number) + bytes(99)


FOREIGN = {
    "too many arrays": header(2**60),
    "sparse": header(1) + SPARSE,
    "negative side": header(1) + of_shape(-1),
    "too large": header(1) + of_shape(2**40, 2**40),
    "too small": header(1) + of_shape(-(2**62), 4),
    "dtype -1": header(1) + of_dtype(-1),
    "dtype 7": header(1) + of_dtype(7),
}


def test_a_cut_or_foreign_file_is_one_line(narrow_wideresnet, tmp_path):
    path = tmp_path / "a.params"
    model = WideResNet38()
    cut = [WHOLE[:size] for size in range(8, len(WHOLE))]
    for content in [*cut, *FOREIGN.values()]:
        path.write_bytes(content)
        with refused(path):
            weights.load_backbone(model, path)
    path.write_bytes(WHOLE)
    with pytest.raises(InputError, match=r"tensor conv1a\.weight"):
        weights.load_backbone(model, path)
