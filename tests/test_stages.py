"""What every stage that writes files keeps to.

Each property is written once and runs over the table of stages.
"""

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from common import (
    INFERENCES,
    NAMES,
    SIZE,
    STAGES,
    TRAININGS,
    Run,
    assert_same_results,
    bytes_below,
    call,
    draw_maps,
    equal_tensors,
    files_below,
    label_of,
    refused,
    rotate,
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

ONE_EPOCH = ("--max_epochs", 1)


def other_flags(name: str) -> list[str]:
    """Flags that ask a stage for other results."""
    return STAGES[name].other_flags.split()


def image_of(result: str) -> str:
    """The name of the image that a result below a folder belongs to."""
    return Path(result).name.partition(".")[0].removesuffix("_overlay")


def changed_images(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The names of the images whose results were written between two calls of times_below."""
    return {image_of(path) for path in after if after[path] != before[path]}


def cut(path: Path) -> None:
    """Keep only the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", STAGES)
def test_a_second_run_writes_nothing(name, chain, run):
    chain.prepare(name, run)
    chain.copy_results(name, run)
    before = times_below(run.folder)
    run.stage(name)
    assert times_below(run.folder) == before


@pytest.mark.parametrize("name", TRAININGS)
def test_a_stopped_training_ends_with_the_same_weights(name, chain, run):
    chain.prepare(name, run)
    makes = run.makes(name)
    run.stop_stage(name)
    assert not makes.exists()
    num_workers = 1 if name == "train_seg" else 0  # any number ends with the same weights
    printed = run.stage(name, num_workers=num_workers)
    assert f"from step {STAGES[name].stop.calls}" in printed
    assert files_below(makes.parent) == {makes.name}
    assert_same_results(makes, chain.results(name))


@pytest.mark.parametrize("name", INFERENCES)
def test_a_stopped_inference_resumes_and_ends_with_the_same_files(name, chain, run):
    chain.prepare(name, run)
    run.stop_stage(name)
    finished = NAMES[: STAGES[name].stop.calls]
    written = {}
    for path, written_at in times_below(run.makes(name)).items():
        if image_of(path) in finished:
            written[path] = written_at
    assert written
    run.stage(name)
    assert written.items() <= times_below(run.makes(name)).items()
    assert_same_results(run.makes(name), chain.results(name))


@pytest.mark.parametrize("name", INFERENCES)
def test_overwrite_makes_all_results_again(name, chain, run):
    chain.prepare(name, run)
    chain.copy_results(name, run)
    makes = run.makes(name)
    label_file.save(makes / "of_another_list.png", np.zeros(SIZE, np.uint8))
    before = times_below(makes)
    run.stage(name, "--overwrite")
    after = times_below(makes)
    assert before.keys() - after.keys() == {"of_another_list.png"}
    assert all(after[path] > before[path] for path in after)
    assert_same_results(makes, chain.results(name))


@pytest.mark.parametrize("name", STAGES)
def test_other_settings_are_refused(name, chain, run):
    chain.prepare(name, run)
    chain.copy_results(name, run)
    before = times_below(run.folder)
    makes = run.makes(name)
    with refused(makes if STAGES[name].is_training else makes / "settings.json"):
        run.stage(name, *other_flags(name))
    assert times_below(run.folder) == before


@pytest.mark.parametrize("name", INFERENCES)
def test_other_settings_with_overwrite_replace_the_results(name, chain, run):
    chain.prepare(name, run)
    chain.copy_results(name, run)
    run.stage(name, *other_flags(name), "--overwrite")
    ours = bytes_below(run.makes(name))
    before = bytes_below(chain.results(name))
    assert ours.pop("settings.json") != before.pop("settings.json")
    assert ours != before


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("left", ["final", "last"])
def test_without_resume_a_training_starts_over(name, left, chain, run):
    chain.prepare(name, run)
    last = run.last_checkpoint(name)
    if left == "final":
        chain.copy_results(name, run)
    else:
        last.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"arguments": {}, "step": 1}, last)
    printed = run.stage(name, "--no-resume", "--seed", 3, *ONE_EPOCH)
    assert "from step" not in printed
    assert not last.exists()
    ours = weights_of(run.makes(name))
    before = weights_of(chain.results(name))
    assert equal_tensors(ours, before) != ours.keys()


