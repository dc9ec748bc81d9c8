"""The CAM file: what is written comes back at full size; what is cut or hostile is refused."""

import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import InputError
from network.fusion import fuse_scales
from tool import cam_file, outputs
from tool.cam_file import CamGrids

KEYS = np.array([0, 3, 12])
SIZE = (12, 16)
GRIDS = ((3, 4), (2, 2), (6, 8))  # one a scale
CLASSES = ("background", "cat")


def random_maps(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((3, *grid), dtype=np.float32) for grid in GRIDS]


def random_grids(background: float | None = None) -> CamGrids:
    return CamGrids(KEYS, SIZE, random_maps(0), random_maps(1), background)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = cam_file.path_of(tmp_path, "2007_000001")
    path.parent.mkdir()
    return path


@pytest.fixture
def written(path: Path) -> Path:
    cam_file.save(path, random_grids())
    return path


def assert_refused(call: Callable, path: Path) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_holds_small_plain_arrays(written):
    grids = {f"{kind}_{scale}" for kind in cam_file.KINDS for scale in range(3)}
    with np.load(written, allow_pickle=False) as arrays:
        assert {*arrays.files} == {"keys", "size", *grids}
        assert arrays["keys"].dtype == np.int64
        assert arrays["size"].dtype == np.int64
        assert arrays["is_cam_0"].dtype == np.float16


def test_a_file_comes_back_at_full_size(written):
    cams = cam_file.load(str(written), 13, list(SIZE))
    assert cams.keys.tolist() == [0, 3, 12]
    assert cams.size == SIZE
    for kind in cam_file.KINDS:
        maps = cams.maps(kind)
        assert maps.shape == (3, *SIZE)
        assert maps.dtype == np.float32
        assert maps.min() >= 0
        assert maps.max() <= 1


@pytest.mark.parametrize(("kept", "other"), [("is_cam", "cam"), ("cam", "is_cam")])
def test_the_label_is_the_class_of_the_strongest_map(path, kept, other):
    grid = np.array([[[0.5, 0.1]], [[0.2, 0.3]], [[0.1, 0.2]]])
    cam_file.save(path, CamGrids(KEYS, (1, 2), **{kept: [grid]}))
    cams = cam_file.load(path)
    label = cams.label(kept)
    assert label.dtype == np.uint8
    assert label.tolist() == [[0, 3]]
    assert_refused(lambda: cams.maps(other), path)
    assert_refused(lambda: cams.label(other), path)


@pytest.mark.parametrize(
    ("kind", "seed", "normalize", "most"),
    # float16 has 11 significant bits: values in [0.5, 1] move by 2 ** -12 at most, and so does
    # their mean; a quotient doubles it
    [("is_cam", 0, True, 2**-11), ("cam", 1, False, 2**-12)],
)
def test_loading_fuses_what_was_written_but_for_the_rounding(path, kind, seed, normalize, most):
    grids = [torch.from_numpy(grid) for grid in random_maps(seed)]
    expected = fuse_scales(grids, SIZE, normalize).numpy()
    cam_file.save(path, random_grids(), dtype=np.float32)
    assert np.array_equal(cam_file.load(path).maps(kind), expected)
    cam_file.save(path, random_grids())
    rounded = cam_file.load(path).maps(kind)
    assert 0 < np.abs(rounded - expected).max() <= most


def test_a_background_takes_the_place_of_the_map_of_the_background(written):
    own = cam_file.load(written)
    cam_file.save(written, random_grids(background=0.5))
    cams = cam_file.load(written)
    assert (cams.is_cam[0] == 0.5).all()
    assert np.array_equal(cams.is_cam[1:], own.is_cam[1:])
    assert np.array_equal(cams.cam, own.cam)
    is_weak = (own.is_cam[1:] <= 0.5).all(0)
    assert np.array_equal(cams.label("is_cam") == 0, is_weak)


def test_a_file_cut_anywhere_is_refused(written):
    whole = written.read_bytes()
    for size in [*range(0, len(whole), 53), len(whole) - 1]:
        written.write_bytes(whole[:size])
        assert_refused(lambda: cam_file.load(written), written)


def test_a_changed_file_is_refused(written):
    """Its checksum does not fit the compressed values of the first array."""
    whole = written.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"keys.npy") + 60] ^= 0xFF
    written.write_bytes(changed)
    assert_refused(lambda: cam_file.load(written), written)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap-went-off"),)


