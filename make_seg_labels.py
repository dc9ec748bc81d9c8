"""Stage 6: pseudo labels for every image, on which a segmentation network can train.

    python make_seg_labels.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --refine irn

Reads the images of --list, RUN_DIR/cam and, for IRN, RUN_DIR/ckpt/irn.pth (or --irn_ckpt; the authors' works too). Writes
RUN_DIR/seg_label/NAME.png (or to --label_dir), a palette PNG of class ids. Images with an up-to-date label are skipped: run the same
command to resume.

--refine irn   spreads the maps up to the class boundaries that IRN found, by a random walk
--refine crf   moves the labels to the image's own edges by the dense CRF
--refine none  takes the strongest map of each pixel
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.images import orientation, read_image, stored_size, to_stored_frame, to_upright_frame
from data.registry import Dataset, Sample, Samples, open_dataset
from data.transforms import normalize, to_tensor
from network.irn import IRN, STRIDE
from network.random_walk import random_walk
from tool import cam_file, crf, inference, label_file, outputs
from tool.context import Context, cli_main, run_context
from tool.flags import add_results, add_switch, parse_stage, stage_parser
from tool.inference import load_irn, to_device
from tool.results import Results

MAP_POWER = 1.5  # of the maps before they walk
MAX_READERS = 8  # worker processes, if the network does the work
WALK_BATCH = 16  # images that walk together on a GPU: the steps of one image are many and small


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__, max_workers=None)
    parser.add_argument(
        "--list",
        help="images: a list's name (train_aug) or a text file (default: the training list)",
    )
    parser.add_argument(
        "--refine",
        choices=("irn", "crf", "none"),
        default="irn",
        help="how maps become labels (default irn)",
    )
    parser.add_argument(
        "--map",
        choices=cam_file.KINDS,
        default="is_cam",
        help="kind of map to start from (default is_cam)",
    )
    parser.add_argument(
        "--label_dir", type=Path, help="folder of the labels (default RUN_DIR/seg_label)"
    )
    add_switch(
        parser,
        "--save_prob",
        "also write the probabilities: NAME.npz with keys (k,) and probability (k, H, W) in float16",
    )
    crf_on = "what the CRF starts from: hard labels, the authors' rule for COCO, or the soft maps (default labels)"
    parser.add_argument("--crf_on", choices=("labels", "maps"), help=crf_on)
    parser.add_argument(
        "--irn_ckpt",
        type=Path,
        help="IRN's checkpoint, ours or the authors' (default RUN_DIR/ckpt/irn.pth)",
    )
    parser.add_argument(
        "--beta",
        type=float,
        help="power of the affinities of the random walk; a higher one spreads less (default 10)",
    )
    parser.add_argument(
        "--exp_times", type=int, help="the random walk takes 2 ** exp_times steps (default 8)"
    )
    add_results(parser)
    args = parse_stage(parser, argv)
    args.label_dir = args.label_dir or args.run_dir / "seg_label"
    flags = {
        "irn": {"irn_ckpt": args.run_dir / "ckpt/irn.pth", "beta": 10.0, "exp_times": 8},
        "crf": {"crf_on": "labels"},
    }
    for refine, defaults in flags.items():
        for flag, default in defaults.items():
            if getattr(args, flag) is None:
                setattr(args, flag, default)
            elif args.refine != refine:
                parser.error(f"--{flag} belongs to --refine {refine}")
    if args.refine != "irn":
        args.device, args.amp = "cpu", "off"  # the CRF runs on CPU cores only
    if not 0 < args.beta <= 1000 or not 0 <= args.exp_times <= 16:
        parser.error("--beta is above 0 and at most 1000, --exp_times from 0 to 16")
    return args


def settings(args: argparse.Namespace, dataset: Dataset, samples: Samples) -> dict[str, Any]:
    """What the labels depend on besides their image and CAM file."""
    cam = cam_file.require(args.run_dir, samples.names(), args.map, dataset.class_names)
    common = {"cam": cam, "map": args.map, "refine": args.refine}
    if args.refine == "irn":
        return common | {
            "irn": outputs.sha256(args.irn_ckpt),
            "beta": args.beta,
            "exp_times": args.exp_times,
            "amp": args.amp,
        }
    return common | ({"crf": crf.SETTINGS, "crf_on": args.crf_on} if args.refine == "crf" else {})


def refine_alone(sample: Sample, args: argparse.Namespace, num_classes: int) -> None:
    """Write the label of one image, with the CRF or without."""
    image = read_image(sample.image, upright=False)
    cams = cam_file.load(cam_file.path_of(args.run_dir, sample.name), num_classes, image.shape[:2])
    maps = cams.maps(args.map)
    if args.refine == "crf":
        maps = inference.refine(image, maps, args.crf_on)
    label_file.save_prediction(args.label_dir, sample.name, cams.keys, maps, args.save_prob)


class Prepared(NamedTuple):
    """An image and its maps for IRN and the random walk."""

    sample: Sample
    keys: np.ndarray  # (k,) class ids, background first
    image: torch.Tensor  # (3, H, W) uint8, upright
    maps: torch.Tensor  # (k, ceil(H/4), ceil(W/4)) float32, upright
    orientation: int


def prepare(sample: Sample, args: argparse.Namespace, num_classes: int) -> Prepared:
    """Read an image and resize its maps to IRN's grid."""
    image, turn = read_image(sample.image), orientation(sample.image)
    cams = cam_file.load(
        cam_file.path_of(args.run_dir, sample.name), num_classes, stored_size(image.shape[:2], turn)
    )
    maps = torch.from_numpy(to_upright_frame(cams.maps(args.map), turn))
    grid = [-(-side // STRIDE) for side in image.shape[:2]]
    maps = F.interpolate(maps[None], grid, mode="bilinear", align_corners=False)[0] ** MAP_POWER
    return Prepared(sample, cams.keys, to_tensor(image), maps, turn)


def walk(
    edges: Sequence[torch.Tensor], maps: Sequence[torch.Tensor], beta: float, exp_times: int
) -> list[torch.Tensor]:
    """The random walk of images of any sizes in one batch: (h, w) and (k, h, w) each -> (k, h, w) each.

    Each is padded to the largest; the padding is all boundary, so nothing walks there.
    """
    count, height, width = (max(one.shape[i] for one in maps) for i in range(3))

    def padding(one: torch.Tensor) -> tuple[int, int, int, int]:
        return 0, width - one.shape[-1], 0, height - one.shape[-2]

    edge = torch.stack([F.pad(one, padding(one), value=1.0) for one in edges])
    cams = torch.stack([F.pad(one, (*padding(one), 0, count - len(one))) for one in maps])
    walked = random_walk(cams, edge, beta=beta, exp_times=exp_times)
    return [one[: m.shape[0], : m.shape[1], : m.shape[2]] for one, m in zip(walked, maps)]


def refine_together(
    model: IRN,
    crop_size: int,
    prepared: Sequence[Prepared],
    args: argparse.Namespace,
    context: Context,
) -> None:
    """Write the labels of some images with IRN's edges and the random walk."""
    edges = []
    for one in prepared:
        with context.autocast():
            edges.append(
                model.find_edges(normalize(one.image[None].to(context.device)), crop_size)[0]
            )
    walked = walk(
        edges, [one.maps.to(context.device) for one in prepared], args.beta, args.exp_times
    )
    for one, maps in zip(prepared, walked):
        height, width = one.image.shape[1:]
        maps = F.interpolate(maps[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)[
            0, :, :height, :width
        ]
        maps = maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny)
        stored = to_stored_frame(maps.cpu().numpy(), one.orientation)
        label_file.save_prediction(
            args.label_dir, one.sample.name, one.keys, stored, args.save_prob
        )


def make_labels(
    irn: tuple[IRN, int] | None,
    todo: Samples,
    args: argparse.Namespace,
    num_classes: int,
    results: Results,
) -> None:
    context = results.context
    work = functools.partial(prepare if irn else refine_alone, args=args, num_classes=num_classes)
    prepared = results.map(
        work, todo, min(args.num_workers, MAX_READERS) if irn else args.num_workers
    )
    if irn:
        to_device(irn[0], context)
    with tqdm(total=len(todo), desc=args.refine, unit="image", disable=not context.is_main) as bar:
        while done := list(
            itertools.islice(prepared, WALK_BATCH if irn and context.is_cuda else 1)
        ):
            if irn:
                refine_together(*irn, done, args, context)
            bar.update(len(done))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.refine == "crf":
        crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.train_list)
    irn = load_irn(args.irn_ckpt) if args.refine == "irn" else None
    made_by = settings(args, dataset, samples)

    def is_done(sample: Sample) -> bool:
        sources = sample.image, cam_file.path_of(args.run_dir, sample.name)
        return label_file.is_prediction_up_to_date(
            args.label_dir, sample.name, args.save_prob, *sources
        )

    with run_context(args) as context:
        results = Results(args.label_dir, "make_seg_labels", made_by, context, args)
        todo = samples.select(
            results.unfinished(samples, is_done, label_file.kilobytes(args.save_prob))
        )
        make_labels(irn, todo, args, dataset.num_classes, results)
        results.finish()


if __name__ == "__main__":
    sys.exit(cli_main(main))
