"""Masks of any images: which files inputs name, and what is written for each."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from common import (
    NAMES,
    SIZE,
    VOC_CLASSES,
    call,
    data_flags,
    files_below,
    label_of,
    refused,
    times_below,
    write_lines,
)
from PIL import Image

import infer_seg
import make_cam
import predict
from data.images import read_image
from errors import InputError
from tool import cam_file, crf, visualize
from tool.outputs import read_json

FIRST = f"{NAMES[0]}.jpg"
TWIN = f"other/{FIRST}"  # another image of this name
TWO_SCALES = ("--scales", 1.0, 0.5)


def results_of(*names: str) -> set[str]:
    """The files that predict.py writes for images of these names."""
    masks = {f"{name}.png" for name in names}
    overlays = {f"{name}_overlay.jpg" for name in names}
    return {"settings.json"} | masks | overlays


@pytest.fixture
def images(fixed_voc, tmp_path) -> Path:
    """A folder of three images, one of which lies in a folder below."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name, place in zip(NAMES, ("", "", "below")):
        shutil.copy(fixed_voc / f"JPEGImages/{name}.jpg", folder / place)
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(out, checkpoints) -> Callable[..., str]:
    """Call predict.py with the segmentation network, or another checkpoint."""

    def run(*flags: object, kind: str = "segmentation") -> str:
        common = ["--ckpt", checkpoints[kind], "--output_dir", out]
        common += ["--device", "cpu", "--num_workers", 0]
        scales = [] if "--scales" in flags else ["--scales", 1.0]
        return call(predict.main, *flags, *common, *scales)

    return run


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [
            (["."], NAMES[:2]),
            (["*.jpg"], NAMES[:2]),
            (["2007_00000[12].jpg"], NAMES[1:2]),
            (["**/*.jpg"], NAMES[:3]),
            ([FIRST, f"./{FIRST}"], NAMES[:1]),
            ([".", f"{NAMES[1]}.jpg", "below", "**"], NAMES[:3]),
        ],
        ids=str,
    )
    def test_files_folders_and_patterns_are_found_by_name(
        self, images, monkeypatch, inputs, expected
    ):
        (images / "notes.txt").write_text("no image")
        (images / ".hidden.jpg").touch()
        monkeypatch.chdir(images)
        samples = predict.find_images(inputs, Path("out"))
        assert sorted(samples.names()) == expected

    def test_names_as_people_give_them_are_names_and_no_patterns(self, images, monkeypatch):
        odd = ["[x]*.jpg", "v1.5.JPG", "100%d.jpg", "a, b.jpg", "猫 と 犬.jpg"]
        for name in odd:
            shutil.copy(images / FIRST, images / name)
        monkeypatch.chdir(images)
        samples = predict.find_images(odd, Path("out"))
        assert list(samples.names()) == [name[:-4] for name in odd]

    def test_results_of_an_earlier_run_are_no_images(self, run, out, images):
        """Masks and overlays lie below the folder that a pattern goes through."""
        for _ in range(2):
            printed = run(out.parent / "**/*.*g")
            assert printed.startswith("3 images, ")
        assert files_below(out) == results_of(*NAMES[:3])

    @pytest.mark.parametrize(
        ("flags", "kind", "named"),
        [
            (["none.jpg"], "segmentation", "none.jpg"),
            ([FIRST, "none*.jpg"], "segmentation", "none*.jpg"),
            (["empty"], "segmentation", "empty"),
            ([FIRST, TWIN], "segmentation", TWIN),
            (["notes.txt"], "segmentation", "notes.txt"),
            ([FIRST], "ours", "ours.pth"),
            ([FIRST, "--tags", "cat"], "segmentation", "segmentation.pth"),
            ([FIRST, "--tags", "cart"], "ours", "--tags"),
            ([FIRST, "--tags", "background"], "ours", "--tags"),
            ([FIRST, "--tag_table", "tags.csv"], "ours", "tags.csv"),
            ([FIRST, "--tag_table", "none.csv"], "ours", "none.csv"),
        ],
        ids=str,
    )
    def test_what_cannot_be_predicted_is_named(
        self, flags, kind, named, run, out, images, monkeypatch
    ):
        (images / "empty").mkdir()
        (images / "other").mkdir()
        shutil.copy(images / f"{NAMES[1]}.jpg", images / TWIN)
        (images / "notes.txt").write_text("no image")
        write_lines(images / "tags.csv", f"{NAMES[1]},dog")
        monkeypatch.chdir(images)
        with pytest.raises(InputError) as error:
            run(*flags, kind=kind)
        assert named in str(error.value)
        assert not list(out.glob("*.png"))

    def test_a_folder_of_images_is_no_place_for_masks(self, images):
        flags = ["--output_dir", str(images / "below/.."), "--ckpt", "seg.pth"]
        with pytest.raises(SystemExit) as error:
            predict.parse_args([str(images), *flags])
        assert error.value.code == 2

    def test_a_checkpoint_of_something_else_is_named(self, images, out, tmp_path):
        path = tmp_path / "other.pth"
        torch.save({"model": {}}, path)
        with refused(path):
            call(predict.main, images, "--ckpt", path, "--output_dir", out)


