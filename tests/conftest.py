"""What the tests share: where reference data lies, a tiny drawn dataset, and small networks."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.register_assert_rewrite("common")

from common import (  # noqa: E402 (its assertions are rewritten)
    NAMES,
    SIZE,
    VOC_CLASSES,
    FinishedRun,
    Run,
    finish_run,
    shrink_resnet50,
)

from data.images import read_image  # noqa: E402
from data.transforms import normalize, to_tensor  # noqa: E402
from network import wideresnet  # noqa: E402
from network.deeplab import build_network  # noqa: E402
from network.sipe import SIPE  # noqa: E402
from tool import checkpoint  # noqa: E402

SHARED = Path(os.environ.get("SIPE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))
DEVICE_VARIABLE = "SIPE_TEST_DEVICE"
NO_GPU = (
    "there is no CUDA GPU, which the tests of -m gpu are for;"
    f" {DEVICE_VARIABLE}=cpu runs them on the CPU, to see that they work"
)
LAYERS = ("classifier", "side1", "side2", "side3", "side4")  # in the authors' checkpoints
CAT = 8
DOG = 12


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail the tests of -m gpu if there is no GPU: a skip would pass for a check.

    Other selections, such as -m slow, skip the tests that need a GPU.
    """
    needs_gpu = item.get_closest_marker("gpu") and DEVICE_VARIABLE not in os.environ
    if not needs_gpu or torch.cuda.is_available():
        return
    if "gpu" in item.config.getoption("markexpr"):
        pytest.fail(NO_GPU, pytrace=False)
    pytest.skip(NO_GPU)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU; with -m gpu, a GPU that computes in full float32, or the device of the variable."""
    name = os.environ.get(DEVICE_VARIABLE, request.param)
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail(NO_GPU, pytrace=False)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device(name)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers, weights and images, which lie outside the repository."""
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
    tensors = {}
    for name in SIPE(21).state_dict():
        value = packed[name].astype(np.float32)
        if f"{name}#scale" in packed.files:
            scale = packed[f"{name}#scale"]
            value = value * scale.reshape(-1, *[1] * (value.ndim - 1))
        tensors[name] = torch.from_numpy(value)
    path = tmp_path_factory.mktemp("release") / "release.pth"
    torch.save({"net": to_release(tensors)}, path)
    return path