@pytest.mark.parametrize("name", INFERENCES)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_with_files_of_unknown_origin_is_refused(name, overwrite, chain, run):
    chain.prepare(name, run)
    makes = run.makes(name)
    makes.mkdir(parents=True)
    (makes / "holiday.png").write_bytes(b"mine")
    with refused(makes):
        run.stage(name, *overwrite)
    assert bytes_below(makes) == {"holiday.png": b"mine"}


READ_MAPS = ("make_ir_labels", "labels_none", "labels_crf", "labels_irn")
SOURCES = {  # of one image, and the stages that read them
    f"{{voc}}/JPEGImages/{NAMES[1]}.jpg": INFERENCES,
    f"{{voc}}/Annotations/{NAMES[1]}.xml": ("make_cam",),
    f"{{run}}/cam/{NAMES[1]}.npz": READ_MAPS,
}


@pytest.mark.parametrize(
    ("source", "name"), [(source, name) for source, names in SOURCES.items() for name in names]
)
def test_only_what_is_older_than_its_sources_is_made_again(source, name, chain, own_run):
    chain.prepare(name, own_run)
    chain.copy_results(name, own_run)
    makes = own_run.makes(name)
    now = time.time()
    for path in makes.iterdir():
        os.utime(path, (now + 5, now + 5))
    os.utime(own_run.path(source), (now + 10, now + 10))
    before = times_below(makes)
    own_run.stage(name)
    assert changed_images(before, times_below(makes)) == {NAMES[1]}
    assert_same_results(makes, chain.results(name))


@pytest.mark.parametrize("name", INFERENCES)
def test_an_image_of_another_size_is_made_again_though_its_file_is_older(name, chain, own_run):
    chain.prepare(name, own_run)
    chain.copy_results(name, own_run)
    own_run.stage(name)  # notes the sizes
    makes = own_run.makes(name)
    before = times_below(makes)
    image = own_run.voc / f"JPEGImages/{NAMES[1]}.jpg"
    image.write_bytes(image.read_bytes() + b" ")
    os.utime(image, (1, 1))
    # also if the next run is stopped
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, Results, "readable", 0)
        own_run.stage(name)
    own_run.stage(name)
    after = times_below(makes)
    assert changed_images(before, after) == {NAMES[1]}
    own_run.stage(name)
    assert times_below(makes) == after


@pytest.mark.parametrize("name", INFERENCES)
def test_an_image_that_cannot_be_read_is_left_out_and_named(name, chain, own_run):
    chain.prepare(name, own_run)
    makes = own_run.makes(name)
    image = own_run.voc / f"JPEGImages/{NAMES[0]}.jpg"
    whole = image.read_bytes()
    cut(image)
    with pytest.raises(SkippedError, match=f"^{makes / 'skipped.json'}: "):
        own_run.stage(name)
    skipped = outputs.read_json(makes / "skipped.json")
    assert list(skipped) == [NAMES[0]]
    assert skipped[NAMES[0]].startswith(f"{image}: ")
    expected = files_below(chain.results(name))
    expected -= {path for path in expected if image_of(path) == NAMES[0]}
    assert files_below(makes) == expected | {"skipped.json"}
    image.write_bytes(whole)
    own_run.stage(name)
    assert_same_results(makes, chain.results(name))


def inputs_of_stages() -> list[tuple[str, str]]:
    """Each stage with the files that it reads, of one image if it reads one of each."""
    inputs = []
    for name, stage in STAGES.items():
        if name != "labels_none":
            inputs.append((name, f"{{voc}}/JPEGImages/{NAMES[2]}.jpg"))
        if stage.is_training:
            inputs.append((name, "{weights}"))
        for below in stage.needs:
            if below.endswith(".pth"):
                inputs.append((name, f"{{run}}/{below}"))
    for name in READ_MAPS:
        inputs.append((name, f"{{run}}/cam/{NAMES[2]}.npz"))
    for name in ("make_ir_labels", "labels_crf"):
        inputs.append((name, "{run}/cam/settings.json"))
    for name in ("train_sipe", "make_cam"):
        inputs.append((name, f"{{voc}}/Annotations/{NAMES[2]}.xml"))
    inputs.append(("train_irn", f"{{run}}/ir_label/{NAMES[2]}.png"))
    inputs.append(("train_seg", f"{{run}}/seg_label/{NAMES[2]}.png"))
    return inputs


