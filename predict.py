"""Masks of any pictures, without a dataset on disk: one picture, a folder, a pattern.

    python predict.py cat.jpg photos 'more/*.png' --ckpt runs/voc/ckpt/seg.pth
    python predict.py cat.jpg --ckpt runs/voc/ckpt/final.pth --tags cat person

A segmentation network (train_seg.py) finds the classes by itself. SIPE (train_resnet50_SIPE.py; the authors' checkpoints work too) must be
told which are there: --tags for all pictures, or --tag_table for each. Writes OUTPUT_DIR/NAME.png, a palette PNG of class ids in the frame
in which the picture is stored, and OUTPUT_DIR/NAME_overlay.jpg, the picture upright under its mask; with --areas, OUTPUT_DIR/areas.json.
Pictures whose masks are there, made in the same way, are skipped, so a stopped run goes on.
"""

import argparse
import glob
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from tqdm import tqdm

from data import tables
from data.datasets import Pyramid, Pyramids, kept_classes
from data.entries import Entries, Entry
from data.images import read_mask, read_picture, to_stored_frame
from data.loaders import inference_loader
from data.registry import COCO, VOC
from data.transforms import enlarge, normalize, shrink
from errors import InputError
from network.deeplab import DeepLab
from network.resnet import ready
from network.sipe import SIPE, release_names
from tool import cam_file, checkpoint, crf, files, label_file, stage, visualize

MAKER = "predict.py"  # as its masks note it


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="PICTURE", help="pictures, folders of pictures, or patterns like 'photos/**/*.jpg'")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of train_seg.py, or of SIPE together with tags")
    parser.add_argument("--output_dir", dest="run_dir", type=Path, default=Path("predictions"), help="where masks go (default predictions)")
    parser.add_argument("--tags", nargs="+", metavar="CLASS", help="for SIPE: the classes that are in every picture")
    parser.add_argument("--tag_table", type=Path, help="for SIPE: a CSV of name,class;class lines, the classes of each picture")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 1.5],
        help="sizes relative to the picture, each used with its mirror; 1.0 alone takes a third of the time (default 0.5 1.0 1.5)",
    )
    stage.add_max_side(parser)
    parser.add_argument(
        "--crf",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let the dense CRF move the borders to the picture's edges (default off)",
    )
    parser.add_argument(
        "--areas", action=argparse.BooleanOptionalAction, default=False, help="write the pixels of each class to areas.json (default off)"
    )
    stage.add_device(parser)
    stage.add_workers(parser)
    args = parser.parse_args(argv)
    stage.check_scales(parser, args.scales)
    if args.tags and args.tag_table:
        parser.error("--tags are for all pictures, --tag_table for each; give one of them")
    if any(os.path.isdir(given) and os.path.realpath(given) == os.path.realpath(args.run_dir) for given in args.inputs):
        parser.error(f"--output_dir {args.run_dir}: is a folder of pictures to predict, with which its masks would mix; give another one")
    return args


def find_pictures(inputs: Sequence[str], output_dir: Path) -> Entries:
    """The pictures that files, folders and patterns stand for, by name, without what an earlier run left in output_dir.

    Raises InputError where there is none, or two of one name.
    """
    found: dict[str, str] = {}
    own = os.path.realpath(output_dir)
    for given in inputs:
        if os.path.isdir(given):
            paths = [*tables.find_files(Path(given), ("{}.*",)).values()]
        elif os.path.isfile(given):
            paths = [given]
        else:
            paths = sorted(path for path in glob.glob(given, recursive=True) if path.lower().endswith(tables.PICTURE_TYPES))
        paths = [path for path in paths if os.path.realpath(os.path.dirname(path)) != own or not is_ours(Path(path))]
        if not paths:
            types = ", ".join(tables.PICTURE_TYPES)
            raise InputError(f"{given}: there is no picture ({types}); give pictures, folders or patterns like 'photos/*.jpg'")
        for path in paths:
            name = tables.plain_name(os.path.basename(path))
            if name in found and not os.path.samefile(path, found[name]):
                raise InputError(f"{path}: its mask would be {name}.png, as that of {found[name]}; give them different --output_dir")
            found[name] = path
    return Entries.of((name, path, "") for name, path in found.items())


