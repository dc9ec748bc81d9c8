"""The CAM file: what is written comes back at full size; what is cut, foreign or hostile is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from errors import InputError
from tool import cam_file, files

KEYS, SIZE = np.array([0, 3, 12]), (12, 16)
GRIDS = ((3, 4), (2, 2), (6, 8))  # one a scale


def random_maps(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((3, *grid), dtype=np.float32) for grid in GRIDS]


def upsampled(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear enlargement as plain loops: (h, w) -> (H, W); a pixel's centre lies at (i + 0.5) * h / H - 0.5 on the grid."""
    found = np.empty(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * grid.shape[0] / size[0] - 0.5, 0)
            x = max((j + 0.5) * grid.shape[1] / size[1] - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
            upper = grid[top, left] * (1 - (x - left)) + grid[top, right] * (x - left)
            lower = grid[bottom, left] * (1 - (x - left)) + grid[bottom, right] * (x - left)
            found[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return cam_file.path_of(tmp_path, "2007_000001")


@pytest.fixture
def written(path: Path) -> Path:
    cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1))
    return path


def assert_refused(path: Path, match: str = "not a whole CAM file") -> None:
    with pytest.raises(InputError, match=match) as error:
        cam_file.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_path_is_named_by_the_picture(tmp_path):
    assert cam_file.path_of(tmp_path, "a.b") == tmp_path / "cam/a.b.npz"


def test_maps_come_back_at_full_size(written):
    found = cam_file.load(str(written))
    assert found.keys.tolist() == [0, 3, 12]
    assert found.size == SIZE
    for maps in (found.is_cam, found.cam):
        assert (maps.shape, maps.dtype) == ((3, *SIZE), np.float32)
        assert maps.min() >= 0 and maps.max() <= 1
    np.testing.assert_allclose(found.is_cam.max((1, 2)), 1, atol=1e-4)


@pytest.mark.parametrize("kept", [("is_cam",), ("cam",), ()])
def test_each_kind_of_map_is_optional(path, kept):
    cam_file.save(path, KEYS, SIZE, **dict.fromkeys(kept, random_maps(0)))
    found = cam_file.load(path)
    assert {kind for kind in ("is_cam", "cam") if getattr(found, kind) is not None} == set(kept)


def test_maps_are_taken_by_kind(written):
    found = cam_file.load(written)
    assert found.maps("is_cam") is found.is_cam
    assert found.maps("cam") is found.cam


@pytest.mark.parametrize(("kept", "missing"), [("is_cam", "cam"), ("cam", "is_cam")])
def test_a_kind_that_was_not_kept_is_refused_by_name(path, kept, missing):
    cam_file.save(path, KEYS, SIZE, **{kept: random_maps(0)})
    found = cam_file.load(path)
    for read in (found.maps, found.label):
        assert read(kept) is not None
        with pytest.raises(InputError, match=f"holds no {missing} maps; run make_cam.py --overwrite --maps is_cam cam") as error:
            read(missing)
        assert str(error.value).startswith(f"{path}: ")


def test_label_is_the_class_of_the_strongest_map(path):
    maps = np.array([[[0.5, 0.1]], [[0.2, 0.3]], [[0.4, 0.2]]])
    cam_file.save(path, KEYS, (1, 2), cam=[maps])
    label = cam_file.load(path).label("cam")
    assert (label.dtype, label.tolist()) == (np.uint8, [[0, 3]])


def test_fuse_sums_the_scales_and_scales_each_map_to_one():
    grids = random_maps(0)
    found = cam_file.fuse([torch.from_numpy(grid) for grid in grids], SIZE, normalize=True)
    total = np.stack([sum(upsampled(grid[k], SIZE) for grid in grids) for k in range(3)])
    np.testing.assert_allclose(found.numpy(), total / (total.max((1, 2), keepdims=True) + 1e-5), atol=1e-6)


def test_fuse_averages_the_scales_where_the_maps_keep_their_level():
    grids = random_maps(0)
    found = cam_file.fuse([torch.from_numpy(grid) for grid in grids], SIZE, normalize=False)
    mean = np.stack([sum(upsampled(grid[k], SIZE) for grid in grids) / 3 for k in range(3)])
    np.testing.assert_allclose(found.numpy(), mean, atol=1e-6)


