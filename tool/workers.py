"""Worker processes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset


class _Calls(TorchDataset):
    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def parallel_map(
    function: Callable[[Any], Any], items: Sequence[Any], num_workers: int
) -> DataLoader:
    """Call a function on every item in worker processes (0: in this one); results come as they are ready, in any order.

    A killed worker ends the command with an error, where a multiprocessing pool would wait forever.
    """
    workers = min(num_workers, len(items))
    return DataLoader(
        _Calls(function, items),
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        in_order=workers == 0,
    )


def _identity(value: Any) -> Any:
    return value
