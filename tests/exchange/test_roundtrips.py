"""Tags from other tools, masks and networks for them, clips, and the Python surface."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import (
    NAMES,
    ROOT,
    VOC_CLASSES,
    call,
    data_flags,
    label_of,
    rotate,
    stop_after,
    times_below,
    write_lines,
)
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import export_masks
import export_network
import import_tags
import predict
from data import demo
from data.images import read_image
from data.transforms import normalize, to_tensor
from errors import InputError
from tool import checkpoint, label_file
from tool.inference import load_model, maps_of, mask_of, refine

# pycocotools is older than numpy 2, which warns and works all the same
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def tags_of(folder: Path) -> dict[str, str]:
    return dict(line.split(",") for line in (folder / "tags.csv").read_text().splitlines()[1:])


@pytest.mark.parametrize("flags", ["coco", "coco --polygons", "yolo"])
def test_masks_go_out_and_come_back_pixel_by_pixel(flags, tiny_voc, tmp_path):
    """With holes, single pixels, touching parts and ignored ones; an image lies on its side."""
    rng, masks, folder, images = (
        np.random.default_rng(0),
        {},
        tiny_voc / "SegmentationClass",
        tiny_voc / "JPEGImages",
    )
    rotate(*(images / f"{name}.jpg" for name in NAMES[:2]))
    for name in NAMES:
        mask = (
            rng.choice(np.array([0, 0, 8, 12, 255], np.uint8), (12, 16)).repeat(4, 0).repeat(4, 1)
        )
        mask = np.where(rng.random(mask.shape) < 0.02, 12, mask).astype(np.uint8)
        masks[name] = mask.T.copy() if name == NAMES[1] else mask
        label_file.save_prediction(
            folder,
            name,
            np.array([0, 8, 12]),
            np.full((3, *masks[name].shape), [[[0]], [[0.5]], [[0.75]]]),
            True,
        )
        label_file.save(folder / f"{name}.png", masks[name])
    export = [*data_flags(tiny_voc, tmp_path), "--label_dir", folder, "--format", *flags.split()]
    call(export_masks.main, *export)
    back = [
        *([tmp_path / "yolo"] if flags == "yolo" else [tmp_path / "coco.json", "--images", images]),
        tmp_path / "back",
    ]
    call(import_tags.main, *back)
    with pytest.raises(InputError, match=f"^{tmp_path / 'back'}: "):
        call(import_tags.main, *back)
    assert (tmp_path / "back/classes.txt").read_text().split() == list(VOC_CLASSES[1:])
    for name, mask in masks.items():
        assert np.array_equal(
            label_of(tmp_path / "back/masks", name), np.where(mask == 255, 0, mask)
        ), name
        assert tags_of(tmp_path / "back")[name].split(";") == [
            VOC_CLASSES[i] for i in np.unique(mask) if i not in (0, 255)
        ]
        assert (tmp_path / f"back/images/{name}.jpg").samefile(images / f"{name}.jpg")
    if flags != "yolo":
        read = COCO(tmp_path / "coco.json")
        for one in read.anns.values():
            part = read.annToMask(one)
            assert (one["area"], one["bbox"]) == (
                part.sum(),
                coco_mask.toBbox(coco_mask.encode(np.asfortranarray(part))).tolist(),
            )
            assert one["score"] == {8: 0.5, 12: 0.75}[one["category_id"]]
    spoilt = folder / f"{NAMES[0]}.npz"
    spoilt.write_bytes(spoilt.read_bytes()[:-30])
    with pytest.raises(InputError, match=f"^{spoilt}: [^\n]+$"):
        call(export_masks.main, *export, "--output", tmp_path / "again")


def coco(**changes) -> str:
    """A COCO JSON of a cat, outlined as a polygon and as a packed code, and of a background."""
    packed = coco_mask.encode(np.asfortranarray(np.eye(6, 8, dtype=np.uint8)))["counts"].decode()
    parts = [
        {"category_id": 3, "segmentation": one}
        for one in ([[0, 0, 3, 0, 3, 2, 0, 2]], {"size": [6, 8], "counts": packed})
    ]
    images, categories = (
        [{"id": 7, "file_name": "images\\a.png", "width": 8, "height": 6}],
        [{"id": 3, "name": "cat"}],
    )
    content = {"images": images, "categories": [{"id": 0, "name": "Background"}, *categories]}
    return json.dumps(
        content
        | {"annotations": [part | {"image_id": 7} for part in (*parts, {"category_id": 0})]}
        | changes
    )


YAML, CSV = (
    {"data.yaml": "# a\nnames:\n  0: cat  # tame\n  1: 'a dog'\nnc: 2\n"},
    "filename, cat, a dog\n",
)
SOURCES = {  # files beside the images; images; tags, or what the error begins with
    "folders": (
        {},
        ["cat/1.png", "dog/1.png", "dog/deep/2.png"],
        {"cat_1": "cat", "dog_1": "dog", "2": "dog"},
    ),
    "csv": (
        {"x.csv": f"{CSV}a.png,1,0\nb,0,1\nc.png,0,0\n"},
        ["a.png", "sub/b.png", "c.png"],
        {"a": "cat", "b": "a dog"},
    ),
    "coco": ({"x.json": coco()}, ["images/a.png"], {"a": "cat"}),
    "boxes": (
        {"obj.names": "cat\na dog\n", "a.txt": "1 .5 .5 .2 .2\n0 .5 .5 1 1\n"},
        ["a.png", "b.png"],
        {"a": "cat;a dog"},
    ),
    "yolo": (
        YAML | {"train/labels/a.txt": "1 0 0 1 0 1 1 0 1\n"},
        ["train/images/a.png"],
        {"a": "a dog"},
    ),
    "inline": (
        {"data.yaml": "names: ['cat', a dog]\n", "labels/a.txt": "1 .5 .5 1 1"},
        ["images/a.png"],
        {"a": "a dog"},
    ),
    "damaged": ({"x.json": "{"}, ["a.png"], "x.json"),
    "image gone": ({"x.json": coco()}, ["b.png"], "x.json"),
    "two of a name": ({"x.json": coco()}, ["1/a.png", "2/a.png"], "x.json"),
    "other size": (
        {"x.json": coco(images=[{"id": 7, "file_name": "a.png", "width": 6, "height": 6}])},
        ["a.png"],
        "a.png",
    ),
    "mark": ({"x.csv": f"{CSV}a.png,2,0\n"}, ["a.png"], "x.csv, line 2"),
    "class number": (YAML | {"a.txt": "\n2 0 0 1 1"}, ["a.png"], "a.txt, line 2"),
    "no folders": ({}, ["a.png"], ""),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_tags_are_read_from_where_they_are_or_the_file_is_named(kind, tmp_path):
    (files, images, expected), root = SOURCES[kind], tmp_path / "in"
    for path in (root / name for name in [*files, *images]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            files[path.relative_to(root).as_posix()]
        ) if path.suffix != ".png" else Image.new("RGB", (8, 6)).save(path)
    source = next((root / name for name in files if name.startswith("x.")), root)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=f"^{root / expected}: [^\n]+$"):
            call(import_tags.main, source, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        return
    call(import_tags.main, source, tmp_path / "out")
    assert (
        tags_of(tmp_path / "out")
        == expected
        == {path.stem: expected[path.stem] for path in (tmp_path / "out/images").iterdir()}
    )
    assert (tmp_path / "out/masks").exists() == (kind in ("coco", "yolo"))
    if kind in ("coco", "yolo"):
        drawn = np.maximum(
            np.eye(6, 8), np.arange(48).reshape(6, 8) % 8 < np.array([3, 3, 0, 0, 0, 0])[:, None]
        )
        assert np.array_equal(
            label_of(tmp_path / "out/masks", "a"), drawn if kind == "coco" else np.full((6, 8), 2)
        )


@pytest.mark.skipif(export_network.IS_TOO_OLD, reason="needs PyTorch 2.8")
def test_an_onnx_network_finds_what_ours_does(checkpoints, fixed_voc, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network, path = (
        load_model(checkpoints["segmentation"], "cpu").network,
        fixed_voc / f"JPEGImages/{NAMES[0]}.jpg",
    )
    for more, tolerance in ([], 1e-3), (["--float16"], 3e-2):
        call(export_network.main, "--ckpt", checkpoints["segmentation"], *more)
        session = onnxruntime.InferenceSession(checkpoints["segmentation"].with_suffix(".onnx"))
        for image in (torch.randn(3, 3, 51, 37), normalize(to_tensor(read_image(path))[None])):
            logits = torch.nn.functional.interpolate(
                network(image), image.shape[2:], mode="bilinear"
            ).detach()
            (found,) = session.run(["logits"], {"image": image.numpy()})
            assert np.abs(found - logits.numpy()).max() < tolerance * logits.abs().max()
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "",
            str(checkpoints["segmentation"].with_suffix(".onnx")),
            str(path),
            str(tmp_path / "mask.png"),
        ],
    )
    runpy.run_path(str(ROOT / "examples/onnx_predict.py"))
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == found[0].argmax(0)).mean() > 0.99


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # imageio_ffmpeg leaves its pipes to be collected
def test_a_clip_gets_a_mask_a_frame_and_an_overlay_and_resumes(checkpoints, tmp_path, monkeypatch):
    ffmpeg, clip, out = (
        pytest.importorskip("imageio_ffmpeg"),
        tmp_path / "clip.mp4",
        tmp_path / "out",
    )
    subprocess.run(
        [
            ffmpeg.get_ffmpeg_exe(),
            "-f",
            "lavfi",
            "-i",
            "testsrc=size=64x48:rate=10",
            "-frames:v",
            "5",
            clip,
        ],
        check=True,
    )
    flags = [
        clip,
        "--ckpt",
        checkpoints["segmentation"],
        "--output_dir",
        out,
        "--device",
        "cpu",
        "--scales",
        1.0,
    ]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, predict, "mask_of", 2)
        call(predict.main, *flags)
    assert (before := times_below(out)).keys() == {
        "settings.json",
        "clip_000000.png",
        "clip_000001.png",
    }
    for _ in range(2):
        call(predict.main, *flags)
        assert before.items() <= times_below(out).items()
        before = times_below(out)
        assert before.keys() == {
            "settings.json",
            "clip_overlay.mp4",
            *(f"clip_{i:06}.png" for i in range(5)),
        }
    assert ffmpeg.count_frames_and_secs(str(out / "clip_overlay.mp4")) == (5, 0.5)
    subprocess.run(
        [
            ffmpeg.get_ffmpeg_exe(),
            "-y",
            "-f",
            "lavfi",
            "-i",
            "testsrc2=size=64x48:rate=10",
            "-frames:v",
            "3",
            clip,
        ],
        check=True,
    )
    os.utime(clip, (1, 1))  # another clip, and an older one
    call(predict.main, *flags)
    assert (after := times_below(out)).keys() == {
        "settings.json",
        "clip_overlay.mp4",
        *(f"clip_{i:06}.png" for i in range(3)),
    }
    assert all(after[name] > before[name] for name in after.keys() - {"settings.json"})
    clip.write_bytes(clip.read_bytes()[:500])
    with pytest.raises(InputError, match=f"^{clip}: "):
        call(predict.main, *flags, "--strict")


@pytest.mark.parametrize(("kind", "tags"), [("segmentation", []), ("authors", ["cat", "dog"])])
def test_the_surface_finds_what_the_commands_do(kind, tags, checkpoints, fixed_voc, tmp_path):
    path = fixed_voc / f"JPEGImages/{NAMES[0]}.jpg"
    model, image = load_model(checkpoints[kind], "cpu"), read_image(path)
    common = [
        "--ckpt",
        checkpoints[kind],
        "--output_dir",
        tmp_path,
        "--device",
        "cpu",
        "--num_workers",
        0,
    ]
    call(predict.main, path, *common, *(["--tags", *tags] if tags else []))
    assert np.array_equal(mask_of(model, image, tags), label_of(tmp_path, NAMES[0]))
    if tags:
        keys, maps = maps_of(model, image, tags)
        assert np.array_equal(
            keys[refine(image, maps).argmax(0)], mask_of(model, image, tags, use_crf=True)
        )
        with pytest.raises(InputError, match=r"^tags: "):
            maps_of(model, image)


def test_the_page_on_python_runs(checkpoints, fixed_voc, monkeypatch, tmp_path):
    code = re.search(
        r"## From Python.*?```python\n(.*?)```", (ROOT / "docs/stages.md").read_text(), re.S
    )[1]
    monkeypatch.setattr(
        checkpoint, "read", lambda path, read=checkpoint.read: read(checkpoints["segmentation"])
    )
    code = code.replace(
        "runs/demo_unseen/images/demo_0001.jpg", str(fixed_voc / f"JPEGImages/{NAMES[0]}.jpg")
    )
    assert runpy.run_path(str(write_lines(tmp_path / "page.py", code)))["mask"].shape == (48, 64)


@pytest.mark.slow
def test_readme_goes_from_a_folder_per_class_to_coco_in_four_commands(tiny_backbone, tmp_path):
    demo.draw_dataset(tmp_path / "drawn", images=24, size=64)
    for name, tags in tags_of(tmp_path / "drawn").items():
        target = tmp_path / f"flowers/{tags.split(';')[0]}/{name}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / f"drawn/images/{name}.jpg", target)
    block = (ROOT / "README.md").read_text().partition("## Your own images")[2].split("```")[1]
    commands = [line.split("#")[0].split() for line in block.splitlines()[1:]]
    small = f"--weights {tiny_backbone} --max_epochs 1 --crop_size 64 --resize_long 48 64"
    commands[2] += ["--until", "make_seg_labels", "--with", "train_resnet50_SIPE", small]
    for program, script, *flags in commands:
        subprocess.run(
            [program.replace("python", sys.executable), str(ROOT / script), *flags],
            cwd=tmp_path,
            check=True,
        )
    read = COCO(tmp_path / "runs/mine/coco.json")
    assert (
        len(commands) == 4
        and len(read.imgs) == 24
        and {one["name"] for one in read.cats.values()} <= set(demo.BODIES)
    )
