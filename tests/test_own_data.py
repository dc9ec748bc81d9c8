"""A person's own images through the chain.

Names are as people give them, tables as spreadsheets write them.
"""

import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from common import call, files_below, label_of, times_below, write_lines
from PIL import Image

import eval_cam
import eval_seg
import infer_seg
import make_cam
import make_seg_labels
import predict
import train_resnet50_SIPE as train
import train_seg
from errors import InputError
from tool import cam_file

CLASSES = ("cat", "50% $off_$ #1", "熊猫")
COLOURS = ((200, 40, 40), (40, 40, 200), (40, 200, 40))
SIZE = (48, 64)
LEFT = slice(4, 28)  # columns of an object
RIGHT = slice(36, 60)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


# name as every stage writes it: (file, name in tags.csv)
NAMED = {
    "two  words": ("two  words.jpg", "two  words"),
    "café": (decomposed("café.JPEG"), "café"),
    "naïve": ("naïve.png", decomposed("naïve")),
    "$x_$ and $y": ("$x_$ and $y.webp", "$x_$ and $y"),
    "100%d": ("100%d.jpg", "100%d.jpg"),
    "[x]*": ("[x]*.png", "[x]*"),
    "#1": ("#1.JPG", "#1.JPG"),
    'it\'s "so"': ('it\'s "so".webp', '"it\'s ""so"""'),
    "-dash": ("-dash.jpg", "-dash.JPEG"),
    "a, b": ("a, b.png", '"a, b"'),
    "猫 と 犬": ("猫 と 犬.webp", "猫 と 犬"),
    "v1.5": ("v1.5.jpg", "v1.5"),
    "{}": ("{}.tif", "{}"),
}
UNMASKED = "v1.5"
MASKED = [name for name in NAMED if name != UNMASKED]
SMALL = ("--device", "cpu", "--crop_size", 32, "--max_epochs", 1)
ONE_SCALE = ("--device", "cpu", "--scales", 0.5)


def objects_of(i: int) -> dict[int, slice]:
    """The class ids on the i-th image, each with its columns; every second image shows two."""
    objects = {i % 3 + 1: LEFT}
    if i % 2:
        objects[(i + 1) % 3 + 1] = RIGHT
    return objects


def draw(root: Path) -> Path:
    """Write tiny images of one or two coloured boxes, their tags, and masks of all but one."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    rows = ["name,classes"]
    for i, (name, (file_name, written_name)) in enumerate(NAMED.items()):
        image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        mask = np.zeros(SIZE, np.uint8)
        for class_id, columns in objects_of(i).items():
            image[10:40, columns] = COLOURS[class_id - 1]
            mask[10:40, columns] = class_id
        Image.fromarray(image).save(root / "images" / file_name)
        if name != UNMASKED:
            Image.fromarray(mask).save(root / f"masks/{Path(file_name).stem}.png")
        tags = ";".join(CLASSES[class_id - 1] for class_id in objects_of(i))
        rows.append(f"{written_name},{tags};")
    write_as_spreadsheet(root / "tags.csv", [*rows, ",,", ""])
    write_as_spreadsheet(root / "classes.txt", CLASSES)
    return root


def write_as_spreadsheet(path: Path, rows: list[str] | tuple[str, ...]) -> None:
    """With a byte order mark, and Windows's ends of lines."""
    path.write_bytes("\r\n".join(rows).encode("utf-8-sig"))


def flags_of(root: Path, run_dir: Path) -> list:
    return ["--dataset", "folder", "--dataset_root", root, "--run_dir", run_dir, "--num_workers", 0]


@dataclass(frozen=True)
class OwnRun:
    """The data, the run directory and what was printed by stage."""

    root: Path
    run_dir: Path
    printed: dict[str, str]

    @property
    def flags(self) -> list:
        return flags_of(self.root, self.run_dir)


