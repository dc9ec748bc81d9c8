"""Draw the README's picture from a finished run: picture, general CAM and IS-CAM as heat, labels before and after refinement, truth.

    python -m fig.draw_overview --dataset folder --dataset_root runs/demo_data --run_dir runs/demo_seed15 --names demo_0001 demo_0002

Writes fig/overview.jpg.
"""

import sys
from pathlib import Path

from data.images import read_mask, read_picture
from data.registry import DATASETS, open_dataset
from errors import InputError
from tool import cam_file, label_file, stage, visualize

COLUMNS = ("picture", "general CAM", "IS-CAM", "labels from it", "refined labels", "ground truth")


def main(argv: list[str] | None = None) -> None:
    parser = stage.parser(__doc__, list(DATASETS), device=False)
    parser.add_argument("--list", help="list that the pictures stand on (default: the dataset's training list)")
    parser.add_argument("--names", nargs="+", required=True, help="names of the pictures to show")
    args = stage.parse(parser, argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = {entry.name: entry for entry in dataset.entries(args.list or dataset.spec.train_list)}
    rows = []
    for name in args.names:
        if name not in entries:
            raise InputError(f"--names {name}: is not on the list; give names that are")
        maps = cam_file.load(cam_file.path_of(args.run_dir, name))
        picture = read_picture(entries[name].picture, upright=False)
        refined = read_mask(label_file.path_of(args.run_dir / "seg_label", name), dataset.num_classes, maps.size)
        truth = read_mask(entries[name].mask, dataset.num_classes, maps.size)
        shown = [visualize.heat(picture, maps.maps(kind)[1]) for kind in ("cam", "is_cam")]
        shown += [visualize.overlay(picture, label) for label in (maps.label("is_cam"), refined, truth)]
        rows.append((dataset.class_names[maps.keys[1]], [picture, *shown]))
    visualize.contact_sheet(rows, COLUMNS, Path(__file__).with_name("overview.jpg"), dpi=90)


if __name__ == "__main__":
    sys.exit(stage.run(main))
