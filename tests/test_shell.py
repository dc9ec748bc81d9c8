"""The chains: what they say without data, which stages they start with what, and what they skip."""

import collections
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "train_resnet50_SIPE",
    "make_cam",
    "eval_cam",
    "make_ir_labels",
    "train_irn",
    "make_seg_labels",
    "eval_seg",
    "train_seg",
    "infer_seg",
)
STAGES = (*SCRIPTS, "eval_seg_pred")  # the last of them is eval_seg.py, too
OF_IRN = ("make_ir_labels", "train_irn")
EVALUATIONS = ("eval_cam", "eval_seg", "eval_seg_pred")
ON_EVERY_GPU = ("train_resnet50_SIPE", "make_cam", "train_irn", "make_seg_labels", "train_seg", "infer_seg")
SEG_EPOCHS = {"run_voc.sh": "30", "run_coco.sh": "12", "run_folder.sh": "30"}
LAST_LIST = {"run_voc.sh": "val", "run_coco.sh": "val", "run_folder.sh": "masked"}  # what the segmentation network is tried on
STUB = """
import sys
from collections.abc import Callable
from pathlib import Path
with open("calls.txt", "a") as file:
    print(Path(sys.argv[0]).stem, *sys.argv[1:], sep="|", file=file)
"""
CHAINS = {"run_voc.sh": "irn", "run_coco.sh": "crf", "run_folder.sh": "crf"}  # and what refines their labels by default
NEEDED = {
    "run_voc.sh": (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/train_aug.txt",
        "ImageSets/Segmentation/val.txt",
    ),
    "run_coco.sh": ("train2014", "train.txt", "tags.csv", "masks", "val2014", "val.txt"),
    "run_folder.sh": ("classes.txt", "tags.csv"),
}


def bash(folder: Path, *command: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["bash", *command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A copy of the chains with stages that only note how they were called."""
    for file in (*CHAINS, "run_demo.sh", "requirements.txt", "tool/environment.sh", "tool/chain.sh"):
        (tmp_path / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / "copy" / file)
    shutil.copytree(REPOSITORY / "data", tmp_path / "copy/data", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "errors.py", tmp_path / "copy")
    for script in SCRIPTS:
        (tmp_path / "copy" / f"{script}.py").write_text(STUB)
    return tmp_path / "copy"


def data_for(script: str, root: Path) -> Path:
    """All that a chain looks for before it starts, and masks."""
    for below in (*NEEDED[script], "masks"):
        path = root / below
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a,a\n" if path.suffix == ".csv" else "a\n") if path.suffix else path.mkdir(exist_ok=True)
    (root / "a.jpg").touch()
    (root / "masks/a.png").touch()
    return root


@pytest.fixture(params=CHAINS)
def script(request) -> str:
    return request.param


@pytest.fixture
def start(chain: Path, script: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Start a chain on data that is all there."""
    root = data_for(script, tmp_path / "the data")
    return lambda *more: bash(chain, script, "--dataset_root", str(root), "--run_dir", str(tmp_path / "a run"), *more)


def refusal(done: subprocess.CompletedProcess, script: str) -> str:
    """The one line that a chain ends with when it starts nothing."""
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: error: ") and "==" not in done.stdout
    return line


def calls(chain: Path) -> list[list[str]]:
    """Each stage that was started with its arguments: one script serves two stages, which --label_dir tells apart."""
    made = [line.split("|") for line in (chain / "calls.txt").read_text().splitlines()]
    return [["eval_seg_pred", *more] if script == "eval_seg" and "--label_dir" in more else [script, *more] for script, *more in made]


def stages_of(refine: str, evaluated: bool = True) -> list[str]:
    """The stages of a chain, in order."""
    left_out = (() if refine == "irn" else OF_IRN) + (() if evaluated else EVALUATIONS)
    return [stage for stage in STAGES if stage not in left_out]


def calls_of(script: str, root: Path, run_dir: Path, refine: str, stages: list[str] | None = None) -> list[list[str]]:
    """How a chain calls its stages."""
    common = ["--dataset", script[4:-3], "--dataset_root", str(root), "--run_dir", str(run_dir)]
    more = {
        "make_seg_labels": ["--refine", refine],
        "train_seg": ["--max_epochs", SEG_EPOCHS[script]],
        "infer_seg": ["--list", LAST_LIST[script]],
        "eval_seg_pred": ["--list", LAST_LIST[script], "--label_dir", f"{run_dir}/seg_pred"],
    }
    return [[stage, *common, *more.get(stage, [])] for stage in stages or stages_of(refine)]


def test_without_voc_it_says_what_it_looked_for_and_how_to_get_it(tmp_path):
    done = bash(REPOSITORY, "run_voc.sh", "--dataset_root", str(tmp_path / "nowhere"), "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "no JPEGImages in" in done.stderr and "train_aug.txt" in done.stderr and "VOCtrainval_11-May-2012.tar" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--datset_root", "x"], ["--run_dir"]])
