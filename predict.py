"""Masks of any images and clips, without a dataset on disk: one image, a folder, a pattern.

    python predict.py cat.jpg photos 'more/*.png' --ckpt runs/voc/ckpt/seg.pth
    python predict.py cat.jpg clip.mp4 --ckpt runs/voc/ckpt/final.pth --tags cat person

A segmentation network (train_seg.py) finds the classes itself. SIPE (train_resnet50_SIPE.py; the
authors' checkpoints work too) needs to know them: pass --tags for all images, or --tag_table for
each. Writes OUTPUT_DIR/NAME.png, a palette PNG of class ids in the frame in which the image is
stored, and OUTPUT_DIR/NAME_overlay.jpg, the image upright under its mask; with --areas,
OUTPUT_DIR/areas.json. A clip gets OUTPUT_DIR/NAME_000000.png and so on, a mask for each frame, and
OUTPUT_DIR/NAME_overlay.mp4 (pip install imageio-ffmpeg).
Images and frames with up-to-date results are skipped: run the same command to resume.
"""

import argparse
import functools
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.annotations import (
    IMAGE_TYPES,
    encode_tags,
    find_files,
    read_tag_table,
    rows_or_raise,
    sample_name,
)
from data.datasets import MultiscaleImages
from data.images import read_mask, to_stored_frame
from data.registry import Sample, Samples
from errors import InputError, UnreadableError
from network.spatial import argmax_resized
from tool import crf, flags, inference, label_file, outputs, visualize
from tool.context import cli_main, join_run, local_context
from tool.inference import InferenceOptions, LoadedModel, LoadedNetwork, SegmentedImage
from tool.results import Results

