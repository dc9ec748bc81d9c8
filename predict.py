"""Masks of any images and clips, without a dataset on disk: one image, a folder, a pattern.

    python predict.py cat.jpg photos 'more/*.png' --ckpt runs/voc/ckpt/seg.pth
    python predict.py cat.jpg clip.mp4 --ckpt runs/voc/ckpt/final.pth --tags cat person

A segmentation network (train_seg.py) finds the classes itself. SIPE (train_resnet50_SIPE.py; the authors' checkpoints work too) needs to
know them: pass --tags for all images, or --tag_table for each. Writes OUTPUT_DIR/NAME.png, a palette PNG of class ids in the frame in
which the image is stored, and OUTPUT_DIR/NAME_overlay.jpg, the image upright under its mask; with --areas, OUTPUT_DIR/areas.json.
A clip gets OUTPUT_DIR/NAME_000000.png and so on, a mask for each frame, and OUTPUT_DIR/NAME_overlay.mp4 (pip install imageio-ffmpeg).
Images and frames with up-to-date results are skipped: run the same command to resume.
"""

import argparse
import functools
import glob
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from data.annotations import (
    IMAGE_TYPES,
    encode_tags,
    find_files,
    read_tag_table,
    rows_or_raise,
    sample_name,
)
from data.datasets import MultiscaleImage
from data.images import read_mask, to_stored_frame
from data.registry import Sample, Samples
from errors import InputError, UnreadableError
from network.sipe import SIPE
from network.spatial import argmax_resized
from tool import context as ctx
from tool import crf, flags, label_file, outputs, visualize
from tool.inference import Model, load_model, mask_of, segment_all
from tool.results import Results

CLIP_TYPES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
KILOBYTES = 60  # of the mask and the overlay of an image of VOC, about


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.command_parser(__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, clips, folders of images, patterns like 'photos/**/*.jpg'",
    )
    parser.add_argument(
        "--ckpt",
        type=Path,
        required=True,
        help="checkpoint of train_seg.py, or of SIPE together with tags",
    )
    parser.add_argument(
        "--output_dir",
        dest="run_dir",
        type=Path,
        default="predictions",
        help="folder of the masks (default predictions)",
    )
    parser.add_argument(
        "--tags", nargs="+", metavar="CLASS", help="for SIPE: the classes that are in every image"
    )
    parser.add_argument(
        "--tag_table",
        type=Path,
        help="for SIPE: a CSV of name,class;class lines, the classes of each image",
    )
    flags.add_recipe(parser, None)
    flags.add_scales(parser, [0.5, 1.0, 1.5], note="; 1.0 alone takes a third of the time")
    flags.add_max_side(parser)
    flags.add_switch(parser, "--crf", "move the borders to the image's edges by the dense CRF")
    flags.add_switch(parser, "--areas", "write the pixels of each class to areas.json")
    flags.add_results(parser)
    flags.add_device(parser)
    flags.add_workers(parser)
    args = parser.parse_args(argv)
    if args.tags and args.tag_table:
        parser.error("--tags are for all images, --tag_table for each; use one of them")
    if any(
        os.path.isdir(given) and os.path.realpath(given) == os.path.realpath(args.run_dir)
        for given in args.inputs
    ):
        parser.error(
            f"--output_dir {args.run_dir}: is also a folder of images, which its masks would mix with; use another one"
        )
    return args


