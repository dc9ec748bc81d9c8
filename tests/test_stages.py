"""What every stage that writes files keeps to; each property is written once and runs over the table of stages."""

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from common import (
    NAMES,
    SIZE,
    STAGES,
    assert_same_results,
    bytes_below,
    call,
    draw_maps,
    files_below,
    in_two_processes,
    kill_once_there,
    label_of,
    one_thread,
    rotate,
    run_stage,
    stage_flags,
    stop_after,
    times_below,
    weights_of,
    write_lines,
)
from PIL import Image

import check_dataset
import eval_cam
import eval_seg
import prepare_coco
import prepare_voc
from errors import InputError, SkippedError
from tool import cam_file, label_file, outputs
from tool.context import cli_main
from tool.results import Results

TRAININGS = [name for name, stage in STAGES.items() if stage.is_training]
FOLDERS = [name for name, stage in STAGES.items() if not stage.is_training]


def results_of(name: str, chain: Path) -> Path:
    return chain / "maps/cam" if name == "make_cam" else chain / STAGES[name].makes


def prepare(name: str, chain: Path, run_dir: Path, with_results: bool = False) -> Path:
    """A run directory with what the stage reads, and with its own results if asked for."""
    for path in STAGES[name].needs:
        (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
        if (chain / path).is_dir():
            shutil.copytree(chain / path, run_dir / path)
        else:
            os.link(chain / path, run_dir / path)
    makes = run_dir / STAGES[name].makes
    if with_results:
        makes.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copy if STAGES[name].is_training else shutil.copytree)(
            results_of(name, chain), makes
        )
        for path in makes.iterdir() if makes.is_dir() else ():
            os.utime(path)  # newer than what it is made from
    return makes


@pytest.fixture
def run(fixed_voc, tiny_backbone, run_dir):
    """Run a stage in the test's own run directory."""
    return lambda name, *more, **options: run_stage(
        name, fixed_voc, run_dir, tiny_backbone, *more, **options
    )


@pytest.mark.parametrize("name", STAGES)
def test_a_second_run_writes_nothing(name, chain, run_dir, run):
    prepare(name, chain, run_dir, with_results=True)
    before = times_below(run_dir)
    run(name)
    assert times_below(run_dir) == before


@pytest.mark.parametrize("name", STAGES)
def test_a_stopped_run_ends_with_the_same_results(name, chain, run_dir, run):
    makes, (module, function, times) = prepare(name, chain, run_dir), STAGES[name].stop
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, module, function, times)
        run(name)
    done = times_below(run_dir)
    assert not (STAGES[name].is_training and makes.exists())
    printed = run(name, num_workers=1 if name == "train_seg" else 0)
    if STAGES[name].is_training:
        assert f"from step {times}" in printed
        assert files_below(makes.parent) == {makes.name}
    else:
        kept = {
            path: time
            for path, time in done.items()
            if Path(path).name.startswith(tuple(NAMES[:times]))
        }
        assert kept and kept.items() <= times_below(run_dir).items()
    assert_same_results(makes, results_of(name, chain))


@pytest.mark.parametrize("name", FOLDERS)
def test_overwrite_makes_all_results_again(name, chain, run_dir, run):
    makes = prepare(name, chain, run_dir, with_results=True)
    label_file.save(makes / "of_another_list.png", np.zeros(SIZE, np.uint8))
    before = times_below(makes)
    run(name, "--overwrite")
    after = times_below(makes)
    assert before.keys() - after.keys() == {"of_another_list.png"}
    assert all(after[path] > before[path] for path in after)
    assert_same_results(makes, results_of(name, chain))


