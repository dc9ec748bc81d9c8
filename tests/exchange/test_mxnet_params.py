"""MXNet's files of weights, written here as their format is described."""

import itertools
import struct

import numpy as np
import pytest
import torch

from errors import InputError
from exchange import weights
from network.wideresnet import WideResNet38

DTYPES = ("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8")
CONTEXT = struct.pack("<ii", 1, 0)


def array_bytes(values: np.ndarray, version: int = 2) -> bytes:
    """An array as MXNet writes it: before version 1 it begins with its number of dimensions, from version 2 on it may be sparse."""
    magic = struct.pack("<I", 0xF993FAC7 + version) if version else b""
    shape = struct.pack(f"<I{values.ndim}{'q' if version else 'I'}", values.ndim, *values.shape)
    content = CONTEXT + struct.pack("<i", DTYPES.index(values.dtype.str)) + values.tobytes()
    return (
        magic
        + (struct.pack("<i", 0) if version >= 2 else b"")
        + shape
        + (content if values.ndim else b"")
    )


def params_bytes(arrays: dict[str, np.ndarray], version: int = 2) -> bytes:
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    body = b"".join(array_bytes(values, version) for values in arrays.values())
    return (
        struct.pack("<QQQ", 0x112, 0, len(arrays)) + body + struct.pack("<Q", len(arrays)) + names
    )


def mxnets_name(name: str) -> str:
    """MXNet's name of one of our tensors."""
    *place, last = name.split(".")
    if place[-1].startswith("bn"):
        last = {
            "bias": "beta",
            "weight": "gamma",
            "running_mean": "moving_mean",
            "running_var": "moving_var",
        }[last]
    kind = "aux" if last.startswith("moving") else "arg"
    if len(place) == 1:
        return f"{kind}:{place[0]}_{last}"
    digit, _, number = place[0][1:].partition("_")
    layer, branch = place[1].split("_")
    return f"{kind}:{layer.replace('conv', 'res')}{digit}{f'b{number}' if number else 'a'}_{branch}_{last}"


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_both_formats_of_weights_give_the_same_network(version, narrow_wideresnet, tmp_path):
    tensors = {
        name: torch.rand(v.shape).half()
        for name, v in WideResNet38().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": tensors | {"fc8.weight": torch.ones(1)}}, tmp_path / "a.pth")
    dtypes = itertools.cycle(("<f2", "<f4", "<f8"))
    arrays = {
        mxnets_name(name): value.numpy().astype(next(dtypes)) for name, value in tensors.items()
    }
    assert {
        "arg:res3b1_branch2b1_weight",
        "aux:bn2a_branch2a_moving_mean",
        "arg:bn7_gamma",
    } <= arrays.keys()
    for i, dtype in enumerate(("|u1", "<i4", "|i1", "<i8")):
        arrays[f"arg:linear{i}_weight"] = np.ones((2, 2), dtype)
    arrays["arg:linear_bias"] = np.array(1, np.float32)  # without dimensions nothing follows
    (tmp_path / "a.params").write_bytes(params_bytes(arrays, version))
    for name in ("a.pth", "a.params"):
        model = WideResNet38()
        weights.load_pretrained(model, str(tmp_path / name), "wideresnet38")
        assert all(
            torch.equal(model.state_dict()[tensor], value.float())
            for tensor, value in tensors.items()
        ), name


def test_a_cut_or_foreign_file_is_one_line(narrow_wideresnet, tmp_path):
    path, model, whole = (
        tmp_path / "a.params",
        WideResNet38(),
        params_bytes({"arg:conv1a_weight": np.zeros((2, 3), np.float32)}),
    )
    head, version = struct.pack("<QQQ", 0x112, 0, 1), struct.pack("<I", 0xF993FAC9)
    bad = [whole[:size] for size in range(8, len(whole))] + [struct.pack("<QQQ", 0x112, 0, 2**60)]
    bad += [head + version + struct.pack("<iIq", 1, 1, 3) + CONTEXT + bytes(99)]  # sparse
    for shape in ((-1,), (2**40, 2**40), (-(2**62), 4)):
        bad.append(
            head
            + version
            + struct.pack(f"<iI{len(shape)}q", 0, len(shape), *shape)
            + CONTEXT
            + bytes(99)
        )
    bad += [
        head + struct.pack("<II", 1, 2) + CONTEXT + struct.pack("<i", dtype) + bytes(99)
        for dtype in (-1, 7)
    ]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            weights.load_backbone(model, path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"tensor conv1a\.weight"):
        weights.load_backbone(model, path)
