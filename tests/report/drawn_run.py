"""A drawn dataset, runs on it, and their pages: what the tests of the report share."""

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
from common import call, load_script
from torch.utils.tensorboard import SummaryWriter

import eval_cam
import eval_seg
from tool import cam_file, label_file, visualize
from tool.cam_file import CamGrids
from tool.outputs import write_json

REPORT = load_script("report")
MARKUP = "<img src=x onerror=document.title='owned'></script>"  # the name of a class
CLASSES = ["background", "cat", MARKUP]
NAMES = ["a #1%3f&'", "b0", "b1", "b2", "b3", "b4"]
STEPS = 1000  # of a training
CURVE_POINTS = re.compile('<polyline points="(.*?)"')
SCRIPT_DATA = re.compile('<script type="application/json" id="data">(.*?)</script>')


def class_of(i: int) -> int:
    """The class of an image: cat, markup, cat, ..."""
    return 1 + i % 2


def truth(i: int) -> np.ndarray:
    """The true mask of an image: a square of its class, a third of the pixels."""
    mask = np.zeros((48, 64), np.uint8)
    mask[8:40, 8:40] = class_of(i)
    return mask


def make_data(root: Path, masks: str = "masks") -> Path:
    """Six images of 64x48, a class each; the second class is named like markup."""
    for i, name in enumerate(NAMES):
        grey = np.full((48, 64, 3), 40 * i, np.uint8)
        visualize.save(root / f"images/{name}.jpg", grey)
        label_file.save(root / f"{masks}/{name}.png", truth(i))
    (root / "classes.txt").write_text("\n".join(CLASSES[1:]))
    rows = []
    for i, name in enumerate(NAMES):
        rows.append(f'"{name}","{CLASSES[class_of(i)]}"')
    (root / "tags.csv").write_text("\n".join(rows))
    return root


def make_run(root: Path, run_dir: Path, shift: int = 4, evaluate: bool = True) -> Path:
    """Maps, labels and the log of a training.

    The later an image, the farther its label lies from the truth, by so many columns. b3's label
    fills the image, b4's is empty.
    """
    for i, name in enumerate(NAMES):
        save_maps(run_dir, i)
        label_path = label_file.path_of(run_dir / "seg_label", name)
        label_file.save(label_path, make_label(i, shift))
    maps_settings = {
        "made_by": "make_cam",
        "maps": ["cam", "is_cam"],
        "class_names": CLASSES,
        "scales": [1.0, 0.5],
    }
    label_settings = {"made_by": "make_seg_labels", "refine": "crf", "cam": maps_settings}
    write_json(run_dir / "cam/settings.json", maps_settings)
    write_json(run_dir / "seg_label/settings.json", label_settings)
    log_training(run_dir)
    if evaluate:
        evaluate_run(eval_cam, root, run_dir)
        evaluate_run(eval_seg, root, run_dir)
    return run_dir


def save_maps(run_dir: Path, i: int) -> None:
    """Save maps of an image that know its mask."""
    mask = truth(i)
    foreground = (mask > 0)[::8, ::8].astype(np.float32)
    grids = [np.stack([1 - foreground, foreground])]
    keys = np.array([0, class_of(i)])
    content = CamGrids(keys, mask.shape, is_cam=grids, cam=grids)
    cam_file.save(cam_file.path_of(run_dir, NAMES[i]), content)


def make_label(i: int, shift: int) -> np.ndarray:
    mask = truth(i)
    if NAMES[i] == "b3":
        return np.full_like(mask, 1)
    if NAMES[i] == "b4":
        return np.zeros_like(mask)
    return np.roll(mask, shift * i, axis=1)


def log_training(run_dir: Path) -> None:
    """Log a loss of many steps, of which the first is no number."""
    with SummaryWriter(run_dir / "tensorboard/seg") as logger:
        logger.add_scalar("train/loss", float("nan"), 0)
        for step in range(1, STEPS):
            logger.add_scalar("train/loss", 1 / (step + 1), step)


def evaluate_run(script: ModuleType, root: Path, run_dir: Path, *more: object) -> None:
    data = ("--dataset", "folder", "--dataset_root", root, "--num_workers", 0)
    call(script.main, *data, "--run_dir", run_dir, *more)


def make_page(*run_dirs: Path, flags: tuple = (), folder: str = "report") -> Path:
    """Run report.py; returns the page, which lies in this folder of the first run."""
    call(REPORT.main, "--run_dir", *run_dirs, "--num_workers", 0, *flags)
    return run_dirs[0] / folder / "index.html"


def read_data(page: Path) -> dict:
    """The data of the page's script."""
    return json.loads(SCRIPT_DATA.search(page.read_text())[1])