@pytest.mark.parametrize("name", STAGES)
def test_other_settings_are_refused(name, chain, run_dir, run):
    makes = prepare(name, chain, run_dir, with_results=True)
    before = times_below(run_dir)
    named = makes if STAGES[name].is_training else makes / "settings.json"
    with pytest.raises(InputError, match=f"^{named}: "):
        run(name, *STAGES[name].other.split())
    assert times_below(run_dir) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_other_settings_with_overwrite_replace_the_results(name, chain, run_dir, run):
    makes = prepare(name, chain, run_dir, with_results=True)
    run(name, *STAGES[name].other.split(), "--overwrite")
    assert bytes_below(makes) != bytes_below(results_of(name, chain))
    assert (makes / "settings.json").read_bytes() != (
        results_of(name, chain) / "settings.json"
    ).read_bytes()


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("left", ["final", "last"])
def test_without_resume_a_training_starts_over(name, left, chain, run_dir, run):
    makes = prepare(name, chain, run_dir, with_results=left == "final")
    last = makes.with_name("last.pth" if name == "train_sipe" else f"{makes.stem}_last.pth")
    if left == "last":
        makes.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"arguments": {}, "step": 1}, last)
    before = weights_of(results_of(name, chain))
    assert "from step" not in run(name, "--no-resume", "--seed", 3, "--max_epochs", 1)
    assert not last.exists()
    assert any(not torch.equal(value, before[key]) for key, value in weights_of(makes).items())


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_with_somebody_elses_files_is_refused(name, overwrite, chain, run_dir, run):
    makes = prepare(name, chain, run_dir)
    makes.mkdir(parents=True)
    (makes / "holiday.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=f"^{makes}: "):
        run(name, *overwrite)
    assert bytes_below(makes) == {"holiday.png": b"mine"}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("newer", ["image", "source"])
def test_only_what_is_older_than_its_sources_is_made_again(
    name, newer, chain, run_dir, tiny_voc, tiny_backbone
):
    makes = prepare(name, chain, run_dir, with_results=True)
    if newer == "image":
        source = tiny_voc / f"JPEGImages/{NAMES[1]}.jpg"
    elif name == "make_cam":
        source = tiny_voc / f"Annotations/{NAMES[1]}.xml"
    elif "cam" in STAGES[name].needs:
        source = cam_file.path_of(run_dir, NAMES[1])
    else:
        pytest.skip("reads nothing but the image and a checkpoint")
    now = time.time()
    for path in makes.iterdir():
        os.utime(path, (now + 5, now + 5))
    os.utime(source, (now + 10, now + 10))
    before = times_below(makes)
    run_stage(name, tiny_voc, run_dir, tiny_backbone)
    after = times_below(makes)
    assert {
        Path(path).name.split(".")[0].removesuffix("_overlay")
        for path in after
        if after[path] != before[path]
    } == {NAMES[1]}
    assert_same_results(makes, results_of(name, chain))


@pytest.mark.parametrize("name", FOLDERS)
def test_an_image_of_another_size_is_made_again_though_its_file_is_older(
    name, chain, run_dir, tiny_voc, tiny_backbone
):
    makes = prepare(name, chain, run_dir, with_results=True)
    run_stage(name, tiny_voc, run_dir, tiny_backbone)
    image, before = tiny_voc / f"JPEGImages/{NAMES[1]}.jpg", times_below(makes)
    image.write_bytes(image.read_bytes() + b" ")
    os.utime(image, (1, 1))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
    ):  # also if the next run is stopped
        stop_after(patch, Results, "readable", 0)
        run_stage(name, tiny_voc, run_dir, tiny_backbone)
    run_stage(name, tiny_voc, run_dir, tiny_backbone)
    after = times_below(makes)
    assert {
        Path(path).name.split(".")[0].removesuffix("_overlay")
        for path in after
        if after[path] != before[path]
    } == {NAMES[1]}
    run_stage(name, tiny_voc, run_dir, tiny_backbone)
    assert times_below(makes) == after