@pytest.mark.parametrize("script", [*CHAINS, "run_demo.sh"])
def test_wrong_arguments_are_refused(script, arguments):
    assert arguments[0] in refusal(bash(REPOSITORY, script, *arguments), script)


@pytest.mark.parametrize("script", [*CHAINS, "run_demo.sh"])
def test_help(script):
    done = bash(REPOSITORY, script, "--help")
    assert done.returncode == 0 and f"bash {script} " in done.stdout
    assert "set -e" not in done.stdout and "#" not in done.stdout


def test_stages_run_in_order_each_time(chain, tiny_voc, tmp_path):
    arguments = ["run_voc.sh", "--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "a run")]
    for times in (1, 2):
        assert bash(chain, *arguments).returncode == 0
        assert calls(chain) == times * calls_of("run_voc.sh", tiny_voc, tmp_path / "a run", "irn")


def test_relative_paths_are_relative_to_where_it_is_called(chain, tiny_voc, tmp_path):
    assert bash(tmp_path, "copy/run_voc.sh", "--dataset_root", tiny_voc.name, "--run_dir", "a run").returncode == 0
    assert calls(chain)[0][3:] == ["--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "a run")]
    assert "bash run_voc.sh [" in bash(tmp_path, "copy/run_voc.sh", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "many"], "--gpus many: the batch of 16"),
        (["--gpus", "0"], "--gpus 0: the batch of 16"),
        (["--gpus", "3"], "--gpus 3: the batch of 16"),
        (["--gpus", "1 2"], "--gpus 1 2: the batch of 16"),
        (["--gpus"], "--gpus needs a value"),
        (["--refine", "sam"], "--refine sam: labels are refined by irn or crf"),
        (["--refine", ""], "labels are refined by irn or crf"),
        (["--refine"], "--refine needs a value"),
        (["--with"], "--with takes a stage"),
        (["--with", "make_cam"], "--with takes a stage"),
        (["--with", "make_cams", "--scales 1.0"], "--with make_cams: no such stage"),
        (["--with", "make_cam.py", "--scales 1.0"], "--with make_cam.py: no such stage"),
        (["--with", "../make_cam", "--scales 1.0"], "--with ../make_cam: no such stage"),
        (["--with", "", "--scales 1.0"], "--with : no such stage"),
        (["--with", "make_cam", "--scales", "1.0"], "unknown argument 1.0"),
        (["--from"], "--from needs a value"),
        (["--until"], "--until needs a value"),
        (["--from", "make_cams"], "--from make_cams: no such stage; there are train_resnet50_SIPE make_cam eval_cam "),
        (["--until", "make_cam.py"], "--until make_cam.py: no such stage; there are train_resnet50_SIPE make_cam eval_cam "),
        (["--from", "seg"], "--from seg: no such stage"),
        (["--until", "train_seg infer_seg"], "--until train_seg infer_seg: no such stage"),
        (["--until", ""], "--until : no such stage"),
        (["--until", "*"], "--until *: no such stage"),
        (
            ["--from", "train_seg", "--until", "eval_seg"],
            "--from train_seg: comes after --until eval_seg; the order is train_resnet50_SIPE ",
        ),
        (["--until", "eval_seg", "--from", "eval_seg_pred"], "--from eval_seg_pred: comes after --until eval_seg; "),
        (["--device", "cpu"], "unknown argument --device"),
        (["make_cam"], "unknown argument make_cam"),
    ],
    ids=str,
)
def test_a_chain_names_the_argument_that_it_does_not_take(start, script, chain, arguments, said):
    assert said in refusal(start(*arguments), script)
    assert not (chain / "calls.txt").exists()


@pytest.mark.parametrize(("script", "below"), [(script, below) for script in ("run_coco.sh", "run_folder.sh") for below in NEEDED[script]])
def test_missing_data_is_named_in_one_line_with_what_to_do(start, script, below, chain, tmp_path):
    path = tmp_path / "the data" / below
    path.unlink() if path.is_file() else shutil.rmtree(path)
    line = refusal(start(), script)
    assert f"no {below} in {tmp_path / 'the data'}; " in line and "python data/" in line
    assert not (chain / "calls.txt").exists() and not (tmp_path / "a run").exists()


