"""Stage 9: masks of images by the segmentation network.

    python infer_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val
    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val \\
        --label_dir runs/voc/seg_pred

Reads RUN_DIR/ckpt/seg.pth (or --ckpt) and the images of --list, of which no tags are needed.
Writes RUN_DIR/seg_pred/NAME.png (or to --label_dir), a palette PNG of class ids. Images with an
up-to-date mask are skipped: run the same command to resume.
"""

import argparse
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from data.datasets import MultiscaleImages
from data.images import to_stored_frame
from data.registry import Dataset, Sample, Samples, open_dataset
from errors import InputError
from network.spatial import argmax_resized, resize_maps
from tool import crf, flags, inference, label_file, outputs
from tool.context import Context, cli_main, join_run, local_context
from tool.inference import InferenceOptions, LoadedModel, SegmentedImage
from tool.results import Results

# where VOC's server expects the masks of methods that use other data too
SERVER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    parser.add_argument(
        "--list",
        help="images: a list's name (val, test) or a text file"
        " (default: val; for a folder, the images with masks)",
    )
    parser.add_argument(
        "--ckpt", type=Path, help="checkpoint of train_seg.py (default RUN_DIR/ckpt/seg.pth)"
    )
    parser.add_argument(
        "--label_dir", type=Path, help="folder of the masks (default RUN_DIR/seg_pred)"
    )
    flags.add_scales(parser, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75])
    flags.add_max_side(parser)
    flags.add_switch(
        parser,
        "--crf",
        "move the borders to the image's edges by the dense CRF, with DeepLab's settings",
    )
    flags.add_switch(
        parser,
        "--save_prob",
        "also write the probabilities of the likely classes:"
        " NAME.npz with keys (k,) and probability (k, H, W) in float16",
    )
    parser.add_argument(
        "--submission",
        type=Path,
        help="pack the masks into this .tgz for VOC's test server (default off)",
    )
    flags.add_results(parser)
    args = flags.parse_stage(parser, argv)
    args.ckpt = args.ckpt or args.run_dir / "ckpt/seg.pth"
    args.label_dir = args.label_dir or args.run_dir / "seg_pred"
    if args.submission and args.dataset != "voc":
        parser.error("--submission is the form of VOC's server; use it with --dataset voc")
    if args.submission and not args.submission.name.endswith((".tgz", ".tar.gz")):
        parser.error(f"--submission {args.submission}: the archive is a .tgz; use such a name")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.crf:
        crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.val_list)
    context = local_context(args.device, args.amp)
    model = load_segmentation(args, dataset, context)

    def is_done(sample: Sample) -> bool:
        return label_file.is_prediction_up_to_date(
            args.label_dir, sample.name, args.save_prob, sample.image
        )

    with join_run(context, args.run_dir):
        results = Results(
            args.label_dir,
            "infer_seg",
            settings(args, dataset, model),
            context,
            flags.result_policy(args),
        )
        kilobytes = label_file.kilobytes(args.save_prob)
        todo = samples.select(results.unfinished(samples, is_done, kilobytes))
        options = InferenceOptions(args.scales, args.max_side, args.crf)
        images = MultiscaleImages(todo, None, options.scaling, skip_unreadable=True)
        segmented = inference.segment_all(model, images, options, args.num_workers, results)
        for result in segmented:
            write_mask(result, todo[result.item.index].name, args)
        results.finish()
        if args.submission and context.is_main:
            pack(samples, args)
            context.print(f"wrote {args.submission}")


def load_segmentation(args: argparse.Namespace, dataset: Dataset, context: Context) -> LoadedModel:
    """The segmentation network of --ckpt. Raises InputError for SIPE."""
    loaded = inference.load_network(args.ckpt, dataset.class_names)
    if loaded.needs_tags:
        raise InputError(
            f"{args.ckpt}: holds no segmentation network;"
            " use --ckpt for one that train_seg.py wrote"
        )
    return inference.put_on_device(loaded, context)


def settings(args: argparse.Namespace, dataset: Dataset, model: LoadedModel) -> dict[str, Any]:
    """What the masks depend on besides their image."""
    return {
        **model.digests(),
        "scales": args.scales,
        "max_side": args.max_side,
        "crf": crf.SEGMENTATION | model.network.crf if args.crf else None,
        "amp": args.amp,
        "class_names": list(dataset.class_names),
    }


def write_mask(result: SegmentedImage, name: str, args: argparse.Namespace) -> None:
    """Write the mask of an image, and its probabilities with --save_prob."""
    item = result.item
    if args.save_prob:
        maps = to_stored_frame(resize_maps(result.maps, item.size), item.orientation)
        label_file.save_prediction(
            args.label_dir, name, result.class_ids, maps, with_probability=True
        )
        return
    strongest = to_stored_frame(argmax_resized(result.maps, item.size), item.orientation)
    mask = result.class_ids.astype(np.uint8)[strongest]
    label_file.save(label_file.path_of(args.label_dir, name), mask)


def pack(samples: Samples, args: argparse.Namespace) -> None:
    """Write the archive that VOC's test server takes."""
    with (
        outputs.atomic_write(args.submission) as temporary,
        tarfile.open(temporary, "w:gz") as archive,
    ):
        for name in samples.names():
            path = label_file.path_of(args.label_dir, name)
            archive.add(path, f"{SERVER_FOLDER}/{name}.png", filter=make_anonymous)


def make_anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive without the user's name and the file's time."""
    member.uid = 0
    member.gid = 0
    member.mtime = 0
    member.uname = ""
    member.gname = ""
    return member


if __name__ == "__main__":
    sys.exit(cli_main(main))