@pytest.fixture(scope="module")
def own(
    small_resnet50: None, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnRun]:
    """All stages but IRN's, one after the other."""
    folder = tmp_path_factory.mktemp("own")
    own = OwnRun(draw(folder / "my data"), folder / "my run", {})
    before = times_below(own.root)
    flags = own.flags
    run_dir = own.run_dir
    printed = own.printed
    pretrained = [*SMALL, "--weights", small_backbone]

    call(train.main, *flags, *pretrained, "--batch_size", 6, "--resize_long", 32, 48)
    call(make_cam.main, *flags, *ONE_SCALE)
    printed["eval_cam"] = call(eval_cam.main, *flags)
    for refine in ("none", "crf"):
        labels = ["--label_dir", run_dir / f"seg_{refine}"]
        call(make_seg_labels.main, *flags, "--refine", refine, *labels)
        printed[refine] = call(eval_seg.main, *flags, *labels)
    network = ["--network", "deeplabv2_resnet50", "--output_stride", 16, "--lr", 1e-6]
    learn = [*network, "--batch_size", len(NAMED), "--label_dir", run_dir / "seg_crf"]
    printed["train_seg"] = call(train_seg.main, *flags, *pretrained, *learn)
    printed["infer_seg"] = call(infer_seg.main, *flags, *ONE_SCALE)
    printed["pred"] = call(eval_seg.main, *flags, "--label_dir", run_dir / "seg_pred")

    assert times_below(own.root) == before
    yield own
    shutil.rmtree(run_dir)


def masks_of(names: list[str]) -> set[str]:
    return {"settings.json", *(f"{name}.png" for name in names)}


class TestChain:
    def test_every_image_has_one_cam_file_under_its_name(self, own):
        files = {f"{name}.npz" for name in NAMED}
        assert files_below(own.run_dir / "cam") == {"settings.json", *files}

    def test_a_cam_file_holds_the_tagged_classes_at_the_size_of_the_image(self, own):
        for i, name in enumerate(NAMED):
            maps = cam_file.load(cam_file.path_of(own.run_dir, name))
            assert set(maps.keys) == {0, *objects_of(i)}
            assert maps.size == SIZE

    @pytest.mark.parametrize("refine", ["none", "crf"])
    def test_every_image_has_one_label_under_its_name(self, own, refine):
        folder = own.run_dir / f"seg_{refine}"
        assert files_below(folder) == masks_of([*NAMED])
        for name in NAMED:
            assert label_of(folder, name).shape == SIZE

    @pytest.mark.parametrize("stage", ["eval_cam", "none", "crf", "pred"])
    def test_the_images_with_a_mask_are_scored_and_the_classes_named(self, own, stage):
        printed = own.printed[stage]
        assert f"{len(MASKED)} images" in printed
        for name in CLASSES:
            assert name in printed

    def test_a_segmentation_network_learns_from_all_labels(self, own):
        summary = f"{len(NAMED)} images, {len(CLASSES)} classes"
        assert summary in own.printed["train_seg"]

    def test_by_default_it_segments_the_images_with_a_mask(self, own):
        assert files_below(own.run_dir / "seg_pred") == masks_of(MASKED)

    def test_tagged_images_need_no_mask_to_be_segmented(self, own, tmp_path):
        tagged = ["--list", "tagged", "--label_dir", tmp_path / "tagged"]
        call(infer_seg.main, *own.flags, *ONE_SCALE, *tagged)
        assert files_below(tmp_path / "tagged") == masks_of([*NAMED])

    def test_predict_finds_the_same_images_in_their_folder(self, own, tmp_path):
        flags = ["--output_dir", tmp_path / "predicted", "--num_workers", 0, *ONE_SCALE]
        ckpt = ["--ckpt", own.run_dir / "ckpt/seg.pth"]
        call(predict.main, own.root / "images", *flags, *ckpt)
        overlays = {f"{name}_overlay.jpg" for name in NAMED}
        assert files_below(tmp_path / "predicted") == masks_of([*NAMED]) | overlays

    @pytest.mark.parametrize("name", MASKED)
    def test_each_name_alone_in_a_list_is_scored_and_shown(self, own, name, tmp_path):
        """However good or bad the image is, its name then stands on the contact sheet."""
        one = write_lines(tmp_path / "one.txt", name)
        shutil.copytree(own.run_dir / "cam", tmp_path / "run/cam")
        flags = flags_of(own.root, tmp_path / "run")
        assert "1 images" in call(eval_cam.main, *flags, "--list", one)


@pytest.mark.parametrize("script", [eval_cam, eval_seg], ids=lambda script: script.__name__)
@pytest.mark.parametrize("masks", ["no folder", "an empty folder", "masks of other images"])
def test_without_masks_there_is_nothing_to_evaluate(script, masks, tmp_path):
    root = draw(tmp_path / "my data")
    shutil.rmtree(root / "masks")
    if masks != "no folder":
        (root / "masks").mkdir()
    if masks == "masks of other images":
        Image.new("L", SIZE[::-1]).save(root / "masks/other.png")
    with pytest.raises(InputError, match=r"masks/\*\.png"):
        call(script.main, *flags_of(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