@pytest.mark.parametrize("below", NEEDED["run_voc.sh"])
def test_missing_parts_of_voc_are_named_with_how_to_get_them(chain, tmp_path, below):
    root = data_for("run_voc.sh", tmp_path / "voc")
    path = root / below
    path.unlink() if path.is_file() else shutil.rmtree(path)
    done = bash(chain, "run_voc.sh", "--dataset_root", str(root))
    assert done.returncode == 2 and f"error: no {below} in {root} " in done.stderr and "python data/prepare_voc.py" in done.stderr
    assert done.stderr.count("error:") == 1 and not (chain / "calls.txt").exists()


@pytest.mark.parametrize("below", ["VOC2012", "VOCdevkit/VOC2012"])
def test_voc_may_lie_below_the_root(chain, tmp_path, below):
    data_for("run_voc.sh", tmp_path / "voc" / below)
    assert bash(chain, "run_voc.sh", "--dataset_root", str(tmp_path / "voc")).returncode == 0
    assert {call[4] for call in calls(chain)} == {str(tmp_path / "voc")}


def test_a_folder_has_no_usual_place(chain):
    assert "give --dataset_root DIR" in refusal(bash(chain, "run_folder.sh"), "run_folder.sh")


@pytest.mark.parametrize("refine", [None, "irn", "crf"])
def test_every_chain_starts_its_stages_on_its_dataset(start, script, chain, tmp_path, refine):
    done = start(*(["--refine", refine] if refine else []))
    assert done.returncode == 0
    chosen = refine or CHAINS[script]
    assert calls(chain) == calls_of(script, tmp_path / "the data", tmp_path / "a run", chosen)
    assert [line for line in done.stdout.splitlines() if line.startswith("==")] == [f"== {stage}" for stage in stages_of(chosen)]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--from", "train_seg"], ["train_seg", "infer_seg", "eval_seg_pred"]),
        (["--from", "eval_seg"], ["eval_seg", "train_seg", "infer_seg", "eval_seg_pred"]),
        (["--until", "make_cam"], ["train_resnet50_SIPE", "make_cam"]),
        (["--until", "eval_seg"], stages_of("irn")[:-3]),
        (["--from", "train_irn", "--until", "eval_seg"], ["train_irn", "make_seg_labels", "eval_seg"]),
        (["--until", "infer_seg", "--from", "infer_seg"], ["infer_seg"]),
        (["--from", "eval_seg_pred", "--until", "eval_seg_pred"], ["eval_seg_pred"]),
        (["--from", "train_resnet50_SIPE", "--until", "eval_seg_pred"], stages_of("irn")),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_chain_starts_and_stops_at_the_stages_that_are_named(start, script, chain, tmp_path, flags, wanted):
    assert start("--refine", "irn", *flags).returncode == 0
    assert calls(chain) == calls_of(script, tmp_path / "the data", tmp_path / "a run", "irn", wanted)


def test_a_chain_may_start_at_a_stage_that_its_refinement_leaves_out(start, chain):
    assert start("--refine", "crf", "--from", "make_ir_labels", "--until", "train_seg").returncode == 0
    assert [call[0] for call in calls(chain)] == ["make_seg_labels", "eval_seg", "train_seg"]


@pytest.mark.parametrize("script", ["run_voc.sh", "run_coco.sh"])
def test_the_validation_list_is_needed_for_the_masks_of_its_pictures_only(start, script, chain, tmp_path):
    (tmp_path / "the data" / next(below for below in NEEDED[script] if below.endswith("val.txt"))).unlink()
    done = start()
    assert done.returncode == 2 and "val.txt in " in done.stderr
    assert start("--from", "infer_seg").returncode == 2
    assert not (chain / "calls.txt").exists()
    assert start("--until", "train_seg").returncode == 0
    assert [call[0] for call in calls(chain)] == stages_of(CHAINS[script])[:-2]


@pytest.mark.parametrize("left", [None, (), ("b.png", "a.bmp")], ids=["no folder", "an empty folder", "none that is used"])
def test_without_masks_a_folder_is_not_evaluated(chain, tmp_path, left):
    root = data_for("run_folder.sh", tmp_path / "mine")
    shutil.rmtree(root / "masks")
    if left is not None:
        (root / "masks").mkdir()
        for name in left:
            (root / "masks" / name).touch()
    assert bash(tmp_path, "copy/run_folder.sh", "--dataset_root", "mine", "--run_dir", "run").returncode == 0
    assert [call[0] for call in calls(chain)] == stages_of("crf", evaluated=False)
    assert calls(chain)[-1][-2:] == ["--list", "tagged"]
    assert {tuple(call[3:7]) for call in calls(chain)} == {("--dataset_root", str(root), "--run_dir", str(tmp_path / "run"))}


