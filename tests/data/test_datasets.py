"""Crops that depend on nothing but their place in the run, batches that a resumed run repeats, whole images for inference."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from data import datasets
from data.datasets import (
    BatchPlan,
    CropOptions,
    LabelledCrops,
    MultiscaleImage,
    MultiscaleImages,
    ResumableBatches,
    TrainingCrops,
    batches_by_size,
    inference_loader,
    training_loader,
)
from data.images import read_image, read_mask, to_stored_frame
from data.registry import Samples, open_dataset
from data.transforms import Scaling, augment, augment_pair, to_tensor
from errors import InputError

FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
DRAWN = pytest.mark.parametrize(
    ("epoch", "index"), [(0, 0), (0, 1), (2, 1), (1, 2)]
)  # from seed, epoch and index alone


def training_crops(root) -> TrainingCrops:
    dataset = open_dataset("voc", root)
    samples = dataset.samples("train")
    return TrainingCrops(samples, dataset.tags(samples), (24, 48), 32, seed=15)


def labelled_crops(root) -> LabelledCrops:
    samples = open_dataset("voc", root).samples("train")
    return LabelledCrops(
        samples, root / "SegmentationClass", 21, CropOptions((0.5, 1.0), 48, seed=15)
    )


def one_entry(tmp_path, image: np.ndarray, mask: np.ndarray, **options) -> Samples:
    """An image in RGB and its mask."""
    Image.fromarray(image).convert("RGB").save(tmp_path / "a.png", **options)
    (tmp_path / "a_mask").mkdir()
    Image.fromarray(mask).save(tmp_path / "a_mask/a.png")
    return Samples.of([("a", str(tmp_path / "a.png"), str(tmp_path / "a_mask/a.png"))])


def epochs_of(batches: ResumableBatches) -> list[list[int]]:
    """The indices of each epoch, in order."""
    items = itertools.chain.from_iterable(batches)
    return [
        [index for _, index in group]
        for _, group in itertools.groupby(items, key=lambda item: item[0])
    ]


def test_each_epoch_sees_each_image_at_most_once_in_its_own_order_and_drops_another_rest():
    epochs = [
        epoch
        for seed in (0, 1)
        for epoch in epochs_of(ResumableBatches(BatchPlan(10, 4, epochs=6, seed=seed)))
    ]
    assert all(len(epoch) == len(set(epoch)) == 8 for epoch in epochs)
    assert len(epochs) == len({tuple(epoch) for epoch in epochs}) == 12
    assert set().union(*epochs[:6]) == set(range(10))
    assert sorted(epochs_of(ResumableBatches(BatchPlan(12, 4, epochs=1, seed=0)))[0]) == list(
        range(12)
    )
    assert list(ResumableBatches(BatchPlan(3, 4, epochs=5, seed=0))) == []


def test_a_resumed_run_sees_the_tail_of_the_whole_one():
    whole = list(ResumableBatches(BatchPlan(10, 4, epochs=3, seed=7)))
    assert [len(batch) for batch in whole] == [4] * 6
    for start in range(7):
        rest = ResumableBatches(BatchPlan(10, 4, epochs=3, seed=7), start=start)
        assert len(rest) == 6 - start and list(rest) == list(rest) == whole[start:]
    order = np.random.default_rng((7, 1)).permutation(
        10
    )  # seed, epoch: another rule would change every training
    assert whole[2] == [(1, index) for index in order[:4]] and whole[3] == [
        (1, index) for index in order[4:8]
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_share_out_each_batch(world_size):
    whole = list(ResumableBatches(BatchPlan(10, 4, epochs=2, seed=7)))
    parts = [
        list(ResumableBatches(BatchPlan(10, 4, epochs=2, seed=7), rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert shares == [batch[rank::world_size] for rank in range(world_size)]


@DRAWN
@pytest.mark.parametrize("crops_of", [training_crops, labelled_crops])
def test_a_crop_is_drawn_from_its_place(tiny_voc, crops_of, epoch, index):
    crops, rng = crops_of(tiny_voc), np.random.default_rng((15, epoch, index))
    if crops_of is training_crops:
        large = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(large).save(crops.samples[1].image)
        image = read_image(
            crops.samples[index].image, least_side=96
        )  # enough for crops of images of up to 48 pixels
        assert image.shape == ((75, 100, 3) if index == 1 else (48, 64, 3))
        crop, inside, label, dtype = (
            *augment(image, (24, 48), 32, rng),
            crops.tags[index],
            torch.float32,
        )
        name = "tags"
    else:
        image, mask = (
            read_image(crops.samples[index].image),
            read_mask(crops.samples[index].mask, 21),
        )
        crop, inside, label, dtype = *augment_pair(image, mask, (0.5, 1.0), 48, rng), torch.uint8
        name = "target"
    item = crops[epoch, index]
    assert torch.equal(item["image"], to_tensor(crop)) and np.array_equal(item["inside"], inside)
    assert np.array_equal(item[name], label) and item[name].dtype == dtype


@FORKS
@pytest.mark.parametrize("crops_of", [training_crops, labelled_crops])
def test_workers_and_resuming_change_nothing(fixed_voc, crops_of):
    crops = crops_of(fixed_voc)

    def load(num_workers: int, start: int = 0) -> list[dict[str, torch.Tensor]]:
        before = torch.get_rng_state()  # it is left to the network's dropout
        batches = list(
            training_loader(
                crops, ResumableBatches(BatchPlan(6, 4, epochs=2, seed=3), start=start), num_workers
            )
        )
        assert torch.equal(torch.get_rng_state(), before)
        return batches

    alone, helped, (resumed,) = load(0), load(1), load(0, start=1)
    places = list(ResumableBatches(BatchPlan(len(crops), 4, epochs=2, seed=3)))
    assert len(alone) == len(helped) == len(places) == 2
    for name in alone[0]:
        assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, helped))
        assert torch.equal(alone[1][name], resumed[name])
        assert torch.equal(alone[1][name][2], crops[places[1][2]][name])


@pytest.mark.parametrize(("max_side", "size"), [(64, (24, 32)), (128, (48, 64)), (0, (48, 64))])
def test_a_large_image_is_shrunk_before_it_is_scaled(tmp_path, max_side, size):
    mask = np.repeat(np.array([1, 2], np.uint8), 64)[None].repeat(96, 0)
    samples = one_entry(tmp_path, 100 * mask, mask)
    options = CropOptions((0.5, 0.5), 64, seed=0, max_side=max_side)
    item = LabelledCrops(samples, tmp_path / "a_mask", 3, options)[0, 0]
    label, inside = item["target"].numpy(), item["inside"].numpy()
    assert inside.sum() == np.prod(size) and (label[inside] == 1).sum() == np.prod(size) / 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_in_the_stored_frame_is_turned_with_its_image(tmp_path, orientation):
    label = (
        np.array([[1, 2, 3], [4, 5, 6]], np.uint8).repeat(8, 0).repeat(8, 1)
    )  # as shown: no turn or mirror of it is alike
    stored, tags = to_stored_frame(label, orientation), Image.Exif()
    tags[0x0112] = orientation
    samples = one_entry(tmp_path, 40 * stored, stored, exif=tags)
    item = LabelledCrops(samples, tmp_path / "a_mask", 7, CropOptions((1, 1), 24, seed=0))[0, 0]
    cropped, inside = item["target"].numpy(), item["inside"].numpy()
    assert np.array_equal(40 * cropped[inside], item["image"][0].numpy()[inside])
    assert cropped[inside].reshape(16, 24).tolist() in (
        label.tolist(),
        label[:, ::-1].tolist(),
    )  # the crop may be flipped
    pyramid = MultiscaleImages(samples, None, Scaling((0.5,)))[0]
    assert (pyramid.orientation, pyramid.size, pyramid.images[0].shape) == (
        orientation,
        (16, 24),
        (3, 8, 12),
    )
    assert np.array_equal(pyramid.original, 40 * label[..., None].repeat(3, 2))


@pytest.mark.parametrize(
    "mask", [np.zeros((64, 48), np.uint8), np.full((48, 64), 21, np.uint8)], ids=["size", "class"]
)
def test_a_mask_that_does_not_fit_is_refused_by_its_path(tiny_voc, mask):
    crops = labelled_crops(tiny_voc)
    Image.fromarray(mask).save(crops.samples[1].mask)
    with pytest.raises(InputError, match=str(crops.samples[1].mask)):
        crops[0, 1]


@FORKS
@pytest.mark.parametrize(
    ("num_workers", "max_side", "sizes"), [(0, 0, [48, 24]), (1, 64, [48, 24]), (0, 32, [24, 12])]
)
def test_inference_sees_whole_images_one_at_a_time(fixed_voc, num_workers, max_side, sizes):
    dataset = open_dataset("voc", fixed_voc)
    samples = dataset.samples("train")
    items = list(
        inference_loader(
            MultiscaleImages(samples, dataset.tags(samples), Scaling((1.0, 0.5), max_side)),
            num_workers,
        )
    )
    assert [item.index for item in items] == list(range(6))
    for item, sample in zip(items, samples):
        assert [tuple(image.shape) for image in item.images] == [
            (3, side, side * 4 // 3) for side in sizes
        ]
        assert (item.size, item.working_size, item.orientation) == (
            (48, 64),
            (sizes[0], sizes[0] * 4 // 3),
            1,
        )
        assert isinstance(item.original, np.ndarray) and np.array_equal(
            item.original, read_image(sample.image)
        )
        assert max_side == 32 or np.array_equal(
            item.images[0].permute(1, 2, 0).numpy(), item.original
        )
    assert [datasets.present_classes(item.tags).tolist() for item in items[:2]] == [
        [0, 8, 12],
        [0, 12],
    ]  # background, cat, dog
    assert datasets.present_classes(
        MultiscaleImages(samples, None, Scaling((1.5,)))[1].tags
    ).tolist() == [0]  # inference needs no labels


def sized(*sizes: tuple[int, int]) -> list[MultiscaleImage]:
    return [
        MultiscaleImage(index, [], torch.zeros(0), size, size, 1, np.zeros((1, 1, 3), np.uint8))
        for index, size in enumerate(sizes)
    ]


SMALL, TALL, LARGE = (
    (300, 400),
    (400, 300),
    (960, 1280),
)  # the last has as many pixels as four of 640x480


# at the end the rest comes in the order in which its sizes were met; pinning memory makes lists of tuples
GROUPS = [
    ([SMALL, TALL, SMALL, TALL, SMALL], 2, [[0, 2], [1, 3], [4]]),
    ([LARGE, SMALL, LARGE, LARGE], 8, [[0, 2], [1], [3]]),
]
GROUPS += [
    ([SMALL, TALL, SMALL], 1, [[0], [1], [2]]),
    ([LARGE, LARGE], 3, [[0], [1]]),
    ([list(SMALL), SMALL], 2, [[0, 1]]),
    ([], 4, []),
]


@pytest.mark.parametrize(("sizes", "batch_size", "expected"), GROUPS)
def test_images_of_one_size_are_grouped(sizes, batch_size, expected):
    assert [
        [item.index for item in batch] for batch in batches_by_size(sized(*sizes), batch_size)
    ] == expected


def test_few_images_wait_and_none_is_lost():
    items, seen, waiting = iter(sized(*((10, 1 + i % 13) for i in range(100)))), [], []
    for batch in batches_by_size(items, 3):
        seen += [item.index for item in batch]
        waiting.append(100 - items.__length_hint__() - len(seen))
    assert sorted(seen) == list(range(100)) and max(waiting) == 11


def test_pinning_reaches_the_images_inside_an_item(tiny_voc, monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor,
        "pin_memory",
        lambda tensor, *_: (pinned.append(tuple(tensor.shape)), tensor)[1],
    )
    item = MultiscaleImages(
        open_dataset("voc", tiny_voc).samples("train"), None, Scaling((1.0, 0.5))
    )[0]
    assert type(pin_memory(item)) is MultiscaleImage
    assert sorted(pinned) == [(0,), (3, 24, 32), (3, 48, 64)]