def find_images(inputs: Sequence[str], output_dir: Path) -> Samples:
    """The images and clips that files, folders and patterns name, except those in output_dir, which an earlier run wrote.

    Raises InputError where there is none, or two of one name.
    """
    images: dict[str, str] = {}
    own = os.path.realpath(output_dir)
    for given in inputs:
        if os.path.isdir(given):
            paths = [*rows_or_raise(find_files(Path(given), ("{}.*",))).values()]
        elif os.path.isfile(given):
            paths = [given]
        else:
            paths = sorted(
                path
                for path in glob.glob(given, recursive=True)
                if path.lower().endswith((*IMAGE_TYPES, *CLIP_TYPES))
            )
        paths = [path for path in paths if os.path.realpath(os.path.dirname(path)) != own]
        if not paths:
            types = ", ".join(IMAGE_TYPES)
            raise InputError(
                f"{given}: there is no image ({types}); use images, folders or patterns like 'photos/*.jpg'"
            )
        for path in paths:
            name = sample_name(os.path.basename(path), (*IMAGE_TYPES, *CLIP_TYPES))
            if name in images and not os.path.samefile(path, images[name]):
                raise InputError(
                    f"{path}: its mask {name}.png would replace that of {images[name]}; use two --output_dir"
                )
            images[name] = path
    return Samples.of((name, path, "") for name, path in images.items())


def read_tags(
    samples: Samples, model: nn.Module, class_names: tuple[str, ...], args: argparse.Namespace
) -> np.ndarray | None:
    """The image-level labels (images, K-1) that SIPE needs; None for a segmentation network. Raises InputError where they do not fit."""
    if not isinstance(model, SIPE):
        if args.tags or args.tag_table or args.recipe:
            raise InputError(
                f"{args.ckpt}: is a segmentation network, which finds the classes itself; leave out tags and recipe"
            )
        return None
    if args.tags:
        return np.tile(
            rows_or_raise(encode_tags(set(args.tags), class_names, "--tags")).astype(np.float32),
            (len(samples), 1),
        )
    if not args.tag_table:
        raise InputError(
            f"{args.ckpt}: is SIPE, which must know the classes in an image; pass --tags or --tag_table"
        )
    return rows_or_raise(
        rows_or_raise(read_tag_table(args.tag_table, class_names)).tags_of(
            samples.names(), args.tag_table
        )
    )