def test_further_flags_reach_the_stages_that_they_are_meant_for(start, script, chain, tmp_path):
    flags = {
        "make_cam": "--scales 1.0 0.5 --amp bf16",
        "train_resnet50_SIPE": "--max_epochs 50",
        "make_seg_labels": "--beta 8",
        "eval_cam": "",
        "eval_seg": "--num_workers 1",
        "train_seg": "--network deeplabv2_resnet50 --max_epochs 5",
        "infer_seg": "--crf",
        "eval_seg_pred": "--num_workers 2",
    }
    assert start(*(part for stage, more in flags.items() for part in ("--with", stage, more))).returncode == 0
    made = {call[0]: call[7:] for call in calls(chain)}
    assert list(made) == stages_of(CHAINS[script])
    own = {call[0]: call[7:] for call in calls_of(script, tmp_path / "the data", tmp_path / "a run", CHAINS[script])}
    assert made == {stage: [*own[stage], *flags.get(stage, "").split()] for stage in made}


def test_flags_are_not_expanded_by_the_shell(start, chain, tmp_path):
    (chain / "make_cam.txt").touch()
    assert start("--with", "make_cam", "--list *.txt $(touch oops) ~ ;ls").returncode == 0
    (made,) = (call[7:] for call in calls(chain) if call[0] == "make_cam")
    assert made == ["--list", "*.txt", "$(touch", "oops)", "~", ";ls"]
    assert not (chain / "oops").exists()


def stub_torchrun(chain: Path) -> None:
    """A torchrun that notes how it was called, which spares the tests eight starts of PyTorch."""
    (chain / "torch/distributed").mkdir(parents=True)
    for package in ("torch", "torch/distributed"):
        (chain / package / "__init__.py").touch()
    (chain / "torch/distributed/run.py").write_text(STUB)


@pytest.mark.parametrize(
    ("refine", "on_every_gpu"),
    [("irn", ON_EVERY_GPU), ("crf", ("train_resnet50_SIPE", "make_cam", "train_seg", "infer_seg"))],
)
def test_the_crf_takes_one_process_and_all_else_every_gpu(start, chain, refine, on_every_gpu):
    stub_torchrun(chain)
    assert (
        start("--gpus", "4", "--refine", refine, "--with", "make_cam", "--scales 1.0", "--with", "eval_cam", "--list val").returncode == 0
    )
    launched = [call for call in calls(chain) if call[0] == "run"]
    assert [call[1:5] for call in launched] == [["--standalone", "--nproc_per_node", "4", f"{stage}.py"] for stage in on_every_gpu]
    assert launched[1][-2:] == ["--scales", "1.0"]
    alone = [call for call in calls(chain) if call[0] != "run"]
    assert [call[0] for call in alone] == [stage for stage in stages_of(refine) if stage not in on_every_gpu]
    assert alone[0][0] == "eval_cam" and alone[0][-2:] == ["--list", "val"]


def test_coco_says_what_it_will_take_before_it_starts(chain, tmp_path):
    root = data_for("run_coco.sh", tmp_path / "coco")
    (root / "train.txt").write_text("a\n" * 82081)
    done = bash(chain, "run_coco.sh", "--dataset_root", str(root), "--run_dir", str(tmp_path / "not/yet/there"))
    assert done.returncode == 0
    pictures, disk, time, segmentation, *stages = done.stdout.splitlines()
    assert pictures.startswith("82081 pictures.") and "(25650 steps)" in pictures and pictures.endswith("by crf")
    assert disk.startswith(f"disk: 9 GB in {tmp_path / 'not/yet/there'} ") and " GB are free" in disk
    assert time.startswith("time: 342 hours 0 minutes on 2 CPU cores")
    assert segmentation.startswith("then a segmentation network: 61560 steps")
    assert stages == [f"== {stage}" for stage in stages_of("crf")]
    shortened = bash(chain, "run_coco.sh", "--dataset_root", str(root), "--until", "eval_seg").stdout
    assert "a segmentation network" not in shortened


def test_a_failing_stage_ends_the_chain(chain, tiny_voc, tmp_path):
    (chain / "make_cam.py").write_text("raise SystemExit(2)")
    assert bash(chain, "run_voc.sh", "--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "run")).returncode == 2
    assert [call[0] for call in calls(chain)] == ["train_resnet50_SIPE"]


def test_several_gpus_start_several_processes(chain, tiny_voc, tmp_path):
    assert bash(chain, "run_voc.sh", "--dataset_root", str(tiny_voc), "--run_dir", str(tmp_path / "run"), "--gpus", "2").returncode == 0
    counts = collections.Counter(call[0] for call in calls(chain))
    assert counts == {stage: 2 if stage in ON_EVERY_GPU else 1 for stage in STAGES}
