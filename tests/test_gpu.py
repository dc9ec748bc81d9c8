"""The stages on a GPU, each as a process of its own. The reference numbers run there by the fixture `device`."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from common import ROOT, STAGES, kill_once_there, stage_flags, times_below, weights_of

from errors import InputError
from network import deeplab, losses
from tool.context import check_precision

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("device", ["cuda"], indirect=True)]
MODES = {"float32": [], "bf16": ["--amp", "bf16"], "fp16": ["--amp", "fp16"], "compiled": ["--compile"]}


@pytest.fixture(params=MODES)
def flags(request, device) -> list[str]:
    """The flags of a device and a precision, without those that a stage does not have."""
    try:
        check_precision(MODES[request.param][-1] if "--amp" in MODES[request.param] else "off", device)
    except InputError as error:
        pytest.skip(str(error))
    if request.param == "compiled" and device.type == "cpu":
        pytest.skip("a C++ compiler is not needed for anything else")
    return ["--device", device.type, *MODES[request.param]]


def run_process(*command: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_stage_runs_and_a_second_run_writes_nothing(flags, chain, fixed_voc, tiny_backbone, run_dir):
    for name, stage in STAGES.items():
        if "--device" not in stage.flags or (flags[-1] == "--compile" and not stage.is_training):
            continue
        for path in stage.needs:
            if not (run_dir / path).exists():
                (shutil.copytree if (chain / path).is_dir() else shutil.copy)(chain / path, run_dir / path)
        command = [stage.script.__file__, *stage_flags(name, fixed_voc, run_dir, tiny_backbone), *flags]
        run_process(*command)
        before = times_below(run_dir)
        run_process(*command)
        assert times_below(run_dir) == before, name
    for path in run_dir.glob("ckpt/*.pth"):
        assert all(value.isfinite().all() for value in weights_of(path).values()), path


def test_a_killed_training_ends_like_a_whole_one_also_under_torchrun(device, fixed_voc, tiny_backbone, run_dir):
    """Within rounding: a GPU adds in any order."""
    stage, more = STAGES["train_seg"], ["--device", device.type, "--label_dir", fixed_voc / "SegmentationClass", "--lr", 1e-4]
    flags = {name: [*stage_flags("train_seg", fixed_voc, run_dir / name, tiny_backbone), *more] for name in ("whole", "killed", "spread")}
    kill_once_there(run_dir / "killed/ckpt/seg_last.pth", stage.script, flags["killed"])
    for name in ("whole", "killed"):
        run_process(stage.script.__file__, *flags[name])
    run_process("-m", "torch.distributed.run", "--nproc_per_node", 1, stage.script.__file__, *flags["spread"])
    whole, *others = (weights_of(run_dir / name / "ckpt/seg.pth") for name in flags)
    for other in others:
        assert all((value - other[name]).abs().max() <= 1e-3 * value.abs().max() + 1e-6 for name, value in whole.items())


@pytest.mark.parametrize("network", ["deeplabv2_resnet50", "deeplabv3_resnet50"])
def test_a_step_of_the_segmentation_network_is_that_of_the_cpu(network, device):
    torch.manual_seed(0)
    model = deeplab.build({"network": network, "output_stride": 16}, 5).eval()
    image, label = torch.randn(2, 3, 65, 81), torch.randint(0, 5, (2, 65, 81), dtype=torch.uint8)
    found = []
    for place in (torch.device("cpu"), device):
        total, count = losses.segmentation_loss(model.to(place)(image.to(place)), label.to(place), torch.ones(5, device=place))
        model.zero_grad()
        (total / count).backward()
        found.append([total.item(), *(p.grad.norm().item() for p in model.parameters())])
    assert found[1] == pytest.approx(found[0], rel=1e-2)
