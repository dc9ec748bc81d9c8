"""Masks that go out and come back, and tags from other tools."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from common import (
    NAMES,
    ROOT,
    VOC_CLASSES,
    call,
    data_flags,
    label_of,
    refused,
    rotate,
)
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import export_masks
import import_tags
from data import demo
from data.images import IGNORE
from tool import label_file

# pycocotools is older than numpy 2, which warns and works all the same
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def tags_of(folder: Path) -> dict[str, str]:
    lines = (folder / "tags.csv").read_text().splitlines()
    return dict(line.split(",") for line in lines[1:])


class TestMasks:
    """Masks with holes, single pixels, touching parts and ignored ones."""

    @pytest.fixture
    def masks(self, tiny_voc) -> dict[str, np.ndarray]:
        """Other masks of the drawn dataset, with probabilities; an image lies on its side."""
        images = tiny_voc / "JPEGImages"
        rotate(images / f"{NAMES[0]}.jpg", images / f"{NAMES[1]}.jpg")
        folder = tiny_voc / "SegmentationClass"
        rng = np.random.default_rng(0)
        masks = {}
        for name in NAMES:
            mask = draw_mask(rng)
            if name == NAMES[1]:  # the upright one of the two
                mask = mask.T.copy()
            probability = np.empty((3, *mask.shape))
            probability[:] = np.array([0, 0.5, 0.75])[:, None, None]
            class_ids = np.array([0, 8, 12])
            label_file.save_prediction(folder, name, class_ids, probability, True)
            label_file.save(folder / f"{name}.png", mask)
            masks[name] = mask
        return masks

    @pytest.mark.parametrize("flags", ["coco", "coco --polygons", "yolo"])
    def test_they_come_back_pixel_by_pixel(self, flags, masks, tiny_voc, tmp_path):
        call(export_masks.main, *export_flags(tiny_voc, tmp_path, *flags.split()))
        source = [tmp_path / "coco.json", "--images", tiny_voc / "JPEGImages"]
        if flags == "yolo":
            source = [tmp_path / "yolo"]
        back = tmp_path / "back"
        call(import_tags.main, *source, back)
        assert (back / "classes.txt").read_text().split() == list(VOC_CLASSES[1:])
        tags = tags_of(back)
        for name, mask in masks.items():
            known = np.where(mask == IGNORE, 0, mask)
            assert np.array_equal(label_of(back / "masks", name), known), name
            assert tags[name].split(";") == [VOC_CLASSES[i] for i in np.unique(known) if i]
            link = back / f"images/{name}.jpg"
            assert link.samefile(tiny_voc / f"JPEGImages/{name}.jpg")
        with refused(back):  # it is there
            call(import_tags.main, *source, back)

    @pytest.mark.parametrize("more", [[], ["--polygons"]])
    def test_coco_has_the_area_box_and_score_of_each_part(self, more, masks, tiny_voc, tmp_path):
        call(export_masks.main, *export_flags(tiny_voc, tmp_path, "coco", *more))
        read = COCO(tmp_path / "coco.json")
        assert read.anns
        for annotation in read.anns.values():
            part = read.annToMask(annotation)
            code = coco_mask.encode(np.asfortranarray(part))
            assert annotation["area"] == part.sum()
            assert annotation["bbox"] == coco_mask.toBbox(code).tolist()
            assert annotation["score"] == {8: 0.5, 12: 0.75}[annotation["category_id"]]

    def test_a_score_is_the_mean_over_the_part_alone(self, masks, tiny_voc, tmp_path):
        folder = tiny_voc / "SegmentationClass"
        for name, mask in masks.items():
            inside = np.where(mask == 8, 0.8, 0.2)
            probability = np.stack([1 - inside, inside])
            label_file.save_prediction(folder, name, np.array([0, 8]), probability, True)
            label_file.save(folder / f"{name}.png", mask)
        call(export_masks.main, *export_flags(tiny_voc, tmp_path, "coco"))
        scores = []
        for annotation in COCO(tmp_path / "coco.json").anns.values():
            if annotation["category_id"] == 8:
                scores.append(annotation["score"])
        assert scores == pytest.approx([0.8] * len(scores), abs=1e-3)
        assert scores

    @pytest.mark.parametrize("kind", ["coco", "yolo"])
    def test_damaged_probabilities_are_named(self, kind, masks, tiny_voc, tmp_path):
        spoiled = tiny_voc / f"SegmentationClass/{NAMES[0]}.npz"
        spoiled.write_bytes(spoiled.read_bytes()[:-30])
        with refused(spoiled):
            call(export_masks.main, *export_flags(tiny_voc, tmp_path, kind))


def draw_mask(rng: np.random.Generator) -> np.ndarray:
    """Blocks of 4x4 pixels of the background, two classes and IGNORE, under single pixels."""
    class_ids = np.array([0, 0, 8, 12, IGNORE], np.uint8)
    blocks = rng.choice(class_ids, (12, 16)).repeat(4, 0).repeat(4, 1)
    is_single = rng.random(blocks.shape) < 0.02
    return np.where(is_single, 12, blocks).astype(np.uint8)


def export_flags(root: Path, run_dir: Path, *flags: str) -> list:
    folder = root / "SegmentationClass"
    return [*data_flags(root, run_dir), "--label_dir", folder, "--format", *flags]


SIZE = (6, 8)
DIAGONAL = np.eye(*SIZE, dtype=np.uint8)
RECTANGLE = [0, 0, 3, 0, 3, 2, 0, 2]  # x, y, ... of a rectangle of 3x2 pixels


def coco_json(**changes) -> str:
    """An image with a cat, outlined as a polygon and as a packed code, and with a background."""
    packed = coco_mask.encode(np.asfortranarray(DIAGONAL))["counts"].decode()
    content = {
        "images": [{"id": 7, "file_name": "images\\a.png", "width": 8, "height": 6}],
        "categories": [{"id": 0, "name": "Background"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "segmentation": [RECTANGLE]},
            {"image_id": 7, "category_id": 3, "segmentation": {"size": SIZE, "counts": packed}},
            {"image_id": 7, "category_id": 0},
        ],
    }
    return json.dumps(content | changes)


YAML = "# a\nnames:\n  0: cat  # tame\n  1: 'a dog'\nnc: 2\n"
CSV = "filename, cat, a dog\n"


@dataclass(frozen=True)
class Source:
    """What another tool wrote: text files by their names, images, and the tags that they give."""

    files: dict[str, str]
    images: Sequence[str]
    tags: dict[str, str] = field(default_factory=dict)
    mask: np.ndarray | None = None  # of the image a

    def write(self, root: Path) -> Path:
        """Write all of it; returns the path that import_tags.py gets."""
        source = root
        for name in (*self.files, *self.images):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        for name in self.images:
            Image.new("RGB", (8, 6)).save(root / name)
        for name, text in self.files.items():
            (root / name).write_text(text)
            if name.startswith("x."):
                source = root / name
        return source


COCO_MASK = DIAGONAL.copy()
COCO_MASK[:2, :3] = 1
DOGS = np.full(SIZE, 2)
SOURCES = {
    "folders": Source(
        files={},
        images=["cat/1.png", "dog/1.png", "dog/deep/2.png"],
        tags={"cat_1": "cat", "dog_1": "dog", "2": "dog"},
    ),
    "csv": Source(
        files={"x.csv": f"{CSV}a.png,1,0\nb,0,1\nc.png,0,0\n"},
        images=["a.png", "sub/b.png", "c.png"],
        tags={"a": "cat", "b": "a dog"},
    ),
    "coco": Source(
        files={"x.json": coco_json()},
        images=["images/a.png"],
        tags={"a": "cat"},
        mask=COCO_MASK,
    ),
    "coco, images elsewhere": Source(
        files={"x.json": coco_json()},
        images=["photos/a.png"],
        tags={"a": "cat"},
        mask=COCO_MASK,
    ),
    "boxes": Source(
        files={"obj.names": "cat\na dog\n", "a.txt": "1 .5 .5 .2 .2\n0 .5 .5 1 1\n"},
        images=["a.png", "b.png"],
        tags={"a": "cat;a dog"},
    ),
    "yolo": Source(
        files={"data.yaml": YAML, "train/labels/a.txt": "1 0 0 1 0 1 1 0 1\n"},
        images=["train/images/a.png"],
        tags={"a": "a dog"},
        mask=DOGS,
    ),
    "names in a line": Source(
        files={"data.yaml": "names: ['cat', a dog]\n", "labels/a.txt": "1 .5 .5 1 1"},
        images=["images/a.png"],
        tags={"a": "a dog"},
    ),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_tags_are_read_from_where_they_are(source, tmp_path):
    out = tmp_path / "out"
    call(import_tags.main, source.write(tmp_path / "in"), out)
    assert tags_of(out) == source.tags
    assert {path.stem for path in (out / "images").iterdir()} == source.tags.keys()
    assert (out / "masks").exists() == (source.mask is not None)
    if source.mask is not None:
        assert np.array_equal(label_of(out / "masks", "a"), source.mask)


SMALLER = [{"id": 7, "file_name": "a.png", "width": 6, "height": 6}]
REFUSED = {  # and where the error is
    "damaged": (Source({"x.json": "{"}, ["a.png"]), "x.json"),
    "image gone": (Source({"x.json": coco_json()}, ["b.png"]), "x.json"),
    "two of a name": (Source({"x.json": coco_json()}, ["1/a.png", "2/a.png"]), "x.json"),
    "other size": (Source({"x.json": coco_json(images=SMALLER)}, ["a.png"]), "a.png"),
    "mark": (Source({"x.csv": f"{CSV}a.png,2,0\n"}, ["a.png"]), "x.csv, line 2"),
    "class number": (
        Source({"data.yaml": YAML, "a.txt": "\n2 0 0 1 1"}, ["a.png"]),
        "a.txt, line 2",
    ),
    "no folders": (Source({}, ["a.png"]), ""),
}


@pytest.mark.parametrize(("source", "place"), REFUSED.values(), ids=REFUSED)
def test_a_source_that_cannot_be_read_is_named_and_nothing_is_written(source, place, tmp_path):
    root = tmp_path / "in"
    path = source.write(root)
    with refused(root / place):
        call(import_tags.main, path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
def test_readme_goes_from_a_folder_per_class_to_coco_in_four_commands(tiny_backbone, tmp_path):
    demo.draw_dataset(tmp_path / "drawn", images=24, size=64)
    for name, tags in tags_of(tmp_path / "drawn").items():
        folder = tmp_path / "flowers" / tags.split(";")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / f"drawn/images/{name}.jpg", folder)

    commands = readme_commands()
    assert len(commands) == 4
    small = f"--weights {tiny_backbone} --max_epochs 1 --crop_size 64 --resize_long 48 64"
    commands[2] += ["--until", "make_seg_labels", "--with", "train_resnet50_SIPE", small]
    for program, script, *flags in commands:
        program = program.replace("python", sys.executable)
        subprocess.run([program, str(ROOT / script), *flags], cwd=tmp_path, check=True)

    read = COCO(tmp_path / "runs/mine/coco.json")
    assert len(read.imgs) == 24
    assert {category["name"] for category in read.cats.values()} <= set(demo.BODIES)


def readme_commands() -> list[list[str]]:
    """The words of each command that turns one's own images into masks."""
    section = (ROOT / "README.md").read_text().partition("## Your own images")[2]
    lines = section.split("```")[1].splitlines()[1:]
    return [line.partition("#")[0].split() for line in lines]
