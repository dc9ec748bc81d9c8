"""Stage 2: localization maps (IS-CAM and general CAM) of every image.

    python make_cam.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc

Reads RUN_DIR/ckpt/final.pth (or --ckpt; the authors' checkpoints work too) and the images and tags
of --list. Writes RUN_DIR/cam/NAME.npz (see tool/cam_file.py). Images with an up-to-date file are
skipped: run the same command to resume.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.datasets import MultiscaleImage, MultiscaleImages, batches_by_size
from data.images import stored_size, to_stored_frame
from data.registry import Dataset, Sample, open_dataset
from data.transforms import Scaling
from errors import InputError
from tool import cam_file, flags, inference, outputs
from tool.context import Context, cli_main, join_run, local_context
from tool.inference import ImageMaps, LoadedModel
from tool.results import Results

KILOBYTES = 25  # approximate size of a CAM file of VOC
BATCH_ON_GPU = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    parser.add_argument(
        "--list",
        help="images: a list's name (train_aug) or a text file"
        " (default: the training list, which later stages need)",
    )
    parser.add_argument(
        "--ckpt",
        type=Path,
        help="checkpoint, ours or the authors' (default RUN_DIR/ckpt/final.pth)",
    )
    flags.add_recipe(parser, None)
    flags.add_scales(parser, [1.0, 0.5, 1.5, 2.0])
    parser.add_argument(
        "--maps",
        nargs="+",
        choices=cam_file.KINDS,
        default=list(cam_file.KINDS),
        help="maps to keep (default both)",
    )
    parser.add_argument(
        "--batch_size",
        type=flags.positive_int,
        help="images of one size that share a batch, fewer if they are larger than 640x480"
        f" (default {BATCH_ON_GPU} on a GPU, 1 on a CPU)",
    )
    flags.add_results(parser)
    args = flags.parse_stage(parser, argv)
    args.ckpt = args.ckpt or args.run_dir / "ckpt/final.pth"
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.train_list)
    tags = dataset.tags(samples)
    context = local_context(args.device, args.amp)
    model = load_sipe(args, dataset, context)

    def is_done(sample: Sample) -> bool:
        path = cam_file.path_of(args.run_dir, sample.name)
        return outputs.is_up_to_date(path, sample.image, dataset.tag_file(sample.name))

    with join_run(context, args.run_dir):
        results = Results(
            args.run_dir / "cam",
            "make_cam",
            settings(args, dataset, model),
            context,
            flags.result_policy(args),
        )
        todo = results.unfinished(samples, is_done, KILOBYTES)
        scaling = Scaling(tuple(args.scales))
        images = MultiscaleImages(samples.select(todo), tags[todo], scaling, skip_unreadable=True)
        make_cams(model, images, args, results)
        results.finish()


def load_sipe(args: argparse.Namespace, dataset: Dataset, context: Context) -> LoadedModel:
    """SIPE from --ckpt. Raises InputError for a segmentation network."""
    loaded = inference.load_network(args.ckpt, dataset.class_names, args.recipe)
    if not loaded.needs_tags:
        raise InputError(
            f"{args.ckpt}: holds a segmentation network;"
            " use --ckpt for one of train_resnet50_SIPE.py"
        )
    return inference.put_on_device(loaded, context)


def settings(args: argparse.Namespace, dataset: Dataset, model: LoadedModel) -> dict[str, Any]:
    """What the maps depend on besides their image and tags."""
    return {
        **model.digests(),
        "scales": args.scales,
        "maps": sorted(args.maps),
        "recipe": model.network.recipe.name,
        "amp": args.amp,
        "class_names": list(dataset.class_names),
    }


def make_cams(
    model: LoadedModel, images: MultiscaleImages, args: argparse.Namespace, results: Results
) -> None:
    """Write the CAM file of every image that can be read."""
    context = model.context
    batch_size = args.batch_size or (BATCH_ON_GPU if context.is_cuda else 1)
    background = model.network.recipe.background_at(args.scales)
    loader = inference.image_loader(images, args.num_workers, context)
    bar = tqdm(total=len(images), desc="CAM", unit="image", disable=not context.is_main)
    with bar:
        for items in batches_by_size(results.readable(loader), batch_size):
            maps_of_items = inference.multiscale_cams(model.network, items, context)
            for item, image_maps in zip(items, maps_of_items):
                path = cam_file.path_of(args.run_dir, images.samples[item.index].name)
                cam_file.save(path, to_grids(item, image_maps, args.maps, background))
            bar.update(len(items))


def to_grids(
    item: MultiscaleImage, image_maps: ImageMaps, kinds: list[str], background: float | None
) -> cam_file.CamGrids:
    """The maps of an image in the frame in which it is stored."""
    stored = {}
    for kind in kinds:
        stored[kind] = [
            to_stored_frame(grid.numpy(), item.orientation) for grid in image_maps.by_kind[kind]
        ]
    size = stored_size(item.size, item.orientation)
    return cam_file.CamGrids(image_maps.class_ids, size, background=background, **stored)


if __name__ == "__main__":
    sys.exit(cli_main(main))
