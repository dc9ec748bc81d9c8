"""Crops that depend on their place in a run alone, resumable batches, images for inference."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

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
    present_classes,
    training_loader,
)
from data.images import read_image, read_mask, to_stored_frame
from data.registry import Samples, open_dataset
from data.transforms import Scaling, augment, augment_pair, to_tensor
from errors import InputError

FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def training_crops(root: Path) -> TrainingCrops:
    dataset = open_dataset("voc", root)
    samples = dataset.samples("train")
    return TrainingCrops(samples, dataset.tags(samples), (24, 48), 32, seed=15)


def labelled_crops(root: Path) -> LabelledCrops:
    samples = open_dataset("voc", root).samples("train")
    options = CropOptions((0.5, 1.0), 48, seed=15)
    return LabelledCrops(samples, root / "SegmentationClass", 21, options)


def write_sample(folder: Path, image: np.ndarray, target: np.ndarray, **options) -> Samples:
    """An image "a" in RGB, saved with these options, and folder/targets/a.png."""
    Image.fromarray(image).convert("RGB").save(folder / "a.png", **options)
    (folder / "targets").mkdir()
    Image.fromarray(target).save(folder / "targets/a.png")
    return Samples.of([("a", str(folder / "a.png"), "no true mask")])


class TestResumableBatches:
    PLAN = BatchPlan(num_samples=10, batch_size=4, epochs=3, seed=7)

    @staticmethod
    def epochs_of(plan: BatchPlan) -> list[list[int]]:
        """The indices of each epoch, in order."""
        items = itertools.chain.from_iterable(ResumableBatches(plan))
        epochs = []
        for _, group in itertools.groupby(items, key=lambda item: item[0]):
            epochs.append([index for _, index in group])
        return epochs

    def test_each_epoch_sees_each_image_at_most_once(self):
        """The last two of ten images are dropped; they are others in each epoch."""
        epochs = self.epochs_of(BatchPlan(10, 4, epochs=6, seed=0))
        assert len(epochs) == 6
        for epoch in epochs:
            assert len(epoch) == len(set(epoch)) == 8
        assert set().union(*epochs) == set(range(10))

    def test_each_epoch_and_seed_has_an_order_of_its_own(self):
        orders = set()
        for seed in (0, 1):
            epochs = self.epochs_of(BatchPlan(10, 4, epochs=6, seed=seed))
            orders.update(tuple(epoch) for epoch in epochs)
        assert len(orders) == 12

    def test_full_batches_drop_nothing(self):
        (epoch,) = self.epochs_of(BatchPlan(12, 4, epochs=1, seed=0))
        assert sorted(epoch) == list(range(12))

    def test_too_few_images_make_no_batch(self):
        assert list(ResumableBatches(BatchPlan(3, 4, epochs=5, seed=0))) == []

    def test_a_resumed_run_sees_the_tail_of_the_whole_one(self):
        whole = list(ResumableBatches(self.PLAN))
        assert [len(batch) for batch in whole] == [4, 4, 4, 4, 4, 4]
        for start in range(7):
            rest = ResumableBatches(self.PLAN, start)
            assert len(rest) == 6 - start
            assert list(rest) == whole[start:]
            assert list(rest) == whole[start:]  # once more

    def test_the_order_is_drawn_from_seed_and_epoch(self):
        """Another rule would change every training."""
        whole = list(ResumableBatches(self.PLAN))
        order = np.random.default_rng((7, 1)).permutation(10)
        assert whole[2] == [(1, index) for index in order[:4]]
        assert whole[3] == [(1, index) for index in order[4:8]]

    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    def test_processes_share_out_each_batch(self, world_size):
        whole = list(ResumableBatches(self.PLAN))
        for rank in range(world_size):
            shares = list(ResumableBatches(self.PLAN, rank=rank, world_size=world_size))
            assert shares == [batch[rank::world_size] for batch in whole]


@pytest.mark.parametrize(("epoch", "index"), [(0, 0), (0, 1), (2, 1), (1, 2)])
class TestCropsAreDrawnFromTheirPlace:
    """From seed, epoch and index alone."""

    def test_of_an_image(self, tiny_voc, epoch, index):
        crops = training_crops(tiny_voc)
        pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(crops.samples[1].image)
        # 96 pixels are enough for crops of images of up to 48 pixels
        image = read_image(crops.samples[index].image, least_side=96)
        assert image.shape == ((75, 100, 3) if index == 1 else (48, 64, 3))
        rng = np.random.default_rng((15, epoch, index))
        crop, inside = augment(image, (24, 48), 32, rng)
        item = crops[epoch, index]
        assert torch.equal(item["image"], to_tensor(crop))
        assert np.array_equal(item["inside"], inside)
        assert np.array_equal(item["tags"], crops.tags[index])
        assert item["tags"].dtype == torch.float32

    def test_of_an_image_and_its_target(self, tiny_voc, epoch, index):
        crops = labelled_crops(tiny_voc)
        sample = crops.samples[index]
        image = read_image(sample.image)
        mask = read_mask(sample.mask, 21)
        rng = np.random.default_rng((15, epoch, index))
        crop, inside, target = augment_pair(image, mask, (0.5, 1.0), 48, rng)
        item = crops[epoch, index]
        assert torch.equal(item["image"], to_tensor(crop))
        assert np.array_equal(item["inside"], inside)
        assert np.array_equal(item["target"], target)
        assert item["target"].dtype == torch.uint8


@FORKS
@pytest.mark.parametrize("crops_of", [training_crops, labelled_crops])
def test_workers_and_resuming_change_nothing(fixed_voc, crops_of):
    crops = crops_of(fixed_voc)
    plan = BatchPlan(num_samples=6, batch_size=4, epochs=2, seed=3)

    def load(num_workers: int, start: int = 0) -> list[dict[str, torch.Tensor]]:
        state = torch.get_rng_state()
        batches = list(training_loader(crops, ResumableBatches(plan, start), num_workers))
        assert torch.equal(torch.get_rng_state(), state)  # it is left to the network's dropout
        return batches

    in_process = load(0)
    in_worker = load(1)
    (resumed,) = load(0, start=1)
    places = list(ResumableBatches(plan))
    assert len(in_process) == len(in_worker) == len(places) == 2
    for name in in_process[0]:
        for ours, theirs in zip(in_process, in_worker):
            assert torch.equal(ours[name], theirs[name])
        assert torch.equal(in_process[1][name], resumed[name])
        third_of_second = crops[places[1][2]]
        assert torch.equal(in_process[1][name][2], third_of_second[name])


@pytest.mark.parametrize(
    ("max_side", "size"),
    [
        (64, (24, 32)),
        (128, (48, 64)),
        (0, (48, 64)),
    ],
)
def test_a_large_image_is_shrunk_before_it_is_scaled(tmp_path, max_side, size):
    target = np.ones((96, 128), np.uint8)
    target[:, 64:] = 2
    samples = write_sample(tmp_path, 100 * target, target)
    options = CropOptions((0.5, 0.5), 64, seed=0, max_side=max_side)
    item = LabelledCrops(samples, tmp_path / "targets", 3, options)[0, 0]
    inside = item["inside"].numpy()
    left_half = item["target"].numpy()[inside] == 1
    assert inside.sum() == np.prod(size)
    assert left_half.sum() == np.prod(size) / 2


class TestTurnedImages:
    """A mask in the stored frame is turned with its image."""

    # as shown; no turn or mirror of it is alike
    IDS = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    SHOWN = IDS.repeat(8, 0).repeat(8, 1)

    @pytest.fixture(params=range(1, 9))
    def orientation(self, request: pytest.FixtureRequest) -> int:
        return request.param

    @pytest.fixture
    def samples(self, tmp_path: Path, orientation: int) -> Samples:
        stored = to_stored_frame(self.SHOWN, orientation)
        exif = Image.Exif()
        exif[0x0112] = orientation
        return write_sample(tmp_path, 40 * stored, stored, exif=exif)

    def test_a_target_is_turned_with_its_image(self, samples, tmp_path):
        options = CropOptions((1, 1), 24, seed=0)
        item = LabelledCrops(samples, tmp_path / "targets", 7, options)[0, 0]
        inside = item["inside"].numpy()
        target = item["target"].numpy()[inside]
        assert np.array_equal(40 * target, item["image"][0].numpy()[inside])
        flipped = self.SHOWN[:, ::-1]  # the crop may be
        assert target.reshape(16, 24).tolist() in (self.SHOWN.tolist(), flipped.tolist())

    def test_inference_sees_the_image_upright(self, samples, orientation):
        item = MultiscaleImages(samples, None, Scaling((0.5,)))[0]
        assert item.orientation == orientation
        assert item.size == (16, 24)
        assert item.images[0].shape == (3, 8, 12)
        red, green, blue = item.original.transpose(2, 0, 1)
        assert np.array_equal(red, 40 * self.SHOWN)
        assert np.array_equal(green, red)
        assert np.array_equal(blue, red)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((64, 48), np.uint8),
        np.full((48, 64), 21, np.uint8),
    ],
    ids=["size", "class"],
)
def test_a_target_that_does_not_fit_is_refused_by_its_path(tiny_voc, mask):
    crops = labelled_crops(tiny_voc)
    path = crops.samples[1].mask
    Image.fromarray(mask).save(path)
    with pytest.raises(InputError, match=str(path)):
        crops[0, 1]


class TestInference:
    @FORKS
    @pytest.mark.parametrize(
        ("num_workers", "max_side", "sizes"),
        [
            (0, 0, [(48, 64), (24, 32)]),
            (1, 64, [(48, 64), (24, 32)]),
            (0, 32, [(24, 32), (12, 16)]),
        ],
    )
    def test_whole_images_come_in_order(self, fixed_voc, num_workers, max_side, sizes):
        dataset = open_dataset("voc", fixed_voc)
        samples = dataset.samples("train")
        images = MultiscaleImages(samples, dataset.tags(samples), Scaling((1.0, 0.5), max_side))
        items = list(inference_loader(images, num_workers))
        assert [item.index for item in items] == list(range(6))
        for item, sample in zip(items, samples):
            assert [tuple(image.shape) for image in item.images] == [(3, *size) for size in sizes]
            assert item.size == (48, 64)
            assert item.working_size == sizes[0]
            assert item.orientation == 1
            assert isinstance(item.original, np.ndarray)
            assert np.array_equal(item.original, read_image(sample.image))
            if item.working_size == item.size:
                assert torch.equal(item.images[0], to_tensor(item.original))

    def test_present_classes_are_the_background_and_the_tagged_ones(self, fixed_voc):
        dataset = open_dataset("voc", fixed_voc)
        samples = dataset.samples("train")
        images = MultiscaleImages(samples, dataset.tags(samples), Scaling((1.0,)))
        cat, dog = 8, 12
        assert present_classes(images[0].tags).tolist() == [0, cat, dog]
        assert present_classes(images[1].tags).tolist() == [0, dog]

    def test_no_tags_are_needed(self, fixed_voc):
        samples = open_dataset("voc", fixed_voc).samples("train")
        item = MultiscaleImages(samples, None, Scaling((1.5,)))[1]
        assert present_classes(item.tags).tolist() == [0]

    def test_pinning_reaches_the_images_inside_an_item(self, tiny_voc, monkeypatch):
        pinned = []

        def note_shape(tensor: torch.Tensor, *_) -> torch.Tensor:
            pinned.append(tuple(tensor.shape))
            return tensor

        monkeypatch.setattr(torch.Tensor, "pin_memory", note_shape)
        samples = open_dataset("voc", tiny_voc).samples("train")
        item = MultiscaleImages(samples, None, Scaling((1.0, 0.5)))[0]
        assert type(pin_memory(item)) is MultiscaleImage
        assert sorted(pinned) == [(0,), (3, 24, 32), (3, 48, 64)]


def items_of(sizes: list[tuple[int, int]]) -> list[MultiscaleImage]:
    """Images of these sizes without content."""
    items = []
    for index, size in enumerate(sizes):
        item = MultiscaleImage(
            index=index,
            images=[],
            tags=torch.zeros(0),
            size=size,
            working_size=size,
            orientation=1,
            original=np.zeros((1, 1, 3), np.uint8),
        )
        items.append(item)
    return items


SMALL = (300, 400)
TALL = (400, 300)
LARGE = (960, 1280)  # has as many pixels as four of 640x480
GROUPS = [  # the sizes, batch_size, and the indices in each batch
    ([SMALL, TALL, SMALL, TALL, SMALL], 2, [[0, 2], [1, 3], [4]]),
    ([SMALL, TALL, SMALL], 1, [[0], [1], [2]]),
    ([LARGE, LARGE], 3, [[0], [1]]),
    # at the end the rest comes in the order in which its sizes were met
    ([LARGE, SMALL, LARGE, LARGE], 8, [[0, 2], [1], [3]]),
    # pinning memory makes lists of tuples
    ([list(SMALL), SMALL], 2, [[0, 1]]),
    ([], 4, []),
]


class TestBatchesBySize:
    @pytest.mark.parametrize(("sizes", "batch_size", "expected"), GROUPS)
    def test_images_of_one_size_are_grouped(self, sizes, batch_size, expected):
        indices = []
        for batch in batches_by_size(items_of(sizes), batch_size):
            indices.append([item.index for item in batch])
        assert indices == expected

    def test_few_images_wait_and_none_is_lost(self):
        items = iter(items_of([(10, 1 + i % 13) for i in range(100)]))
        given = []
        num_waiting = []
        for batch in batches_by_size(items, 3):
            given += [item.index for item in batch]
            num_read = 100 - items.__length_hint__()
            num_waiting.append(num_read - len(given))
        assert sorted(given) == list(range(100))
        assert max(num_waiting) == 11
