"""What the precision of CAM files costs: bytes a picture and mIoU, against maps of full size in float32.

    python -m benchmarks.cam_precision --dataset_root /data/VOC2012 --run_dir runs/voc --list train

Reads the CAM files of RUN_DIR (float16 grids), which stand in for exact maps: their rounding is 2.5e-4 at most.
"""

import io
import sys

import numpy as np
import torch

from data.entries import Entry
from data.images import read_mask
from data.registry import DATASETS, open_dataset
from tool import cam_file, metrics, stage

FORMATS = {"float16": 1, "8 bit": 255}


def rounded(grid: np.ndarray, precision: str) -> np.ndarray:
    return grid if precision == "float16" else np.round(grid.astype(np.float32) * 255).astype(np.uint8)


def measure(entry: Entry, run_dir, num_classes: int, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (full size, stored, stored and compressed) and the IS-CAM's confusion matrix of one picture."""
    cam_file.load(cam_file.path_of(run_dir, entry.name))  # says what is wrong with a missing or damaged one
    with np.load(cam_file.path_of(run_dir, entry.name), allow_pickle=False) as arrays:
        stored = {name: rounded(arrays[name], precision) if name.startswith(("cam", "is_cam")) else arrays[name] for name in arrays.files}
    size, keys = tuple(stored["size"].tolist()), stored["keys"]
    kinds = {name.rpartition("_")[0] for name in stored} & {"cam", "is_cam"}
    bytes_ = [len(kinds) * len(keys) * size[0] * size[1] * 4]
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **stored)
        bytes_.append(len(buffer.getvalue()))
    grids = [torch.from_numpy(stored[name] / np.float32(FORMATS[precision])) for name in stored if name.startswith("is_cam")]
    prediction = keys[cam_file.fuse(grids, size, normalize=True).argmax(0).numpy()].astype(np.uint8)
    return np.array(bytes_), metrics.confusion(read_mask(entry.mask, num_classes, size), prediction, num_classes)


def main(argv: list[str] | None = None) -> None:
    parser = stage.parser(__doc__, list(DATASETS), device=False)
    parser.add_argument("--list", help="pictures with masks and CAM files (default: the dataset's official training list)")
    args = stage.parse(parser, argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(args.list or dataset.spec.eval_list)
    print(f"{'precision':<10}{'KB/picture':>12}{'compressed':>12}{'of full size':>14}{'IS-CAM mIoU':>13}")
    for precision in FORMATS:
        parts = [measure(entry, args.run_dir, dataset.num_classes, precision) for entry in entries]
        (full, plain, compressed), matrix = sum(part[0] for part in parts) / len(parts), sum(part[1] for part in parts)
        print(
            f"{precision:<10}{plain / 1e3:>12.1f}{compressed / 1e3:>12.1f}{f'1/{full / compressed:.0f}':>14}{metrics.miou(matrix):>13.3f}"
        )


if __name__ == "__main__":
    sys.exit(stage.run(main))
