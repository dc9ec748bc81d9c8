"""The segmentation network: training on labels, and masks of the images of a list."""

import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import (
    NAMES,
    SIZE,
    VOC_CLASSES,
    Run,
    assert_same_results,
    copy,
    equal_tensors,
    files_below,
    label_of,
    probability_of,
    refused,
    times_below,
    weights_of,
    write_lines,
)

import train_seg
from data.datasets import MultiscaleImage, MultiscaleImages
from data.images import read_image
from data.registry import open_dataset
from data.transforms import Scaling, normalize
from network import deeplab, wideresnet
from network.deeplab import DeepLab
from tool import checkpoint, crf, inference, label_file
from tool.context import Context
from tool.inference import load_network
from tool.outputs import read_json

CPU = torch.device("cpu")
CHECKPOINT = "ckpt/seg.pth"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
ONE_EPOCH = ("--max_epochs", 1)


def in_folder(run: Run, name: str) -> Run:
    return replace(run, folder=run.folder / name)


def changed(statistics: dict[str, torch.Tensor]) -> set[str]:
    """The names of the BatchNorm statistics that are no longer those of a new network."""
    return {name for name, value in statistics.items() if value.unique().tolist() not in ([0], [1])}


def statistics_of(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The BatchNorm statistics in a checkpoint whose names begin with a prefix."""
    statistics = {}
    for name, value in weights_of(path).items():
        if name.startswith(prefix) and "running_" in name:
            statistics[name] = value
    assert statistics
    return statistics


def two_scales(voc: Path) -> MultiscaleImage:
    """The second image of the drawn dataset at two scales."""
    samples = open_dataset("voc", voc).samples("val")
    return MultiscaleImages(samples, None, Scaling((1.0, 0.5)))[1]


def resize(logits: torch.Tensor, align_corners: bool) -> torch.Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=align_corners)[0]


@torch.no_grad()
def logits_of_views(model: torch.nn.Module, item: MultiscaleImage) -> list[torch.Tensor]:
    """Logits (K, *SIZE) of each scale and its mirror, all upright."""
    logits = []
    for image in item.images:
        straight = model(normalize(image[None]))
        mirrored = model(normalize(image.flip(2)[None]))
        logits.append(resize(straight, model.align_corners))
        logits.append(resize(mirrored, model.align_corners).flip(2))
    return logits


class TestTraining:
    @pytest.fixture
    def run(self, chain, run) -> Run:
        copy(chain.folder / "seg_label", run.folder / "seg_label")
        return run

    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain):
        content = checkpoint.read(chain.folder / CHECKPOINT)
        assert content.keys() == {"arguments", "class_names", "kind", "model"}
        assert content["kind"] == "segmentation"
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        expected = {
            "network": "deeplabv2_resnet50",
            "output_stride": 16,
            "weights": str(chain.weights),
            "scales": [0.5, 2.0],
        }
        assert expected.items() <= content["arguments"].items()
        assert files_below(chain.folder / "tensorboard/seg")

    def test_every_weight_learns_and_the_backbone_keeps_its_statistics(self, chain):
        after = weights_of(chain.folder / CHECKPOINT)
        for name, value in torch.load(chain.weights, weights_only=True).items():
            is_frozen = name.endswith(STATISTICS)
            assert torch.equal(value, after[f"backbone.{name}"]) == is_frozen, name
        torch.manual_seed(15)  # the default of --seed
        before = DeepLab("deeplabv2_resnet50", 21, 16).state_dict()
        unchanged = equal_tensors(before, after)
        assert not any(name.startswith("classifier.") for name in unchanged)

    def test_labels_count_by_their_pixels_and_not_by_their_place(self, chain, run):
        copy(chain.folder / CHECKPOINT, run.folder / CHECKPOINT)
        elsewhere = run.folder / "elsewhere"
        (run.folder / "seg_label").rename(elsewhere)
        assert "is complete" in run.stage("train_seg", "--label_dir", elsewhere)
        label = label_of(elsewhere, NAMES[3]).copy()
        label[20, 40] = 255
        label_file.save(elsewhere / f"{NAMES[3]}.png", label)
        with refused(run.folder / CHECKPOINT):
            run.stage("train_seg", "--label_dir", elsewhere)

    def test_images_without_a_labelled_pixel_are_left_out(self, run, tmp_path):
        labels = shutil.copytree(run.voc / "SegmentationClass", tmp_path / "labels")
        for name in NAMES[2:4]:
            label_file.save(labels / f"{name}.png", np.full(SIZE, 255, np.uint8))

        def train(own: Run, *names: str) -> str:
            listed = write_lines(tmp_path / "list.txt", *names)
            flags = ["--label_dir", labels, *ONE_EPOCH, "--batch_size", 2, "--list", listed]
            return own.stage("train_seg", *flags)

        some = in_folder(run, "some")
        useful = in_folder(run, "useful")
        summary = "2 images, 20 classes, deeplabv2_resnet50, 1 steps"
        assert summary in train(some, *NAMES[:4])
        assert summary in train(useful, *NAMES[:2])
        assert_same_results(some.folder / CHECKPOINT, useful.folder / CHECKPOINT)
        with refused(labels):
            train(in_folder(run, "useless"), *NAMES[2:4])

    @pytest.mark.parametrize("flag", [["--class_balance", 1], ["--max_side", 16]])
    def test_a_flag_changes_what_is_learned(self, flag, chain, run):
        flags = [*ONE_EPOCH, "--batch_size", 6, "--lr", 1e-3]
        results = []
        for folder, more in (("with", flag), ("without", [])):
            own = in_folder(run, folder)
            own.stage("train_seg", *flags, "--label_dir", run.folder / "seg_label", *more)
            results.append(weights_of(own.folder / CHECKPOINT))
        assert "classifier.branches.0.weight" not in equal_tensors(*results)

    @pytest.mark.parametrize(
        ("flags", "lr"),
        [([], 2.5e-4), (["--network", "deeplabv3_resnet50"], 1e-3), (["--lr", "0.1"], 0.1)],
    )
    def test_the_learning_rate_follows_the_head_unless_it_is_given(self, flags, lr):
        assert train_seg.parse_args(flags).lr == lr


DEEPLABV3 = ("--network", "deeplabv3_resnet50", *ONE_EPOCH)


@pytest.fixture(scope="module")
def trained(chain, tmp_path_factory) -> Iterator[Run]:
    """A run in which DeepLab-v3 has trained."""
    run = replace(chain, folder=tmp_path_factory.mktemp("deeplabv3"))
    run.stage("train_seg", *DEEPLABV3, "--label_dir", chain.folder / "seg_label")
    yield run
    shutil.rmtree(run.folder)


class TestDeepLabV3:
    def test_a_stopped_training_ends_with_the_same_weights(self, trained, chain, run):
        """Though it has dropout, and with another number of workers."""
        flags = [*DEEPLABV3, "--label_dir", chain.folder / "seg_label"]
        run.stop_stage("train_seg", *flags, calls=1)
        run.stage("train_seg", *flags, num_workers=1)
        assert_same_results(run.folder / CHECKPOINT, trained.folder / CHECKPOINT)

    def test_its_head_learns_the_statistics_that_its_backbone_keeps(self, trained):
        path = trained.folder / CHECKPOINT
        head = statistics_of(path, "classifier.")
        assert changed(head) == head.keys()
        before = torch.load(trained.weights, weights_only=True)
        for name, value in statistics_of(path, "backbone.").items():
            assert torch.equal(value, before[name.removeprefix("backbone.")]), name

    def test_it_makes_masks(self, trained, run, tmp_path):
        one = write_lines(tmp_path / "one.txt", NAMES[0])
        run.stage("infer_seg", "--ckpt", trained.folder / CHECKPOINT, "--list", one)
        assert label_of(run.makes("infer_seg"), NAMES[0]).shape == SIZE

    def test_a_batch_of_one_is_too_small(self, chain, run):
        flags = [*DEEPLABV3, "--label_dir", chain.folder / "seg_label"]
        with refused("--batch_size 1"):
            run.stage("train_seg", *flags, "--batch_size", 1)


class TestWideResNet38:
    """In a quarter of its width."""

    FLAGS = (
        *("--network", "deeplabv1_wideresnet38", "--output_stride", 8),
        *("--lr", 1e-3, *ONE_EPOCH),
    )

    @pytest.fixture
    def run(self, narrow_wideresnet, run, tmp_path) -> Run:
        """The test's own run, from weights of WideResNet38."""
        path = tmp_path / "start.pth"
        torch.save(wideresnet.WideResNet38().state_dict(), path)
        return replace(run, weights=path)

    def test_a_stopped_training_ends_with_the_same_weights_with_and_without_checkpointing(
        self, run, chain
    ):
        """Checkpointing keeps no maps for the gradient."""
        flags = [*self.FLAGS, "--label_dir", chain.folder / "seg_label"]
        whole = in_folder(run, "whole")
        whole.stage("train_seg", *flags)
        stopped = in_folder(run, "stopped")
        stopped.stop_stage("train_seg", *flags, "--checkpointing", calls=1)
        stopped.stage("train_seg", *flags, "--checkpointing")
        assert_same_results(stopped.folder / CHECKPOINT, whole.folder / CHECKPOINT)

    def test_its_masks_are_refined_with_its_own_settings(self, run, chain, tmp_path, monkeypatch):
        run.stage("train_seg", *self.FLAGS, "--label_dir", chain.folder / "seg_label")
        settings = []

        def note_settings(image: np.ndarray, maps: np.ndarray, **more) -> np.ndarray:
            settings.append(more)
            return maps

        monkeypatch.setattr(crf, "refine_maps", note_settings)
        one = write_lines(tmp_path / "one.txt", NAMES[1])
        run.stage("infer_seg", "--list", one, "--crf")
        assert settings == [crf.SEGMENTATION | {"iterations": 1}]
        masks = run.makes("infer_seg")
        assert read_json(masks / "settings.json")["crf"] == settings[0]
        assert label_of(masks, NAMES[1]).shape == SIZE
        run.stage("predict")
        assert label_of(run.makes("predict"), NAMES[1]).shape == SIZE

    def test_it_averages_logits_as_its_protocol_says(self, narrow_wideresnet, fixed_voc):
        torch.manual_seed(0)
        model = wideresnet.DeepLabV1(3, frozen=False).eval()
        assert model.align_corners
        item = two_scales(fixed_voc)
        expected = torch.stack(logits_of_views(model, item)).mean(0).softmax(0)
        probability = inference.multiscale_probability(model, item, Context(CPU))
        torch.testing.assert_close(probability, expected, atol=1e-4, rtol=1e-3)

    def test_its_defaults_are_its_recipe_unless_they_are_given(self):
        args = train_seg.parse_args(
            ["--network", "deeplabv1_wideresnet38", "--crop_size", "256", "--weights", "x.pth"]
        )
        assert (args.lr, args.batch_size, args.max_epochs) == (1e-3, 10, 19)
        assert (args.crop_size, args.scales, args.color_jitter) == (256, [0.5, 1.5], 10)
        assert args.output_stride == 8

    @pytest.mark.parametrize(
        "flags",
        [
            "--output_stride 16 --weights x",
            "--weights imagenet",
            "--weights none --checkpointing",
        ],
    )
    def test_flags_that_do_not_fit_it_are_refused(self, flags):
        with pytest.raises(SystemExit):
            train_seg.parse_args(["--network", "deeplabv1_wideresnet38", *flags.split()])


@pytest.mark.parametrize("network", ["deeplabv2_resnet50", "deeplabv1_wideresnet38"])
def test_without_weights_everything_learns(network, narrow_wideresnet, chain, run):
    """BatchNorm's statistics, too."""
    flags = ["--network", network, "--output_stride", 8, *ONE_EPOCH]
    flags += ["--lr", 1e-3, "--batch_size", 6, "--label_dir", chain.folder / "seg_label"]
    replace(run, weights="none").stage("train_seg", *flags)
    statistics = statistics_of(run.folder / CHECKPOINT)
    assert changed(statistics) == statistics.keys()


class Tiny(torch.nn.Conv2d):
    """A network of one convolution."""

    align_corners = False
    mean_of_logits = False
    crf = {}  # noqa: RUF012 (as DeepLab's)

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.parameters()), "lr_scale": 1}]