def to_release(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of our SIPE as the authors' program names it."""
    release = {}
    for name, value in tensors.items():
        release |= dict.fromkeys(release_names(name), value)
    return release


def release_names(name: str) -> list[str]:
    """The authors' names for one of our tensors; they register their backbone three times."""
    module, rest = name.split(".", 1)
    if module != "resnet50":
        return [name, f"newly_added.{LAYERS.index(module)}.{rest}"]
    layer, below = rest.split(".", 1)
    stage = {"conv1": "0.0", "bn1": "0.1"}.get(layer)
    if stage is None:
        stage = f"{layer.removeprefix('layer')}.0"
    return [name, f"stage{stage}.{below}", f"backbone.{stage}.{below}"]


def build_tiny_voc(root: Path) -> Path:
    """Six images of 64x48 in VOC's layout, with masks and tags.

    A cat (left) and a dog (right) are coloured boxes; every second image has no cat.
    """
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        mask = np.zeros(SIZE, np.uint8)
        tags = ["dog"] if i % 2 else ["cat", "dog"]
        if "cat" in tags:
            image[10:40, 4:28] = (200, 40, 40)
            mask[10:40, 4:28] = CAT
        image[10:40, 36:60] = (40, 40, 200)
        mask[10:40, 36:60] = DOG
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
        objects = "".join(f"<object><name>{tag}</name></object>" for tag in tags)
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for list_name in ("train", "train_aug", "val"):
        path = root / f"ImageSets/Segmentation/{list_name}.txt"
        path.write_text("\n".join(NAMES) + "\n")
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
    """Random weights of ResNet-50 in torchvision's layout: a start without a download."""
    return save_backbone(tmp_path_factory.mktemp("weights") / "resnet50.pth")


def save_backbone(path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(SIPE(2).resnet50.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the small ResNet-50."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_resnet50(patch)
        return save_backbone(tmp_path_factory.mktemp("weights") / "small_resnet50.pth")


@pytest.fixture(scope="module")
def small_resnet50() -> Iterator[None]:
    """A small ResNet-50 for the rest of a module."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_resnet50(patch)
        yield


@pytest.fixture
def narrow_wideresnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """WideResNet38 in a quarter of its widths.

    With fewer than 16 channels, oneDNN's strided 1x1 convolution spoils the heap.
    """
    monkeypatch.setattr(wideresnet, "WIDTH", 16)


@pytest.fixture(scope="session")
def finished_run(
    fixed_voc: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FinishedRun]:
    """A run of all stages with the small ResNet-50."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        shrink_resnet50(patch)
        finished = finish_run(Run(fixed_voc, folder / "run", small_backbone))
    yield finished
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def chain(small_resnet50: None, finished_run: FinishedRun) -> FinishedRun:
    """The finished run, in a module whose ResNet-50 is as small as that of its checkpoints."""
    return finished_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory that goes away with the test: checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture
def run(chain: FinishedRun, run_dir: Path) -> Run:
    """The test's own run, in which no stage has run."""
    return Run(chain.voc, run_dir, chain.weights)


@pytest.fixture
def own_run(run: Run, tiny_voc: Path) -> Run:
    """The test's own run on its own copy of the dataset."""
    return dataclasses.replace(run, voc=tiny_voc)


def untrained_sipe(image: Path) -> SIPE:
    """SIPE with random weights that finds a cat and a dog somewhere in an image.

    Its layers ignore what all cells of the image have in common.
    """
    model = SIPE(len(VOC_CLASSES))
    is_shown = torch.zeros(len(VOC_CLASSES) - 1, dtype=torch.bool)
    is_shown[[CAT - 1, DOG - 1]] = True
    with torch.no_grad():
        model.classifier.weight[~is_shown] = 0
        batch = normalize(to_tensor(read_image(image))[None])
        _, *maps = model.resnet50(batch)
        for branch, feature in zip([model.side1, model.side2, model.side3, model.side4], maps):
            ignore_common_part(branch, feature)
        ignore_common_part(model.classifier, maps[-1])
    return model


def ignore_common_part(branch: torch.nn.Conv2d, feature: torch.Tensor) -> None:
    """Take the direction of the mean cell of a map off the weights of a 1x1 convolution."""
    common = F.normalize(feature.mean((0, 2, 3)), dim=0)
    weight = branch.weight[:, :, 0, 0]
    along_common = (weight @ common)[:, None] * common
    branch.weight -= along_common[:, :, None, None]


@pytest.fixture(scope="module")
def checkpoints(
    small_resnet50: None, fixed_voc: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """Untrained networks: SIPE in our format and in the authors', and a segmentation network."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    sipe = untrained_sipe(fixed_voc / f"JPEGImages/{NAMES[0]}.jpg").state_dict()
    class_names = list(VOC_CLASSES)
    ours = {"model": sipe, "class_names": class_names, "arguments": {}}
    segmentation = {
        "model": build_network("deeplabv2_resnet50", len(class_names), 16).state_dict(),
        "class_names": class_names,
        "arguments": {"network": "deeplabv2_resnet50", "output_stride": 16},
    }
    paths = {name: folder / f"{name}.pth" for name in ("ours", "authors", "segmentation")}
    checkpoint.save(paths["ours"], ours)
    checkpoint.save(paths["authors"], {"net": to_release(sipe)})
    checkpoint.save(paths["segmentation"], segmentation)
    yield paths
    shutil.rmtree(folder)  # they are large
