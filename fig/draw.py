"""Draw README's images.

    python -m fig.draw overview --dataset folder --dataset_root runs/demo_data \\
        --run_dir runs/demo_seed15 --names demo_0001 demo_0002
    python predict.py IMAGE... --ckpt runs/voc/ckpt/seg.pth --areas
    python -m fig.draw predictions predictions

The first writes fig/overview.jpg from a finished run: images, general CAM and IS-CAM as heat maps,
labels before and after refinement, truth. The second writes fig/predictions.jpg from the images in
predictions/areas.json: images, masks, overlays.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.images import orientation, read_image, read_mask, to_upright_frame
from data.registry import Dataset, Sample, open_dataset
from errors import InputError
from tool import cam_file, label_file, visualize
from tool.context import cli_main
from tool.flags import command_parser, parse_stage, stage_parser
from tool.outputs import read_json
from tool.visualize import SheetRow

HERE = Path(__file__).parent
DPI = 90
OVERVIEW_TITLES = (
    "image",
    "general CAM",
    "IS-CAM",
    "labels from it",
    "refined labels",
    "ground truth",
)


def draw_overview(argv: list[str]) -> None:
    parser = stage_parser(__doc__, device=False)
    parser.add_argument("--list", help="list of the images (default: the dataset's training list)")
    parser.add_argument("--names", nargs="+", required=True, help="names of the images to show")
    args = parse_stage(parser, argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    listed = dataset.samples(args.list or dataset.spec.train_list)
    samples = {sample.name: sample for sample in listed}
    rows = []
    for name in args.names:
        if name not in samples:
            raise InputError(f"--names {name}: is not on the list; use names that are")
        rows.append(overview_row(samples[name], dataset, args.run_dir))
    visualize.contact_sheet(rows, OVERVIEW_TITLES, HERE / "overview.jpg", DPI)


def overview_row(sample: Sample, dataset: Dataset, run_dir: Path) -> SheetRow:
    """An image, the maps of its first class, and its masks, under OVERVIEW_TITLES."""
    image = read_image(sample.image, upright=False)
    maps = cam_file.load(cam_file.path_of(run_dir, sample.name))
    heats = [visualize.heat(image, maps.maps(kind)[1]) for kind in ("cam", "is_cam")]

    refined_path = label_file.path_of(run_dir / "seg_label", sample.name)
    refined = read_mask(refined_path, dataset.num_classes, maps.size)
    truth = read_mask(sample.mask, dataset.num_classes, maps.size)
    masks = (maps.label("is_cam"), refined, truth)
    overlays = [visualize.overlay(image, mask, dataset.class_names) for mask in masks]

    first_class = dataset.class_names[maps.keys[1]]
    return SheetRow(first_class, [image, *heats, *overlays])


class PredictionColumn(NamedTuple):
    """A column of fig/predictions.jpg; (H, W, 3) uint8 each."""

    image: np.ndarray
    mask: np.ndarray  # in VOC's colours
    overlay: np.ndarray


def draw_predictions(argv: list[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument(
        "output_dir",
        type=Path,
        help="folder in which predict.py --areas wrote masks and areas.json",
    )
    folder = parser.parse_args(argv).output_dir
    columns = []
    titles = []
    for name, areas in read_json(folder / "areas.json").items():
        columns.append(prediction_column(label_file.path_of(folder, name), areas))
        titles.append(prediction_title(areas["pixels"]))
    rows = []
    for kind in PredictionColumn._fields:
        rows.append(SheetRow(kind, [getattr(column, kind) for column in columns]))
    visualize.contact_sheet(rows, titles, HERE / "predictions.jpg", DPI)


def prediction_column(mask_path: Path, areas: dict[str, Any]) -> PredictionColumn:
    """A predicted image; areas: what areas.json says of it, `pixels` in the order of class ids."""
    image_path = Path(areas["picture"])
    image = read_image(image_path)
    mask = to_upright_frame(read_mask(mask_path, 255), orientation(image_path))
    class_names = dict(zip(np.unique(mask).tolist(), areas["pixels"]))
    overlay = visualize.overlay(image, mask, class_names)
    return PredictionColumn(image, label_file.palette()[mask], overlay)


def prediction_title(pixels: dict[str, int]) -> str:
    """The names of the classes that cover at least 1 % of an image."""
    one_percent = sum(pixels.values()) / 100
    large = []
    for class_name, area in pixels.items():
        if class_name != "background" and area >= one_percent:
            large.append(class_name)
    return ", ".join(large) or "background"


FIGURES = {"overview": draw_overview, "predictions": draw_predictions}


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("figure", choices=FIGURES, help="which image to draw")
    args, rest = parser.parse_known_args(argv)
    FIGURES[args.figure](rest)


if __name__ == "__main__":
    sys.exit(cli_main(main))
