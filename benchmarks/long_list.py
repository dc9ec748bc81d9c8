"""What a list of COCO's length costs: time and memory of opening it, and how far worker processes grow while they read it.

    python -m benchmarks.long_list [--pictures 82081] [--num_workers 8]

Draws a dataset of that many names, all of one picture. The plain version keeps one Python object a picture, which worker processes copy
as they read it: counting references writes to memory.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data import tables
from data.registry import COCO, open_dataset

CLASSES = tables.read_classes(COCO.classes)[1:]
OPEN = """
import json, re, sys, time
start = time.perf_counter()
from data.registry import open_dataset
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e3
before = peak()
dataset = open_dataset("coco", sys.argv[1])
entries = dataset.entries("train")
labels = dataset.labels(entries)
print(json.dumps({"pictures": len(entries), "seconds": time.perf_counter() - start, "before": before, "after": peak()}))
"""
EVERY = 500  # pictures between two looks at a worker's memory


def draw(root: Path, pictures: int) -> None:
    """A dataset in COCO's layout, every picture a link to the same one."""
    (root / "train2014").mkdir()
    Image.new("RGB", (64, 48)).save(root / "picture.jpg")
    names = [f"COCO_train2014_{i:012d}" for i in range(pictures)]
    for name in names:
        os.symlink(root / "picture.jpg", root / f"train2014/{name}.jpg")
    (root / "train.txt").write_text("".join(f"{name}\n" for name in names))
    rng = np.random.default_rng(0)
    rows = ((name, rng.choice(CLASSES, rng.integers(1, 6), replace=False)) for name in names)
    (root / "tags.csv").write_text(tables.format_tags(rows))


class Reading(TorchDataset):
    """Items are looked up and no more; now and then one is (process, its private memory in MB)."""

    def __init__(self, entries, labels):
        self.entries, self.labels, self.count = entries, labels, 0

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[int, float] | None:
        assert self.entries[index].picture and self.labels[index] is not None
        self.count += 1
        return (os.getpid(), private_memory()) if self.count % EVERY == 1 else None


def private_memory() -> float:
    """What this process alone holds, in MB."""
    return int(re.search(r"Private_Dirty:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1]) / 1e3


def growth(entries, labels, num_workers: int) -> float:
    """How far the workers' private memory grows over an epoch, in MB, all of them together."""
    seen: dict[int, list[float]] = {}
    for found in DataLoader(Reading(entries, labels), batch_size=None, shuffle=True, num_workers=num_workers):
        if found:
            seen.setdefault(found[0], []).append(found[1])
    return sum(max(values) - values[0] for values in seen.values())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=82081, help="length of the list (default 82081)")
    parser.add_argument("--num_workers", type=int, default=8, help="worker processes (default 8)")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: they are counted, not timed
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), args.pictures)
        told = json.loads(subprocess.run([sys.executable, "-c", OPEN, folder], check=True, capture_output=True, text=True).stdout)
        print(f"opening {told['pictures']:,} pictures with their labels: {told['seconds']:.1f} s with all imports")
        print(f"memory of the process: {told['before']:.0f} MB before, at most {told['after']:.0f} MB")
        dataset = open_dataset("coco", folder)
        entries = dataset.entries("train")
        labels = dataset.labels(entries)
        print(f"{args.num_workers} workers over an epoch grow by {growth(entries, labels, args.num_workers):.0f} MB in all", flush=True)
        plain = list(entries), list(labels)
        print(f"with a list of objects: by {growth(*plain, args.num_workers):.0f} MB")


if __name__ == "__main__":
    main()
