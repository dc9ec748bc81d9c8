"""Stage 2: localization maps (IS-CAM and general CAM) of every image.

    python make_cam.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads RUN_DIR/ckpt/final.pth (or --ckpt; the authors' checkpoints work too) and the images and tags of --list. Writes
RUN_DIR/cam/NAME.npz (see tool/cam_file.py). Images with an up-to-date file are skipped: run the same command to resume.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.datasets import MultiscaleImages, batches_by_size, inference_loader
from data.images import stored_size, to_stored_frame
from data.registry import Dataset, Sample, Samples, open_dataset
from data.transforms import Scaling
from errors import InputError
from network.recipe import Recipe
from network.sipe import SIPE
from tool import cam_file, outputs
from tool.context import cli_main, run_context
from tool.flags import add_recipe, add_results, add_scales, parse_stage, positive_int, stage_parser
from tool.inference import load_model, multiscale_cams
from tool.results import Results

KILOBYTES = 25  # of a CAM file of VOC, about


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__)
    listed = "images: a list's name (train_aug) or a text file (default: the training list, which later stages need)"
    parser.add_argument("--list", help=listed)
    parser.add_argument(
        "--ckpt",
        type=Path,
        help="checkpoint, ours or the authors' (default RUN_DIR/ckpt/final.pth)",
    )
    add_recipe(parser, None)
    add_scales(parser, [1.0, 0.5, 1.5, 2.0])
    parser.add_argument(
        "--maps",
        nargs="+",
        choices=cam_file.KINDS,
        default=list(cam_file.KINDS),
        help="maps to keep (default both)",
    )
    batch_size = "images of one size that share a batch, fewer if they are larger than 640x480 (default 8 on a GPU, 1 on a CPU)"
    parser.add_argument("--batch_size", type=positive_int, help=batch_size)
    add_results(parser)
    args = parse_stage(parser, argv)
    args.ckpt = args.ckpt or args.run_dir / "ckpt/final.pth"
    return args


def settings(args: argparse.Namespace, dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What the maps depend on besides their image and tags."""
    return {
        "checkpoint": outputs.sha256(args.ckpt),
        "scales": args.scales,
        "maps": sorted(args.maps),
        "recipe": recipe.name,
        "amp": args.amp,
        "class_names": list(dataset.class_names),
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.train_list)
    labels = dataset.tags(samples)
    model = load_model(args.ckpt, args.device, args.amp, dataset.class_names, args.recipe).network
    if not isinstance(model, SIPE):
        raise InputError(
            f"{args.ckpt}: holds a segmentation network; use --ckpt for one of train_resnet50_SIPE.py"
        )
    folder = args.run_dir / "cam"

    def is_done(sample: Sample) -> bool:
        return outputs.is_up_to_date(
            cam_file.path_of(args.run_dir, sample.name), sample.image, dataset.tag_file(sample.name)
        )

    with run_context(args) as context:
        results = Results(folder, "make_cam", settings(args, dataset, model.recipe), context, args)
        todo = results.unfinished(samples, is_done, KILOBYTES)
        make_cams(model, samples.select(todo), labels[todo], args, results)
        results.finish()


def make_cams(
    model: SIPE, samples: Samples, labels: np.ndarray, args: argparse.Namespace, results: Results
) -> None:
    context = results.context
    loader = inference_loader(
        MultiscaleImages(samples, labels, Scaling(tuple(args.scales)), skip_unreadable=True),
        args.num_workers,
        pin_memory=context.is_cuda,
    )
    with tqdm(total=len(samples), desc="CAM", unit="image", disable=not context.is_main) as bar:
        for items in batches_by_size(
            results.readable(loader), args.batch_size or (8 if context.is_cuda else 1)
        ):
            for item, (keys, maps) in zip(items, multiscale_cams(model, items, context)):
                stored = {
                    kind: [to_stored_frame(grid.numpy(), item.orientation) for grid in maps[kind]]
                    for kind in args.maps
                }
                path, size = (
                    cam_file.path_of(args.run_dir, samples[item.index].name),
                    stored_size(item.size, item.orientation),
                )
                cam_file.save(
                    path, keys, size, **stored, background=model.recipe.background_at(args.scales)
                )
            bar.update(len(items))


if __name__ == "__main__":
    sys.exit(cli_main(main))
