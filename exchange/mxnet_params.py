"""WideResNet38's ImageNet weights as MXNet stores them (.params), read by numpy: MXNet itself is no longer developed."""

import math
from pathlib import Path

import numpy as np

BEGINNING = b"\x12\x01" + bytes(6)  # of every such file; eight reserved bytes follow
DTYPES = dict(enumerate(("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")))
BATCHNORM = {"beta": "bias", "gamma": "weight", "mean": "running_mean", "var": "running_var"}


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .params file by name, such as arg:conv1a_weight. Raises ValueError for a cut or foreign file; executes nothing."""
    data, position = Path(path).read_bytes(), 2 * len(BEGINNING)

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal position
        values = np.frombuffer(data, dtype, math.prod(shape), position).reshape(shape)
        position += values.nbytes
        return values

    def number(dtype: str = "<u8") -> int:
        return int(take(dtype, 1)[0])

    def array() -> np.ndarray:
        first = number("<u4")  # the mark of a version; in the oldest the number of dimensions
        if first >= 0xF993FAC9 and number("<i4"):
            raise ValueError("a sparse array")
        shape = take("<i8", number("<u4")) if first >= 0xF993FAC8 else take("<u4", first)
        if not shape.size:
            return np.empty(0)
        *_, dtype = take("<i4", 3).tolist()  # the first two: type and number of the device
        return take(DTYPES[dtype], *shape.tolist())

    try:
        arrays = [array() for _ in range(number())]
        names = [take("u1", number()).tobytes().decode() for _ in range(number())]
    except (KeyError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from None
    return dict(zip(names, arrays, strict=True))


def wideresnet38_name(name: str) -> str:
    """Our name of a tensor of MXNet's WideResNet38, such as aux:bn3b1_branch2a_moving_mean."""
    first, *middle = name.rpartition(":")[2].split("_")
    last = BATCHNORM.get(middle[-1], middle[-1]) if middle else ""
    if not middle or not middle[0].startswith(
        "branch"
    ):  # conv1a_weight, bn7_moving_mean; the classifier's fits nothing
        return f"{first}.{last}"
    kind, block = ("conv", first[3:]) if first.startswith("res") else ("bn", first[2:])
    return (
        f"b{block[:1]}{'' if block.endswith('a') else '_' + block[-1:]}.{kind}_{middle[0]}.{last}"
    )
