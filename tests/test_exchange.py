"""Tags from other tools, masks and networks for them, clips, and the Python surface."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import NAMES, ROOT, VOC_CLASSES, call, data_flags, files_below, label_of, rotate, stop_after, times_below, write_lines
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import export_masks
import export_network
import import_tags
import predict
from data import demo
from data.images import read_picture
from data.transforms import normalize, to_tensor
from errors import InputError
from network import deeplab
from tool import checkpoint, clips, label_file
from tool.inference import load_model, maps_of, mask_of, refine

# pycocotools is older than numpy 2, which warns and works all the same
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
OUTLINE = [[0, 0, 3, 0, 3, 2, 0, 2]]
PIXELS = {"size": [6, 8], "counts": coco_mask.encode(np.asfortranarray(np.eye(6, 8, dtype=np.uint8)))["counts"].decode()}


@pytest.fixture
def voc(tiny_voc: Path) -> Path:
    """Masks with holes, single pixels, touching parts and ignored ones; a picture that lies on its side, and its twin."""
    rng = np.random.default_rng(0)
    stored = rotate(*(tiny_voc / f"JPEGImages/{name}.jpg" for name in NAMES[:2]))
    for i, name in enumerate(NAMES):
        mask = rng.choice(np.array([0, 0, 8, 12, 255], np.uint8), (12, 16)).repeat(4, 0).repeat(4, 1)
        mask = np.where(rng.random(mask.shape) < 0.02, 12, mask).astype(np.uint8)
        label_file.save(tiny_voc / f"SegmentationClass/{name}.png", mask.T.copy() if i == 1 else mask)
    assert stored.size == (64, 48)
    return tiny_voc


def export(voc: Path, out: Path, *flags) -> str:
    common = [*data_flags(voc, out.parent), "--label_dir", voc / "SegmentationClass", "--output", out]
    return call(export_masks.main, *common, *flags)


@pytest.mark.parametrize("flags", ["coco", "coco --polygons 0", "yolo --polygons 0"])
def test_masks_go_out_and_come_back_pixel_by_pixel(flags, voc, tmp_path):
    out = tmp_path / ("out.json" if "coco" in flags else "out")
    assert "1.0000" in export(voc, out, "--format", *flags.split())
    call(import_tags.main, out, tmp_path / "back", "--images", voc / "JPEGImages" if "coco" in flags else out, "--num_workers", 0)
    tags = dict(line.split(",") for line in (tmp_path / "back/tags.csv").read_text().splitlines()[1:])
    assert (tmp_path / "back/classes.txt").read_text().split() == list(VOC_CLASSES[1:])
    for name in NAMES:
        mask = label_of(voc / "SegmentationClass", name)
        assert np.array_equal(label_of(tmp_path / "back/masks", name), np.where(mask == 255, 0, mask)), name
        assert tags[name].split(";") == [VOC_CLASSES[i] for i in np.unique(mask) if i not in (0, 255)]
        assert (tmp_path / f"back/images/{name}.jpg").samefile(voc / f"JPEGImages/{name}.jpg")
    before = times_below(tmp_path / "back")
    call(import_tags.main, out, tmp_path / "back", "--images", voc / "JPEGImages" if "coco" in flags else out, "--num_workers", 0)
    assert times_below(tmp_path / "back") == before


def test_coco_annotations_are_parts_with_area_box_and_score(voc, tmp_path):
    mask = np.zeros((48, 64), np.uint8)
    mask[2:6, 3:10], mask[20:22, 30:31], mask[40:, 50:] = 8, 8, 12
    for name in NAMES:
        label_file.save(voc / f"SegmentationClass/{name}.png", mask if name != NAMES[1] else mask.T.copy())
    probability = np.where(mask == np.array([0, 8])[:, None, None], 0.75, 0.125)
    label_file.save_prediction(voc / "SegmentationClass", NAMES[2], np.array([0, 8]), probability, True)
    export(voc, tmp_path / "out.json", "--format", "coco", "--list", write_lines(tmp_path / "one.txt", NAMES[2]))
    read = COCO(tmp_path / "out.json")
    assert [read.anns[i]["bbox"] for i in (1, 2)] == [[3, 2, 7, 4], [30, 20, 1, 2]]
    assert [read.anns[i]["area"] for i in (1, 2)] == [28, 2] and read.anns[1]["score"] == 0.75
    assert read.imgs[1]["file_name"] == f"{NAMES[2]}.jpg" and read.cats[read.anns[1]["category_id"]]["name"] == "cat"
    (voc / f"SegmentationClass/{NAMES[2]}.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=f"{NAMES[2]}.npz"):
        export(voc, tmp_path / "out.json", "--format", "coco")


def coco(**changes) -> str:
    """A COCO JSON of a cat, outlined as a polygon and as a packed code, and of a background."""
    about = {"image_id": 7, "iscrowd": 0}
    parts = [{"category_id": 3, "segmentation": OUTLINE}, {"category_id": 3, "segmentation": PIXELS}, {"category_id": 0}]
    pictures, categories = [{"id": 7, "file_name": "images\\a.png", "width": 8, "height": 6}], [{"id": 3, "name": "cat"}]
    content = {"images": pictures, "categories": [{"id": 0, "name": "Background"}, *categories], "annotations": [about | p for p in parts]}
    return json.dumps(content | changes)


YAML = {"data.yaml": "# a\nnames:\n  0: cat  # tame\n  1: 'a dog'\nnc: 2\n"}
SOURCES = {  # files beside the pictures below images/; pictures; tags
    "folders": ({}, ["cat/1.png", "dog/1.png", "dog/deep/2.png"], {"cat_1": "cat", "dog_1": "dog", "dog_deep_2": "dog"}),
    "csv": (
        {"_classes.csv": "filename, cat, a dog\na.png,1,0\nb,0,1\nc.png,0,0\n"},
        ["a.png", "sub/b.png", "c.png"],
        {"a": "cat", "b": "a dog"},
    ),
    "coco": ({"x.json": coco()}, ["images/a.png"], {"a": "cat"}),
    "yolo boxes": ({"obj.names": "cat\na dog\n", "a.txt": "1 .5 .5 .2 .2\n0 .5 .5 1 1\n"}, ["a.png", "b.png"], {"a": "cat;a dog"}),
    "yolo": (YAML | {"train/labels/a.txt": "1 0 0 1 0 1 1 0 1\n"}, ["train/images/a.png"], {"a": "a dog"}),
    "yolo inline": ({"data.yaml": "names: ['cat', a dog]\n", "labels/a.txt": "1 0 0 1 1"}, ["images/a.png"], {"a": "a dog"}),
}


def draw(root: Path, files: dict[str, str], pictures: list[str]) -> Path:
    """Write a source; returns what import_tags.py takes."""
    for path in (root / name for name in [*files, *pictures]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path.relative_to(root).as_posix()]) if path.suffix != ".png" else Image.new("RGB", (8, 6)).save(path)
    return next((root / name for name in files if name.endswith((".json", ".csv", ".odd"))), root)


@pytest.mark.parametrize("kind", SOURCES)
def test_tags_are_read_from_where_they_are(kind, tmp_path):
    files, pictures, tags = SOURCES[kind]
    call(import_tags.main, draw(tmp_path / "in", files, pictures), tmp_path / "out", "--num_workers", 0)
    assert dict(line.split(",") for line in (tmp_path / "out/tags.csv").read_text().splitlines()[1:]) == tags
    assert files_below(tmp_path / "out/images") == {f"{name}.png" for name in tags}
    if kind in ("coco", "yolo"):
        expected = np.eye(6, 8) if kind == "coco" else np.full((6, 8), 2)
        expected[:2, :3] = 1 if kind == "coco" else 2
        assert np.array_equal(label_of(tmp_path / "out/masks", "a"), expected)
    else:
        assert not (tmp_path / "out/masks").exists()


SPOILT = {  # files; pictures; what the line begins with
    "damaged": ({"x.json": "{"}, ["a.png"], "x.json"),
    "picture gone": ({"x.json": coco()}, ["b.png"], "x.json"),
    "two of a name": ({"x.json": coco()}, ["1/a.png", "2/a.png"], "x.json"),
    "class unknown": ({"x.json": coco(categories=[{"id": 1, "name": "cat"}])}, ["a.png"], "x.json"),
    "names twice": ({"x.json": coco(categories=[{"id": i, "name": "cat"} for i in (0, 3)])}, ["a.png"], "x.json"),
    "other size": ({"x.json": coco(images=[{"id": 7, "file_name": "a.png", "width": 6, "height": 6}])}, ["a.png"], "a.png"),
    "mark": ({"x.csv": "name,cat\na.png,2\n"}, ["a.png"], "x.csv, line 2"),
    "short": ({"x.csv": "name,cat,dog\na.png,1\n"}, ["a.png"], "x.csv, line 2"),
    "listed twice": ({"x.csv": "name,cat\na.png,1\na,1\n"}, ["a.png"], "x.csv"),
    "class number": (YAML | {"a.txt": "2 0 0 1 1"}, ["a.png"], "a.txt, line 1"),
    "odd outline": (YAML | {"a.txt": "\n1 0 0 1 1 0"}, ["a.png"], "a.txt, line 2"),
    "no folders": ({}, ["a.png"], ""),
    "other file": ({"x.odd": ""}, ["a.png"], "x.odd"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_source_that_cannot_be_read_is_named(kind, tmp_path):
    files, pictures, named = SPOILT[kind]
    with pytest.raises(InputError) as error:
        call(import_tags.main, draw(tmp_path / "in", files, pictures), tmp_path / "out", "--num_workers", 0)
    assert str(error.value).startswith(f"{tmp_path / 'in' / named}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "out/tags.csv").exists()


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> Path:
    """A checkpoint of a segmentation network of one layer."""

    class Tiny(torch.nn.Conv2d):
        align_corners, mean_of_logits, crf = False, False, {}

    torch.manual_seed(0)
    monkeypatch.setitem(deeplab.NETWORKS, "tiny", lambda num_classes, output_stride, frozen: Tiny(3, num_classes, output_stride, 8))
    about = {"class_names": ["background", "cat", "dog"], "arguments": {"network": "tiny", "output_stride": 16}}
    checkpoint.save(tmp_path / "seg.pth", about | {"model": Tiny(3, 3, 16, 8).state_dict()})
    return tmp_path / "seg.pth"


@pytest.mark.parametrize(("more", "tolerance"), [([], 1e-4), (["--float16"], 2e-2)])
def test_an_onnx_network_finds_what_ours_does(more, tolerance, tiny, fixed_voc, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    call(export_network.main, "--ckpt", tiny, *more)
    session, network = onnxruntime.InferenceSession(tiny.with_suffix(".onnx")), load_model(tiny, "cpu").network
    path, mask = fixed_voc / f"JPEGImages/{NAMES[0]}.jpg", tmp_path / "mask.png"
    for image in (torch.randn(3, 3, 51, 37), normalize(to_tensor(read_picture(path))[None])):
        logits = torch.nn.functional.interpolate(network(image), image.shape[2:], mode="bilinear").detach()
        (found,) = session.run(["logits"], {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits, atol=tolerance, rtol=0)
    monkeypatch.setattr(sys, "argv", ["", str(tiny.with_suffix(".onnx")), str(path), str(mask)])
    runpy.run_path(str(ROOT / "examples/onnx_predict.py"))
    assert (np.asarray(Image.open(mask)) == found[0].argmax(0)).mean() > 0.999


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio_ffmpeg leaves its pipes to be collected
def test_a_clip_gets_a_mask_a_frame_and_an_overlay_and_resumes(tiny, tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    with clips.write_frames(tmp_path / "clip.mp4", 10, (48, 64)) as write:
        for i in range(5):
            write(np.full((48, 64, 3), 50 * i, np.uint8))
    flags = [tmp_path / "clip.mp4", "--ckpt", tiny, "--output_dir", tmp_path / "out", "--device", "cpu", "--scales", 1.0]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, predict, "mask_of", 2)
        call(predict.main, *flags)
    before, masks = times_below(tmp_path / "out"), {f"clip_{i:06}.png" for i in range(5)}
    assert before.keys() == {"settings.json", *sorted(masks)[:2]}
    call(predict.main, *flags)
    after = times_below(tmp_path / "out")
    assert before.items() <= after.items() and after.keys() == {"settings.json", "clip_overlay.mp4", *masks}
    (fps, size), *frames = clips.read_frames(tmp_path / "out/clip_overlay.mp4")
    assert (fps, size, len(frames)) == (10, (48, 64), 5)
    call(predict.main, *flags)
    assert times_below(tmp_path / "out") == after
    (tmp_path / "clip.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:500])
    with pytest.raises(InputError, match=f"^{tmp_path / 'clip.mp4'}: "):
        call(predict.main, *flags, "--strict")


def test_the_surface_finds_what_the_commands_do(checkpoints, fixed_voc, tmp_path):
    path = fixed_voc / f"JPEGImages/{NAMES[0]}.jpg"
    for kind, tags in (("segmentation", []), ("authors", ["cat", "dog"])):
        model, picture = load_model(checkpoints[kind], "cpu"), read_picture(path)
        common = ["--ckpt", checkpoints[kind], "--output_dir", tmp_path / kind, "--device", "cpu", "--num_workers", 0]
        call(predict.main, path, *common, *(["--tags", *tags] if tags else []))
        assert np.array_equal(mask_of(model, picture, tags), label_of(tmp_path / kind, NAMES[0]))
        keys, maps = maps_of(model, picture, tags)
        refined = keys[refine(picture, maps).argmax(0)]
        if tags:
            assert np.array_equal(refined, mask_of(model, picture, tags, use_crf=True))
            for wrong in ([], ["cart"]):
                with pytest.raises(InputError, match=r"^tags: "):
                    maps_of(model, picture, wrong)


def test_the_page_on_python_runs(tiny, fixed_voc, monkeypatch):
    text = (ROOT / "docs/stages.md").read_text().partition("## From Python")[2]
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    monkeypatch.setattr(checkpoint, "read", lambda path, read=checkpoint.read: read(tiny))
    code = code.replace("runs/demo_unseen/images/demo_0001.jpg", str(fixed_voc / f"JPEGImages/{NAMES[0]}.jpg"))
    assert runpy.run_path(str(write_lines(tiny.with_name("page.py"), code)))["mask"].shape == (48, 64)


@pytest.mark.slow
def test_readme_goes_from_a_folder_per_class_to_coco_in_four_commands(tiny_backbone, tmp_path):
    demo.draw_dataset(tmp_path / "drawn", pictures=24, size=64)
    for line in (tmp_path / "drawn/tags.csv").read_text().splitlines()[1:]:
        name, tags = line.split(",")
        target = tmp_path / f"flowers/{tags.split(';')[0]}/{name}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / f"drawn/images/{name}.jpg", target)
    block = (ROOT / "README.md").read_text().partition("## Your own pictures")[2].split("```")[1]
    commands = [line.split("#")[0].split() for line in block.splitlines()[1:]]
    assert len(commands) == 4
    small = f"--weights {tiny_backbone} --max_epochs 1 --crop_size 64 --resize_long 48 64"
    commands[2] += ["--until", "make_seg_labels", "--with", "train_resnet50_SIPE", small]
    for program, script, *flags in commands:
        program = sys.executable if program == "python" else program
        subprocess.run([program, str(ROOT / script), *flags], cwd=tmp_path, check=True)
    read = COCO(tmp_path / "runs/mine/coco.json")
    assert len(read.imgs) == 24 and {one["name"] for one in read.cats.values()} <= set(demo.BODIES)
