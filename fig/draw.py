"""Draw README's images.

    python -m fig.draw overview --dataset folder --dataset_root runs/demo_data --run_dir runs/demo_seed15 --names demo_0001 demo_0002
    python predict.py IMAGE... --ckpt runs/voc/ckpt/seg.pth --areas
    python -m fig.draw predictions predictions

The first writes fig/overview.jpg from a finished run: images, general CAM and IS-CAM as heat maps, labels before and after refinement,
truth. The second writes fig/predictions.jpg from the images in predictions/areas.json: images, masks, overlays.
"""

import sys
from pathlib import Path

import numpy as np

from data.images import orientation, read_image, read_mask, to_upright_frame
from data.registry import open_dataset
from errors import InputError
from tool import cam_file, label_file, visualize
from tool.context import cli_main
from tool.flags import command_parser, parse_stage, stage_parser
from tool.outputs import read_json

HERE = Path(__file__).parent


def draw_overview(argv: list[str]) -> None:
    parser = stage_parser(__doc__, device=False)
    parser.add_argument("--list", help="list of the images (default: the dataset's training list)")
    parser.add_argument("--names", nargs="+", required=True, help="names of the images to show")
    args = parse_stage(parser, argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = {
        sample.name: sample for sample in dataset.samples(args.list or dataset.spec.train_list)
    }
    rows = []
    for name in args.names:
        if name not in samples:
            raise InputError(f"--names {name}: is not on the list; use names that are")
        maps = cam_file.load(cam_file.path_of(args.run_dir, name))
        image = read_image(samples[name].image, upright=False)
        refined = read_mask(
            label_file.path_of(args.run_dir / "seg_label", name), dataset.num_classes, maps.size
        )
        truth = read_mask(samples[name].mask, dataset.num_classes, maps.size)
        heats = [visualize.heat(image, maps.maps(kind)[1]) for kind in ("cam", "is_cam")]
        overlays = [
            visualize.overlay(image, label, dataset.class_names)
            for label in (maps.label("is_cam"), refined, truth)
        ]
        rows.append((dataset.class_names[maps.keys[1]], [image, *heats, *overlays]))
    titles = ("image", "general CAM", "IS-CAM", "labels from it", "refined labels", "ground truth")
    visualize.contact_sheet(rows, titles, HERE / "overview.jpg", dpi=90)


def draw_predictions(argv: list[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument(
        "output_dir",
        type=Path,
        help="folder in which predict.py --areas wrote masks and areas.json",
    )
    folder = parser.parse_args(argv).output_dir
    columns, titles = [], []
    for name, about in read_json(folder / "areas.json").items():
        path = Path(about["picture"])
        image = read_image(path)
        label = to_upright_frame(
            read_mask(label_file.path_of(folder, name), 255), orientation(path)
        )
        names = dict(zip(np.unique(label).tolist(), about["pixels"]))
        columns.append((image, label_file.palette()[label], visualize.overlay(image, label, names)))
        large = [
            one
            for one, pixels in about["pixels"].items()
            if one != "background" and pixels >= label.size / 100
        ]
        titles.append(", ".join(large) or "background")
    rows = [*zip(("image", "mask", "overlay"), zip(*columns))]
    visualize.contact_sheet(rows, titles, HERE / "predictions.jpg", dpi=90)


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("figure", choices=("overview", "predictions"), help="which image to draw")
    args, rest = parser.parse_known_args(argv)
    (draw_overview if args.figure == "overview" else draw_predictions)(rest)


if __name__ == "__main__":
    sys.exit(cli_main(main))
