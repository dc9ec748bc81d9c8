"""Stage 4: inter-pixel labels, from which IRN learns: what the dense CRF is sure of, for every picture.

    python make_ir_labels.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the pictures of --list and RUN_DIR/cam. Writes RUN_DIR/ir_label/NAME.png: class ids, 0 for confident background, 255 for
uncertain. Pictures that have a whole label are skipped, so a stopped run goes on.
"""

import argparse
import functools
import sys
from pathlib import Path

from tqdm import tqdm

from data.entries import Entry
from data.images import read_picture
from data.registry import DATASETS, open_dataset
from tool import cam_file, crf, label_file, outputs, stage


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS), device=False, most_workers=None)
    parser.add_argument("--list", help="pictures to label: a name (train_aug) or a text file (default: the training list)")
    parser.add_argument("--map", choices=("is_cam", "cam"), default="is_cam", help="kind of map to start from (default is_cam)")
    outputs.add_flag(parser)
    return stage.parse(parser, argv)


def make_label(entry: Entry, run_dir: Path, folder: Path, kind: str, num_classes: int) -> None:
    """Write the inter-pixel label of one picture."""
    picture = read_picture(entry.picture, upright=False)
    maps = cam_file.load(cam_file.path_of(run_dir, entry.name), num_classes, picture.shape[:2])
    label_file.save(label_file.path_of(folder, entry.name), crf.inter_pixel_label(picture, maps.maps(kind), maps.keys))


def is_made(entry: Entry, run_dir: Path, folder: Path) -> bool:
    return label_file.is_made(label_file.path_of(folder, entry.name), cam_file.path_of(run_dir, entry.name))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(args.list or dataset.spec.train_list)
    settings = {
        "cam": cam_file.check(args.run_dir, entries.names(), args.map, dataset.class_names),
        "map": args.map,
        "crf": crf.SETTINGS,
    }
    folder = args.run_dir / "ir_label"
    with stage.start(args) as run:
        outputs.claim(folder, "make_ir_labels", settings, run, args.overwrite)
        todo = run.shard(entries).where(lambda entry: not is_made(entry, args.run_dir, folder))
        run.say(f"{len(entries)} pictures, {sum(run.gather(len(todo)))} of them to do")
        work = functools.partial(make_label, run_dir=args.run_dir, folder=folder, kind=args.map, num_classes=dataset.num_classes)
        for _ in tqdm(outputs.in_parallel(work, todo, args.num_workers), desc="CRF", unit="picture", disable=not run.is_main):
            pass
        run.wait()
        run.say(f"wrote {folder}")


if __name__ == "__main__":
    sys.exit(stage.run(main))
