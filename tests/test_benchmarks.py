"""The benchmark at small sizes: every section runs, its versions agree, and a failing one stops no other."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from errors import InputError
from network.sipe import SIPE

FLAGS = ["--repeats", "1", "--num_workers", "0", "--device", "cpu"]
TRAINING = ("training_step", "throughput", "irn", "deeplab")


@pytest.mark.parametrize("section", speed.SECTIONS)
def test_the_versions_of_a_section_agree_and_take_time(section: str, tmp_path: Path):
    speed.main([*FLAGS, "--section", section, "--json", str(tmp_path / "speed.json")])
    result = json.loads((tmp_path / "speed.json").read_text())["sections"][section]
    assert result["error"] is None
    assert bool(result["differences"]) == (
        section not in TRAINING[1:]
    )  # theirs differ in precision, or are one version alone
    assert len(result["rows"]) > (section not in ("irn", "deeplab"))
    for row in result["rows"]:
        figures = ("tflops", "share_of_peak") if section in TRAINING else ()
        assert all(
            0 < row[name] < math.inf for name in ("seconds", "ratio", "images_per_second", *figures)
        )
        assert 0 <= row["megabytes"] < math.inf
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"])


def test_minutes_bound_the_time_boxes():
    boxes = [
        speed.parse_args(flags.split()).time_box
        for flags in ("", "--minutes 5", "--minutes 5 --section irn", "--minutes 600")
    ]
    assert boxes == [3600, 300 / len(speed.SECTIONS), 300, 3600]


def test_a_processor_without_bf16_is_measured_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(amp, device):
        raise InputError("no bf16")

    monkeypatch.setattr(speed, "check_precision", refuse)
    speed.main([*FLAGS, "--section", "throughput", "--json", str(tmp_path / "speed.json")])
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["peak_precision"] == "float32"
    assert [row["version"] for row in content["sections"]["throughput"]["rows"]] == ["SIPE float32"]


@pytest.mark.parametrize("fits, largest", [(16, 16), (100, 64), (1000, 256)])
def test_the_largest_batch_is_the_last_that_fits(fits: int, largest: int):
    def run(batch: int) -> None:
        if batch > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert speed.largest_batch(run, 16) == largest
    with pytest.raises(ValueError, match="int"):
        speed.largest_batch(int, "ours")


def test_a_section_that_fails_or_disagrees_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(args):
        raise RuntimeError("broken")

    def wrong(args):
        return (
            {
                "ours": lambda context: lambda: {"map": 1},
                "plain": lambda context: lambda: {"map": 2},
            },
            1,
            {"map": 0.5},
        )

    def half(args):
        calls = []
        late = lambda context: broken(args) if calls else calls.append(lambda: {})  # noqa: E731
        return (
            {"broken": broken, "ours": lambda context: lambda: {}, "broken when timed": late},
            1,
            {},
        )

    monkeypatch.setattr(
        speed,
        "SECTIONS",
        {"broken": broken, "wrong": wrong, "half": half, "random_walk": speed.walk_section},
    )
    with pytest.raises(SystemExit) as status:
        speed.main([*FLAGS, "--json", str(tmp_path / "speed.json")])
    assert status.value.code == 1
    results = json.loads((tmp_path / "speed.json").read_text())["sections"]
    assert [name for name, result in results.items() if result["error"]] == [
        "broken",
        "wrong",
        "half",
    ]
    assert [len(result["rows"]) for result in results.values()] == [0, 2, 1, 2]
    assert (
        results["half"]["error"].count("broken") == 4
        and results["half"]["rows"][0]["ratio"] is None
    )  # there is no first version


def test_the_bare_network_trains_as_many_weights_as_ours():
    trained = [
        sum(p.numel() for p in network.parameters() if p.requires_grad)
        for network in (speed.bare_resnet50(21), SIPE(21).resnet50)
    ]
    assert trained[0] - trained[1] == 20 * 2048 + 20


def test_memory_is_what_a_call_adds_at_its_peak():
    _, _, megabytes = speed.call(
        lambda context: torch.ones(2**24).sum(),
        speed.Context(torch.device("cpu")),
        with_memory=True,
    )
    assert 60 < megabytes < 90
