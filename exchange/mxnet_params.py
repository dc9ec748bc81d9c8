"""WideResNet38's ImageNet weights in MXNet's format (.params), read by numpy.

MXNet itself is no longer developed.
"""

import math
from pathlib import Path

import numpy as np

BEGINNING = b"\x12\x01" + bytes(6)  # of every such file; eight reserved bytes follow
VERSION_1 = 0xF993FAC8  # marks an array; in older files there is the number of dimensions
VERSION_2 = 0xF993FAC9  # the array may be sparse
DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}
BATCHNORM = {"beta": "bias", "gamma": "weight", "mean": "running_mean", "var": "running_var"}


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .params file by name, such as arg:conv1a_weight.

    Executes nothing. Raises ValueError for a file that is cut short or of another format.
    """
    reader = _Reader(Path(path).read_bytes(), position=2 * len(BEGINNING))
    try:
        arrays = [reader.array() for _ in range(reader.number())]
        names = [reader.text() for _ in range(reader.number())]
    except (KeyError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from None
    return dict(zip(names, arrays, strict=True))


class _Reader:
    """Reads values from bytes, one after the other. Raises ValueError at their end."""

    def __init__(self, data: bytes, position: int):
        self.data = data
        self.position = position

    def values(self, dtype: str, *shape: int) -> np.ndarray:
        count = math.prod(shape)
        values = np.frombuffer(self.data, dtype, count, self.position).reshape(shape)
        self.position += values.nbytes
        return values

    def number(self, dtype: str = "<u8") -> int:
        return int(self.values(dtype, 1)[0])

    def text(self) -> str:
        return self.values("u1", self.number()).tobytes().decode()

    def array(self) -> np.ndarray:
        mark = self.number("<u4")
        if mark >= VERSION_2 and self.number("<i4"):
            raise ValueError("a sparse array")
        if mark >= VERSION_1:
            shape = self.values("<i8", self.number("<u4"))
        else:
            shape = self.values("<u4", mark)
        if not shape.size:  # an array without dimensions has no content
            return np.empty(0)
        _, _, dtype = self.values("<i4", 3).tolist()  # after type and number of the device
        return self.values(DTYPES[dtype], *shape.tolist())


def wideresnet38_name(name: str) -> str:
    """Our name of a tensor of MXNet's WideResNet38, such as aux:bn3b1_branch2a_moving_mean.

    That one is b3_1.bn_branch2a.running_mean. Names outside of the blocks, such as conv1a_weight or
    bn7_moving_mean, become conv1a.weight and bn7.running_mean; the classifier's fits no tensor.
    """
    layer, *middle = name.rpartition(":")[2].split("_")
    if not middle:
        return f"{layer}."
    tensor = BATCHNORM.get(middle[-1], middle[-1])
    branch = middle[0]
    if not branch.startswith("branch"):
        return f"{layer}.{tensor}"
    kind = "bn"
    block = layer.removeprefix("bn")
    if layer.startswith("res"):
        kind = "conv"
        block = layer.removeprefix("res")
    place = f"b{block[:1]}"
    if not block.endswith("a"):  # 3b1 is the second block of group 3
        place += f"_{block[-1:]}"
    return f"{place}.{kind}_{branch}.{tensor}"