@pytest.mark.parametrize(("name", "spoilt"), inputs_of_stages())
@pytest.mark.parametrize("spoil", [cut, Path.unlink], ids=["cut", "missing"])
def test_a_spoilt_input_is_named(name, spoilt, spoil, chain, own_run, tmp_path):
    if (name, spoil) == ("predict", Path.unlink) and "JPEGImages" in spoilt:
        pytest.skip("an image that is not there is no image of the folder")
    chain.prepare(name, own_run)
    weights = shutil.copy(own_run.weights, tmp_path / "backbone.pth")
    run = replace(own_run, weights=weights)
    path = run.path(spoilt)
    spoil(path)
    more = ["--strict"] if name in INFERENCES else []
    with pytest.raises(InputError) as error:
        run.stage(name, *more)
    assert str(path) in str(error.value)
    assert not list(run.folder.rglob("*.tmp"))


def output_flag(name: str) -> str | None:
    """The flag of the folder that a stage writes; None if it reads from there, too."""
    if name == "predict":
        return "--output_dir"
    if name.startswith(("labels", "infer")):
        return "--label_dir"
    return None if STAGES[name].needs else "--run_dir"


@pytest.mark.parametrize("name", [name for name in STAGES if output_flag(name)])
def test_a_folder_that_cannot_be_written_is_named(name, chain, run, tmp_path):
    chain.prepare(name, run)
    (tmp_path / "file").touch()
    folder = tmp_path / "file/below"
    with pytest.raises(InputError, match=f"^{folder}"):
        run.stage(name, output_flag(name), folder)


