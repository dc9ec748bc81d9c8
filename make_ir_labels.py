"""Stage 4: inter-pixel labels, from which IRN learns: the pixels that the dense CRF is sure of.

    python make_ir_labels.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads the images of --list and RUN_DIR/cam. Writes RUN_DIR/ir_label/NAME.png: class ids, 0 for
confident background, 255 for uncertain. Images with an up-to-date label are skipped: run the same
command to resume.
"""

import argparse
import functools
import sys
from pathlib import Path

from tqdm import tqdm

from data.images import read_image
from data.registry import Sample, open_dataset
from tool import cam_file, crf, label_file, outputs
from tool.context import cli_main, run_context
from tool.flags import add_results, parse_stage, result_policy, stage_parser
from tool.results import Results

KILOBYTES = 8  # of a label of VOC, about


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, device=False, max_workers=None)
    parser.add_argument(
        "--list",
        help="images: a list's name (train_aug) or a text file (default: the training list)",
    )
    parser.add_argument(
        "--map",
        choices=cam_file.KINDS,
        default="is_cam",
        help="kind of map to start from (default is_cam)",
    )
    add_results(parser)
    return parse_stage(parser, argv)


def make_label(sample: Sample, run_dir: Path, folder: Path, kind: str, num_classes: int) -> None:
    """Write the inter-pixel label of one image."""
    image = read_image(sample.image, upright=False)
    maps = cam_file.load(cam_file.path_of(run_dir, sample.name), num_classes, image.shape[:2])
    label_file.save(
        label_file.path_of(folder, sample.name),
        crf.inter_pixel_label(image, maps.maps(kind), maps.keys),
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.train_list)
    maps = cam_file.require(args.run_dir, samples.names(), args.map, dataset.class_names)
    folder = args.run_dir / "ir_label"

    def is_done(sample: Sample) -> bool:
        return outputs.is_up_to_date(
            label_file.path_of(folder, sample.name),
            sample.image,
            cam_file.path_of(args.run_dir, sample.name),
        )

    with run_context(args.run_dir) as context:
        settings = {"cam": maps, "map": args.map, "crf": crf.SETTINGS}
        results = Results(folder, "make_ir_labels", settings, context, result_policy(args))
        todo = samples.select(results.unfinished(samples, is_done, KILOBYTES))
        work = functools.partial(
            make_label,
            run_dir=args.run_dir,
            folder=folder,
            kind=args.map,
            num_classes=dataset.num_classes,
        )
        for _ in tqdm(
            results.map(work, todo, args.num_workers),
            "CRF",
            len(todo),
            unit="image",
            disable=not context.is_main,
        ):
            pass
        results.finish()


if __name__ == "__main__":
    sys.exit(cli_main(main))
