"""WideResNet38's ImageNet weights as MXNet stores them (.params), read by numpy: MXNet itself is no longer developed."""

import math
from pathlib import Path

import numpy as np

BEGINNING = b"\x12\x01" + bytes(6)  # of every such file
VERSIONS = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}  # of an array; the oldest begin with their number of dimensions
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
BATCHNORM = {"beta": "bias", "gamma": "weight", "mean": "running_mean", "var": "running_var"}


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .params file by name, such as arg:conv1a_weight. Raises ValueError for a cut or foreign file; executes nothing."""
    data, position = Path(path).read_bytes(), len(BEGINNING)

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal position
        values = np.frombuffer(data, dtype, math.prod(shape), position).reshape(shape)
        position += values.nbytes
        return values

    def number(dtype: str = "<u8") -> int:
        return int(take(dtype, 1)[0])

    def array() -> np.ndarray:
        version = VERSIONS.get(first := number("<u4"), 0)
        if version >= 2 and number("<i4"):
            raise ValueError("a sparse array")
        shape = take("<i8", number("<u4")).tolist() if version else take("<u4", first).tolist()
        if not shape:
            return np.empty(0)
        *_, dtype = take("<i4", 3)  # the first two: type and number of the device
        if min(shape) < 0 or not 0 <= dtype < len(DTYPES):
            raise ValueError("an array of negative size or unknown type")
        return take(DTYPES[dtype], *shape)

    try:
        number()  # reserved
        arrays = [array() for _ in range(number())]
        names = [take("u1", number()).tobytes().decode() for _ in range(number())]
    except OverflowError as error:
        raise ValueError(str(error)) from None
    return dict(zip(names, arrays, strict=True))


def wideresnet38_name(name: str) -> str | None:
    """Our name of a tensor of MXNet's WideResNet38, such as aux:bn3b1_branch2a_moving_mean; None for its classifier's."""
    first, *rest = name.rpartition(":")[2].split("_")
    if first.startswith("linear") or not rest:
        return None
    last = BATCHNORM.get(rest[-1], rest[-1])
    if not rest[0].startswith("branch"):  # conv1a_weight, bn7_gamma, bn7_moving_mean
        return f"{first}.{last}"
    kind, block = ("conv", first.removeprefix("res")) if first.startswith("res") else ("bn", first.removeprefix("bn"))
    return f"b{block[:1]}{'' if block.endswith('a') else '_' + block[-1:]}.{kind}_{rest[0]}.{last}"
