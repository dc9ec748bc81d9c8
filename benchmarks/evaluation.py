"""The evaluation of maps: eval_cam.py, picture by picture, against all maps in memory and a loop over classes.

    python -m benchmarks.evaluation [--pictures 490] [--size 375 500] [--num_workers 2]

Draws CAM files of four scales and masks of that many pictures, two or three classes each. The plain version reads the same maps at the
picture's size in float32, as the authors' program stores them. Memory is that of one process, so it is told of eval_cam.py with
--num_workers 0, for all pictures and for a quarter of them.
"""

import functools
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import eval_cam
from data.entries import Entries
from tool import cam_file, report, stage

from . import measure

NUM_CLASSES = 21
SCALES = (1.0, 0.5, 1.5, 2.0)
STRIDE = 16


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--pictures", type=int, default=490, help="how many (default 490)")
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], metavar=("H", "W"), help="of a picture, pixels (default 375 500)")
    stage.add_workers(parser)
    return parser.parse_args(argv)


def draw(folder: Path, pictures: int, size: tuple[int, int]) -> None:
    """cam/NAME.npz, the same maps as full/NAME.npz at full size in float32, and mask/NAME.png."""
    rng = np.random.default_rng(0)
    for name in ("cam", "full", "mask"):
        (folder / name).mkdir()
    for i in range(pictures):
        keys = np.array([0, *sorted(rng.choice(np.arange(1, NUM_CLASSES), 1 + i % 2, replace=False))])
        coarse = rng.random((4, 6, len(keys)), dtype=np.float32)
        grids = []
        for scale in SCALES:
            height, width = (max(1, round(side * scale / STRIDE)) for side in size)
            grids.append(cv2.resize(coarse, (width, height)).transpose(2, 0, 1))
        cam_file.save(cam_file.path_of(folder, str(i)), keys, size, is_cam=grids)
        maps = cam_file.load(cam_file.path_of(folder, str(i))).is_cam
        np.savez(folder / f"full/{i}.npz", keys=keys, maps=maps)
        mask = keys[np.roll(maps, size[1] // 10, 2).argmax(0)].astype(np.uint8)  # about as right as maps are
        mask[:: max(size[0] // 20, 2)] = 255
        Image.fromarray(mask).save(folder / f"mask/{i}.png")


def streaming(args: Namespace, num_workers: int | None = None, share: int = 1) -> measure.Work:
    names = [str(i) for i in range(args.pictures // share)]
    entries = Entries.of((name, "", str(args.folder / f"mask/{name}.png")) for name in names)
    run = stage.Stage(stage.choose_device("cpu"), 0, 1, args.folder)
    work = functools.partial(eval_cam.compare, run_dir=args.folder, kinds=["is_cam"], num_classes=NUM_CLASSES)
    workers = args.num_workers if num_workers is None else num_workers

    def evaluate() -> dict[str, np.ndarray]:
        totals, _ = report.evaluate(work, entries, {"pictures": len(entries)}, args.folder / "eval_cam.json", run, workers, print)
        matrix = totals["is_cam"]
        return {"intersection": np.diag(matrix), "truth": matrix.sum(1), "prediction": matrix.sum(0)}

    work(entries[0])  # the first call loads libraries
    return evaluate


def plain(args: Namespace) -> measure.Work:
    def evaluate() -> dict[str, np.ndarray]:
        maps, masks = [], []
        for i in range(args.pictures):
            with np.load(args.folder / f"full/{i}.npz", allow_pickle=False) as arrays:
                maps.append((arrays["keys"], arrays["maps"]))
            masks.append(np.asarray(Image.open(args.folder / f"mask/{i}.png")))
        labels = [keys[scores.argmax(0)] for keys, scores in maps]
        found = {name: np.zeros(NUM_CLASSES, np.int64) for name in ("intersection", "truth", "prediction")}
        for label, mask in zip(labels, masks):
            counted = mask != 255
            for k in range(NUM_CLASSES):
                found["intersection"][k] += np.sum((label == k) & (mask == k) & counted)
                found["truth"][k] += np.sum((mask == k) & counted)
                found["prediction"][k] += np.sum((label == k) & counted)
        return found

    return evaluate


VERSIONS = {
    "eval_cam": streaming,
    "one process": functools.partial(streaming, num_workers=0),
    "a quarter": functools.partial(streaming, num_workers=0, share=4),
    "plain": plain,
}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        draw(args.folder, args.pictures, tuple(args.size))
        costs = measure.compare(VERSIONS, args)
    print(measure.line("evaluation", costs["eval_cam"], costs["plain"]))
    print(measure.line("evaluation, one process", costs["one process"], costs["plain"]))
    print(f"  a quarter of the pictures: {costs['a quarter'].megabytes:.0f} MB; {args.num_workers} workers in the first line")
    print(measure.told(measure.differences(costs["eval_cam"].result, costs["plain"].result)))


if __name__ == "__main__":
    sys.exit(stage.run(main))
