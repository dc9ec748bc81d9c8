"""From Python: the same maps and masks as from the commands."""

import re
import runpy

import numpy as np
import pytest
from common import NAMES, ROOT, call, label_of, write_lines

import predict
from data.images import read_image
from errors import InputError
from tool import checkpoint
from tool.inference import load_model, maps_of, mask_of, refine


@pytest.mark.parametrize(("kind", "tags"), [("segmentation", []), ("authors", ["cat", "dog"])])
def test_the_surface_finds_what_the_commands_do(kind, tags, checkpoints, fixed_voc, tmp_path):
    path = fixed_voc / f"JPEGImages/{NAMES[0]}.jpg"
    flags = ["--ckpt", checkpoints[kind], "--output_dir", tmp_path]
    flags += ["--device", "cpu", "--num_workers", 0]
    if tags:
        flags += ["--tags", *tags]
    call(predict.main, path, *flags)
    model = load_model(checkpoints[kind], "cpu")
    mask = mask_of(model, read_image(path), tags)
    assert np.array_equal(mask, label_of(tmp_path, NAMES[0]))


def test_the_crf_of_the_surface_refines_its_maps(checkpoints, fixed_voc):
    model = load_model(checkpoints["authors"], "cpu")
    image = read_image(fixed_voc / f"JPEGImages/{NAMES[0]}.jpg")
    class_ids, maps = maps_of(model, image, ["cat", "dog"])
    refined = class_ids[refine(image, maps).argmax(0)]
    assert np.array_equal(refined, mask_of(model, image, ["cat", "dog"], use_crf=True))


def test_sipe_needs_tags(checkpoints, fixed_voc):
    model = load_model(checkpoints["authors"], "cpu")
    image = read_image(fixed_voc / f"JPEGImages/{NAMES[0]}.jpg")
    with pytest.raises(InputError, match=r"^tags: "):
        maps_of(model, image)


def test_the_page_on_python_runs(checkpoints, fixed_voc, monkeypatch, tmp_path):
    page = (ROOT / "docs/stages.md").read_text()
    (code,) = re.findall(r"## From Python.*?```python\n(.*?)```", page, re.DOTALL)
    image = fixed_voc / f"JPEGImages/{NAMES[0]}.jpg"
    code = code.replace("runs/demo_unseen/images/demo_0001.jpg", str(image))
    read = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda path: read(checkpoints["segmentation"]))
    variables = runpy.run_path(str(write_lines(tmp_path / "page.py", code)))
    assert variables["mask"].shape == (48, 64)
