"""The benchmark at small sizes: its versions agree, and a section that fails stops no other."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import train_irn
from benchmarks import measuring, plain, sections, speed
from benchmarks.measuring import Outcome, Peak, Section
from errors import InputError
from network import resnet
from network.sipe import SIPE
from tool.context import Context

FLAGS = ["--repeats", "1", "--num_workers", "0", "--device", "cpu"]
TRAINING = ("training_step", "throughput", "irn", "deeplab")
ONE_VERSION = ("irn", "deeplab")
NOT_COMPARED = ("throughput", *ONE_VERSION)  # its versions differ in precision
FIGURES = ("seconds", "ratio", "images_per_second")
TRAINING_FIGURES = ("tflops", "share_of_peak")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a layer, and few pairs of cells: the sections do not depend on their number."""
    monkeypatch.setitem(resnet.BLOCKS, "resnet50", (1, 1, 1, 1))
    monkeypatch.setattr(train_irn, "RADIUS", 3)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "speed.json"


def run_section(section: str, report: Path) -> dict[str, Any]:
    """What the benchmark notes of a section that works."""
    speed.main([*FLAGS, "--section", section, "--json", str(report)])
    return json.loads(report.read_text())["sections"][section]


def versions_of(result: dict[str, Any]) -> list[str]:
    return [row["version"] for row in result["rows"]]


def refuse_bf16(amp: str, device: torch.device) -> None:
    raise InputError("no bf16")


@pytest.mark.parametrize("section", speed.SECTIONS)
def test_the_versions_of_a_section_agree_and_are_measured(section: str, report: Path):
    result = run_section(section, report)
    assert result["error"] is None
    is_compared = section not in NOT_COMPARED
    assert bool(result["differences"]) == is_compared
    if is_compared:
        assert len(result["rows"]) > 1
    figures = FIGURES
    if section in TRAINING:
        figures += TRAINING_FIGURES
    for row in result["rows"]:
        assert all(0 < row[name] < math.inf for name in figures)
        assert 0 <= row["megabytes"] < math.inf
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"])


def test_minutes_bound_the_time_boxes():
    def time_box(flags: str) -> float:
        return speed.parse_args(flags.split()).time_box

    assert time_box("") == 3600
    assert time_box("--minutes 5") == 300 / len(speed.SECTIONS)
    assert time_box("--minutes 5 --section irn") == 300
    assert time_box("--minutes 600") == 3600


def test_a_processor_without_bf16_is_measured_in_float32(
    report: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measuring, "check_precision", refuse_bf16)
    result = run_section("throughput", report)
    assert json.loads(report.read_text())["peak_precision"] == "float32"
    assert versions_of(result) == ["SIPE float32"]


def test_a_processor_with_bf16_is_measured_in_both_and_compiled(tmp_path: Path):
    setup = sections.Setup(
        context=Context(torch.device("cpu")),
        sizes=sections.SIZES["small"],
        peak=Peak(1.0, "bfloat16"),
        folder=tmp_path,
        num_workers=0,
        dataset_root=None,
    )
    versions = sections.throughput_section(setup).versions
    assert list(versions) == ["SIPE float32", "SIPE bf16", "SIPE bf16 compiled", "ResNet-50 bf16"]


@pytest.mark.parametrize("fits, largest", [(16, 16), (100, 64), (1000, 256)])
def test_the_largest_batch_is_the_last_that_fits(fits: int, largest: int):
    def run(batch: int) -> None:
        if batch > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert sections.largest_batch(run, 16) == largest


def test_an_error_of_the_first_batch_is_no_lack_of_memory():
    with pytest.raises(ValueError, match="int"):
        sections.largest_batch(int, "ours")


def give_one(context: Context) -> Outcome:
    return lambda: {"map": 1}


def give_two(context: Context) -> Outcome:
    return lambda: {"map": 2}


def fail(*given: Any) -> None:
    raise RuntimeError("broken")


class FailsLater:
    """A version that works only once: before it is timed."""

    def __init__(self):
        self.was_called = False

    def __call__(self, context: Context) -> Outcome:
        if self.was_called:
            fail()
        self.was_called = True
        return give_one(context)


def disagreeing_section(setup: sections.Setup) -> Section:
    versions = {"ours": give_one, "plain": give_two}
    return Section(versions, {"ours": 1, "plain": 1}, {"map": 0.5})


def half_broken_section(setup: sections.Setup) -> Section:
    versions = {"broken": fail, "ours": give_one, "broken when timed": FailsLater()}
    return Section(versions, dict.fromkeys(versions, 1))


def test_a_section_that_fails_or_disagrees_stops_no_other(
    report: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen = {
        "broken": fail,
        "disagreeing": disagreeing_section,
        "half broken": half_broken_section,
        "random_walk": sections.walk_section,
    }
    monkeypatch.setattr(speed, "SECTIONS", chosen)
    with pytest.raises(SystemExit) as status:
        speed.main([*FLAGS, "--json", str(report)])
    assert status.value.code == 1
    results = json.loads(report.read_text())["sections"]
    failed = [name for name, result in results.items() if result["error"]]
    assert failed == ["broken", "disagreeing", "half broken"]
    num_rows = [len(result["rows"]) for result in results.values()]
    assert num_rows == [0, 2, 1, 2]
    half_broken = results["half broken"]
    assert half_broken["rows"][0]["ratio"] is None  # there is no first version
    assert "broken: RuntimeError" in half_broken["error"]
    assert "broken when timed: RuntimeError" in half_broken["error"]


def test_the_bare_network_trains_as_many_weights_as_ours():
    def count_trained(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters() if p.requires_grad)

    head = 20 * 2048 + 20
    assert count_trained(plain.BareResNet50(21)) == count_trained(SIPE(21).resnet50) + head


def test_memory_is_what_a_call_adds_at_its_peak():
    def allocate(context: Context) -> Outcome:
        ones = torch.ones(2**24)  # 64 MB
        return lambda: {"sum": ones.sum()}

    timed = measuring.call_with_memory(allocate, Context(torch.device("cpu")))
    assert 60 < timed.megabytes < 90