WITHOUT_DATA = {  # flags in which {missing} is not there
    "predict": "{missing} --ckpt {missing}",
    "prepare_voc": "--root {missing} --archive {missing}",
    "prepare_coco": "--root {missing}",
    "check_dataset": "{missing}",
}
SCRIPTS = [
    *dict.fromkeys(stage.script for stage in STAGES.values()),
    eval_cam,
    eval_seg,
    prepare_voc,
    prepare_coco,
    check_dataset,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_an_error_reaches_the_user_as_one_line(script, tmp_path, capsys, monkeypatch):
    missing = tmp_path / "nowhere"
    text = WITHOUT_DATA.get(script.__name__, "--dataset_root {missing} --run_dir {run}")
    flags = text.format(missing=missing, run=tmp_path / "run").split()
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
    assert cli_main(lambda: call(script.main, *flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{script.__name__}.py: error: ")
    assert str(missing) in line


def test_an_error_in_a_worker_process_is_one_line(chain, own_run, capfd, monkeypatch):
    chain.prepare("train_irn", own_run)
    cut(own_run.voc / f"JPEGImages/{NAMES[2]}.jpg")
    monkeypatch.setattr(sys, "argv", ["train_irn.py"])
    assert cli_main(lambda: own_run.stage("train_irn", num_workers=1)) == 2
    printed = capfd.readouterr().err.splitlines()
    (line,) = [line for line in printed if "error" in line.lower()]
    assert f"JPEGImages/{NAMES[2]}.jpg" in line


def test_images_that_are_left_out_give_status_three(chain, own_run):
    chain.prepare("make_cam", own_run)
    cut(own_run.voc / f"JPEGImages/{NAMES[2]}.jpg")
    assert cli_main(lambda: own_run.stage("make_cam")) == 3


LYING = NAMES[0]  # on its side
TWIN = NAMES[2]  # the same image, upright


class TestRotatedImages:
    """Results lie in the frame in which the image is stored, whatever its EXIF orientation."""

    @pytest.fixture
    def run(self, own_run) -> Run:
        """The first image lies on its side; the third is its upright twin."""
        rotate(own_run.voc / f"JPEGImages/{LYING}.jpg", own_run.voc / f"JPEGImages/{TWIN}.jpg")
        return own_run

    @pytest.fixture
    def two(self, tmp_path) -> list:
        return ["--list", write_lines(tmp_path / "two.txt", LYING, TWIN)]

    def test_maps(self, run, two, chain):
        chain.prepare("make_cam", run)
        run.stage("make_cam", *two)
        ours = np.load(cam_file.path_of(run.folder, LYING), allow_pickle=False)
        twin = np.load(cam_file.path_of(run.folder, TWIN), allow_pickle=False)
        with ours, twin:
            assert tuple(ours["size"]) == SIZE
            assert tuple(twin["size"]) == SIZE[::-1]
            for kind in ("is_cam_0", "is_cam_1", "cam_0", "cam_1"):
                turned = np.rot90(twin[kind], 1, (1, 2))
                np.testing.assert_array_equal(ours[kind], turned)

    @pytest.mark.parametrize("name", ["make_ir_labels", "labels_crf", "labels_irn"])
    def test_labels(self, name, run, two, chain):
        chain.prepare(name, run)
        draw_maps(run.voc, run.folder, rotated=(TWIN,))
        run.stage(name, *two)
        ours = label_of(run.makes(name), LYING)
        twin = label_of(run.makes(name), TWIN)
        assert twin.shape == SIZE[::-1]
        is_same = ours == np.rot90(twin)
        assert is_same.mean() > 0.95  # the CRF is not symmetric to the pixel
        assert share_of_changes_by_half_a_turn(twin) > 0.01
        if name == "labels_irn":
            ours = read_probability(run.makes(name), LYING)
            twin = read_probability(run.makes(name), TWIN)
            np.testing.assert_allclose(ours, np.rot90(twin, 1, (1, 2)), atol=1e-3)

    @pytest.mark.parametrize("crf", [[], ["--crf"]])
    def test_masks(self, crf, run, two, checkpoints):
        run.stage("infer_seg", "--ckpt", checkpoints["segmentation"], *crf, *two)
        assert_masks_are_turned(run.makes("infer_seg"))

    @pytest.mark.parametrize("crf", [[], ["--crf"]])
    def test_predictions(self, crf, run, checkpoints):
        run.stage("predict", "--ckpt", checkpoints["segmentation"], *crf)
        folder = run.makes("predict")
        assert_masks_are_turned(folder)
        # the overlay is upright
        ours = np.asarray(Image.open(folder / f"{LYING}_overlay.jpg"))
        twin = np.asarray(Image.open(folder / f"{TWIN}_overlay.jpg"))
        assert ours.shape == (*SIZE[::-1], 3)
        assert np.array_equal(ours, twin)

    @pytest.mark.parametrize("name", ["train_irn", "train_seg"])
    def test_trainings_learn_the_same_from_both(self, name, run, tmp_path):
        """The third of the image that is a dog tells one turn from another."""
        label = np.zeros(SIZE, np.uint8)
        label[:, :20] = 12
        stored = {LYING: label, TWIN: np.ascontiguousarray(np.rot90(label, -1))}
        results = []
        for image, image_label in stored.items():
            own = replace(run, folder=run.folder / image)
            (folder,) = STAGES[name].needs
            label_file.save(label_file.path_of(own.folder / folder, image), image_label)
            listed = write_lines(tmp_path / f"{image}.txt", image)
            own.stage(name, "--list", listed, "--batch_size", 1, *ONE_EPOCH)
            results.append(own.makes(name))
        assert_same_results(*results)


def share_of_changes_by_half_a_turn(label: np.ndarray) -> float:
    """The share of pixels that tell which way up a label is."""
    return (label != np.rot90(label, 2)).mean()


def read_probability(folder: Path, name: str) -> np.ndarray:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        return arrays["probability"]


def assert_masks_are_turned(folder: Path) -> None:
    ours = label_of(folder, LYING)
    twin = label_of(folder, TWIN)
    assert ours.shape == SIZE
    assert twin.shape == SIZE[::-1]
    assert np.array_equal(ours, np.rot90(twin))
    assert share_of_changes_by_half_a_turn(twin) > 0.01
