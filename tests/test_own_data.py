"""A person's own images through the chain.

Names are as people give them, tables as spreadsheets write them.
"""

import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from common import call, files_below, times_below
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
WIDTH, HEIGHT = 64, 48


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
TRAIN = [
    "--device",
    "cpu",
    "--batch_size",
    "6",
    "--crop_size",
    "32",
    "--resize_long",
    "32",
    "48",
    "--max_epochs",
    "1",
]
MAP = ["--device", "cpu", "--scales", "0.5"]
SEGMENT = [
    "--network",
    "deeplabv2_resnet50",
    "--output_stride",
    "16",
    "--crop_size",
    "32",
    "--max_epochs",
    "1",
    "--lr",
    "1e-6",
]


def class_ids_of(number: int) -> list[int]:
    """The classes of an image by its number: one, or two in every second image."""
    first = number % 3 + 1
    second = (number + 1) % 3 + 1
    return [first, second] if number % 2 else [first]


def draw(root: Path) -> Path:
    """Tiny images of one or two coloured boxes, their tags, and masks of all but one."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["name,classes"]
    for number, (name, (file, written)) in enumerate(NAMED.items()):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        tags = []
        for class_id, left in zip(class_ids_of(number), (4, 36)):
            image[10:40, left : left + 24] = COLOURS[class_id - 1]
            mask[10:40, left : left + 24] = class_id
            tags.append(CLASSES[class_id - 1])
        Image.fromarray(image).save(root / "images" / file)
        if name != UNMASKED:
            Image.fromarray(mask).save(root / f"masks/{Path(file).stem}.png")
        rows.append(f"{written},{';'.join(tags)};")
    (root / "tags.csv").write_bytes("\r\n".join([*rows, ",,", ""]).encode("utf-8-sig"))
    (root / "classes.txt").write_bytes("\r\n".join(CLASSES).encode("utf-8-sig"))
    return root


def flags_of(root: Path, run_dir: Path) -> list:
    return ["--dataset", "folder", "--dataset_root", root, "--run_dir", run_dir, "--num_workers", 0]


@pytest.fixture(scope="module")
def chain(
    tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """All stages but IRN's in a row: the data, the run directory and what was printed."""
    folder = tmp_path_factory.mktemp("own")
    root = draw(folder / "my data")
    run_dir = folder / "my run"
    before = times_below(root)
    common = flags_of(root, run_dir)
    training = [*common, *TRAIN, "--weights", tiny_backbone]
    call(train.main, *training)
    call(make_cam.main, *common, *MAP)
    printed = {"eval_cam": call(eval_cam.main, *common)}
    for refine in ("none", "crf"):
        label_dir = run_dir / f"seg_{refine}"
        call(make_seg_labels.main, *common, "--refine", refine, "--label_dir", label_dir)
        printed[refine] = call(eval_seg.main, *common, "--label_dir", label_dir)
    learning = ["--label_dir", run_dir / "seg_crf", "--weights", tiny_backbone]
    learning += ["--batch_size", len(NAMED)]
    printed["train_seg"] = call(train_seg.main, *common, "--device", "cpu", *SEGMENT, *learning)
    printed["infer_seg"] = call(infer_seg.main, *common, *MAP)
    printed["pred"] = call(eval_seg.main, *common, "--label_dir", run_dir / "seg_pred")
    assert times_below(root) == before
    yield SimpleNamespace(
        root=root, run_dir=run_dir, printed=printed, common=common, training=training
    )
    shutil.rmtree(run_dir)


class TestChain:
    def test_every_image_has_one_cam_file_under_its_name(self, chain):
        expected = {f"{name}.npz" for name in NAMED}
        assert files_below(chain.run_dir / "cam") == {"settings.json", *expected}

    def test_a_cam_file_holds_the_tagged_classes_at_the_size_of_the_image(self, chain):
        for number, name in enumerate(NAMED):
            maps = cam_file.load(cam_file.path_of(chain.run_dir, name))
            assert set(maps.keys) == {0, *class_ids_of(number)}
            assert maps.size == (HEIGHT, WIDTH)

    @pytest.mark.parametrize("refine", ["none", "crf"])
    def test_every_image_has_one_label_under_its_name(self, chain, refine):
        folder = chain.run_dir / f"seg_{refine}"
        expected = {f"{name}.png" for name in NAMED}
        assert files_below(folder) == {"settings.json", *expected}
        for name in NAMED:
            with Image.open(folder / f"{name}.png") as label:
                assert (label.mode, label.size) == ("P", (WIDTH, HEIGHT))

    @pytest.mark.parametrize("stage", ["eval_cam", "none", "crf", "pred"])
    def test_the_images_with_a_mask_are_scored_and_the_classes_named(self, chain, stage):
        assert f"{len(NAMED) - 1} images" in chain.printed[stage]
        assert all(name in chain.printed[stage] for name in CLASSES)

    def test_a_segmentation_network_learns_from_all_labels_and_segments_the_images_with_a_mask(
        self, chain
    ):
        assert f"{len(NAMED)} images, {len(CLASSES)} classes" in chain.printed["train_seg"]
        expected = {f"{name}.png" for name in NAMED if name != UNMASKED}
        assert files_below(chain.run_dir / "seg_pred") == {"settings.json", *expected}

    def test_images_that_are_tagged_need_no_mask_to_be_segmented(self, chain, tmp_path):
        """And predict.py finds the very same images in their folder."""
        ckpt = ["--ckpt", chain.run_dir / "ckpt/seg.pth", "--num_workers", 0]
        tagged = tmp_path / "tagged"
        predicted = tmp_path / "predicted"
        listed = ["--list", "tagged", "--label_dir", tagged]
        call(infer_seg.main, *chain.common, *MAP, *ckpt, *listed)
        call(predict.main, chain.root / "images", "--output_dir", predicted, *MAP, *ckpt)
        masks = {f"{name}.png" for name in NAMED}
        overlays = {f"{name}_overlay.jpg" for name in NAMED}
        assert files_below(tagged) == {"settings.json", *masks}
        assert files_below(predicted) == {"settings.json", *masks, *overlays}

    @pytest.mark.parametrize("name", [name for name in NAMED if name != UNMASKED])
    def test_each_name_alone_in_a_list_is_scored_and_shown(self, chain, name, tmp_path):
        """However good or bad the image is, its name then stands on the contact sheet."""
        listed = tmp_path / "one.txt"
        listed.write_text(f"{name}\n", encoding="utf-8")
        shutil.copytree(chain.run_dir / "cam", tmp_path / "run/cam")
        flags = flags_of(chain.root, tmp_path / "run")
        assert "1 images" in call(eval_cam.main, *flags, "--list", listed)


@pytest.mark.parametrize("script", [eval_cam, eval_seg], ids=lambda script: script.__name__)
@pytest.mark.parametrize("spoil", ["no folder", "an empty folder", "masks of other images"])
def test_without_masks_there_is_nothing_to_evaluate(script, spoil, tmp_path):
    root = draw(tmp_path / "my data")
    shutil.rmtree(root / "masks")
    if spoil != "no folder":
        (root / "masks").mkdir()
    if spoil == "masks of other images":
        Image.new("L", (WIDTH, HEIGHT)).save(root / "masks/other.png")
    with pytest.raises(InputError, match=r"masks/\*\.png"):
        call(script.main, *flags_of(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
