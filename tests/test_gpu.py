"""The stages on a GPU, each as a process of its own.

The fixture `device` also brings the tests of the reference numbers to the GPU.
"""

from pathlib import Path

import pytest
import torch
from common import (
    STAGES,
    Run,
    copy,
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


@pytest.fixture
def run(fixed_voc, tiny_backbone, run_dir) -> Run:
    """A run with ResNet-50 at its full size, as other processes build it."""
    return Run(fixed_voc, run_dir, tiny_backbone)


@pytest.fixture(params=MODES)
def flags(request, device) -> list[str]:
    """The flags of a device and a precision."""
    mode = MODES[request.param]
    amp = mode[-1] if "--amp" in mode else "off"
    try:
        check_precision(amp, device)
    except InputError as error:
        pytest.skip(str(error))
    if request.param == "compiled" and device.type == "cpu":
        pytest.skip("a C++ compiler is not needed for anything else")
    return ["--device", device.type, *mode]


def test_every_stage_runs_and_a_second_run_writes_nothing(flags, finished_run, run):
    for name, stage in STAGES.items():
        is_compiled = "--compile" in flags
        if "--device" not in stage.flags or (is_compiled and not stage.is_training):
            continue
        for below in stage.needs:
            if not (run.folder / below).exists():
                copy(finished_run.folder / below, run.folder / below)
        command = [stage.script.__file__, *run.flags(name), *flags]
        run_process(*command)
        before = times_below(run.folder)
        run_process(*command)
        assert times_below(run.folder) == before, name
    for path in run.folder.glob("ckpt/*.pth"):
        for value in weights_of(path).values():
            assert value.isfinite().all(), path


@pytest.fixture
def train_seg(device, run):
    """A function that makes the flags of a training in the folder of a name, with more flags."""

    def make_flags(name: str, *more: object) -> list:
        own = Run(run.voc, run.folder / name, run.weights)
        flags = ["--device", device.type, "--label_dir", run.voc / "SegmentationClass"]
        flags += ["--batch_size", 2, "--lr", 1e-6]
        return [*own.flags("train_seg"), *flags, *more]

    return make_flags


SCRIPT = STAGES["train_seg"].script


def assert_same_weights(folder: Path, name: str, other: str) -> None:
    """Within rounding: a GPU adds in any order."""
    ours = weights_of(folder / name / "ckpt/seg.pth")
    theirs = weights_of(folder / other / "ckpt/seg.pth")
    for tensor, value in ours.items():
        most = 1e-3 * value.abs().max() + 1e-6
        assert (value - theirs[tensor]).abs().max() <= most, tensor


def test_a_killed_training_ends_like_a_whole_one(train_seg, run):
    last = run.folder / "killed/ckpt/seg_last.pth"
    kill_when_written(last, SCRIPT, train_seg("killed"))
    for name in ("whole", "killed"):
        run_process(SCRIPT.__file__, *train_seg(name), NVIDIA_TF32_OVERRIDE="0")
    assert_same_weights(run.folder, "whole", "killed")


@pytest.mark.parametrize("more", [[], ["--weights", "none"]], ids=["pretrained", "SyncBatchNorm"])
def test_two_processes_of_torchrun_train_what_one_does(train_seg, run, device, more):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    if device.type == "cpu" and more:
        pytest.skip("SyncBatchNorm is for GPUs")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    exact = {"NVIDIA_TF32_OVERRIDE": "0"}
    run_process(SCRIPT.__file__, *train_seg("one", *more), **exact)
    run_process(*torchrun, SCRIPT.__file__, *train_seg("two", *more), **exact)
    assert_same_weights(run.folder, "one", "two")


@pytest.mark.parametrize("network", ["deeplabv2_resnet50", "deeplabv3_resnet50"])
def test_a_step_of_the_segmentation_network_is_that_of_the_cpu(network, device):
    torch.manual_seed(0)
    model = deeplab.build_network(network, 5, output_stride=16).eval()
    image = torch.randn(2, 3, 65, 81)
    target = torch.randint(0, 5, (2, 65, 81), dtype=torch.uint8)
    steps = []
    for place in (torch.device("cpu"), device):
        logits = model.to(place)(image.to(place))
        weight = torch.ones(5, device=place)
        total, count = losses.segmentation_loss(logits, target.to(place), weight)
        model.zero_grad()
        (total / count).backward()
        norms = [parameter.grad.norm().item() for parameter in model.parameters()]
        steps.append([total.item(), *norms])
    on_cpu, on_device = steps
    assert on_device == pytest.approx(on_cpu, rel=1e-2)