def write_objects(path: Path) -> None:
    keys = np.array([Trap()], object)
    np.savez(path, keys=keys, size=np.array(SIZE), is_cam_0=np.zeros((1, 2, 2)))


FOREIGN = {
    "objects": write_objects,
    "pickle": lambda path: path.write_bytes(pickle.dumps({"keys": Trap()})),
    "text": lambda path: path.write_text("hello"),
    "array": lambda path: path.write_bytes(b"\x93NUMPY\x01\0" + bytes(60)),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_cam_file_is_refused_and_never_run(path, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    FOREIGN[kind](path)
    assert_refused(lambda: cam_file.load(path), path)
    assert not Path("trap-went-off").exists()


@pytest.mark.parametrize("name", ["keys", "size", "is_cam_0"])
def test_what_is_larger_than_the_image_is_not_unpacked(path, name):
    arrays = {
        "keys": np.array([0, 1, 2]),
        "size": np.array(SIZE),
        "is_cam_0": np.zeros((3, 2, 2)),
        name: np.zeros((3, 4000, 4000), np.int8),
    }
    np.savez_compressed(path, **arrays)
    assert path.stat().st_size < 1e5
    tracemalloc.start()
    assert_refused(lambda: cam_file.load(path), path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_a_member_with_the_bare_name_of_an_array_is_not_read_in_its_place(written):
    """numpy would read it, and it may have any size."""
    expected = cam_file.load(written).is_cam
    with zipfile.ZipFile(written, "a") as file:
        file.writestr("is_cam_0", file.read("cam_0.npy"))
    assert np.array_equal(cam_file.load(written).is_cam, expected)


MAPS = np.zeros((3, 2, 2))
BAD_SIZES = [
    [12],
    [12, 16, 3],
    [-12, -16],
    [0, 16],
    [np.inf, 16],
    [1 << 20, 1 << 20],
    ["a", "b"],
]
BAD_KEYS = [["a", "b"], [0, -1], [0, 255], [0.0, 1.5], [[0], [1]], 3, []]
BAD_MAPS = [MAPS[:2], MAPS[0], np.zeros((3, 0, 0)), np.full((3, 2, 2), "a")]
UNFIT = [
    {"weights": np.ones(3)},
    {"keys": KEYS},
    {"keys": [0], "size": SIZE, "is_cam_0": MAPS[:1]},
    {"keys": KEYS, "size": SIZE, "is_cam_x": MAPS},
]
UNFIT += [{"keys": KEYS, "size": size} for size in BAD_SIZES]
UNFIT += [{"keys": keys, "size": SIZE, "is_cam_0": MAPS[:2]} for keys in BAD_KEYS]
UNFIT += [{"keys": KEYS, "size": SIZE, "is_cam_0": maps} for maps in BAD_MAPS]


@pytest.mark.parametrize("arrays", UNFIT)
def test_arrays_that_do_not_fit_are_refused(path, arrays):
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})
    assert_refused(lambda: cam_file.load(path), path)


@pytest.mark.parametrize(("num_classes", "size"), [(12, None), (13, (16, 12)), (None, (12, 17))])
def test_maps_of_other_classes_or_of_an_image_of_another_size_are_refused(
    written, num_classes, size
):
    assert_refused(lambda: cam_file.load(written, num_classes, size), written)


def test_settings_of_a_run_come_back_once_its_files_are_there(tmp_path, path):
    settings = {"class_names": list(CLASSES), "maps": ["is_cam"], "scales": [1.0]}
    outputs.write_json(tmp_path / "cam/settings.json", settings)
    assert cam_file.read_settings(tmp_path, CLASSES) == settings
    assert cam_file.require(tmp_path, [], "is_cam", CLASSES) == settings
    assert_refused(lambda: cam_file.require(tmp_path, [], "cam", CLASSES), tmp_path / "cam")
    assert_refused(lambda: cam_file.require(tmp_path, [path.stem], "is_cam", CLASSES), path)
    path.touch()
    assert cam_file.require(tmp_path, [path.stem], "is_cam", CLASSES) == settings


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "{}",
        '{"maps": []}',
        '{"maps": ["is_cam", "other"]}',
        '{"maps": ["cam"], "class_names": ["background", "dog"]}',
    ],
)
def test_maps_of_unknown_origin_or_other_classes_are_refused(tmp_path, path, content):
    settings = tmp_path / "cam/settings.json"
    if content is not None:
        settings.write_text(content)
    assert_refused(lambda: cam_file.read_settings(tmp_path, CLASSES), settings)
