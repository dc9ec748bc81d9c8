"""Stage 6: pseudo labels for every image, on which a segmentation network can train.

    python make_seg_labels.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc \\
        --refine irn

Reads the images of --list, RUN_DIR/cam and, for IRN, RUN_DIR/ckpt/irn.pth (or --irn_ckpt; the
authors' works too). Writes RUN_DIR/seg_label/NAME.png (or to --label_dir), a palette PNG of class
ids. Images with an up-to-date label are skipped: run the same command to resume.

--refine irn   propagates the maps up to the class boundaries that IRN finds, by a random walk
--refine crf   moves the labels to the image's own edges by the dense CRF
--refine none  takes the strongest map of each pixel
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.images import orientation, read_image, stored_size, to_stored_frame, to_upright_frame
from data.registry import Dataset, Sample, Samples, open_dataset
from data.transforms import normalize, to_tensor
from network.irn import STRIDE
from network.random_walk import random_walk
from tool import cam_file, crf, flags, inference, label_file, outputs
from tool.context import Context, cli_main, run_context
from tool.inference import LoadedIRN
from tool.results import Results

MAP_POWER = 1.5  # of the maps before they walk
MOST_READERS = 8  # worker processes, if the network does the work
WALK_BATCH = 16  # images that walk together on a GPU: the steps of one image are many and small
MOST_BETA = 1000
MOST_EXP_TIMES = 16


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__, max_workers=None)
    add_flags(parser)
    flags.add_results(parser)
    args = flags.parse_stage(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    set_defaults_of_refinement(parser, args)
    if args.refine != "irn":
        args.device = "cpu"  # the CRF runs on CPU cores only
        args.amp = "off"
    if not 0 < args.beta <= MOST_BETA or not 0 <= args.exp_times <= MOST_EXP_TIMES:
        parser.error(
            f"--beta is above 0 and at most {MOST_BETA}, --exp_times from 0 to {MOST_EXP_TIMES}"
        )
    return args


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--list",
        help="images: a list's name (train_aug) or a text file (default: the training list)",
    )
    add(
        "--refine",
        choices=("irn", "crf", "none"),
        default="irn",
        help="how maps become labels (default irn)",
    )
    add(
        "--map",
        choices=cam_file.KINDS,
        default="is_cam",
        help="kind of map to start from (default is_cam)",
    )
    add("--label_dir", type=Path, help="folder of the labels (default RUN_DIR/seg_label)")
    flags.add_switch(
        parser,
        "--save_prob",
        "also write the probabilities:"
        " NAME.npz with keys (k,) and probability (k, H, W) in float16",
    )
    add(
        "--crf_on",
        choices=("labels", "maps"),
        help="what the CRF starts from: hard labels, the authors' rule for COCO,"
        " or the soft maps (default labels)",
    )
    add(
        "--irn_ckpt",
        type=Path,
        help="IRN's checkpoint, ours or the authors' (default RUN_DIR/ckpt/irn.pth)",
    )
    add(
        "--beta",
        type=float,
        help="power of the affinities of the random walk; a higher one propagates less"
        " (default 10)",
    )
    add("--exp_times", type=int, help="the random walk takes 2 ** exp_times steps (default 8)")


def set_defaults_of_refinement(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the flags that belong to one refinement; end with an error if another one is used."""
    defaults = {
        "irn": {"irn_ckpt": args.run_dir / "ckpt/irn.pth", "beta": 10.0, "exp_times": 8},
        "crf": {"crf_on": "labels"},
    }
    for refine, values in defaults.items():
        for flag, default in values.items():
            if getattr(args, flag) is None:
                setattr(args, flag, default)
            elif args.refine != refine:
                parser.error(f"--{flag} belongs to --refine {refine}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.refine == "crf":
        crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.train_list)
    irn = inference.load_irn(args.irn_ckpt) if args.refine == "irn" else None
    made_by = settings(args, dataset, samples)

    def is_done(sample: Sample) -> bool:
        return label_file.is_prediction_up_to_date(
            args.label_dir,
            sample.name,
            args.save_prob,
            sample.image,
            cam_file.path_of(args.run_dir, sample.name),
        )

    with run_context(args.run_dir, args.device, args.amp) as context:
        results = Results(
            args.label_dir, "make_seg_labels", made_by, context, flags.result_policy(args)
        )
        kilobytes = label_file.kilobytes(args.save_prob)
        todo = samples.select(results.unfinished(samples, is_done, kilobytes))
        if irn is None:
            labels = refine_alone(todo, args, dataset.num_classes, results)
        else:
            labels = refine_by_walk(irn, todo, args, dataset.num_classes, results)
        bar = tqdm(
            labels,
            desc=args.refine,
            total=len(todo),
            unit="image",
            disable=not context.is_main,
        )
        for _ in bar:
            pass
        results.finish()


def settings(args: argparse.Namespace, dataset: Dataset, samples: Samples) -> dict[str, Any]:
    """What the labels depend on besides their image and CAM file."""
    cam = cam_file.require(args.run_dir, samples.names(), args.map, dataset.class_names)
    content = {"cam": cam, "map": args.map, "refine": args.refine}
    if args.refine == "irn":
        content["irn"] = outputs.sha256(args.irn_ckpt)
        content["beta"] = args.beta
        content["exp_times"] = args.exp_times
        content["amp"] = args.amp
    elif args.refine == "crf":
        content["crf"] = crf.SETTINGS
        content["crf_on"] = args.crf_on
    return content