@pytest.mark.parametrize("name", FOLDERS)
def test_an_image_that_cannot_be_read_is_left_out_and_named(
    name, chain, run_dir, tiny_voc, tiny_backbone
):
    makes, image = prepare(name, chain, run_dir), tiny_voc / f"JPEGImages/{NAMES[0]}.jpg"
    whole = image.read_bytes()
    cut(image)
    with pytest.raises(SkippedError, match=f"^{makes / 'skipped.json'}: "):
        run_stage(name, tiny_voc, run_dir, tiny_backbone)
    skipped = outputs.read_json(makes / "skipped.json")
    assert list(skipped) == [NAMES[0]] and skipped[NAMES[0]].startswith(f"{image}: ")
    done = {
        path
        for path in files_below(results_of(name, chain))
        if not Path(path).name.startswith(NAMES[0])
    }
    assert files_below(makes) == done | {"skipped.json"}
    image.write_bytes(whole)
    run_stage(name, tiny_voc, run_dir, tiny_backbone)
    assert_same_results(makes, results_of(name, chain))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        *((name, f"{{voc}}/JPEGImages/{NAMES[2]}.jpg") for name in STAGES if name != "labels_none"),
        *(
            (name, f"{{run}}/cam/{NAMES[2]}.npz")
            for name in ("make_ir_labels", "labels_none", "labels_crf", "labels_irn")
        ),
        *((name, "{run}/cam/settings.json") for name in ("make_ir_labels", "labels_crf")),
        ("train_irn", f"{{run}}/ir_label/{NAMES[2]}.png"),
        ("train_seg", f"{{run}}/seg_label/{NAMES[2]}.png"),
        ("make_cam", f"{{voc}}/Annotations/{NAMES[2]}.xml"),
        ("train_sipe", f"{{voc}}/Annotations/{NAMES[2]}.xml"),
        *(
            (name, "{run}/" + path)
            for name, stage in STAGES.items()
            for path in stage.needs
            if path.endswith(".pth")
        ),
        *((name, "{weights}") for name in TRAININGS),
    ],
)
@pytest.mark.parametrize("how", [cut, Path.unlink], ids=["cut", "missing"])
def test_a_spoilt_input_is_named(
    name, spoilt, how, chain, run_dir, tiny_voc, tiny_backbone, tmp_path
):
    prepare(name, chain, run_dir)
    weights = (
        shutil.copy(tiny_backbone, tmp_path / "backbone.pth")
        if spoilt == "{weights}"
        else tiny_backbone
    )
    path = Path(spoilt.format(run=run_dir, voc=tiny_voc, weights=weights))
    if path.suffix == ".pth":
        path.write_bytes(path.read_bytes()) if path.stat().st_nlink == 1 else shutil.move(
            shutil.copy(path, f"{path}.own"), path
        )
    how(path)
    if name == "predict" and how is Path.unlink and path.suffix == ".jpg":
        pytest.skip("an image that is not there is no image of the folder")
    with pytest.raises(InputError) as error:
        run_stage(name, tiny_voc, run_dir, weights, *(["--strict"] if name in FOLDERS else []))
    assert str(path) in str(error.value)
    assert not list(run_dir.rglob("*.tmp"))


@pytest.mark.parametrize("name", STAGES)
def test_a_run_directory_that_cannot_be_written_is_named(
    name, chain, run_dir, fixed_voc, tiny_backbone, tmp_path
):
    prepare(name, chain, run_dir)
    (tmp_path / "file").touch()
    where = tmp_path / "file/below"
    flag = "--run_dir"
    if name == "predict":
        flag = "--output_dir"
    elif name.startswith(("labels", "infer")):
        flag = "--label_dir"
    elif STAGES[name].needs:
        return  # what it reads lies in the run directory
    with pytest.raises(InputError, match=f"^{where}"):
        call(
            STAGES[name].script.main,
            *stage_flags(name, fixed_voc, run_dir, tiny_backbone),
            flag,
            where,
        )


@pytest.mark.parametrize(
    "script",
    [
        *dict.fromkeys(stage.script for stage in STAGES.values()),
        eval_cam,
        eval_seg,
        prepare_voc,
        prepare_coco,
        check_dataset,
    ],
    ids=lambda script: script.__name__,
)
def test_an_error_reaches_the_user_as_one_line(script, tmp_path, capsys, monkeypatch):
    missing = str(tmp_path / "nowhere")
    flags = {
        "predict": [missing, "--ckpt", missing],
        "prepare_voc": ["--root", missing, "--archive", missing],
        "prepare_coco": ["--root", missing],
        "check_dataset": [missing],
    }.get(script.__name__, ["--dataset_root", missing, "--run_dir", str(tmp_path / "run")])
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
    assert cli_main(lambda: script.main(flags)) == 2
    printed = capsys.readouterr().err.splitlines()
    assert (
        len(printed) == 1
        and printed[0].startswith(f"{script.__name__}.py: error: ")
        and missing in printed[0]
    )


