"""The stages on a GPU, each as a process of its own.

The reference numbers run there by the fixture `device`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from common import (
    STAGES,
    Run,
    assert_close_weights,
    copy,
    draw_maps,
    kill_when_written,
    run_process,
    times_below,
    weights_of,
)

from errors import InputError
from network import deeplab, losses
from tool.context import check_precision

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("device", ["cuda"], indirect=True)]
MODES = {
    "float32": [],
    "bf16": ["--amp", "bf16"],
    "fp16": ["--amp", "fp16"],
    "compiled": ["--compile"],
}
LABELS = ("ir_label", "seg_label")


@pytest.fixture
def run(fixed_voc, tiny_backbone, run_dir) -> Run:
    return Run(fixed_voc, run_dir, tiny_backbone)


@pytest.fixture(params=MODES)
def mode(request, device) -> str:
    """A precision that the device can do."""
    name = request.param
    amp = name if name in ("bf16", "fp16") else "off"
    try:
        check_precision(amp, device)
    except InputError as error:
        pytest.skip(str(error))
    if name == "compiled" and device.type == "cpu":
        pytest.skip("a C++ compiler is not needed for anything else")
    return name


def stages_of(mode: str) -> list[str]:
    """The stages that use the device, and in this mode."""
    names = []
    for name, stage in STAGES.items():
        uses_device = "--device" in stage.flags
        has_mode = stage.is_training or mode != "compiled"
        if uses_device and has_mode:
            names.append(name)
    return names


def prepare(name: str, run: Run) -> None:
    """Put what a stage reads into the run, unless an earlier stage has made it."""
    for below in STAGES[name].needs:
        path = run.folder / below
        if path.exists():
            continue
        if below == "cam":
            draw_maps(run.voc, run.folder)
        else:
            assert below in LABELS
            copy(run.voc / "SegmentationClass", path)


def test_every_stage_runs_and_a_second_run_writes_nothing(mode, run, device):
    for name in stages_of(mode):
        prepare(name, run)
        command = [STAGES[name].script.__file__, *run.flags(name)]
        command += ["--device", device.type, *MODES[mode]]
        run_process(*command)
        before = times_below(run.folder)
        run_process(*command)
        assert times_below(run.folder) == before, name
    for path in run.folder.glob("ckpt/*.pth"):
        for tensor, value in weights_of(path).items():
            assert value.isfinite().all(), (path, tensor)


TRAIN_SEG = STAGES["train_seg"].script


@pytest.fixture
def training(device, run) -> Callable[..., list]:
    """Makes the flags of a training in the folder of a name, with more of them."""
    labels = run.voc / "SegmentationClass"
    common = ["--device", device.type, "--label_dir", labels, "--batch_size", 2, "--lr", 1e-6]

    def training(name: str, *more: object) -> list:
        own = Run(run.voc, run.folder / name, run.weights)
        return [*own.flags("train_seg"), *common, *more]

    return training


def run_in_float32(*command: object) -> None:
    run_process(*command, NVIDIA_TF32_OVERRIDE="0")


def assert_same_weights(run_dir: Path, name: str, other: str) -> None:
    """Within rounding: a GPU adds in any order."""
    ours = run_dir / name / "ckpt/seg.pth"
    theirs = run_dir / other / "ckpt/seg.pth"
    assert_close_weights(ours, theirs, rtol=1e-3, atol=1e-6)


def test_a_killed_training_ends_like_a_whole_one(training, run_dir):
    last = run_dir / "killed/ckpt/seg_last.pth"
    kill_when_written(last, TRAIN_SEG, training("killed"))
    for name in ("whole", "killed"):
        run_in_float32(TRAIN_SEG.__file__, *training(name))
    assert_same_weights(run_dir, "whole", "killed")


@pytest.mark.parametrize("flags", [[], ["--weights", "none"]], ids=["pretrained", "SyncBatchNorm"])
def test_two_processes_of_torchrun_train_what_one_does(training, run_dir, device, flags):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    if device.type == "cpu" and flags:
        pytest.skip("SyncBatchNorm is for GPUs")
    run_in_float32(TRAIN_SEG.__file__, *training("alone", *flags))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run_in_float32(*torchrun, TRAIN_SEG.__file__, *training("together", *flags))
    assert_same_weights(run_dir, "alone", "together")


@pytest.mark.parametrize("network", ["deeplabv2_resnet50", "deeplabv3_resnet50"])
def test_a_step_of_the_segmentation_network_is_that_of_the_cpu(network, device):
    torch.manual_seed(0)
    model = deeplab.build_network(network, 5, output_stride=16).eval()
    image = torch.randn(2, 3, 65, 81)
    target = torch.randint(0, 5, (2, 65, 81), dtype=torch.uint8)

    def take_step(place: torch.device) -> list[float]:
        """The loss and the norms of all gradients."""
        logits = model.to(place)(image.to(place))
        weight = torch.ones(5, device=place)
        total, count = losses.segmentation_loss(logits, target.to(place), weight)
        model.zero_grad()
        (total / count).backward()
        norms = [parameter.grad.norm().item() for parameter in model.parameters()]
        return [total.item(), *norms]

    expected = take_step(torch.device("cpu"))
    assert take_step(device) == pytest.approx(expected, rel=1e-2)
