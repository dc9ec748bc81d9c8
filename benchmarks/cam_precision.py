"""What a CAM file's form costs: bytes, time and mIoU of each precision, compressed or not, as grids of the network or as maps of full size.

    python -m benchmarks.cam_precision --dataset_root /data/VOC2012 --run_dir runs/voc --list train

Reads the CAM files of RUN_DIR (float16 grids), which stand in for exact maps: their rounding is 2.5e-4 at most. Times are of one process;
writing goes to memory, reading ends with IS-CAMs of full size.
"""

import io
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.entries import Entry
from data.images import read_mask
from data.registry import DATASETS, open_dataset
from tool import cam_file, metrics, stage

Arrays = dict[str, np.ndarray]


class Form(NamedTuple):
    """How maps are stored."""

    of_full_size: bool
    levels: int  # what a map's maximum is stored as; 1: as it is
    dtype: type
    write: Callable


FORMS = {
    "full size, float32": Form(True, 1, np.float32, np.savez),
    "full size, float32, compressed": Form(True, 1, np.float32, np.savez_compressed),
    "full size, float16, compressed": Form(True, 1, np.float16, np.savez_compressed),
    "grids, float32, compressed": Form(False, 1, np.float32, np.savez_compressed),
    "grids, float16": Form(False, 1, np.float16, np.savez),
    "grids, float16, compressed": Form(False, 1, np.float16, np.savez_compressed),  # what make_cam.py writes
    "grids, 8 bit": Form(False, 255, np.uint8, np.savez),
    "grids, 8 bit, compressed": Form(False, 255, np.uint8, np.savez_compressed),
}


def fused(grids: Arrays, kind: str, size: tuple[int, int]) -> np.ndarray:
    """(k, H, W) float32 from the grids of a kind, at all scales."""
    chosen = [torch.from_numpy(grid) for name, grid in grids.items() if name.rpartition("_")[0] == kind]
    return cam_file.fuse(chosen, size, normalize=kind == "is_cam").numpy()


def write(maps: Arrays, form: Form) -> bytes:
    stored = {name: np.rint(values * form.levels) if form.levels > 1 else values for name, values in maps.items()}
    buffer = io.BytesIO()
    form.write(buffer, **{name: values.astype(form.dtype) for name, values in stored.items()})
    return buffer.getvalue()


def read(content: bytes, form: Form, size: tuple[int, int]) -> np.ndarray:
    """The IS-CAMs (k, H, W)."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        maps = {name: arrays[name].astype(np.float32) / form.levels for name in arrays.files}
    return maps["is_cam"] if form.of_full_size else fused(maps, "is_cam", size)


def measure(entry: Entry, run_dir, num_classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each form: bytes and the seconds of writing and reading, and the confusion matrix of a picture's IS-CAM."""
    path = cam_file.path_of(run_dir, entry.name)
    cam_file.load(path)  # says what is wrong with a missing or damaged one
    with np.load(path, allow_pickle=False) as arrays:
        keys, size = arrays["keys"].astype(np.uint8), tuple(arrays["size"].tolist())
        grids = {name: arrays[name].astype(np.float32) for name in arrays.files if name not in ("keys", "size")}
    whole = {kind: fused(grids, kind, size) for kind in {name.rpartition("_")[0] for name in grids}}
    truth, found = read_mask(entry.mask, num_classes, size), {}
    for name, form in FORMS.items():
        start = time.perf_counter()
        content = write(whole if form.of_full_size else grids, form)
        written = time.perf_counter()
        maps = read(content, form, size)
        costs = np.array([len(content), written - start, time.perf_counter() - written])
        found[name] = costs, metrics.confusion(truth, keys[maps.argmax(0)], num_classes)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = stage.parser(__doc__, list(DATASETS), device=False)
    parser.add_argument("--list", help="pictures with masks and CAM files (default: the dataset's official training list)")
    args = stage.parse(parser, argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(args.list or dataset.spec.eval_list)
    parts = [measure(entry, args.run_dir, dataset.num_classes) for entry in tqdm(entries, unit="picture")]
    print(f"{f'{len(entries)} pictures, a picture':<32}{'KB':>10}{'of full':>10}{'write ms':>10}{'read ms':>10}{'IS-CAM mIoU':>13}")
    full = None
    for name in FORMS:
        size, written, read = sum(part[name][0] for part in parts) / len(parts)
        full = full or size
        miou = metrics.miou(sum(part[name][1] for part in parts))
        print(f"{name:<32}{size / 1e3:>10.1f}{f'1/{full / size:.0f}':>10}{written * 1e3:>10.1f}{read * 1e3:>10.1f}{miou:>13.3f}")


if __name__ == "__main__":
    sys.exit(stage.run(main))