def test_an_error_in_a_worker_process_is_one_line(
    chain, run_dir, tiny_voc, tiny_backbone, capfd, monkeypatch
):
    prepare("train_irn", chain, run_dir)
    cut(tiny_voc / f"JPEGImages/{NAMES[2]}.jpg")
    monkeypatch.setattr(sys, "argv", ["train_irn.py"])
    assert (
        cli_main(lambda: run_stage("train_irn", tiny_voc, run_dir, tiny_backbone, num_workers=1))
        == 2
    )
    printed = [line for line in capfd.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(printed) == 1 and f"JPEGImages/{NAMES[2]}.jpg" in printed[0]


def test_images_that_are_left_out_give_status_three(chain, run_dir, tiny_voc, tiny_backbone):
    prepare("make_cam", chain, run_dir)
    cut(tiny_voc / f"JPEGImages/{NAMES[2]}.jpg")
    assert cli_main(lambda: run_stage("make_cam", tiny_voc, run_dir, tiny_backbone)) == 3


class TestRotatedImages:
    """Results lie in the frame in which the image is stored, whatever its EXIF orientation."""

    @pytest.fixture
    def voc(self, tiny_voc):
        """The first image lies on its side; the third is its upright twin."""
        self.stored = rotate(
            *(tiny_voc / f"JPEGImages/{name}.jpg" for name in (NAMES[0], NAMES[2]))
        )
        return tiny_voc

    @pytest.fixture
    def two(self, tmp_path):
        return ["--list", write_lines(tmp_path / "two.txt", NAMES[0], NAMES[2])]

    def test_maps(self, voc, two, chain, run_dir, tiny_backbone):
        prepare("make_cam", chain, run_dir)
        run_stage("make_cam", voc, run_dir, tiny_backbone, *two)
        with (
            np.load(cam_file.path_of(run_dir, NAMES[0])) as ours,
            np.load(cam_file.path_of(run_dir, NAMES[2])) as twin,
        ):
            assert (ours["size"].tolist(), twin["size"].tolist()) == ([48, 64], [64, 48])
            for kind in ("is_cam_0", "is_cam_1", "cam_0", "cam_1"):
                np.testing.assert_array_equal(ours[kind], np.rot90(twin[kind], 1, (1, 2)))

    @pytest.mark.parametrize("name", ["make_ir_labels", "labels_crf", "labels_irn"])
    def test_labels(self, name, voc, two, chain, run_dir, tiny_backbone):
        prepare(name, chain, run_dir)
        draw_maps(voc, run_dir, rotated=(NAMES[2],))
        run_stage(name, voc, run_dir, tiny_backbone, *two)
        ours, twin = (
            label_of(run_dir / STAGES[name].makes, image) for image in (NAMES[0], NAMES[2])
        )
        assert twin.shape == SIZE[::-1]
        assert (ours == np.rot90(twin)).mean() > 0.95  # the CRF is not symmetric to the pixel
        assert (twin != np.rot90(twin, 2)).mean() > 0.01
        if name == "labels_irn":
            ours, twin = (
                np.load(run_dir / f"seg_label/{image}.npz")["probability"]
                for image in (NAMES[0], NAMES[2])
            )
            np.testing.assert_allclose(ours, np.rot90(twin, 1, (1, 2)), atol=1e-3)

    @pytest.mark.parametrize("name", ["infer_seg", "predict"])
    @pytest.mark.parametrize("crf", [[], ["--crf"]])
    def test_masks(self, name, crf, voc, two, checkpoints, run_dir, tiny_backbone):
        ckpt = ["--ckpt", checkpoints["segmentation"]]
        run_stage(
            name, voc, run_dir, tiny_backbone, *ckpt, *crf, *([] if name == "predict" else two)
        )
        ours, twin = (
            label_of(run_dir / STAGES[name].makes, image) for image in (NAMES[0], NAMES[2])
        )
        assert (ours.shape, twin.shape) == (SIZE, SIZE[::-1])
        assert np.array_equal(ours, np.rot90(twin))
        assert (twin != np.rot90(twin, 2)).mean() > 0.01
        if name == "predict":  # the overlay is upright
            overlays = [
                np.asarray(Image.open(run_dir / f"predictions/{image}_overlay.jpg"))
                for image in (NAMES[0], NAMES[2])
            ]
            assert overlays[0].shape == (*SIZE[::-1], 3) and np.array_equal(*overlays)

    @pytest.mark.parametrize(
        ("name", "folder"), [("train_irn", "ir_label"), ("train_seg", "seg_label")]
    )
    def test_trainings_learn_the_same_from_both(
        self, name, folder, voc, run_dir, tiny_backbone, tmp_path
    ):
        """The third of the image that is a dog tells one turn from another."""
        label = np.zeros(SIZE, np.uint8)
        label[:, :20] = 12
        for image, stored in ((NAMES[0], label), (NAMES[2], np.rot90(label, -1))):
            label_file.save(
                label_file.path_of(run_dir / image / folder, image), np.ascontiguousarray(stored)
            )
            one = [
                "--list",
                write_lines(tmp_path / f"{image}.txt", image),
                "--batch_size",
                1,
                "--max_epochs",
                1,
            ]
            run_stage(name, voc, run_dir / image, tiny_backbone, *one)
        assert_same_results(
            *(run_dir / image / STAGES[name].makes for image in (NAMES[0], NAMES[2]))
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_training_ends_with_the_same_weights(
    name, chain, run_dir, run, fixed_voc, tiny_backbone
):
    makes = prepare(name, chain, run_dir)
    last = makes.with_name("last.pth" if name == "train_sipe" else f"{makes.stem}_last.pth")
    kill_once_there(last, STAGES[name].script, stage_flags(name, fixed_voc, run_dir, tiny_backbone))
    assert not makes.exists()
    assert "from step" in run(name)
    assert_same_results(makes, results_of(name, chain))


@pytest.mark.slow
def test_two_processes_do_what_one_does(chain, run_dir, fixed_voc, tiny_backbone):
    """Maps, labels and masks byte by byte; a step over two halves of the batch is one over the whole, up to rounding."""
    together, alone = run_dir / "together", run_dir / "alone"
    one_step = ["--batch_size", 6, "--max_epochs", 1]
    more = {
        "train_sipe": one_step,
        "train_irn": one_step,
        "train_seg": [*one_step, "--lr", 1e-3, "--class_balance", 0.5],
    }
    for folder in (together, alone):
        shutil.copytree(chain / "cam", folder / "drawn/cam")
    calls = []
    for name in STAGES:
        flags = stage_flags(
            name,
            fixed_voc,
            together / ("drawn" if name not in ("train_sipe", "make_cam") else ""),
            tiny_backbone,
        )
        calls.append([STAGES[name].script, *flags, *more.get(name, [])])
    in_two_processes(calls)
    with one_thread():
        for name in STAGES:
            where = alone / ("drawn" if name not in ("train_sipe", "make_cam") else "")
            for path in STAGES[name].needs:  # from the same weights
                if path.endswith(".pth"):
                    shutil.copy(together / where.relative_to(alone) / path, where / path)
            run_stage(name, fixed_voc, where, tiny_backbone, *more.get(name, []))
            makes = STAGES[name].makes
            ours, theirs = (base / where.relative_to(alone) / makes for base in (together, alone))
            if STAGES[name].is_training:
                one, other = weights_of(ours), weights_of(theirs)
                for key, value in one.items():
                    assert (value - other[key]).abs().max() <= 1e-4 * other[
                        key
                    ].abs().max() + 1e-6, (name, key)
            else:
                assert_same_results(ours, theirs)


@pytest.mark.slow
def test_a_compiled_training_is_resumed_without_compile(run_dir, fixed_voc, tiny_backbone):
    """The rate is small: with random weights a large one lets roundings grow into other seeds."""
    (module, function, _), flags = STAGES["train_sipe"].stop, ["--lr", 0.001]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, module, function, 3)
        run_stage("train_sipe", fixed_voc, run_dir / "compiled", tiny_backbone, *flags, "--compile")
    assert "from step 3" in run_stage(
        "train_sipe", fixed_voc, run_dir / "compiled", tiny_backbone, *flags
    )
    run_stage("train_sipe", fixed_voc, run_dir / "plain", tiny_backbone, *flags)
    ours, theirs = (weights_of(run_dir / name / "ckpt/final.pth") for name in ("compiled", "plain"))
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= 1e-5 * theirs[name].abs().max() + 1e-7, name