class TestSegmentationNetwork:
    def test_an_image_gets_a_mask_and_a_line(self, run, out, images):
        printed = run(images / FIRST)
        assert files_below(out) == results_of(NAMES[0])
        mask = label_of(out, NAMES[0])
        assert mask.shape == SIZE
        class_ids = np.unique(mask)
        assert len(class_ids) > 1
        for key in class_ids:
            percent = 100 * (mask == key).mean()
            assert f"{VOC_CLASSES[key]} {percent:.1f} %" in printed

    def test_an_overlay_shows_the_mask_over_the_image(self, run, out, images):
        path = images / FIRST
        run(path)
        with Image.open(out / f"{NAMES[0]}_overlay.jpg") as image:
            assert image.format == "JPEG"
            overlay = np.asarray(image).astype(int)
        original = read_image(path)
        expected = visualize.overlay(original, label_of(out, NAMES[0]), VOC_CLASSES).astype(int)
        error = np.abs(overlay - expected).mean()
        shift = np.abs(original - expected).mean()
        assert error < shift / 3

    @pytest.mark.parametrize("more", [[], ["--crf"], ["--max_side", 32]])
    def test_its_masks_are_those_of_the_stage(
        self, more, run, out, checkpoints, fixed_voc, tmp_path
    ):
        names = NAMES[:3]
        run(*(fixed_voc / f"JPEGImages/{name}.jpg" for name in names), *TWO_SCALES, *more)
        flags = [*data_flags(fixed_voc, tmp_path / "run"), "--device", "cpu"]
        flags += ["--list", write_lines(tmp_path / "list.txt", *names)]
        flags += ["--ckpt", checkpoints["segmentation"], *TWO_SCALES, *more]
        call(infer_seg.main, *flags)
        for name in names:
            expected = label_of(tmp_path / "run/seg_pred", name)
            assert np.array_equal(label_of(out, name), expected)

    def test_areas_can_be_added_later_and_add_up_to_the_pixels(self, run, out, images):
        run(images)
        before = times_below(out)
        run(images, "--areas")
        assert before.items() <= times_below(out).items()
        content = read_json(out / "areas.json")
        assert content.keys() == set(NAMES[:2])
        for name, areas in content.items():
            assert areas["picture"] == str(images / f"{name}.jpg")
            assert areas["size"] == list(SIZE)
            keys, pixels = np.unique(label_of(out, name), return_counts=True)
            class_names = [VOC_CLASSES[key] for key in keys]
            assert areas["pixels"] == dict(zip(class_names, pixels.tolist()))

    def test_a_missing_overlay_is_made_again(self, run, out, images):
        run(images)
        (out / f"{NAMES[1]}_overlay.jpg").unlink()
        assert "2 images, 1 of them to do" in run(images)
        assert files_below(out) == results_of(*NAMES[:2])


TAGS = {NAMES[0]: ["cat", "dog"], NAMES[1]: ["dog"], NAMES[2]: ["cat", "dog"]}


class TestSipe:
    def test_ours_and_the_authors_checkpoints_find_the_tagged_classes(self, run, out, images):
        masks = {}
        for kind in ("ours", "authors"):
            run(images, "--tags", "cat", "dog", "--overwrite", kind=kind)
            masks[kind] = [label_of(out, name) for name in NAMES[:2]]
        for mask in masks["ours"]:
            assert mask.shape == SIZE
            class_ids = set(np.unique(mask))
            assert len(class_ids) > 1
            assert class_ids <= {0, 8, 12}
        assert np.array_equal(masks["ours"], masks["authors"])

    def test_masks_of_other_tags_do_not_mix(self, run, out, images):
        run(images, "--tags", "cat", "dog", kind="authors")
        with refused(out / "settings.json"):
            run(images, "--tags", "dog", kind="authors")

    @pytest.fixture
    def inputs(self, fixed_voc, tmp_path) -> list:
        """The images of TAGS and their table."""
        lines = ["name,classes", "x,cow"]
        lines += [f"{name},{';'.join(tags)}" for name, tags in TAGS.items()]
        lines[2] = lines[2].replace(",", ".jpg,")  # a file's name, as people write it
        table = write_lines(tmp_path / "tags.csv", *lines)
        paths = [fixed_voc / f"JPEGImages/{name}.jpg" for name in TAGS]
        return [*paths, "--tag_table", table, *TWO_SCALES]

    def test_its_masks_are_those_of_its_maps(
        self, run, out, inputs, checkpoints, fixed_voc, tmp_path
    ):
        flags = [*data_flags(fixed_voc, tmp_path / "run"), "--device", "cpu", *TWO_SCALES]
        flags += ["--list", write_lines(tmp_path / "list.txt", *TAGS)]
        call(make_cam.main, *flags, "--ckpt", checkpoints["ours"])
        run(*inputs, kind="ours")
        for name in TAGS:
            maps = cam_file.load(cam_file.path_of(tmp_path / "run", name))
            is_same = label_of(out, name) == maps.label("is_cam")
            assert is_same.mean() > 0.99

    def test_they_are_refined_as_the_stage_does(self, run, out, inputs, fixed_voc):
        run(*inputs, kind="ours")
        plain = {name: label_of(out, name) for name in TAGS}
        run(*inputs, "--crf", "--overwrite", kind="ours")
        for name, tags in TAGS.items():
            image = read_image(fixed_voc / f"JPEGImages/{name}.jpg")
            class_ids = np.array([0, *(VOC_CLASSES.index(tag) for tag in tags)])
            label = np.searchsorted(class_ids, plain[name])
            refined = crf.refine_label(image, label, len(class_ids))
            assert np.array_equal(label_of(out, name), class_ids[refined.argmax(0)])