def build_tiny(num_classes: int, output_stride: int, frozen: bool) -> Tiny:
    return Tiny(3, num_classes, output_stride, 8)


def test_a_network_takes_a_class_and_two_lines(chain, run, monkeypatch):
    """In the registry and among the training's defaults: docs/architecture.md, "Where to add"."""
    spec = deeplab.NetworkSpec("tiny", "net", build_tiny)
    monkeypatch.setitem(deeplab.NETWORKS, spec.name, spec)
    monkeypatch.setitem(train_seg.DEFAULTS_OF_HEAD, "tiny", {"lr": 0.5, "color_jitter": 3})
    assert train_seg.parse_args(["--network", "tiny_net"]).lr == 0.5
    flags = ["--network", "tiny_net", "--output_stride", 8, *ONE_EPOCH]
    flags += ["--label_dir", chain.folder / "seg_label"]
    replace(run, weights="none").stage("train_seg", *flags)
    assert type(load_network(run.folder / CHECKPOINT).network) is Tiny
    for stage in ("infer_seg", "predict"):
        run.stage(stage)
        assert label_of(run.makes(stage), NAMES[2]).shape == SIZE


@dataclass(frozen=True)
class NetworkInput:
    """The size of the last image that a network is given, and of the maps that it is to make."""

    image: tuple[int, ...]
    working: tuple[int, ...]


