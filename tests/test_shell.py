"""The chains: what they say without data, which stages they start with what, and what they skip."""

import collections
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = ("train_resnet50_SIPE", "make_cam", "eval_cam", "make_ir_labels", "train_irn", "make_seg_labels", "eval_seg")
ON_EVERY_GPU = ("train_resnet50_SIPE", "make_cam", "train_irn", "make_seg_labels")
STUB = """
import sys
from pathlib import Path
with open("calls.txt", "a") as file:
    print(Path(sys.argv[0]).stem, *sys.argv[1:], sep="|", file=file)
"""


def bash(folder: Path, *command: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["bash", *command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A copy of the chains with stages that only note how they were called."""
    for file in ("run_voc.sh", "requirements.txt", "tool/environment.sh", "tool/chain.sh"):
        (tmp_path / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / "copy" / file)
    for stage in STAGES:
        (tmp_path / "copy" / f"{stage}.py").write_text(STUB)
    return tmp_path / "copy"


def calls(chain: Path) -> list[list[str]]:
    return [line.split("|") for line in (chain / "calls.txt").read_text().splitlines()]


def test_without_voc_it_says_what_it_looked_for_and_how_to_get_it(tmp_path):
    done = bash(REPOSITORY, "run_voc.sh", "--dataset_root", str(tmp_path / "nowhere"), "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "no JPEGImages in" in done.stderr and "train_aug.txt" in done.stderr and "VOCtrainval_11-May-2012.tar" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--datset_root", "x"], ["--run_dir"]])
@pytest.mark.parametrize("script", ["run_voc.sh", "run_demo.sh"])
def test_wrong_arguments_are_refused(script, arguments):
    done = bash(REPOSITORY, script, *arguments)
    assert done.returncode != 0 and script in done.stderr


@pytest.mark.parametrize("script", ["run_voc.sh", "run_demo.sh"])
def test_help(script):
    done = bash(REPOSITORY, script, "--help")
    assert done.returncode == 0 and f"bash {script} [" in done.stdout


def test_stages_run_in_order_each_time(chain, tiny_voc, tmp_path):
    arguments = ["run_voc.sh", "--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "a run")]
    assert bash(chain, *arguments).returncode == 0
    common = ["--dataset", "voc", "--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "a run")]
    more = {"make_seg_labels": ["--refine", "irn"]}
    assert calls(chain) == [[stage, *common, *more.get(stage, [])] for stage in STAGES]


def test_relative_paths_are_relative_to_where_it_is_called(chain, tiny_voc, tmp_path):
    assert bash(tmp_path, "copy/run_voc.sh", "--dataset_root", tiny_voc.name, "--run_dir", "a run").returncode == 0
    assert calls(chain)[0][3:] == ["--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "a run")]
    assert "bash run_voc.sh [" in bash(tmp_path, "copy/run_voc.sh", "--help").stdout


def test_a_number_of_gpus_is_a_number(chain, tiny_voc):
    done = bash(chain, "run_voc.sh", "--dataset_root", str(tiny_voc), "--gpus", "many")
    assert done.returncode == 2 and "--gpus many: the batch of 16" in done.stderr and not (chain / "calls.txt").exists()


def test_a_failing_stage_ends_the_chain(chain, tiny_voc, tmp_path):
    (chain / "make_cam.py").write_text("raise SystemExit(2)")
    assert bash(chain, "run_voc.sh", "--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "run")).returncode == 2
    assert [call[0] for call in calls(chain)] == ["train_resnet50_SIPE"]


def test_several_gpus_start_several_processes(chain, tiny_voc, tmp_path):
    assert bash(chain, "run_voc.sh", "--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "run"), "--gpus", "2").returncode == 0
    counts = collections.Counter(call[0] for call in calls(chain))
    assert counts == {stage: 2 if stage in ON_EVERY_GPU else 1 for stage in STAGES}
