"""The stages on a GPU, each as a process of its own.

The fixture `device` also brings the tests of the reference numbers to the GPU.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import ROOT, STAGES, kill_once_there, stage_flags, times_below, weights_of

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


@pytest.fixture(params=MODES)
def flags(request, device) -> list[str]:
    """The flags of a device and a precision, without those that a stage does not have."""
    mode = MODES[request.param]
    amp = mode[-1] if "--amp" in mode else "off"
    try:
        check_precision(amp, device)
    except InputError as error:
        pytest.skip(str(error))
    if request.param == "compiled" and device.type == "cpu":
        pytest.skip("a C++ compiler is not needed for anything else")
    return ["--device", device.type, *mode]


def run_process(*command: object, **environment: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_stage_runs_and_a_second_run_writes_nothing(
    flags, chain, fixed_voc, tiny_backbone, run_dir
):
    for name, stage in STAGES.items():
        if "--device" not in stage.flags or (flags[-1] == "--compile" and not stage.is_training):
            continue
        for path in stage.needs:
            if (run_dir / path).exists():
                continue
            copy = shutil.copytree if (chain / path).is_dir() else shutil.copy
            copy(chain / path, run_dir / path)
        command = [
            stage.script.__file__,
            *stage_flags(name, fixed_voc, run_dir, tiny_backbone),
            *flags,
        ]
        run_process(*command)
        before = times_below(run_dir)
        run_process(*command)
        assert times_below(run_dir) == before, name
    for path in run_dir.glob("ckpt/*.pth"):
        assert all(value.isfinite().all() for value in weights_of(path).values()), path


@pytest.fixture
def train_seg(device, fixed_voc, tiny_backbone, run_dir):
    """Makes the command of a training in the folder of a name, with more flags."""
    more = [
        "--device",
        device.type,
        "--label_dir",
        fixed_voc / "SegmentationClass",
        "--batch_size",
        2,
        "--lr",
        1e-6,
    ]

    def command(name: str, *flags: object) -> list:
        return [
            STAGES["train_seg"].script.__file__,
            *stage_flags("train_seg", fixed_voc, run_dir / name, tiny_backbone),
            *more,
            *flags,
        ]

    return command


def assert_same_weights(run_dir: Path, *names: str) -> None:
    """Within rounding: a GPU adds in any order."""
    whole, *others = (weights_of(run_dir / name / "ckpt/seg.pth") for name in names)
    for other in others:
        for name, value in whole.items():
            most = 1e-3 * value.abs().max() + 1e-6
            assert (value - other[name]).abs().max() <= most


def test_a_killed_training_ends_like_a_whole_one(train_seg, run_dir):
    kill_once_there(
        run_dir / "killed/ckpt/seg_last.pth", STAGES["train_seg"].script, train_seg("killed")[1:]
    )
    for name in ("whole", "killed"):
        run_process(*train_seg(name), NVIDIA_TF32_OVERRIDE="0")
    assert_same_weights(run_dir, "whole", "killed")


@pytest.mark.parametrize("flags", [[], ["--weights", "none"]], ids=["pretrained", "SyncBatchNorm"])
def test_two_processes_of_torchrun_train_what_one_does(train_seg, run_dir, device, flags):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    if device.type == "cpu" and flags:
        pytest.skip("SyncBatchNorm is for GPUs")
    run_process(*train_seg("one", *flags), NVIDIA_TF32_OVERRIDE="0")
    run_process(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        2,
        *train_seg("two", *flags),
        NVIDIA_TF32_OVERRIDE="0",
    )
    assert_same_weights(run_dir, "one", "two")


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
