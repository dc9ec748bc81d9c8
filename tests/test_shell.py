"""The shell scripts: which stages they start with which flags, and what they refuse.

Python is a script that only notes its calls.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = [
    "train_resnet50_SIPE",
    "make_cam",
    "eval_cam",
    "make_ir_labels",
    "train_irn",
    "make_seg_labels",
    "eval_seg",
    "train_seg",
    "infer_seg",
    "eval_seg_pred",
    "report",
]
OF_IRN = ("make_ir_labels", "train_irn")
EVALUATIONS = ("eval_cam", "eval_seg", "eval_seg_pred")


@dataclass(frozen=True)
class Chain:
    """What a chain does without flags, and the files that it needs."""

    refine: str
    epochs: str  # of the segmentation network
    eval_list: str  # on which the segmentation network is scored
    needs: tuple[str, ...]


CHAINS = {
    "run_voc.sh": Chain(
        refine="irn",
        epochs="30",
        eval_list="val",
        needs=(
            "JPEGImages",
            "Annotations",
            "SegmentationClass",
            "ImageSets/Segmentation/train.txt",
            "ImageSets/Segmentation/train_aug.txt",
            "ImageSets/Segmentation/val.txt",
        ),
    ),
    "run_coco.sh": Chain(
        refine="crf",
        epochs="12",
        eval_list="val",
        needs=("train2014", "train.txt", "tags.csv", "masks", "val2014", "val.txt"),
    ),
    "run_folder.sh": Chain(
        refine="crf", epochs="30", eval_list="masked", needs=("classes.txt", "tags.csv")
    ),
}
# Stands for every Python. LACKS and NO_CRF name those without the requirements or the CRF: python3
# is the active one, python .venv's. A call that FAILS matches ends with status 2, after what
# PIP_SAYS.
FAKE = f"""#!/usr/bin/env bash
name=$(basename "$0")
is_in() {{ [[ " $1 " == *" $name "* ]]; }}
answer() {{  # answer CODE
    case $1 in
        *pydensecrf*) ! is_in "${{NO_CRF:-}}" || grep -q no-build-isolation "$CALLS" ;;
        *Python.h*) [ -z "${{NO_HEADERS:-}}" ] ;;
        *ziglang*) echo zig ;;
        *"%d.%d"*) [ ! -e "$0.version" ] && echo 3.11 || cat "$0.version" ;;
        *"< (3, 10)"*) [ ! -e "$0.version" ] || [ "$(cat "$0.version")" != 3.9 ] ;;
        *) exec {sys.executable} -c "$@" ;;
    esac
}}
case $1 in
    -) ! is_in "${{LACKS:-}}"; exit ;;
    -c) answer "${{@:2}}"; exit ;;