def settings(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    """What the masks depend on besides their image."""
    return {
        "checkpoint": outputs.sha256(args.ckpt),
        "tags": sorted(args.tags)
        if args.tags
        else args.tag_table and str(args.tag_table.resolve()),
        "scales": args.scales,
        "max_side": args.max_side,
        "crf": args.crf,
        "amp": args.amp,
    } | ({"recipe": model.recipe.name} if isinstance(model, SIPE) else {})


def paths_of(sample: Sample, output_dir: Path) -> tuple[Path, ...]:
    """Where the mask and the overlay of an image go; of a clip, its overlay."""
    if sample.image.suffix.lower() in CLIP_TYPES:
        return (output_dir / f"{sample.name}_overlay.mp4",)
    return label_file.path_of(output_dir, sample.name), output_dir / f"{sample.name}_overlay.jpg"


def areas_of(label: np.ndarray, class_names: tuple[str, ...]) -> dict[str, int]:
    """The pixels of each class that is in a mask."""
    return {
        class_names[key]: int(pixels) for key, pixels in zip(*np.unique(label, return_counts=True))
    }


def write_result(
    sample: Sample,
    item: MultiscaleImage,
    label: np.ndarray,
    class_names: tuple[str, ...],
    output_dir: Path,
) -> None:
    """Write the mask and the overlay of an image from its upright label (H, W), and print its classes."""
    mask, overlay = paths_of(sample, output_dir)
    label_file.save(mask, to_stored_frame(label, item.orientation))
    visualize.save(overlay, visualize.overlay(item.original, label, class_names))
    shares = (
        f"{name} {100 * pixels / label.size:.1f} %"
        for name, pixels in areas_of(label, class_names).items()
    )
    tqdm.write(f"{sample.image}: {', '.join(shares)}")


def write_clip(
    sample: Sample, tags: dict[str, np.ndarray], model: Model, args: argparse.Namespace
) -> None:
    """Write a mask for each frame of a clip, and the overlay; what an earlier run has found in it is read instead."""
    try:
        from imageio_ffmpeg import read_frames, write_frames

        frames = read_frames(str(sample.image))
        about = next(frames)
    except ImportError as error:
        raise InputError(
            f"{sample.image}: imageio_ffmpeg cannot be imported ({error}); pip install imageio-ffmpeg"
        ) from None
    except (OSError, RuntimeError) as error:
        raise UnreadableError(
            f"{sample.image}: cannot be decoded ({str(error).splitlines()[0]}); convert it to an .mp4"
        ) from None
    (overlay,), (width, height) = paths_of(sample, args.run_dir), about["size"]
    flags = {
        "fps": about["fps"],
        "macro_block_size": 2,
        "output_params": ["-f", "mp4"],
    }  # even sides
    with (
        outputs.atomic_write(overlay) as file,
        closing(write_frames(str(file), (width, height), **flags)) as video,
    ):
        video.send(None)
        for i, frame in enumerate(tqdm(frames, desc=sample.name, unit="frame")):
            frame, path = (
                np.frombuffer(frame, np.uint8).reshape(height, width, 3),
                label_file.path_of(args.run_dir, f"{sample.name}_{i:06}"),
            )
            if outputs.is_up_to_date(path, sample.image, *filter(None, [args.tag_table])):
                label = read_mask(path, len(model.class_names), (height, width))
            else:
                label = mask_of(
                    model, frame, tags.get(sample.name, ()), args.scales, args.max_side, args.crf
                )
                label_file.save(path, label)
            video.send(np.ascontiguousarray(visualize.overlay(frame, label, model.class_names)))


def write_areas(samples: Samples, class_names: tuple[str, ...], output_dir: Path) -> None:
    content = {}
    for sample in samples:
        if not label_file.path_of(output_dir, sample.name).is_file():
            continue  # the image could not be read
        label = read_mask(label_file.path_of(output_dir, sample.name), len(class_names))
        content[sample.name] = {
            "picture": str(sample.image),
            "size": label.shape,
            "pixels": areas_of(label, class_names),
        }
    outputs.write_json(output_dir / "areas.json", content)
    print(f"wrote {output_dir / 'areas.json'}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.crf:
        crf.require()
    samples = find_images(args.inputs, args.run_dir)
    model = load_model(args.ckpt, args.device, args.amp, recipe=args.recipe)
    labels = read_tags(samples, model.network, model.class_names, args)
    tags = {
        name: np.array(model.class_names[1:])[label == 1]
        for name, label in zip(samples.names(), [] if labels is None else labels)
    }

    def is_done(sample: Sample) -> bool:
        return all(
            outputs.is_up_to_date(path, sample.image, *filter(None, [args.tag_table]))
            for path in paths_of(sample, args.run_dir)
        )

    with ctx.run_context(args) as context:
        results = Results(args.run_dir, "predict", settings(args, model.network), context, args)
        todo = results.unfinished(samples, is_done, KILOBYTES)
        of_clips = [i for i in todo if samples[i].image.suffix.lower() in CLIP_TYPES]
        todo = [i for i in todo if i not in of_clips]
        for clip in samples.select([i for i in of_clips if samples[i].name in results.replaced]):
            for path in args.run_dir.glob(f"{glob.escape(clip.name)}_??????.png"):
                path.unlink()
        mine = samples.select(todo)
        for item, keys, maps in segment_all(
            model, mine, None if labels is None else labels[todo], args, results
        ):
            write_result(
                mine[item.index],
                item,
                keys.astype(np.uint8)[argmax_resized(maps, item.size)],
                model.class_names,
                args.run_dir,
            )
        list(
            results.map(
                functools.partial(write_clip, tags=tags, model=model, args=args),
                samples.select(of_clips),
                num_workers=0,
            )
        )
        context.barrier()
        if args.areas and context.is_main:
            write_areas(samples, model.class_names, args.run_dir)
        results.finish()


if __name__ == "__main__":
    sys.exit(ctx.cli_main(main))
