"""Stage 9: masks of images by the segmentation network.

    python infer_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val
    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val --label_dir runs/voc/seg_pred

Reads RUN_DIR/ckpt/seg.pth (or --ckpt) and the images of --list, of which no tags are needed. Writes RUN_DIR/seg_pred/NAME.png (or to
--label_dir), a palette PNG of class ids. Images with an up-to-date mask are skipped: run the same command to resume.
"""

import argparse
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data.images import to_stored_frame
from data.registry import Dataset, Sample, Samples, open_dataset
from errors import InputError
from network.sipe import SIPE
from network.spatial import argmax_resized, resize_maps
from tool import crf, label_file, outputs
from tool.context import cli_main, run_context
from tool.flags import add_max_side, add_results, add_scales, add_switch, parse_stage, stage_parser
from tool.inference import load_model, segment_all
from tool.results import Results

SERVER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"  # where VOC's server looks for masks of methods that use other data too


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage_parser(__doc__)
    listed = "images: a list's name (val, test) or a text file (default: val; for a folder, the images with masks)"
    parser.add_argument("--list", help=listed)
    parser.add_argument(
        "--ckpt", type=Path, help="checkpoint of train_seg.py (default RUN_DIR/ckpt/seg.pth)"
    )
    parser.add_argument(
        "--label_dir", type=Path, help="folder of the masks (default RUN_DIR/seg_pred)"
    )
    add_scales(parser, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75])
    add_max_side(parser)
    add_switch(
        parser,
        "--crf",
        "move the borders to the image's edges by the dense CRF, with DeepLab's settings",
    )
    save_prob = "also write the probabilities of the likely classes: NAME.npz with keys (k,) and probability (k, H, W) in float16"
    add_switch(parser, "--save_prob", save_prob)
    parser.add_argument(
        "--submission",
        type=Path,
        help="pack the masks into this .tgz for VOC's test server (default off)",
    )
    add_results(parser)
    args = parse_stage(parser, argv)
    args.ckpt = args.ckpt or args.run_dir / "ckpt/seg.pth"
    args.label_dir = args.label_dir or args.run_dir / "seg_pred"
    if args.submission and args.dataset != "voc":
        parser.error("--submission is the form of VOC's server; use it with --dataset voc")
    if args.submission and not args.submission.name.endswith((".tgz", ".tar.gz")):
        parser.error(f"--submission {args.submission}: the archive is a .tgz; use such a name")
    return args


def settings(args: argparse.Namespace, dataset: Dataset, model: nn.Module) -> dict[str, Any]:
    """What the masks depend on besides their image."""
    return {
        "checkpoint": outputs.sha256(args.ckpt),
        "scales": args.scales,
        "max_side": args.max_side,
        "crf": crf.SEGMENTATION | model.crf if args.crf else None,
        "amp": args.amp,
        "class_names": list(dataset.class_names),
    }


def pack(samples: Samples, args: argparse.Namespace) -> None:
    """Write the archive that VOC's test server takes."""
    with (
        outputs.atomic_write(args.submission) as temporary,
        tarfile.open(temporary, "w:gz") as archive,
    ):
        for name in samples.names():
            archive.add(
                label_file.path_of(args.label_dir, name),
                f"{SERVER_FOLDER}/{name}.png",
                filter=anonymous,
            )


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive without the user's name and the file's time."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.crf:
        crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    samples = dataset.samples(args.list or dataset.spec.val_list)
    model = load_model(args.ckpt, args.device, args.amp, dataset.class_names)
    if isinstance(model.network, SIPE):
        raise InputError(
            f"{args.ckpt}: holds no segmentation network; use --ckpt for one that train_seg.py wrote"
        )

    def is_done(sample: Sample) -> bool:
        return label_file.is_prediction_up_to_date(
            args.label_dir, sample.name, args.save_prob, sample.image
        )

    with run_context(args) as context:
        results = Results(
            args.label_dir, "infer_seg", settings(args, dataset, model.network), context, args
        )
        todo = samples.select(
            results.unfinished(samples, is_done, label_file.kilobytes(args.save_prob))
        )
        for item, keys, maps in segment_all(model, todo, None, args, results):
            name = todo[item.index].name
            if args.save_prob:
                stored = to_stored_frame(resize_maps(maps, item.size), item.orientation)
                label_file.save_prediction(
                    args.label_dir, name, keys, stored, with_probability=True
                )
            else:
                label = keys.astype(np.uint8)[
                    to_stored_frame(argmax_resized(maps, item.size), item.orientation)
                ]
                label_file.save(label_file.path_of(args.label_dir, name), label)
        results.finish()
        if args.submission and context.is_main:
            pack(samples, args)
            context.print(f"wrote {args.submission}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
