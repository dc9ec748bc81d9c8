"""Draw the README's picture of what predict.py found: pictures, their masks, both together.

    python predict.py PICTURE... --ckpt runs/voc/ckpt/seg.pth --areas
    python -m fig.draw_predictions predictions

Writes fig/predictions.jpg, from the pictures that predictions/areas.json names.
"""

import argparse
import sys
from pathlib import Path

from data.images import orientation, read_mask, read_picture, to_upright_frame
from tool import files, label_file, stage, visualize

LINES = ("picture", "mask", "overlay")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="where predict.py --areas wrote masks and areas.json")
    folder = parser.parse_args(argv).output_dir
    shown, titles = [], []
    for name, about in files.read_json(folder / "areas.json").items():
        path = Path(about["picture"])
        picture = read_picture(path)
        label = to_upright_frame(read_mask(label_file.path_of(folder, name), 255), orientation(path))
        shown.append((picture, label_file.palette()[label], visualize.overlay(picture, label)))
        large = [one for one, pixels in about["pixels"].items() if one != "background" and pixels >= label.size / 100]
        titles.append(", ".join(large) or "background")
    visualize.contact_sheet([*zip(LINES, zip(*shown))], titles, Path(__file__).with_name("predictions.jpg"), dpi=90)


if __name__ == "__main__":
    sys.exit(stage.run(main))
