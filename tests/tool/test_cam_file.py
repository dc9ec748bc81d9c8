"""The CAM file: what is written comes back at full size; what is cut, foreign or hostile is refused by name."""

import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from errors import InputError
from network.fusion import fuse_scales
from tool import cam_file, outputs

KEYS, SIZE = np.array([0, 3, 12]), (12, 16)
GRIDS = ((3, 4), (2, 2), (6, 8))  # one a scale
CLASSES = ("background", "cat")


def random_maps(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((3, *grid), dtype=np.float32) for grid in GRIDS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = cam_file.path_of(tmp_path, "2007_000001")
    path.parent.mkdir()
    return path


@pytest.fixture
def written(path: Path) -> Path:
    cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1))
    return path


def assert_refused(call, path: Path) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_file_holds_small_plain_arrays_and_comes_back_at_full_size(written):
    with np.load(written, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == [
            "cam_0",
            "cam_1",
            "cam_2",
            "is_cam_0",
            "is_cam_1",
            "is_cam_2",
            "keys",
            "size",
        ]
        assert arrays["keys"].dtype == arrays["size"].dtype == np.int64
        assert arrays["is_cam_0"].dtype == np.float16
    found = cam_file.load(str(written), 13, list(SIZE))
    assert (found.keys.tolist(), found.size) == ([0, 3, 12], SIZE)
    for kind in cam_file.KINDS:
        maps = found.maps(kind)
        assert (maps.shape, maps.dtype) == ((3, *SIZE), np.float32)
        assert maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize(("kept", "other"), [("is_cam", "cam"), ("cam", "is_cam")])
def test_the_label_is_the_class_of_the_strongest_map_and_a_kind_that_was_not_kept_is_refused(
    path, kept, other
):
    cam_file.save(
        path, KEYS, (1, 2), **{kept: [np.array([[[0.5, 0.1]], [[0.2, 0.3]], [[0.1, 0.2]]])]}
    )
    found = cam_file.load(path)
    assert (found.label(kept).dtype, found.label(kept).tolist()) == (np.uint8, [[0, 3]])
    for read in (found.maps, found.label):
        assert_refused(lambda: read(other), path)  # noqa: B023


def test_fuse_upsamples_every_scale_and_normalises_or_averages():
    grids = [torch.from_numpy(grid) for grid in random_maps(0)]
    total = sum(
        F.interpolate(grid[None], SIZE, mode="bilinear", align_corners=False)[0] for grid in grids
    )
    for normalize, maps in {
        True: total / (total.amax((1, 2), keepdim=True) + 1e-5),
        False: total / 3,
    }.items():
        torch.testing.assert_close(fuse_scales(grids, SIZE, normalize), maps, atol=1e-6, rtol=0)
    assert not fuse_scales(
        [torch.zeros(1, 2, 2)], (4, 4), normalize=True
    ).any()  # an empty map stays empty


def test_loading_fuses_what_was_written_but_for_the_rounding(path):
    found, maps = {}, [[torch.from_numpy(grid) for grid in random_maps(seed)] for seed in (0, 1)]
    for dtype in (np.float16, np.float32):
        cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1), dtype=dtype)
        found[dtype] = cam_file.load(path)
    assert np.array_equal(
        found[np.float32].is_cam, fuse_scales(maps[0], SIZE, normalize=True).numpy()
    )
    assert np.array_equal(
        found[np.float32].cam, fuse_scales(maps[1], SIZE, normalize=False).numpy()
    )
    # float16 has 11 significant bits: values in [0.5, 1] move by 2 ** -12 at most, and so does their mean; a quotient doubles it
    assert 0 < np.abs(found[np.float16].cam - found[np.float32].cam).max() <= 2**-12
    assert 0 < np.abs(found[np.float16].is_cam - found[np.float32].is_cam).max() <= 2**-11


def test_a_background_stands_in_for_the_map_of_the_background(path):
    cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1))
    own, before = cam_file.load(path), path.read_bytes()
    cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1), background=None)
    assert path.read_bytes() == before
    cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1), background=0.5)
    found = cam_file.load(path)
    assert (found.is_cam[0] == 0.5).all() and np.array_equal(found.is_cam[1:], own.is_cam[1:])
    assert np.array_equal(found.cam, own.cam)
    assert np.array_equal(found.label("is_cam") == 0, (own.is_cam[1:] <= 0.5).all(0))


def test_a_file_cut_anywhere_or_changed_is_refused(written):
    whole = written.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"keys.npy") + 60] ^= (
        0xFF  # in the first array's compressed values: the checksum tells
    )
    for content in (*(whole[:size] for size in range(0, len(whole), 53)), whole[:-1], changed):
        written.write_bytes(content)
        assert_refused(lambda: cam_file.load(written), written)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap-went-off"),)


FOREIGN = {
    "objects": lambda path: np.savez(
        path, keys=np.array([Trap()], object), size=np.array(SIZE), is_cam_0=np.zeros((1, 2, 2))
    ),
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
    tracemalloc.start()
    assert_refused(lambda: cam_file.load(path), path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < 1e5 and peak < 1e6


def test_a_member_with_the_bare_name_of_an_array_is_not_read_in_its_place(written):
    """numpy would read it, and it may have any size."""
    expected = cam_file.load(written).is_cam
    with zipfile.ZipFile(written, "a") as file:
        file.writestr("is_cam_0", file.read("cam_0.npy"))
    assert np.array_equal(cam_file.load(written).is_cam, expected)


MAPS = np.zeros((3, 2, 2))


@pytest.mark.parametrize(
    "arrays",
    [
        {"weights": np.ones(3)},
        {"keys": KEYS},
        *(
            {"keys": KEYS, "size": size}
            for size in (
                [12],
                [12, 16, 3],
                [-12, -16],
                [0, 16],
                [np.inf, 16],
                [1 << 20, 1 << 20],
                ["a", "b"],
            )
        ),
        *(
            {"keys": keys, "size": SIZE, "is_cam_0": MAPS[:2]}
            for keys in (["a", "b"], [0, -1], [0, 255], [0.0, 1.5], [[0], [1]], 3, [])
        ),
        {"keys": [0], "size": SIZE, "is_cam_0": MAPS[:1]},
        *(
            {"keys": KEYS, "size": SIZE, "is_cam_0": maps}
            for maps in (MAPS[:2], MAPS[0], np.zeros((3, 0, 0)), np.full((3, 2, 2), "a"))
        ),
        {"keys": KEYS, "size": SIZE, "is_cam_x": MAPS},
    ],
    ids=lambda arrays: " ".join(f"{name} {np.shape(value)}" for name, value in arrays.items()),
)
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
