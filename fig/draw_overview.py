"""Draw the README's picture from a finished run: picture, ground truth, general CAM and IS-CAM, as heat and as labels.

    python -m fig.draw_overview --dataset folder --dataset_root runs/demo_data --run_dir runs/demo --names demo_0001 demo_0007

Writes fig/overview.png.
"""

import sys
from pathlib import Path

import numpy as np

from data.images import read_mask, read_picture
from data.registry import DATASETS, open_dataset
from tool import cam_file, stage, visualize

COLUMNS = ("picture", "general CAM", "labels from it", "IS-CAM", "labels from it", "ground truth")


def main(argv: list[str] | None = None) -> None:
    parser = stage.parser(__doc__, list(DATASETS), device=False)
    parser.add_argument("--list", help="list that the pictures stand on (default: the dataset's training list)")
    parser.add_argument("--names", nargs="+", required=True, help="names of the pictures to show")
    args = parser.parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = {entry.name: entry for entry in dataset.entries(args.list or dataset.spec.train_list)}
    rows = []
    for name in args.names:
        maps = cam_file.load(cam_file.path_of(args.run_dir, name))
        picture = read_picture(entries[name].picture, upright=False)
        shown = [picture]
        for kind in (maps.cam, maps.is_cam):
            label = maps.keys[kind.argmax(0)].astype(np.uint8)
            shown += [visualize.heat(picture, kind[1]), visualize.overlay(picture, label)]
        truth = read_mask(entries[name].mask, dataset.num_classes, maps.size)
        rows.append((dataset.class_names[maps.keys[1]], [*shown, visualize.overlay(picture, truth)]))
    visualize.contact_sheet(rows, COLUMNS, Path(__file__).with_name("overview.png"), dpi=75)


if __name__ == "__main__":
    sys.exit(stage.run(main))