CLIP_TYPES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
ALL_TYPES = (*IMAGE_TYPES, *CLIP_TYPES)
KILOBYTES = 60  # of the mask and the overlay of an image of VOC, about


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.command_parser(__doc__)
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, clips, folders of images, patterns like 'photos/**/*.jpg'",
    )
    add(
        "--ckpt",
        type=Path,
        required=True,
        help="checkpoint of train_seg.py, or of SIPE together with tags",
    )
    add(
        "--output_dir",
        type=Path,
        default=Path("predictions"),
        help="folder of the masks (default predictions)",
    )
    add(
        "--tags",
        nargs="+",
        metavar="CLASS",
        help="for SIPE: the classes that are in every image",
    )
    add(
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
    own = os.path.realpath(args.output_dir)
    if any(os.path.isdir(given) and os.path.realpath(given) == own for given in args.inputs):
        parser.error(
            f"--output_dir {args.output_dir}: is also a folder of images,"
            " which its masks would mix with; use another one"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.crf:
        crf.require()
    samples = find_images(args.inputs, args.output_dir)
    context = local_context(args.device, args.amp)
    loaded = inference.load_network(args.ckpt, recipe=args.recipe)
    tags = read_tags(samples, loaded, args)
    model = inference.put_on_device(loaded, context)
    tag_files = [args.tag_table] if args.tag_table else []

    def is_done(sample: Sample) -> bool:
        paths = result_paths(sample, args.output_dir)
        return all(outputs.is_up_to_date(path, sample.image, *tag_files) for path in paths)

    with join_run(context, args.output_dir):
        results = Results(
            args.output_dir,
            "predict",
            settings(args, model),
            context,
            flags.result_policy(args),
        )
        todo = results.unfinished(samples, is_done, KILOBYTES)
        clip_indices = [index for index in todo if is_clip(samples[index])]
        image_indices = [index for index in todo if not is_clip(samples[index])]
        clips = samples.select(clip_indices)
        delete_replaced_frames(clips, results.replaced, args.output_dir)

        options = InferenceOptions(args.scales, args.max_side, args.crf)
        images = MultiscaleImages(
            samples.select(image_indices),
            None if tags is None else tags[image_indices],
            options.scaling,
            skip_unreadable=True,
        )
        segmented = inference.segment_all(model, images, options, args.num_workers, results)
        for result in segmented:
            sample = images.samples[result.item.index]
            write_result(sample, result, model.class_names, args.output_dir)

        work = functools.partial(
            write_clip, model=model, tags=names_of_tags(samples, tags, model), args=args
        )
        for _ in results.map(work, clips, num_workers=0):
            pass
        context.barrier()
        if args.areas and context.is_main:
            write_areas(samples, model.class_names, args.output_dir)
        results.finish()


def find_images(inputs: Sequence[str], output_dir: Path) -> Samples:
    """The images and clips that files, folders and patterns name.

    Those in output_dir, which an earlier run wrote, are left out. Raises InputError if there is
    none, or if two have one name.
    """
    images: dict[str, str] = {}
    own = os.path.realpath(output_dir)
    for given in inputs:
        paths = []
        for path in expand_input(given):
            if os.path.realpath(os.path.dirname(path)) != own:
                paths.append(path)
        if not paths:
            types = ", ".join(IMAGE_TYPES)
            raise InputError(
                f"{given}: there is no image ({types});"
                " use images, folders or patterns like 'photos/*.jpg'"
            )
        for path in paths:
            name = sample_name(os.path.basename(path), ALL_TYPES)
            if name in images and not os.path.samefile(path, images[name]):
                raise InputError(
                    f"{path}: its mask {name}.png would replace that of {images[name]};"
                    " use two --output_dir"
                )
            images[name] = path
    return Samples.of((name, path, "") for name, path in images.items())


def expand_input(given: str) -> list[str]:
    """The files that an input names: itself, those in a folder, or those that fit a pattern."""
    if os.path.isdir(given):
        return [*rows_or_raise(find_files(Path(given), ("{}.*",))).values()]
    if os.path.isfile(given):
        return [given]
    matching = sorted(glob.glob(given, recursive=True))
    return [path for path in matching if path.lower().endswith(ALL_TYPES)]


def read_tags(
    samples: Samples, loaded: LoadedNetwork, args: argparse.Namespace
) -> np.ndarray | None:
    """The tags (images, K-1) 0/1 that SIPE needs; None for a segmentation network.

    Raises InputError if the flags do not fit the network, or the tags its classes.
    """
    if not loaded.needs_tags:
        if args.tags or args.tag_table or args.recipe:
            raise InputError(
                f"{args.ckpt}: is a segmentation network, which finds the classes itself;"
                " leave out tags and recipe"
            )
        return None
    if args.tags:
        vector = rows_or_raise(encode_tags(set(args.tags), loaded.class_names, "--tags"))
        return np.tile(vector.astype(np.float32), (len(samples), 1))
    if not args.tag_table:
        raise InputError(
            f"{args.ckpt}: is SIPE, which must know the classes in an image;"
            " pass --tags or --tag_table"
        )
    table = rows_or_raise(read_tag_table(args.tag_table, loaded.class_names))
    return rows_or_raise(table.tags_of(samples.names(), args.tag_table))


def names_of_tags(
    samples: Samples, tags: np.ndarray | None, model: LoadedModel
) -> dict[str, list[str]]:
    """The names of the classes that each sample is tagged with; empty without tags."""
    if tags is None:
        return {}
    classes = np.array(model.class_names[1:])
    return {name: list(classes[row == 1]) for name, row in zip(samples.names(), tags)}


def settings(args: argparse.Namespace, model: LoadedModel) -> dict[str, Any]:
    """What the masks depend on besides their image."""
    if args.tags:
        tags = sorted(args.tags)
    elif args.tag_table:
        tags = str(args.tag_table.resolve())
    else:
        tags = None
    content = {
        **model.digests(),
        "tags": tags,
        "scales": args.scales,
        "max_side": args.max_side,
        "crf": args.crf,
        "amp": args.amp,
    }
    if model.needs_tags:
        content["recipe"] = model.network.recipe.name
    return content


def is_clip(sample: Sample) -> bool:
    return sample.image.suffix.lower() in CLIP_TYPES


def clip_overlay_path(sample: Sample, output_dir: Path) -> Path:
    return output_dir / f"{sample.name}_overlay.mp4"


def result_paths(sample: Sample, output_dir: Path) -> list[Path]:
    """The mask and the overlay of an image; of a clip, its overlay."""
    if is_clip(sample):
        return [clip_overlay_path(sample, output_dir)]
    mask = label_file.path_of(output_dir, sample.name)
    return [mask, output_dir / f"{sample.name}_overlay.jpg"]


def delete_replaced_frames(clips: Samples, replaced: set[str], output_dir: Path) -> None:
    """Delete the masks of frames of clips that were replaced by others."""
    for clip in clips:
        if clip.name in replaced:
            for path in output_dir.glob(f"{glob.escape(clip.name)}_??????.png"):
                path.unlink()


def areas_of(mask: np.ndarray, class_names: tuple[str, ...]) -> dict[str, int]:
    """The pixels of each class that is in a mask."""
    class_ids, counts = np.unique(mask, return_counts=True)
    return {class_names[key]: int(pixels) for key, pixels in zip(class_ids, counts)}


def write_result(
    sample: Sample, result: SegmentedImage, class_names: tuple[str, ...], output_dir: Path
) -> None:
    """Write the mask and the overlay of an image, and print its classes."""
    item = result.item
    strongest = argmax_resized(result.maps, item.size)
    mask = result.class_ids.astype(np.uint8)[strongest]  # upright
    mask_path, overlay_path = result_paths(sample, output_dir)
    label_file.save(mask_path, to_stored_frame(mask, item.orientation))
    visualize.save(overlay_path, visualize.overlay(item.original, mask, class_names))
    shares = []
    for name, pixels in areas_of(mask, class_names).items():
        shares.append(f"{name} {100 * pixels / mask.size:.1f} %")
    tqdm.write(f"{sample.image}: {', '.join(shares)}")


@dataclass(frozen=True)
class Clip:
    """A video that can be decoded: its frames (H * W * 3 bytes RGB each), rate and size."""

    frames: Iterator[bytes]
    frames_per_second: float
    width: int
    height: int


def open_clip(path: Path) -> Clip:
    """Start to decode a clip.

    Raises InputError without imageio-ffmpeg, and UnreadableError for a file that it cannot decode.
    """
    try:
        from imageio_ffmpeg import read_frames

        frames = read_frames(str(path))
        about = next(frames)
    except ImportError as error:
        raise InputError(
            f"{path}: imageio_ffmpeg cannot be imported ({error}); pip install imageio-ffmpeg"
        ) from None
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UnreadableError(
            f"{path}: cannot be decoded ({reason}); convert it to an .mp4"
        ) from None
    width, height = about["size"]
    return Clip(frames, about["fps"], width, height)


def write_clip(
    sample: Sample, model: LoadedModel, tags: dict[str, list[str]], args: argparse.Namespace
) -> None:
    """Write a mask for each frame of a clip, and the overlay.

    Masks that an earlier run has written are read instead.
    """
    clip = open_clip(sample.image)
    from imageio_ffmpeg import write_frames

    tag_files = [args.tag_table] if args.tag_table else []
    options = {"scales": args.scales, "max_side": args.max_side, "use_crf": args.crf}
    video_options = {
        "fps": clip.frames_per_second,
        "macro_block_size": 2,  # even sides
        "output_params": ["-f", "mp4"],
    }
    size = (clip.width, clip.height)
    overlay_path = clip_overlay_path(sample, args.output_dir)
    with (
        outputs.atomic_write(overlay_path) as file,
        closing(write_frames(str(file), size, **video_options)) as video,
    ):
        video.send(None)
        bar = tqdm(clip.frames, desc=sample.name, unit="frame")
        for number, data in enumerate(bar):
            frame = np.frombuffer(data, np.uint8).reshape(clip.height, clip.width, 3)
            path = label_file.path_of(args.output_dir, f"{sample.name}_{number:06}")
            if outputs.is_up_to_date(path, sample.image, *tag_files):
                mask = read_mask(path, len(model.class_names), frame.shape[:2])
            else:
                mask = inference.mask_of(model, frame, tags.get(sample.name, ()), **options)
                label_file.save(path, mask)
            painted = visualize.overlay(frame, mask, model.class_names)
            video.send(np.ascontiguousarray(painted))


def write_areas(samples: Samples, class_names: tuple[str, ...], output_dir: Path) -> None:
    """Write the pixels of each class in each mask to areas.json."""
    content = {}
    for sample in samples:
        path = label_file.path_of(output_dir, sample.name)
        if not path.is_file():
            continue  # the image could not be read
        mask = read_mask(path, len(class_names))
        content[sample.name] = {
            "picture": str(sample.image),
            "size": mask.shape,
            "pixels": areas_of(mask, class_names),
        }
    outputs.write_json(output_dir / "areas.json", content)
    print(f"wrote {output_dir / 'areas.json'}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
