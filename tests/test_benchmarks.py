"""The benchmark at small sizes: every section runs, its versions agree, and a failing one stops no other."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from network.sipe import SIPE

FLAGS = ["--repeats", "1", "--num_workers", "0", "--device", "cpu"]


@pytest.mark.parametrize("section", speed.SECTIONS)
def test_the_versions_of_a_section_agree_and_take_time(section: str, tmp_path: Path):
    speed.main([*FLAGS, "--section", section, "--json", str(tmp_path / "speed.json")])
    result = json.loads((tmp_path / "speed.json").read_text())["sections"][section]
    assert result["error"] is None
    assert result["differences"]
    assert len(result["rows"]) > 1
    for row in result["rows"]:
        assert all(0 < row[name] < math.inf for name in ("seconds", "ratio", "pictures_per_second"))
        assert 0 <= row["megabytes"] < math.inf


def test_a_section_that_fails_or_disagrees_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(args):
        raise RuntimeError("broken")

    def wrong(args):
        return {"ours": lambda context: lambda: {"map": 1}, "plain": lambda context: lambda: {"map": 2}}, 1, {"map": 0.5}

    monkeypatch.setattr(speed, "SECTIONS", {"broken": broken, "wrong": wrong, "random_walk": speed.walk_section})
    with pytest.raises(SystemExit) as status:
        speed.main([*FLAGS, "--json", str(tmp_path / "speed.json")])
    assert status.value.code == 1
    results = json.loads((tmp_path / "speed.json").read_text())["sections"]
    assert {name: bool(result["error"]) for name, result in results.items()} == {"broken": True, "wrong": True, "random_walk": False}
    assert results["random_walk"]["rows"]


def test_the_bare_network_trains_as_many_weights_as_ours():
    trained = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in (speed.bare_resnet50(21), SIPE(21).resnet50)]
    assert trained[0] - trained[1] == 20 * 2048 + 20


def test_memory_is_what_a_call_adds_at_its_peak():
    _, _, megabytes = speed.call(lambda context: torch.ones(2**24).sum(), speed.Context(torch.device("cpu")), with_memory=True)
    assert 60 < megabytes < 90