class TestInference:
    @pytest.fixture
    def infer(self, checkpoints, run) -> Callable[..., Path]:
        """Make masks by the untrained network, which finds several classes.

        Returns their folder.
        """

        def infer(*more: object, run: Run = run) -> Path:
            run.stage("infer_seg", "--ckpt", checkpoints["segmentation"], *more)
            return run.makes("infer_seg")

        return infer

    @pytest.fixture
    def one(self, tmp_path) -> list:
        return ["--list", write_lines(tmp_path / "one.txt", NAMES[1])]

    @pytest.fixture
    def inputs(self, monkeypatch) -> list[NetworkInput]:
        """What the network is given from now on."""
        inputs = []
        real = inference.multiscale_probability

        def note_sizes(model, item: MultiscaleImage, context: Context) -> torch.Tensor:
            size = tuple(item.images[-1].shape[1:])
            inputs.append(NetworkInput(size, tuple(item.working_size)))
            return real(model, item, context)

        monkeypatch.setattr(inference, "multiscale_probability", note_sizes)
        return inputs

    def test_every_image_of_the_list_has_a_mask_and_probabilities(self, infer):
        files = {f"{name}.{ending}" for name in NAMES for ending in ("png", "npz")}
        assert files_below(infer()) == {"settings.json", *files}

    def test_a_mask_is_the_most_probable_class_over_the_scales_and_their_mirrors(
        self, infer, one, checkpoints, run
    ):
        masks = infer(*one)
        model = load_network(checkpoints["segmentation"], VOC_CLASSES).network.eval()
        views = logits_of_views(model, two_scales(run.voc))
        expected = torch.stack([logits.softmax(0) for logits in views]).mean(0)
        mask = label_of(masks, NAMES[1])
        is_same = mask == expected.argmax(0).numpy()
        assert is_same.mean() > 0.999
        assert len(np.unique(mask)) > 1
        keys, probability = probability_of(masks, NAMES[1])
        np.testing.assert_allclose(probability, expected[keys], atol=1e-3)

    def test_missing_probabilities_are_made_again_with_their_mask(self, infer):
        masks = infer()
        before = times_below(masks)
        (masks / f"{NAMES[2]}.npz").unlink()
        infer()
        after = times_below(masks)
        written = {name for name in after if after[name] != before[name]}
        assert written == {f"{NAMES[2]}.npz", f"{NAMES[2]}.png"}

    @pytest.mark.parametrize("more", [[], ["--crf"]])
    def test_large_images_are_shrunk_for_the_network_alone(self, more, infer, one, inputs):
        masks = infer(*one, "--max_side", 32, *more)
        assert inputs == [NetworkInput(image=(12, 16), working=(24, 32))]
        assert label_of(masks, NAMES[1]).shape == SIZE
        _, probability = probability_of(masks, NAMES[1])
        assert probability.shape[1:] == SIZE

    def test_the_crf_moves_borders_with_deeplabs_settings(self, infer, one, run):
        plain = infer(*one, run=in_folder(run, "plain"))
        refined = infer(*one, "--crf", run=in_folder(run, "refined"))
        assert read_json(plain / "settings.json")["crf"] is None
        assert read_json(refined / "settings.json")["crf"] == crf.SEGMENTATION
        keys, probability = probability_of(plain, NAMES[1])
        image = read_image(run.voc / f"JPEGImages/{NAMES[1]}.jpg")
        maps = crf.refine_maps(image, probability.astype(np.float32), **crf.SEGMENTATION)
        is_same = label_of(refined, NAMES[1]) == keys[maps.argmax(0)]
        assert is_same.mean() > 0.99

    def test_a_submission_holds_the_masks_of_the_list_where_the_server_expects_them(
        self, infer, tmp_path
    ):
        names = NAMES[4:]
        listed = write_lines(tmp_path / "two.txt", *names)
        infer()
        masks = infer("--list", listed, "--submission", tmp_path / "packed/mine.tgz")
        packed = {}
        with tarfile.open(tmp_path / "packed/mine.tgz", "r:gz") as archive:
            for member in archive:
                packed[member.name] = archive.extractfile(member).read()
        expected = {}
        for name in names:
            path = f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png"
            expected[path] = (masks / f"{name}.png").read_bytes()
        assert packed == expected

    def test_images_need_neither_tags_nor_masks(self, infer, own_run):
        for folder in ("Annotations", "SegmentationClass"):
            shutil.rmtree(own_run.voc / folder)
        masks = infer(run=own_run)
        assert {f"{name}.png" for name in NAMES} <= files_below(masks)

    @pytest.mark.parametrize("kind", ["ours", "authors"])
    def test_sipe_is_refused(self, kind, checkpoints, run):
        with refused(checkpoints[kind]):
            run.stage("infer_seg", "--ckpt", checkpoints[kind])
