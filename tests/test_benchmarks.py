"""Benchmarks at toy sizes: both versions of every part give the same result. No test looks at how long anything took."""

import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from common import call

from benchmarks import __main__ as benchmarks
from benchmarks import cams, evaluation, measure, prototypes, random_walk, training_step
from benchmarks import input as loading
from errors import InputError

ROOT = Path(__file__).resolve().parents[1]
HERE = ["--no-apart", "--repeats", 1]  # in this process, once
SMALL_PROTOTYPES = ["--batch", 2, "--classes", 5, "--grid", 6, "--widths", 16, 12, "--device", "cpu"]
SMALL_STEP = ["--batch", 2, "--crop", 64, "--device", "cpu"]


def differences(printed: str) -> dict[str, float]:
    told = re.search(r"differences: (.*)", printed)[1]
    return {name: 0 if value == "none" else float(value) for name, value in re.findall(r"([^,]+?) (none|[-+.\de]+)(?:, |$)", told)}


def test_differences_are_told_and_read_back():
    ours, plain = {"seeds": np.eye(2), "IS-CAM": np.float32(0.5)}, {"seeds": np.eye(2) > 0, "IS-CAM": 0.25}
    told = measure.told(measure.differences(ours, plain))
    assert told == "  differences: seeds none, IS-CAM 2.5e-01"
    assert differences(told) == {"seeds": 0, "IS-CAM": 0.25}


@pytest.mark.parametrize(
    ("ours", "plain", "line"),
    [
        ((0.9, 210), (8.1, 11000), "part                        0.9 s against 8.1 s: 9 times faster; 210 MB against 11,000 MB: 1/52.4"),
        (
            (1.1, 300),
            (1.0, 200),
            "part                        1.1 s against 1 s: 1.10 times as long; 300 MB against 200 MB: 1.50 times as much",
        ),
        ((1.0, 0), (1.0, 0), "part                        1 s against 1 s: 1.00 times as long; 0 MB against 0 MB: 1.00 times as much"),
    ],
)
def test_a_line_is_a_ratio(ours, plain, line):
    assert measure.line("part", measure.Cost(*ours, None), measure.Cost(*plain, None)) == line


MEMORY = """
from argparse import Namespace
import numpy as np
from benchmarks import measure
timed = measure.Timed(lambda args: lambda: np.ones(args.count).sum(), Namespace(count=2**23))
print(*(timed()[1] for _ in range(2)))
"""


def test_memory_is_what_a_run_adds_at_its_peak():
    """In a process that holds no freed memory which the run could take."""
    printed = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [60 < float(megabytes) < 80 for megabytes in printed.split()] == [True, True]


def test_versions_run_in_processes_of_their_own():
    printed = call(random_walk.main, "--grid", 7, 6)
    assert printed.startswith("random_walk ")
    assert differences(printed)["of the maximum"] < 1e-3


def test_a_process_that_dies_is_an_error_in_one_line():
    with pytest.raises(InputError, match=r"^broken: its process died"):
        measure.compare({"broken": sys.exit}, Namespace(apart=True, repeats=1))


def test_prototypes_agree():
    found = differences(call(prototypes.main, *HERE, *SMALL_PROTOTYPES))
    assert found["seeds"] == 0
    assert max(found["IS-CAM"], found["gradient"]) < 1e-6


def test_seeds_of_the_benchmark_are_of_several_classes_and_none_in_the_padding():
    args = prototypes.parse_args([str(flag) for flag in SMALL_PROTOTYPES])
    seeds = prototypes.plain(args)()["seeds"]
    assert (seeds.sum((2, 3)) > 0).sum() > len(seeds)
    assert not seeds[:, :, 0].any()


def test_training_steps_agree():
    found = differences(call(training_step.main, *HERE, *SMALL_STEP))
    assert found["seeds"] == 0
    assert max(found[name] for name in ("cls", "gsc", "IS-CAM")) < 1e-5
    assert found["grad_norm"] < 0.1  # of hundreds


def test_the_bare_network_trains_what_ours_trains():
    def trained(model):
        return sum(p.numel() for p in model.backbone_parameters())

    bare, ours = training_step.BareResNet50(21).train(), training_step.SIPE(21).train()
    assert trained(bare) == trained(ours)
    assert sum(p.numel() for p in bare.head_parameters()) == 20 * 2048 + 20
    assert not any(module.training for module in bare.modules() if "BatchNorm" in type(module).__name__)


def test_maps_agree(fixed_voc: Path):
    flags = ["--dataset_root", fixed_voc, "--pictures", 2, "--scales", 1.0, 2.0, "--num_workers", 0, "--device", "cpu"]
    found = differences(call(cams.main, *HERE, *flags))
    assert set(found) == {"IS-CAM", "CAM"}
    assert max(found.values()) < 1e-4


def test_evaluations_agree():
    found = differences(call(evaluation.main, *HERE, "--pictures", 8, "--size", 30, 40, "--num_workers", 0))
    assert found == {"intersection": 0, "truth": 0, "prediction": 0}


def test_evaluated_maps_are_partly_right(tmp_path: Path):
    args = Namespace(pictures=4, folder=tmp_path)
    evaluation.draw(tmp_path, 4, (30, 40))
    found = evaluation.plain(args)()
    assert 0.2 < found["intersection"].sum() / found["truth"].sum() < 0.95


def test_loaders_agree(fixed_voc: Path):
    printed = call(loading.main, *HERE, *SMALL_STEP, "--dataset_root", fixed_voc, "--pictures", 6, "--num_workers", 0)
    found = differences(printed)
    assert found["image"] < 1e-5
    assert found["inside"] == 0


def test_help_lists_the_parts_and_an_unknown_one_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["--help"])
    printed = capsys.readouterr().out
    for part in benchmarks.PARTS:
        assert re.search(rf"^  {part} +\S", printed, re.MULTILINE)
    with pytest.raises(SystemExit):
        benchmarks.main(["crf"])
    assert "there is no part crf" in capsys.readouterr().err


def test_parts_run_by_name(monkeypatch):
    monkeypatch.setitem(benchmarks.PARTS, "prototypes", [str(flag) for flag in (*HERE, *SMALL_PROTOTYPES)])
    assert call(benchmarks.main, "prototypes").startswith("prototypes ")
