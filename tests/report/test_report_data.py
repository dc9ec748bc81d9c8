"""The report: what it reads, what it writes and what it refuses."""

import shutil

import numpy as np
import pytest
from common import rotate
from drawn_run import (
    CLASSES,
    CURVE_POINTS,
    NAMES,
    STEPS,
    class_of,
    evaluate_run,
    make_data,
    make_page,
    make_run,
    read_data,
    truth,
)
from PIL import Image

import eval_seg
from data.images import read_image
from errors import InputError
from tool.outputs import write_json

MAX_POINTS = 300  # of a curve


def test_classes_and_stages_have_their_names(page):
    data = read_data(page)
    assert data["classes"] == CLASSES
    titles = [stage["title"] for stage in data["stages"]]
    assert titles == ["general CAM", "IS-CAM", "CRF labels"]


def test_an_image_has_its_tags_and_scores(page):
    images = read_data(page)["images"]
    tags = [(image["name"], image["tags"]) for image in images]
    assert tags == [(name, [class_of(i)]) for i, name in enumerate(NAMES)]

    scores = [image["stages"]["2"]["miou"] for image in images]
    shifted = np.mean([28 / 36, 1920 / 2176])  # by 4 of the 32 columns of the object
    assert scores[0] == pytest.approx(100)
    assert scores[1] == pytest.approx(100 * shifted, abs=0.06)
    assert scores[5] == pytest.approx(100 / 3, abs=0.06)  # background's two thirds, and nothing


def test_a_mask_has_its_classes_and_their_shares(page):
    first_image = read_data(page)["images"][0]
    class_id, share, *_ = first_image["truth"][0]
    assert (class_id, share) == (1, 33.3)


def test_an_image_has_a_file_for_each_layer(page):
    files = {path.name for path in page.parent.glob("1*")}
    masks = {"1_0.png", "1_1.png", "1_2.png", "1_t.png"}
    heat_maps = {"1_0_2.png", "1_1_2.png"}
    assert files == {"1.jpg"} | masks | heat_maps


def test_curves_are_thin_and_reach_the_end(page):
    (line,) = CURVE_POINTS.findall(page.read_text())
    points = line.split()
    assert STEPS / 5 < len(points) <= MAX_POINTS
    assert "nan" not in line
    last_x, _ = points[-1].split(",")
    assert float(last_x) > 99


@pytest.fixture
def own_run(page, tmp_path):
    """A test's own copy of the run, with its report."""
    return shutil.copytree(page.parent.parent, tmp_path / "run")


def test_a_report_is_written_anew(own_run):
    page = make_page(own_run)
    content = page.read_text()
    make_page(own_run, flags=("--max_images", 3))
    shown = [image["name"] for image in read_data(page)["images"]]
    assert shown == NAMES[::2]
    assert not (page.parent / "3.jpg").exists()
    assert make_page(own_run).read_text() == content


def test_a_report_never_replaces_other_files(own_run):
    page = own_run / "report/index.html"
    content = page.read_text()
    (page.parent / "settings.json").unlink()
    with pytest.raises(InputError, match="report"):
        make_page(own_run)
    assert page.read_text() == content


@pytest.fixture(scope="module")
def unscored_run(data, tmp_path_factory):
    return make_run(data, tmp_path_factory.mktemp("unscored"), evaluate=False)


def test_a_dataset_that_nothing_notes_is_asked_for(unscored_run):
    with pytest.raises(InputError, match=unscored_run.name):
        make_page(unscored_run)
    assert not (unscored_run / "report").exists()


def test_a_folder_without_a_run_is_named(data, tmp_path):
    with pytest.raises(InputError, match="none"):
        make_page(tmp_path / "none", flags=("--dataset_root", data))
    assert not (tmp_path / "none").exists()


def test_a_dataset_of_other_classes_is_refused(unscored_run, tmp_path):
    other = make_data(tmp_path / "other")
    (other / "classes.txt").write_text("dog")
    with pytest.raises(InputError, match=unscored_run.name):
        make_page(unscored_run, flags=("--dataset_root", other))
    assert not (unscored_run / "report").exists()


def test_a_damaged_evaluation_is_named(own_run):
    (own_run / "eval_cam.json").write_text("{")
    shutil.rmtree(own_run / "report")
    with pytest.raises(InputError, match=r"eval_cam\.json"):
        make_page(own_run)
    assert not (own_run / "report").exists()


@pytest.fixture(scope="module")
def page_of_two_datasets(page, tmp_path_factory):
    """Maps and labels of one dataset, and a network's masks of another with the same names.

    The image b0 of the other lies on its side as it is stored.
    """
    folder = tmp_path_factory.mktemp("two")
    run_dir = shutil.copytree(page.parent.parent, folder / "run")
    other = make_data(folder / "other")
    rotate(other / "images/b0.jpg", folder / "twin.jpg")
    predictions = run_dir / "seg_pred"
    shutil.copytree(run_dir / "seg_label", predictions)
    settings = {"made_by": "infer_seg", "class_names": CLASSES}
    write_json(predictions / "settings.json", settings)
    evaluate_run(eval_seg, other, run_dir, "--label_dir", predictions)
    return make_page(run_dir)


def test_the_same_name_in_another_dataset_is_another_image(page_of_two_datasets):
    stages = [list(image["stages"]) for image in read_data(page_of_two_datasets)["images"]]
    assert stages[:6] == [["0", "1", "2"]] * 6
    assert stages[6:] == [["3"]] * 6


def test_images_and_masks_stand_upright(page_of_two_datasets):
    folder = page_of_two_datasets.parent
    assert read_image(folder / "7.jpg").shape == (64, 48, 3)
    assert read_image(folder / "7_3.png").shape == (64, 48, 3)
    with Image.open(folder / "7_t.png") as layer:
        alpha = np.asarray(layer)[..., 3]
    clockwise = np.rot90(truth(1), -1)
    assert np.array_equal(alpha > 0, clockwise > 0)
