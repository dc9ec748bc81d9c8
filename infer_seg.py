"""Stage 9: masks of pictures by the segmentation network.

    python infer_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val
    python eval_seg.py --dataset voc --dataset_root /data/VOC2012 --run_dir runs/voc --list val --label_dir runs/voc/seg_pred

Reads RUN_DIR/ckpt/seg.pth (or --ckpt) and the pictures of --list, of which no tags are needed. Writes RUN_DIR/seg_pred/NAME.png (or to
--label_dir), a palette PNG of class ids. Pictures that have a whole mask are skipped, so a stopped run goes on.
"""

import argparse
import sys
import tarfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.datasets import Pyramids
from data.entries import Entries, Entry
from data.images import read_picture, to_stored_frame
from data.loaders import inference_loader
from data.registry import DATASETS, Dataset, open_dataset
from data.transforms import enlarge, normalize, shrink
from errors import InputError
from network.deeplab import DeepLab
from network.resnet import ready
from tool import checkpoint, crf, label_file, outputs, stage
from tool.files import atomic_write

SERVER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"  # where VOC's server looks for masks of methods that use other data too


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, list(DATASETS))
    parser.add_argument(
        "--list", help="pictures to segment: a name (val, test) or a text file (default: val; of a folder, the masked ones)"
    )
    parser.add_argument("--ckpt", type=Path, help="checkpoint of train_seg.py (default RUN_DIR/ckpt/seg.pth)")
    parser.add_argument("--label_dir", type=Path, help="folder of the masks (default RUN_DIR/seg_pred)")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
        help="sizes relative to the picture, each used with its mirror (default 0.5 0.75 1.0 1.25 1.5 1.75)",
    )
    stage.add_max_side(parser)
    parser.add_argument(
        "--crf",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let the dense CRF move the borders to the picture's edges, with DeepLab's settings (default off)",
    )
    parser.add_argument(
        "--save_prob",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write the probabilities, too: NAME.npz with keys (k,) and probability (k, H, W) in float16, without the classes that win no "
        "pixel and reach 0.1 nowhere (default off)",
    )
    parser.add_argument(
        "--submission", type=Path, help="pack the masks into this .tgz, in the form that VOC's test server takes (default off)"
    )
    outputs.add_flag(parser)
    args = stage.parse(parser, argv)
    args.ckpt = args.ckpt or args.run_dir / "ckpt/seg.pth"
    args.label_dir = args.label_dir or args.run_dir / "seg_pred"
    stage.check_scales(parser, args.scales)
    if args.submission and args.dataset != "voc":
        parser.error("--submission is the form of VOC's server; use it with --dataset voc")
    if args.submission and not args.submission.name.endswith((".tgz", ".tar.gz")):
        parser.error(f"--submission {args.submission}: the archive is a .tgz; give it such a name")
    return args


def settings(args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """What tells masks from other masks of the same picture."""
    return {
        "checkpoint": checkpoint.fingerprint(args.ckpt),
        "scales": args.scales,
        "max_side": args.max_side,
        "crf": crf.SEGMENTATION if args.crf else None,
        "amp": args.amp,
        "class_names": list(dataset.class_names),
    }


def is_made(entry: Entry, args: argparse.Namespace) -> bool:
    return label_file.is_result_made(args.label_dir, entry.name, entry.picture, args.save_prob)


def load_network(path: Path, class_names: tuple[str, ...]) -> DeepLab:
    """The network of a checkpoint of train_seg.py. Raises InputError where it is none, or of other classes."""
    content = checkpoint.read(path)
    checkpoint.check_classes(content, class_names, path)
    model = DeepLab.of(checkpoint.arguments(content), len(class_names))
    if model is None:
        raise InputError(f"{path}: holds no segmentation network; give --ckpt one that train_seg.py wrote")
    checkpoint.fill(model, content.get("model"), path)
    return model


def segment(model: DeepLab, entries: Entries, args: argparse.Namespace, run: stage.Stage) -> None:
    loader = inference_loader(Pyramids(entries, None, args.scales, args.max_side), args.num_workers, pin_memory=run.on_gpu)
    for item in tqdm(loader, desc="segmentation", unit="picture", disable=not run.is_main):
        entry, images = entries[item.index], [normalize(image[None].to(run.device)) for image in item.images]
        with run.autocast():
            probability = model.segment(images, item.working_size).cpu().numpy()
        keys = label_file.likely_classes(probability)
        probability = probability[keys]
        if args.crf:
            probability = crf.refine_maps(shrink(read_picture(entry.picture), args.max_side), probability, **crf.SEGMENTATION)
        stored = to_stored_frame(enlarge(probability, item.size), item.orientation)
        label_file.save_result(args.label_dir, entry.name, keys, stored, args.save_prob)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive without the user's name and the file's time."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def pack(entries: Entries, args: argparse.Namespace) -> None:
    """Write the archive that VOC's test server takes."""
    with atomic_write(args.submission) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for name in entries.names():
            archive.add(label_file.path_of(args.label_dir, name), f"{SERVER_FOLDER}/{name}.png", filter=anonymous)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.crf:
        crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(args.list or dataset.spec.val_list)
    model = load_network(args.ckpt, dataset.class_names)
    with stage.start(args) as run:
        outputs.claim(args.label_dir, "infer_seg", settings(args, dataset), run, args.overwrite)
        todo = run.shard(entries).where(lambda entry: not is_made(entry, args))
        run.say(f"{len(entries)} pictures, {sum(run.gather(len(todo)))} of them to do, on {run.device}")
        segment(ready(model, run.device), todo, args, run)
        run.wait()
        run.say(f"wrote {args.label_dir}")
        if args.submission and run.is_main:
            pack(entries, args)
            run.say(f"wrote {args.submission}")


if __name__ == "__main__":
    sys.exit(stage.run(main))
