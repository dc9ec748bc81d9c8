"""Batches that a stopped run takes up again, and crops that depend on nothing but their place in the run."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from data.datasets import LabelledCrops, Pyramid, Pyramids, TrainingCrops, kept_classes
from data.entries import Entries
from data.images import read_picture, to_stored_frame
from data.loaders import ResumableBatches, by_size, inference_loader, training_loader
from data.registry import open_dataset
from errors import InputError


@pytest.fixture
def crops(tiny_voc) -> TrainingCrops:
    dataset = open_dataset("voc", tiny_voc)
    entries = dataset.entries("train")
    return TrainingCrops(entries, dataset.labels(entries), (24, 48), 32, seed=15)


@pytest.fixture
def labelled_crops(tiny_voc) -> LabelledCrops:
    dataset = open_dataset("voc", tiny_voc)
    entries = dataset.entries("train")
    return LabelledCrops(entries, {entry.name: entry.mask for entry in entries}.__getitem__, dataset.num_classes, (0.5, 1.0), 48, seed=15)


def epochs_of(batches: ResumableBatches) -> list[list[int]]:
    """The indices of each epoch, in order."""
    items = itertools.chain.from_iterable(batches)
    return [[index for _, index in group] for _, group in itertools.groupby(items, key=lambda item: item[0])]


def test_each_epoch_sees_each_picture_at_most_once_and_drops_the_rest():
    epochs = epochs_of(ResumableBatches(10, 4, epochs=3, seed=0))
    assert [len(epoch) for epoch in epochs] == [8, 8, 8]
    assert all(len(set(epoch)) == 8 and set(epoch) <= set(range(10)) for epoch in epochs)


def test_without_a_rest_each_epoch_sees_every_picture():
    assert [sorted(epoch) for epoch in epochs_of(ResumableBatches(12, 4, epochs=2, seed=0))] == [list(range(12))] * 2


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = [tuple(epoch) for seed in (0, 1) for epoch in epochs_of(ResumableBatches(12, 4, epochs=3, seed=seed))]
    assert len(set(orders)) == 6


def test_another_rest_is_dropped_each_epoch():
    seen = set().union(*epochs_of(ResumableBatches(10, 4, epochs=10, seed=0)))
    assert seen == set(range(10))


def test_the_same_seed_gives_the_same_batches_again():
    batches = ResumableBatches(10, 4, epochs=3, seed=7)
    assert list(batches) == list(batches) == list(ResumableBatches(10, 4, epochs=3, seed=7))


def test_a_resumed_run_sees_the_tail_of_the_whole_one():
    whole = list(ResumableBatches(10, 4, epochs=3, seed=7))
    assert len(whole) == 6
    for start in range(7):
        rest = ResumableBatches(10, 4, epochs=3, seed=7, start=start)
        assert len(rest) == 6 - start
        assert list(rest) == whole[start:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_share_out_each_batch(world_size):
    whole = list(ResumableBatches(10, 4, epochs=2, seed=7))
    parts = [list(ResumableBatches(10, 4, epochs=2, seed=7, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert all(len(part) == len(whole) for part in parts)
    for batch, *shares in zip(whole, *parts):
        assert sorted(itertools.chain.from_iterable(shares)) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_pictures_than_a_batch_make_no_step():
    assert list(ResumableBatches(3, 4, epochs=5, seed=0)) == []


def test_a_crop_is_what_its_picture_and_label_say(crops):
    item = crops[0, 1]
    assert (item["image"].shape, item["image"].dtype) == ((3, 32, 32), torch.uint8)
    assert (item["inside"].shape, item["inside"].dtype) == ((32, 32), torch.bool)
    assert np.array_equal(item["label"], crops.labels[1])
    assert not item["image"][:, ~item["inside"]].any()


def test_a_crop_is_repeatable_and_differs_by_epoch_picture_and_seed(crops):
    assert torch.equal(crops[2, 1]["image"], crops[2, 1]["image"])
    other_seed = TrainingCrops(crops.entries, crops.labels, crops.resize_long, crops.crop_size, seed=16)
    others = [crops[3, 1], crops[2, 2], other_seed[2, 1]]
    assert not any(torch.equal(crops[2, 1]["image"], other["image"]) for other in others)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_change_nothing(crops):
    def load(num_workers: int, start: int = 0) -> list[dict[str, torch.Tensor]]:
        return list(training_loader(crops, ResumableBatches(6, 4, epochs=2, seed=3, start=start), num_workers))

    alone, helped, resumed = load(0), load(1), load(0, start=1)
    assert len(alone) == len(helped) == 2
    assert alone[0]["image"].shape == (4, 3, 32, 32)
    for name in ("image", "inside", "label"):
        assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, helped))
        assert torch.equal(alone[1][name], resumed[0][name])


def test_a_crop_of_a_large_jpeg_shows_what_a_crop_of_the_whole_would(crops, tiny_voc):
    """Decoded at a half, of 200x150; crops are made of up to 48 pixels of it."""
    path = crops.entries[1].picture
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    large = Image.fromarray(np.dstack([np.tile(ramp, (300, 1)), np.tile(ramp[:300, None], 400), np.full((300, 400), 99, np.uint8)]))
    large.save(path, quality=95)
    assert read_picture(path, least_side=2 * crops.resize_long[1]).shape == (75, 100, 3)
    reduced = [crops[epoch, 1] for epoch in range(4)]
    large.save(path, format="PNG")
    for epoch, item in enumerate(reduced):
        assert torch.equal(item["inside"], crops[epoch, 1]["inside"])
        assert (item["image"].int() - crops[epoch, 1]["image"].int()).abs().float().mean() < 2


def test_small_pictures_are_decoded_in_full(crops, monkeypatch):
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: pytest.fail("decoded at a reduced size"))
    assert crops[0, 1]["image"].shape == (3, 32, 32)


def test_a_labelled_crop_has_a_class_for_each_pixel(labelled_crops):
    item = labelled_crops[0, 1]
    assert {name: (tuple(value.shape), value.dtype) for name, value in item.items()} == {
        "image": ((3, 48, 48), torch.uint8),
        "inside": ((48, 48), torch.bool),
        "label": ((48, 48), torch.uint8),
    }
    values = set().union(*(labelled_crops[epoch, 1]["label"].unique().tolist() for epoch in range(4)))
    assert values == {0, 12, 255}  # background, dog, padding
    assert len(labelled_crops) == 6


def test_a_labelled_crop_shows_what_its_label_says(labelled_crops):
    for epoch in range(4):
        item = labelled_crops[epoch, 0]
        red, _, blue = item["image"].float()
        cat, dog = item["label"] == 8, item["label"] == 12
        assert ((red - blue)[cat] > 0).float().mean() > 0.9  # drawn in red, the dog in blue, the background in noise
        assert ((blue - red)[dog] > 0).float().mean() > 0.9
        assert cat.any() and dog.any()
        assert not item["inside"].all()
        assert (item["label"][~item["inside"]] == 255).all() and not item["image"][:, ~item["inside"]].any()


def test_a_labelled_crop_is_repeatable_and_differs_by_epoch_picture_and_seed(labelled_crops):
    assert all(torch.equal(labelled_crops[2, 1][name], labelled_crops[2, 1][name]) for name in ("image", "inside", "label"))
    crops = labelled_crops
    other_seed = LabelledCrops(crops.entries, crops.label_path, crops.num_classes, crops.scales, crops.crop_size, seed=16)
    others = [crops[3, 1], crops[2, 2], other_seed[2, 1]]
    assert not any(torch.equal(crops[2, 1]["image"], other["image"]) for other in others)


def test_a_large_picture_is_shrunk_before_it_is_scaled(tmp_path):
    label = np.repeat(np.array([1, 2], np.uint8), 64)[None].repeat(96, 0)
    Image.fromarray(100 * label).convert("RGB").save(tmp_path / "a.png")
    Image.fromarray(label).save(tmp_path / "mask.png")
    entries = Entries.of([("a", str(tmp_path / "a.png"), str(tmp_path / "none.png"))])
    item = LabelledCrops(entries, {"a": tmp_path / "mask.png"}.__getitem__, 3, (0.5, 0.5), 64, seed=0, max_side=64)[0, 0]
    found, inside = item["label"].numpy(), item["inside"].numpy()
    assert inside.sum() == 24 * 32 and (found[inside] == 1).sum() == 24 * 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_in_the_stored_frame_is_turned_with_its_picture(tmp_path, orientation):
    label = np.array([[1, 2, 3], [4, 5, 6]], np.uint8).repeat(8, 0).repeat(8, 1)  # as it is shown: no turn or mirror of it is alike
    stored, tags = to_stored_frame(label, orientation), Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(40 * stored).convert("RGB").save(tmp_path / "a.png", exif=tags)
    Image.fromarray(stored).save(tmp_path / "mask.png")
    entries = Entries.of([("a", str(tmp_path / "a.png"), str(tmp_path / "none.png"))])
    item = LabelledCrops(entries, {"a": tmp_path / "mask.png"}.__getitem__, 7, (1, 1), 24, seed=0)[0, 0]
    found, inside = item["label"].numpy(), item["inside"].numpy()
    assert inside.sum() == 16 * 24
    assert np.array_equal(40 * found[inside], item["image"][0].numpy()[inside])
    assert found[inside].reshape(16, 24).tolist() in (label.tolist(), label[:, ::-1].tolist())  # which the crop may have flipped


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: path.unlink(), "no such label"),
        (lambda path: Image.new("L", (48, 64)).save(path), "is 48x64, its picture 64x48"),
        (lambda path: Image.new("L", (64, 48), 21).save(path), "holds class 21"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_by_its_path(labelled_crops, write, match):
    path = labelled_crops.label_path(labelled_crops.entries[1].name)
    write(path)
    with pytest.raises(InputError, match=match) as error:
        labelled_crops[0, 1]
    assert str(error.value).startswith(f"{path}: ")


def test_labelled_crops_are_batched_like_the_others(labelled_crops):
    batches = list(training_loader(labelled_crops, ResumableBatches(6, 4, epochs=2, seed=3), num_workers=0))
    assert [tuple(batch["label"].shape) for batch in batches] == [(4, 48, 48)] * 2
    first = next(iter(ResumableBatches(6, 4, epochs=2, seed=3)))
    assert torch.equal(batches[0]["label"][2], labelled_crops[first[2]]["label"])


def test_inference_sees_whole_pictures_one_at_a_time(tiny_voc):
    dataset = open_dataset("voc", tiny_voc)
    entries = dataset.entries("train")
    items = list(inference_loader(Pyramids(entries, dataset.labels(entries), [1.0, 0.5]), num_workers=0))
    assert [item.index for item in items] == list(range(6))
    assert [tuple(image.shape) for image in items[0].images] == [(3, 48, 64), (3, 24, 32)]
    assert tuple(items[0].size) == (48, 64)
    assert items[0].orientation == 1
    assert kept_classes(items[0].label).tolist() == [0, 8, 12]  # background, cat, dog
    assert kept_classes(items[1].label).tolist() == [0, 12]


def test_inference_needs_no_labels(tiny_voc):
    entries = open_dataset("voc", tiny_voc).entries("train")
    items = list(inference_loader(Pyramids(entries, None, [1.0]), num_workers=0))
    assert [(item.index, tuple(item.label.shape)) for item in items] == [(i, (0,)) for i in range(6)]
    assert kept_classes(items[0].label).tolist() == [0]


@pytest.mark.parametrize(("max_side", "sizes"), [(32, [(24, 32), (36, 48)]), (64, [(48, 64), (72, 96)]), (None, [(48, 64), (72, 96)])])
def test_large_pictures_are_shrunk_before_they_are_scaled(tiny_voc, max_side, sizes):
    entries = open_dataset("voc", tiny_voc).entries("train")
    item = Pyramids(entries, None, [1.0, 1.5], max_side)[1]
    assert [tuple(image.shape[1:]) for image in item.images] == sizes
    assert item.size == (48, 64)  # of the picture, whatever the network sees of it


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_torchs_generator_to_the_network(crops, num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for batch in training_loader(crops, ResumableBatches(6, 4, epochs=2, seed=3), num_workers):
        assert len(batch["image"]) == 4
        assert torch.equal(torch.get_rng_state(), before)


def sized(*sizes: tuple[int, int]) -> list[Pyramid]:
    return [Pyramid(index, [], torch.zeros(0), size, size, 1) for index, size in enumerate(sizes)]


SMALL, TALL, LARGE = (300, 400), (400, 300), (960, 1280)  # the last has as many pixels as four of 640x480


@pytest.mark.parametrize(
    ("sizes", "batch_size", "expected"),
    [
        ([SMALL, TALL, SMALL, TALL, SMALL], 2, [[0, 2], [1, 3], [4]]),
        ([SMALL, TALL, SMALL], 1, [[0], [1], [2]]),
        ([LARGE, SMALL, LARGE, LARGE], 8, [[0, 2], [1], [3]]),  # those that are over go by when their size came up
        ([LARGE, LARGE], 3, [[0], [1]]),
        ([(10, i) for i in range(1, 10)], 2, [[0], [1], [2], [3], [4], [5], [6], [7], [8]]),
        ([], 4, []),
    ],
)
def test_pictures_of_one_size_are_put_together(sizes, batch_size, expected):
    assert [[item.index for item in batch] for batch in by_size(sized(*sizes), batch_size)] == expected


def test_few_pictures_wait_and_none_is_lost():
    read, waiting = 0, 0

    def reading():
        nonlocal read
        for item in sized(*((10, 1 + i % 13) for i in range(100))):
            read += 1
            yield item

    seen = []
    for batch in by_size(reading(), 3):
        assert len({item.size for item in batch}) == 1 and len(batch) <= 3
        seen += [item.index for item in batch]
        waiting = max(waiting, read - len(seen))
    assert sorted(seen) == list(range(100))
    assert waiting < 12


def test_a_size_may_be_a_list_which_pinning_memory_makes_of_it():
    first, second = sized(SMALL, SMALL)
    (batch,) = by_size([first._replace(size=list(SMALL)), second], 2)
    assert [item.index for item in batch] == [0, 1]
