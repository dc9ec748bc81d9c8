"""What the tests share: where reference data lies, and a tiny drawn dataset."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data.annotations import read_classes
from data.images import read_image
from data.registry import VOC
from data.transforms import normalize, to_tensor
from network import wideresnet
from network.deeplab import DeepLab
from network.sipe import SIPE
from tool import checkpoint

pytest.register_assert_rewrite("common")

SHARED = Path(os.environ.get("SIPE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))


def release_names(name: str) -> list[str]:
    """The names that the authors' checkpoints have for one of our tensors; they register their backbone three times."""
    stages = {"conv1.": "0.0.", "bn1.": "0.1.", **{f"layer{i}.": f"{i}.0." for i in range(1, 5)}}
    module, rest = name.split(".", 1)
    if module != "resnet50":
        return [
            name,
            f"newly_added.{['classifier', 'side1', 'side2', 'side3', 'side4'].index(module)}.{rest}",
        ]
    stage = next(new + rest[len(old) :] for old, new in stages.items() if rest.startswith(old))
    return [name, f"stage{stage}", f"backbone.{stage}"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers, weights and images, which lie outside the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no reference data at {SHARED}; set SIPE_TEST_DATA to its folder")
    return SHARED


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU; with -m gpu, a GPU that computes in full float32. SIPE_TEST_DEVICE=cpu tries the GPU's tests on the CPU."""
    name = os.environ.get("SIPE_TEST_DEVICE", request.param)
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device(name)


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
    """Six images of 64x48 in VOC's layout: a cat (left) and a dog (right) as coloured boxes, with masks and tags."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"2007_{i:06d}" for i in range(6)]
    for i, name in enumerate(names):
        image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        objects = {
            "cat": (8, slice(4, 28), (200, 40, 40)),
            "dog": (12, slice(36, 60), (40, 40, 200)),
        }
        for tag in ("cat", "dog")[i % 2 :]:
            class_id, columns, colour = objects[tag]
            image[10:40, columns], mask[10:40, columns] = colour, class_id
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=95)
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


@pytest.fixture
def narrow_wideresnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """WideResNet38 in a quarter of its widths: with fewer than 16 channels, oneDNN's strided 1x1 convolution spoils the heap."""
    monkeypatch.setattr(wideresnet, "WIDTH", 16)


def untrained_sipe(image: Path) -> SIPE:
    """Random weights, less what all cells of an image have in common, so that its cat and its dog are found somewhere in it."""
    model = SIPE(21)
    model.classifier.weight.data[[i for i in range(20) if i not in (7, 11)]] = 0
    with torch.no_grad():
        _, *layers = model.resnet50(normalize(to_tensor(read_image(image))[None]))
        for branch, layer in zip(
            (model.side1, model.side2, model.side3, model.side4, model.classifier),
            (*layers, layers[-1]),
        ):
            common = F.normalize(layer.mean((0, 2, 3)), dim=0)
            branch.weight -= torch.einsum("od,d,e->oe", branch.weight[:, :, 0, 0], common, common)[
                :, :, None, None
            ]
    return model


@pytest.fixture(scope="module")
def checkpoints(
    fixed_voc: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """The same untrained SIPE in our format and in the authors', and an untrained segmentation network; they are large and go away."""
    folder, class_names = tmp_path_factory.mktemp("checkpoints"), list(read_classes(VOC.classes))
    torch.manual_seed(0)
    tensors = untrained_sipe(fixed_voc / "JPEGImages/2007_000000.jpg").state_dict()
    checkpoint.save(
        folder / "ours.pth", {"model": tensors, "class_names": class_names, "arguments": {}}
    )
    checkpoint.save(
        folder / "authors.pth",
        {"net": {alias: value for name, value in tensors.items() for alias in release_names(name)}},
    )
    about = {
        "class_names": class_names,
        "arguments": {"network": "deeplabv2_resnet50", "output_stride": 16},
    }
    checkpoint.save(
        folder / "segmentation.pth",
        {"model": DeepLab("deeplabv2_resnet50", 21, 16).state_dict(), **about},
    )
    yield {path.stem: path for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="session")
def chain(
    fixed_voc: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A run directory in which every stage of tests/common.py has run; from the inter-pixel labels on, they start from drawn maps.

    The maps of make_cam.py lie in maps/cam beside it, as drawn ones take their place.
    """
    from common import STAGES, draw_maps, run_stage

    run_dir = tmp_path_factory.mktemp("chain") / "run"
    for name in STAGES:
        run_stage(name, fixed_voc, run_dir, tiny_backbone)
        if name == "make_cam":
            shutil.move(run_dir / "cam", run_dir / "maps/cam")
            draw_maps(fixed_voc, run_dir)
    yield run_dir
    shutil.rmtree(run_dir)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory that goes away with the test: checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