def load_network(path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """A segmentation network or SIPE from its checkpoint, and its class names, background first. Raises InputError for anything else."""
    content = checkpoint.read(path)
    class_names = checkpoint.class_names_of(content) or release_class_names(content, path)
    model = DeepLab.of(checkpoint.arguments(content), len(class_names))
    if model is not None:
        checkpoint.fill(model, content.get("model"), path)
    else:
        model = SIPE(len(class_names))
        checkpoint.load_model(model, path, class_names, release_names)
    return model, class_names


def release_class_names(content: dict, path: Path) -> tuple[str, ...]:
    """The class names of a checkpoint that holds none, as the authors' do: VOC's or COCO's, by their number."""
    try:
        count = len(content["net"]["classifier.weight"])
        return next(names for names in map(tables.read_classes, (VOC.classes, COCO.classes)) if len(names) == count + 1)
    except (KeyError, TypeError, IndexError, StopIteration):
        raise InputError(f"{path}: names no classes, nor is it the authors'; give a checkpoint of train_seg.py or SIPE") from None


def read_labels(entries: Entries, model: nn.Module, class_names: tuple[str, ...], args: argparse.Namespace) -> np.ndarray | None:
    """The image-level labels (pictures, K-1) that SIPE needs; None for a segmentation network. Raises InputError where they do not fit."""
    if isinstance(model, DeepLab):
        if args.tags or args.tag_table:
            raise InputError(f"{args.ckpt}: is a segmentation network, which finds the classes by itself; leave the tags out")
        return None
    if args.tags:
        return np.tile(tables.label_of(set(args.tags), class_names, "--tags").astype(np.float32), (len(entries), 1))
    if not args.tag_table:
        raise InputError(f"{args.ckpt}: is SIPE, which must be told the classes in a picture; give --tags or --tag_table")
    return tables.read_tags(args.tag_table, class_names).labels_of(entries.names(), args.tag_table)


def find_maps(model: nn.Module, item: Pyramid, run: stage.Stage) -> tuple[np.ndarray, np.ndarray]:
    """The class ids (k,) that matter to a picture, and how strongly each pixel of its working size is of each: (k, H, W) in [0, 1]."""
    images = [normalize(image[None].to(run.device)) for image in item.images]
    with run.autocast():
        if isinstance(model, DeepLab):
            maps = model.segment(images, item.working_size).cpu().numpy()
            keys = label_file.likely_classes(maps)
            return keys, maps[keys]
        keys, label = kept_classes(item.label), item.label[None].to(run.device)
        grids = [model.localize(image, label).is_cam[0].cpu()[keys] for image in images]
    return keys, cam_file.fuse(grids, item.working_size, normalize=True).numpy()


def segment(model: nn.Module, item: Pyramid, picture: np.ndarray, args: argparse.Namespace, run: stage.Stage) -> np.ndarray:
    """Class ids (H, W) uint8 of a picture (H, W, 3), both upright."""
    keys, maps = find_maps(model, item, run)
    if args.crf and isinstance(model, DeepLab):
        maps = crf.refine_maps(shrink(picture, args.max_side), maps, **crf.SEGMENTATION)
    elif args.crf:
        maps = crf.refine_label(shrink(picture, args.max_side), maps.argmax(0), len(maps))
    return keys[enlarge(maps, item.size).argmax(0)].astype(np.uint8)


def paths_of(entry: Entry, args: argparse.Namespace) -> tuple[Path, Path]:
    """Where the mask and the overlay of a picture go."""
    return label_file.path_of(args.run_dir, entry.name), args.run_dir / f"{entry.name}_overlay.jpg"


def notes_of(labels: np.ndarray | None, count: int, args: argparse.Namespace) -> list[str]:
    """What each mask says of how it was made, so that only masks made in the same way are kept."""
    settings = [checkpoint.fingerprint(args.ckpt), args.scales, args.max_side, args.crf, args.amp]
    tags = [[]] * count if labels is None else labels.tolist()
    return [f"{MAKER} {hashlib.sha256(json.dumps([*settings, one]).encode()).hexdigest()}" for one in tags]


def is_ours(path: Path) -> bool:
    """Whether predict.py wrote a mask or an overlay."""
    return (label_file.maker_of(path) or "").startswith(MAKER)


def is_made(entry: Entry, note: str, args: argparse.Namespace) -> bool:
    """Whether a picture's mask and overlay are there, made as the note says. Raises InputError where others' files are in their place."""
    mask, overlay = paths = paths_of(entry, args)
    makers = {path: label_file.maker_of(path) or "" for path in paths if path.exists()}
    foreign = next((path for path, maker in makers.items() if not maker.startswith(MAKER)), None)
    if foreign:
        raise InputError(f"{foreign}: is not of {MAKER}, which will not replace it; give another --output_dir")
    noted = [*makers.values()] == [note, note]
    return noted and label_file.is_made(mask, entry.picture) and files.is_up_to_date(overlay, entry.picture)


def areas_of(label: np.ndarray, class_names: tuple[str, ...]) -> dict[str, int]:
    """The pixels of each class that is in a mask."""
    return {class_names[key]: int(pixels) for key, pixels in zip(*np.unique(label, return_counts=True))}


def predict(
    model: nn.Module,
    class_names: tuple[str, ...],
    entries: Entries,
    labels: np.ndarray | None,
    notes: Sequence[str],
    args: argparse.Namespace,
    run: stage.Stage,
) -> None:
    """Write the masks and overlays of some pictures, and print what is in each."""
    loader = inference_loader(Pyramids(entries, labels, args.scales, args.max_side), args.num_workers, pin_memory=run.on_gpu)
    for item in tqdm(loader, desc="masks", unit="picture", disable=not run.is_main):
        entry, picture = entries[item.index], read_picture(entries[item.index].picture)
        label = segment(model, item, picture, args, run)
        mask, overlay = paths_of(entry, args)
        label_file.save(mask, to_stored_frame(label, item.orientation), notes[item.index])
        with files.atomic_write(overlay) as temporary:
            Image.fromarray(visualize.overlay(picture, label)).save(temporary, format="jpeg", quality=90, comment=notes[item.index])
        shares = (f"{name} {100 * pixels / label.size:.1f} %" for name, pixels in areas_of(label, class_names).items())
        tqdm.write(f"{entry.picture}: {', '.join(shares)}")


def write_areas(entries: Entries, class_names: tuple[str, ...], args: argparse.Namespace) -> Path:
    content = {}
    for entry in entries:
        label = read_mask(paths_of(entry, args)[0], len(class_names))
        content[entry.name] = {"picture": str(entry.picture), "size": label.shape, "pixels": areas_of(label, class_names)}
    files.write_json(args.run_dir / "areas.json", content)
    return args.run_dir / "areas.json"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.crf:
        crf.require()
    entries = find_pictures(args.inputs, args.run_dir)
    model, class_names = load_network(args.ckpt)
    labels = read_labels(entries, model, class_names, args)
    notes = notes_of(labels, len(entries), args)
    with stage.start(args) as run:
        mine = [i for i in run.shard(range(len(entries))) if not is_made(entries[i], notes[i], args)]
        run.say(f"{len(entries)} pictures, {sum(run.gather(len(mine)))} of them to do, on {run.device}")
        ready(model, run.device)
        my_labels = None if labels is None else labels[mine]
        predict(model, class_names, entries.select(mine), my_labels, [notes[i] for i in mine], args, run)
        run.wait()
        run.say(f"wrote {args.run_dir}")
        if args.areas and run.is_main:
            print(f"wrote {write_areas(entries, class_names, args)}")


if __name__ == "__main__":
    sys.exit(stage.run(main))