def test_fuse_leaves_an_empty_map_empty():
    assert not cam_file.fuse([torch.zeros(1, 2, 2)], (4, 4), normalize=True).any()


def test_loading_fuses_what_was_written(path):
    cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1), dtype=np.float32)
    found = cam_file.load(path)
    for maps, seed, normalize in ((found.is_cam, 0, True), (found.cam, 1, False)):
        expected = cam_file.fuse([torch.from_numpy(grid) for grid in random_maps(seed)], SIZE, normalize)
        assert np.array_equal(maps, expected.numpy())


def test_eleven_scales_stay_apart(path):
    grids = [np.full((3, 2, 2), i / 16, np.float32) for i in range(11)]  # cam_10 sorts before cam_2 as text
    cam_file.save(path, KEYS, SIZE, cam=grids)
    np.testing.assert_allclose(cam_file.load(path).cam, 5 / 16)


def test_rounding_stays_below_half_a_thousandth(path):
    found = {}
    for dtype in (np.float16, np.float32):
        cam_file.save(path, KEYS, SIZE, random_maps(0), random_maps(1), dtype=dtype)
        found[dtype] = cam_file.load(path)
    # float16 has 11 significant bits: values in [0.5, 1] move by 2 ** -12 at most, and so does their mean; a quotient doubles it
    assert 0 < np.abs(found[np.float16].cam - found[np.float32].cam).max() <= 2**-12
    assert 0 < np.abs(found[np.float16].is_cam - found[np.float32].is_cam).max() <= 2**-11


def test_file_holds_small_plain_arrays(written):
    with np.load(written, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["cam_0", "cam_1", "cam_2", "is_cam_0", "is_cam_1", "is_cam_2", "keys", "size"]
        assert arrays["keys"].dtype == arrays["size"].dtype == np.int64
        assert arrays["is_cam_0"].dtype == np.float16


@pytest.mark.parametrize("cut", ["one byte", "half", "all but ten bytes", "everything"])
def test_a_cut_file_is_refused_and_not_complete(written, cut):
    whole = written.read_bytes()
    assert cam_file.is_complete(written, KEYS)
    written.write_bytes(whole[: {"one byte": -1, "half": len(whole) // 2, "all but ten bytes": 10, "everything": 0}[cut]])
    assert not cam_file.is_complete(written, KEYS)
    assert_refused(written)


def test_a_changed_byte_is_refused(written):
    content = bytearray(written.read_bytes())
    content[content.index(b"keys.npy") + 60] ^= 0xFF  # in the first array's compressed values: the checksum tells
    written.write_bytes(content)
    assert_refused(written)


def test_a_missing_file_says_which_stage_writes_it(path):
    assert not cam_file.is_complete(path, KEYS)
    assert_refused(path, r"no such CAM file; run make_cam\.py")


def test_a_folder_in_its_place_is_refused(path):
    path.mkdir(parents=True)
    assert not cam_file.is_complete(path, KEYS)
    assert_refused(path)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap-went-off"),)


def test_a_hostile_file_is_refused_without_running(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir()
    np.savez(path, keys=np.array([Trap()], object), size=np.array(SIZE), is_cam_0=np.zeros((1, 2, 2)))
    assert_refused(path)
    assert not Path("trap-went-off").exists()


@pytest.mark.parametrize(
    "arrays",
    [
        {"weights": np.ones(3)},
        {"keys": KEYS},
        {"keys": KEYS, "size": [12]},
        {"keys": KEYS, "size": [12, 16, 3]},
        {"keys": KEYS, "size": [-12, -16]},
        {"keys": KEYS, "size": [0, 16]},
        {"keys": KEYS, "size": [np.inf, 16]},
        {"keys": KEYS, "size": [1 << 20, 1 << 20]},
        {"keys": KEYS, "size": ["a", "b"]},
        {"keys": 3, "size": SIZE},
        {"keys": KEYS, "size": SIZE, "is_cam_0": np.zeros((2, 3, 4))},
        {"keys": KEYS, "size": SIZE, "is_cam_0": np.zeros((3, 4))},
        {"keys": KEYS, "size": SIZE, "is_cam_0": np.zeros((3, 0, 0))},
        {"keys": KEYS, "size": SIZE, "is_cam_0": np.full((3, 2, 2), "a")},
        {"keys": KEYS, "size": SIZE, "is_cam_x": np.zeros((3, 2, 2))},
    ],
)
def test_arrays_that_do_not_fit_are_refused(path, arrays):
    path.parent.mkdir()
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})
    assert_refused(path)


def test_other_kinds_of_file_are_refused(path):
    path.parent.mkdir()
    Image.new("L", (4, 4)).save(path, format="png")
    assert_refused(path)
    path.write_text("hello")
    assert_refused(path)
    with open(path, "wb") as file:
        np.save(file, KEYS)
    assert_refused(path)


def test_maps_of_classes_that_the_dataset_lacks_are_refused(written):
    assert cam_file.load(written, num_classes=13).keys.max() == 12
    with pytest.raises(InputError, match=r"holds class 12, the dataset has 0\.\.11; use the --dataset") as error:
        cam_file.load(written, num_classes=12)
    assert str(error.value).startswith(f"{written}: ")


@pytest.mark.parametrize("size", [(16, 12), (12, 17)])
def test_maps_of_a_picture_of_another_size_are_refused(written, size):
    assert cam_file.load(written, size=SIZE).size == cam_file.load(written, size=list(SIZE)).size == SIZE
    with pytest.raises(InputError, match=f"is for a picture of 16x12, the picture has {size[1]}x{size[0]}; delete it") as error:
        cam_file.load(written, 13, size)
    assert str(error.value).startswith(f"{written}: ")


def test_settings_of_a_run_are_what_was_noted(tmp_path):
    noted = {"class_names": ["background", "cat"], "maps": ["cam", "is_cam"], "scales": [1.0]}
    files.write_json(tmp_path / "cam/settings.json", noted)
    assert cam_file.settings(tmp_path, ("background", "cat")) == noted


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "is missing, so nobody knows .*; move them away and run make_cam.py"),
        ("{", "cannot be read"),
        ("{}", "does not say which maps there are"),
        ('{"maps": ["is_cam", "of the world"]}', "does not say which maps there are"),
        ('{"maps": ["cam"], "class_names": ["background", "dog"]}', "other classes than the dataset's; use the --dataset"),
    ],
)
def test_maps_of_unknown_origin_are_refused(tmp_path, content, match):
    path = tmp_path / "cam/settings.json"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=match) as error:
        cam_file.settings(tmp_path, ("background", "cat"))
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("keys", [["a", "b"], [0, -1], [0, 255], [0.0, 1.5], [[0], [1]]])
def test_keys_that_are_no_class_ids_are_refused(path, keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, keys=np.array(keys), size=np.array([4, 4]), is_cam_0=np.zeros((2, 2, 2), np.float16))
    with pytest.raises(InputError, match="its keys are no class ids"):
        cam_file.load(path, num_classes=21)


