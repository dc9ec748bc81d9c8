"""Where the benchmarks that read pictures have them from: a VOC root, or else drawn ones."""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.entries import Entries
from data.registry import Dataset, open_dataset

DRAWN_SIZE = 432  # pixels a side: as many as in VOC's usual 375x500


def add_flags(parser: argparse.ArgumentParser, pictures: int) -> None:
    parser.add_argument("--dataset_root", help="folder of VOC 2012 (default: drawn pictures of 432x432)")
    parser.add_argument("--pictures", type=int, default=pictures, help=f"how many (default {pictures})")


@contextlib.contextmanager
def lent(args: Namespace) -> Iterator[None]:
    """Fill in args.folder, empty and gone at the end, args.dataset and, where it is not given, args.dataset_root."""
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        args.dataset = "voc" if args.dataset_root else "folder"
        if not args.dataset_root:
            args.dataset_root = args.folder / "drawn"
            size = ["--pictures", str(args.pictures), "--size", str(DRAWN_SIZE)]
            subprocess.run([sys.executable, "-m", "data.draw_demo", args.dataset_root, *size], check=True, stdout=subprocess.DEVNULL)
        yield


def opened(args: Namespace) -> tuple[Dataset, Entries, np.ndarray]:
    """The dataset, the first of its training pictures, and their labels."""
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(dataset.spec.train_list)[: args.pictures]
    return dataset, entries, dataset.labels(entries)