def refine_alone(
    todo: Samples, args: argparse.Namespace, num_classes: int, results: Results
) -> Iterator[None]:
    """Write the labels in worker processes, with the CRF or without; yields once an image."""
    work = functools.partial(write_label, args=args, num_classes=num_classes)
    return results.map(work, todo, args.num_workers)


def write_label(sample: Sample, args: argparse.Namespace, num_classes: int) -> None:
    """Write the label of one image."""
    image = read_image(sample.image, upright=False)
    path = cam_file.path_of(args.run_dir, sample.name)
    cams = cam_file.load(path, num_classes, image.shape[:2])
    maps = cams.maps(args.map)
    if args.refine == "crf":
        maps = inference.refine(image, maps, args.crf_on)
    label_file.save_prediction(args.label_dir, sample.name, cams.keys, maps, args.save_prob)


@dataclass(frozen=True)
class WalkInput:
    """An image and its maps for IRN and the random walk.

    Attributes:
        class_ids: (k,), background first.
        image: (3, H, W) uint8, upright.
        maps: (k, ceil(H/4), ceil(W/4)) float32, upright.
        orientation: of the stored image.
    """

    sample: Sample
    class_ids: np.ndarray
    image: torch.Tensor
    maps: torch.Tensor
    orientation: int


def refine_by_walk(
    irn: LoadedIRN,
    todo: Samples,
    args: argparse.Namespace,
    num_classes: int,
    results: Results,
) -> Iterator[None]:
    """Write the labels with IRN's edges and the random walk; yields once an image."""
    context = results.context
    inference.to_device(irn.network, context)
    find_edges = functools.partial(find_edge, irn, context=context)
    work = functools.partial(read_walk_input, args=args, num_classes=num_classes)
    inputs = results.map(work, todo, min(args.num_workers, MOST_READERS))
    batch_size = WALK_BATCH if context.is_cuda else 1
    while batch := list(itertools.islice(inputs, batch_size)):
        write_walked_labels(batch, find_edges, args, context)
        yield from (None for _ in batch)


def read_walk_input(sample: Sample, args: argparse.Namespace, num_classes: int) -> WalkInput:
    """Read an image and resize its maps to IRN's grid."""
    image = read_image(sample.image)
    turn = orientation(sample.image)
    size = stored_size(image.shape[:2], turn)
    cams = cam_file.load(cam_file.path_of(args.run_dir, sample.name), num_classes, size)
    maps = torch.from_numpy(to_upright_frame(cams.maps(args.map), turn))
    grid = [-(-side // STRIDE) for side in image.shape[:2]]
    resized = F.interpolate(maps[None], grid, mode="bilinear", align_corners=False)[0]
    return WalkInput(sample, cams.keys, to_tensor(image), resized**MAP_POWER, turn)


def find_edge(irn: LoadedIRN, image: torch.Tensor, context: Context) -> torch.Tensor:
    """Class boundaries of an image (3, H, W) uint8: (ceil(H/4), ceil(W/4)) in [0, 1]."""
    with context.autocast():
        batch = normalize(image[None].to(context.device))
        return irn.network.find_edges(batch, irn.crop_size)[0]


def write_walked_labels(
    batch: Sequence[WalkInput],
    find_edges: Callable[[torch.Tensor], torch.Tensor],
    args: argparse.Namespace,
    context: Context,
) -> None:
    """Write the labels of some images whose maps walk together."""
    edges = [find_edges(item.image) for item in batch]
    maps = [item.maps.to(context.device) for item in batch]
    for item, walked in zip(batch, walk(edges, maps, args.beta, args.exp_times)):
        height, width = item.image.shape[1:]
        full_size = F.interpolate(
            walked[None], scale_factor=STRIDE, mode="bilinear", align_corners=False
        )
        cut = full_size[0, :, :height, :width]
        peak = cut.max().clamp(min=torch.finfo(cut.dtype).tiny)
        stored = to_stored_frame((cut / peak).cpu().numpy(), item.orientation)
        label_file.save_prediction(
            args.label_dir, item.sample.name, item.class_ids, stored, args.save_prob
        )


def walk(
    edges: Sequence[torch.Tensor], maps: Sequence[torch.Tensor], beta: float, exp_times: int
) -> list[torch.Tensor]:
    """The random walk of images of any sizes in one batch.

    Each image is padded to the largest; the padding is all boundary, so nothing walks there.

    Args:
        edges: (h, w) of each image.
        maps: (k, h, w) of each image.

    Returns:
        (k, h, w) for each image.
    """
    count = max(image_maps.shape[0] for image_maps in maps)
    height = max(image_maps.shape[1] for image_maps in maps)
    width = max(image_maps.shape[2] for image_maps in maps)
    padded_edges = []
    padded_maps = []
    for edge, image_maps in zip(edges, maps):
        padding = (0, width - edge.shape[1], 0, height - edge.shape[0])
        padded_edges.append(F.pad(edge, padding, value=1.0))
        missing_maps = (0, count - len(image_maps))
        padded_maps.append(F.pad(image_maps, (*padding, *missing_maps)))
    walked = random_walk(
        torch.stack(padded_maps), torch.stack(padded_edges), beta=beta, exp_times=exp_times
    )
    cut = []
    for image_walked, image_maps in zip(walked, maps):
        own_count, own_height, own_width = image_maps.shape
        cut.append(image_walked[:own_count, :own_height, :own_width])
    return cut


if __name__ == "__main__":
    sys.exit(cli_main(main))