def test_a_check_names_the_kind_or_the_picture_that_is_missing(tmp_path):
    classes = ("background", "cat")
    files.write_json(tmp_path / "cam/settings.json", {"maps": ["is_cam"], "class_names": list(classes)})
    with pytest.raises(InputError, match="holds no cam maps"):
        cam_file.check(tmp_path, [], "cam", classes)
    with pytest.raises(InputError, match=r"b\.npz: no such CAM file"):
        cam_file.check(tmp_path, ["b"], "is_cam", classes)
    assert cam_file.check(tmp_path, [], "is_cam", classes)["maps"] == ["is_cam"]


def test_a_run_without_maps_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there are no maps; correct --run_dir or run make_cam\.py first") as error:
        cam_file.settings(tmp_path, ("background", "cat"))
    assert str(error.value).startswith(f"{tmp_path / 'cam'}: ")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_writing_that_fails_leaves_nothing_behind(path, monkeypatch, error):
    def fail(file, **arrays):
        file.write(b"PK\x03\x04 the first bytes")
        raise error

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        cam_file.save(path, KEYS, SIZE, random_maps(0))
    assert list(path.parent.iterdir()) == []
    if isinstance(error, OSError):
        assert str(raised.value).startswith(f"{path}: cannot be written (No space left on device)")


def test_writing_that_fails_keeps_the_file_of_before(written, monkeypatch):
    before = written.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: file.write(arrays["missing"]))
    with pytest.raises(KeyError):
        cam_file.save(written, KEYS, SIZE, random_maps(2))
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]
