"""What the tests share: where reference data lies, and a tiny drawn dataset."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from network.sipe import SIPE, release_names

pytest.register_assert_rewrite("common")

SHARED = Path(os.environ.get("SIPE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers, weights and pictures, which lie outside the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no reference data at {SHARED}; set SIPE_TEST_DATA to its folder")
    return SHARED


@pytest.fixture(scope="session")
def voc_subset(shared: Path) -> Path:
    return shared / "voc_subset/VOCdevkit/VOC2012"


@pytest.fixture(scope="session")
def release_checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real SIPE checkpoint in the authors' format."""
    packed = np.load(shared / "weights/sipe_mini_int8.npz", allow_pickle=False)
    net = {}
    for name in SIPE(21).state_dict():
        value = packed[name].astype(np.float32)
        if f"{name}#scale" in packed.files:
            value = value * packed[f"{name}#scale"].reshape(-1, *[1] * (value.ndim - 1))
        net |= dict.fromkeys(release_names(name), torch.from_numpy(value))
    path = tmp_path_factory.mktemp("release") / "release.pth"
    torch.save({"net": net}, path)
    return path


def build_tiny_voc(root: Path) -> Path:
    """Six pictures of 64x48 in VOC's layout: a cat (left) and a dog (right) as coloured boxes, with masks and tags."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"2007_{i:06d}" for i in range(6)]
    for i, name in enumerate(names):
        picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        objects = {"cat": (8, slice(4, 28), (200, 40, 40)), "dog": (12, slice(36, 60), (40, 40, 200))}
        for tag in ("cat", "dog")[i % 2 :]:
            class_id, columns, colour = objects[tag]
            picture[10:40, columns], mask[10:40, columns] = colour, class_id
        Image.fromarray(picture).save(root / f"JPEGImages/{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
        tags = "".join(f"<object><name>{tag}</name></object>" for tag in ("cat", "dog")[i % 2 :])
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{tags}</annotation>")
    for list_name in ("train", "train_aug", "val"):
        (root / f"ImageSets/Segmentation/{list_name}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def tiny_voc(tmp_path: Path) -> Path:
    """A test's own copy of the drawn dataset, to change at will."""
    return build_tiny_voc(tmp_path / "VOC2012")


@pytest.fixture(scope="session")
def fixed_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy of the drawn dataset for all tests that leave it as it is."""
    return build_tiny_voc(tmp_path_factory.mktemp("voc") / "VOC2012")


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-50 state dict in torchvision's layout with random weights: a start without a download."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(SIPE(2).resnet50.state_dict(), path)
    return path