esac
[ "$2" != pip ] || {{ echo "${{PIP_SAYS:-}}"; sleep "${{PIP_TAKES:-0}}"; }}
IFS='|'; echo "$*" >>"$CALLS"
[[ "$*" != ${{FAILS:-}} ]] || exit 2
[ "$2" != venv ] || {{ mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }}
"""
GPU_CHECK = ["-m", "tool.gpus", "4"]
NO_PYTHON_HAS = "python3 python"
# what a shell without a compiler still has
TOOLS = "bash basename cat cp cut dirname du env grep head mkdir sed sleep tail tr"
WRONG = [
    "--gpus many",
    "--gpus 3",
    "--gpus '1 2'",
    "--refine sam",
    "--refine ''",
    "--dataset_root ''",
    "--gpus",
    "--recipe",
    "--refine",
    "--from",
    "--until",
    "--run_dir",
    "--with",
    "--device",
    "--run_dirs a",
    "make_cam",
    "--with make_cam",
    "--with ../make_cam -h",
    "--with '' -h",
    "--from seg",
    "--until make_cam.py",
    "--until ''",
    "--until '*'",
    "--until 'train_seg infer_seg'",
    "--from eval_seg_pred --until eval_seg",
    "--seed 7",
    "--recipe x",
]


def make_data(root: Path, chain: Chain, without: str) -> None:
    """Write what a chain needs, and an image with a mask, but for one path."""
    shutil.rmtree(root, ignore_errors=True)
    for below in (*chain.needs, "a.jpg", "masks/a.png"):
        if below.startswith(without):
            continue
        path = root / below
        if not path.suffix:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a,a\n" if path.suffix == ".csv" else "a\n")


@pytest.fixture
def start(tmp_path):
    """Run a chain in a copy, on data without the path `without`.

    Returns the process and the calls of Python.
    """
    (tmp_path / "python3").write_text(FAKE)
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "copy").mkdir()
    for name in (*CHAINS, "run_demo.sh", "requirements.txt", "errors.py", "data", "tool"):
        (tmp_path / "copy" / name).symlink_to(ROOT / name)
    # the caller's own choice of a Python is none of the tests'
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "VENV")}
    env = {
        **inherited,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls.txt"),
    }

    def run(command, without="-", **variables):
        script, *flags = shlex.split(command)
        data = []
        if script in CHAINS:
            data = ["--dataset_root", "the data", "--run_dir", "a run"]
            make_data(tmp_path / "the data", CHAINS[script], without)
        notes = tmp_path / "calls.txt"
        notes.write_text("")
        done = subprocess.run(
            ["bash", f"copy/{script}", *data, *flags],
            cwd=tmp_path,
            env=env | variables,
            capture_output=True,
            text=True,
        )
        return done, [line.split("|") for line in notes.read_text().splitlines()]

    return run


def calls_by_stage(
    script: str, folder: Path, refine: str, gpus: int = 1, recipe: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """The call that a chain makes for each of its stages."""
    chain = CHAINS[script]
    data = ["--dataset", script.removeprefix("run_").removesuffix(".sh")]
    data += ["--dataset_root", f"{folder}/the data", "--run_dir", f"{folder}/a run"]
    flags = {
        "train_resnet50_SIPE": recipe,
        "make_cam": recipe,
        "make_seg_labels": ["--refine", refine],
        "train_seg": ["--max_epochs", chain.epochs],
        "infer_seg": ["--list", chain.eval_list.replace("masked", "tagged")],
        "eval_seg_pred": [
            "--list",
            chain.eval_list,
            "--label_dir",
            f"{folder}/a run/seg_pred",
        ],
    }
    on_cores = [*EVALUATIONS, "report", "make_ir_labels"]
    if refine == "crf":
        on_cores.append("make_seg_labels")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    calls = {}
    for stage in STAGES:
        if stage in OF_IRN and refine != "irn":
            continue
        call = [f"{stage.removesuffix('_pred')}.py", *data, *flags.get(stage, [])]
        is_shared = gpus > 1 and stage not in on_cores
        calls[stage] = torchrun + call if is_shared else call
    return calls


@pytest.mark.parametrize(
    ("flags", "first", "last"),
    [
        ("", 0, 10),
        ("--gpus 4", 0, 10),
        ("--recipe plus", 0, 10),
        ("--from eval_seg", 6, 10),
        ("--from train_irn --until eval_seg", 4, 6),
    ],
)
@pytest.mark.parametrize(
    ("script", "refine"), [(script, refine) for script in CHAINS for refine in ("", "irn", "crf")]
)
def test_a_chain_starts_its_stages_in_order(start, script, refine, flags, first, last, tmp_path):
    refine_flag = f"--refine {refine}" if refine else ""
    done, calls = start(f"{script} {flags} {refine_flag}")
    recipe = ("--recipe", "plus") if "recipe" in flags else ()
    gpus = 4 if "gpus" in flags else 1
    refine = refine or CHAINS[script].refine
    stages = calls_by_stage(script, tmp_path, refine, gpus, recipe)
    expected = [call for stage, call in stages.items() if stage in STAGES[first : last + 1]]
    if "gpus" in flags:
        expected.insert(0, GPU_CHECK)
    assert done.returncode == 0
    assert calls == expected


@pytest.mark.parametrize("script", CHAINS)
def test_too_few_gpus_end_a_chain_before_its_first_stage(start, script):
    done, calls = start(f"{script} --gpus 4", FAILS="*tool.gpus*")
    assert done.returncode == 2
    assert calls == [GPU_CHECK]


@pytest.mark.parametrize("script", CHAINS)
def test_processes_on_the_cpu_need_no_gpus(start, script):
    _, calls = start(f"{script} --gpus 4 --with make_cam '--device cpu'")
    assert GPU_CHECK not in calls


@pytest.mark.parametrize("below", ["VOC2012", "VOCdevkit/VOC2012"])
def test_voc_may_be_below_the_root(start, below, tmp_path):
    (tmp_path / below).parent.mkdir(exist_ok=True)
    (tmp_path / below).symlink_to(tmp_path / "the data")
    _, calls = start(f"run_voc.sh --dataset_root {tmp_path}")
    assert {call[4] for call in calls} == {str(tmp_path / below)}


@pytest.mark.parametrize("without", ["masks", "a.jpg"])
def test_a_folder_is_evaluated_only_if_a_tagged_image_has_a_mask(start, without):
    _, calls = start("run_folder.sh", without)
    left_out = (*OF_IRN, *EVALUATIONS)
    expected = [f"{stage}.py" for stage in STAGES if stage not in left_out]
    assert [call[0] for call in calls] == expected


def test_more_flags_reach_their_stage_as_they_are_written(start, tmp_path):
    stages = calls_by_stage("run_coco.sh", tmp_path, "crf")
    stages["make_cam"] += ["--list", "*.txt", "$(touch", "oops)", "~"]
    stages["eval_seg"] += ["--num_workers", "1", "--list", "a"]
    command = (
        "run_coco.sh --with make_cam '--list *.txt $(touch oops) ~'"
        " --with eval_seg '--num_workers 1' --with eval_seg '--list a'"
    )
    _, calls = start(command)
    assert calls == list(stages.values())


@pytest.mark.parametrize("script", CHAINS)
def test_an_error_ends_a_chain(start, script):
    _, calls = start(script, FAILS="make_cam.py*")
    assert len(calls) == 2


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_are_refused_in_one_line(start, flags):
    done, calls = start(f"run_coco.sh {flags}", LACKS=NO_PYTHON_HAS)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.count("\n") == 1
    assert flags.split()[0] in done.stderr


NEEDED = [(script, below) for script, chain in CHAINS.items() for below in chain.needs]


@pytest.mark.parametrize(("script", "without"), NEEDED)
def test_missing_data_is_refused_in_one_line(start, script, without, tmp_path):
    done, calls = start(script, without, LACKS=NO_PYTHON_HAS)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.count("\n") == 1
    assert f" {without} in {tmp_path / 'the data'}" in done.stderr


VAL = [(script, below) for script, below in NEEDED if "val" in below]


@pytest.mark.parametrize(("script", "without"), VAL)
@pytest.mark.parametrize(
    ("flags", "status"),
    [("--until train_seg", 0), ("--until infer_seg", 2), ("--from eval_seg_pred", 2)],
)
def test_only_the_segmentation_networks_masks_need_val(start, script, without, flags, status):
    done, _ = start(f"{script} {flags}", without)
    assert done.returncode == status


def test_the_demo_draws_images_and_starts_its_stages(start, tmp_path):
    done, calls = start("run_demo.sh --seed 7 --run_dir 'a run'")
    assert done.returncode == 0
    assert str(tmp_path / "a run/ckpt/seg.pth") in done.stdout
    commands = []
    for call in calls:
        is_module = call[0] == "-m"
        commands.append(" ".join(call[:2]) if is_module else call[0])
    stages = [f"{stage.removesuffix('_pred')}.py" for stage in STAGES if stage not in OF_IRN]
    assert commands == ["-m data.demo", "-m data.demo", "-m exchange.npm_weights", *stages]
    with_seed = [call[0] for call in calls if "7" in call]
    assert with_seed == ["train_resnet50_SIPE.py", "train_seg.py"]


def test_a_seed_is_a_whole_number(start):
    assert start("run_demo.sh --seed -1")[0].returncode == 2


def test_requirements_are_names_with_versions(tmp_path):
    requirements = tmp_path / "lines.txt"
    has_requirements = 'source tool/common.sh; has_requirements "$@"'
    check = ["bash", "-c", has_requirements, "bash", sys.executable, requirements]
    fitting = (f"pytest>={pytest.__version__}", "# a\nnumpy>=1  # b")
    unfitting = ("numpy>=999", "numpy==0.1.*", "nothing-such>=1")
    for lines in fitting + unfitting:
        requirements.write_text(f"{lines}\n")
        assert (subprocess.run(check, cwd=ROOT).returncode == 0) == (lines in fitting)


INSTALL = ["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
MADE = ["-m", "venv", ".venv"]
INSTALLED = [*INSTALL, "-r", "requirements.txt"]
CRF_TOOLS = [*INSTALL, "-c", "requirements-crf.txt", "cython", "setuptools"]
CRF = [*INSTALL, "--no-cache-dir", "--no-build-isolation", "-r", "requirements-crf.txt"]


def set_up_calls(calls: list[list[str]]) -> list[list[str]]:
    """The calls before the demo draws its images."""
    stages = calls.index(next(call for call in calls if call[:2] == ["-m", "data.demo"]))
    return [call for call in calls[:stages] if call != ["-m", "pip", "--version"]]


def used_python(done: subprocess.CompletedProcess) -> str:
    """The Python of the command that the demo advises in the end."""
    return done.stdout.split("masks of your images: ")[1].split()[0]


@pytest.fixture
def venv(tmp_path):
    """A finished .venv of the copy."""
    python = tmp_path / "copy/.venv/bin/python"
    python.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "python3", python)
    return python


@pytest.mark.parametrize(
    ("lacks", "without_crf", "python", "expected"),
    [
        ("", "", "python3", []),
        ("", "python3", ".venv/bin/python", []),
        ("python3", "", ".venv/bin/python", []),
        ("python", "python3", ".venv/bin/python", [CRF_TOOLS, CRF, INSTALLED]),
        ("python3", "python", ".venv/bin/python", [CRF_TOOLS, CRF]),
        (NO_PYTHON_HAS, NO_PYTHON_HAS, ".venv/bin/python", [INSTALLED, CRF_TOOLS, CRF]),
    ],
)
def test_one_with_the_crf_is_preferred(start, venv, lacks, without_crf, python, expected):
    done, calls = start("run_demo.sh", LACKS=lacks, NO_CRF=without_crf)
    assert set_up_calls(calls)[: len(expected)] == expected
    assert used_python(done) == python
    assert not done.stderr


def test_an_environment_is_made_if_there_is_none(start, tmp_path):
    done, calls = start("run_demo.sh", LACKS=NO_PYTHON_HAS, NO_CRF=NO_PYTHON_HAS)
    assert set_up_calls(calls)[:4] == [MADE, INSTALLED, CRF_TOOLS, CRF]
    assert used_python(done) == ".venv/bin/python"


OBSTACLES = [{"NO_HEADERS": "1"}, {"FAILS": "*cython*"}, {"FAILS": "*no-build-isolation*"}]


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize(("lacks", "python"), [("", "python3"), ("python3", ".venv/bin/python")])
def test_without_the_crf_an_environment_with_all_else_serves(start, venv, lacks, python, obstacle):
    done, calls = start("run_demo.sh", LACKS=lacks, NO_CRF=NO_PYTHON_HAS, **obstacle)
    assert done.returncode == 0
    assert used_python(done) == python
    assert INSTALLED not in calls
    assert done.stderr.count("\n") == 1
    assert "warning" in done.stderr


def test_without_a_compiler_pypi_has_one(start, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS.split():
        (tools / name).symlink_to(shutil.which(name))
    path = f"{tmp_path}{os.pathsep}{tools}"
    variables = {"PATH": path, "CXX": "", "NO_CRF": NO_PYTHON_HAS}
    ziglang = [*INSTALL, "ziglang"]
    done, calls = start("run_demo.sh", **variables)
    assert set_up_calls(calls)[:4] == [MADE, ziglang, CRF_TOOLS, CRF]
    done, calls = start("run_demo.sh", FAILS="*ziglang", **variables)
    assert used_python(done) == "python3"
    assert done.stderr.count("\n") == 1


def test_pip_shows_what_it_does_and_how_it_fails(start, tmp_path):
    variables = {"LACKS": NO_PYTHON_HAS, "PIP_SAYS": "Downloading x.whl"}
    slow = {"PROGRESS_SECONDS": "0.2", "PIP_TAKES": "0.7"}
    assert "Downloading x.whl" in start("run_demo.sh", **variables, **slow)[0].stdout
    done, calls = start("run_demo.sh", FAILS="*pip*install*", **variables)
    assert done.returncode == 2
    assert calls[-1] == INSTALLED
    assert "Downloading x.whl" in done.stderr


def test_a_python_without_pytorch_is_refused_in_one_line(start):
    says = "ERROR: No matching distribution found for torch>=2.6"
    done, _ = start("run_demo.sh", LACKS=NO_PYTHON_HAS, FAILS="*pip*install*", PIP_SAYS=says)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Python 3.11" in done.stderr


@pytest.fixture
def interpreter(tmp_path):
    """Make a Python of that version that nothing is installed in; returns its path."""

    def make(version: str) -> Path:
        path = tmp_path / f"python{version}"
        shutil.copy(tmp_path / "python3", path)
        Path(f"{path}.version").write_text(version)
        return path

    return make


def test_the_caller_names_the_python(start, interpreter, tmp_path):
    path = interpreter("3.12")
    for name in ("python3.12", str(path)):
        assert used_python(start("run_demo.sh", PYTHON=name)[0]).endswith("python3.12")
    done, calls = start("run_demo.sh", PYTHON="python3.12", LACKS="python3.12 python")
    assert set_up_calls(calls)[:2] == [MADE, INSTALLED]
    assert used_python(done) == ".venv/bin/python"


def test_pythons_that_do_not_fit_are_refused_in_one_line(start, interpreter, venv):
    for version in ("3.9", "3.12"):
        interpreter(version)
    lacks = "python3 python3.12"
    for name, mentioned in (("python3.9", "3.10"), ("python3.99", "3.99"), ("python3.12", ".venv")):
        done, calls = start("run_demo.sh", PYTHON=name, LACKS=lacks)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert mentioned in done.stderr
        assert calls in ([], [["-m", "pip", "--version"]])
    assert used_python(start("run_demo.sh", LACKS=lacks)[0]) == ".venv/bin/python"
