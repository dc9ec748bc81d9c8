"""The segmentation network: training on labels, masks of a list of images, masks of any images."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import (
    NAMES,
    SIZE,
    VOC_CLASSES,
    assert_same_results,
    call,
    data_flags,
    files_below,
    label_of,
    probability_of,
    run_stage,
    stop_after,
    times_below,
    weights_of,
    write_lines,
)
from PIL import Image

import infer_seg
import make_cam
import predict
import train_seg
from data.datasets import MultiscaleImages
from data.images import read_image
from data.registry import open_dataset
from data.transforms import Scaling, normalize
from errors import InputError
from network import deeplab, wideresnet
from network.deeplab import DeepLab
from tool import cam_file, checkpoint, crf, inference, label_file, visualize
from tool.context import Context
from tool.inference import load_network
from tool.outputs import read_json

TWIN = f"other/{NAMES[0]}.jpg"  # of the same name as another image


@pytest.fixture
def seen(monkeypatch) -> list[tuple[tuple[int, ...], tuple[int, int]]]:
    """From now on, the size of the last image of each call, and the working size asked for."""
    sizes, real = [], inference.multiscale_probability

    def spy(model, item, context):
        sizes.append((tuple(item.images[-1].shape[1:]), tuple(item.working_size)))
        return real(model, item, context)

    monkeypatch.setattr(inference, "multiscale_probability", spy)
    return sizes


class TestTraining:
    def test_the_checkpoint_holds_finite_weights_and_what_made_them(self, chain, tiny_backbone):
        content = checkpoint.read(chain / "ckpt/seg.pth")
        assert content.keys() == {"arguments", "class_names", "kind", "model"}
        assert content["kind"] == "segmentation"
        assert all(value.isfinite().all() for value in content["model"].values())
        assert content["class_names"] == list(VOC_CLASSES)
        recorded = {
            "network": "deeplabv2_resnet50",
            "output_stride": 16,
            "weights": str(tiny_backbone),
            "scales": [0.5, 2.0],
        }
        assert recorded.items() <= content["arguments"].items()
        assert files_below(chain / "tensorboard/seg")

    def test_every_weight_learns_and_the_backbone_keeps_its_statistics(self, chain, tiny_backbone):
        after = weights_of(chain / "ckpt/seg.pth")
        for name, value in torch.load(tiny_backbone, weights_only=True).items():
            frozen = "running_" in name or "num_batches" in name
            assert torch.equal(value, after[f"backbone.{name}"]) == frozen, name
        torch.manual_seed(15)
        start = DeepLab("deeplabv2_resnet50", 21, 16).classifier.state_dict()
        assert [
            name for name, value in start.items() if torch.equal(value, after[f"classifier.{name}"])
        ] == []

    def test_labels_count_by_their_pixels_and_not_by_their_place(
        self, chain, fixed_voc, tiny_backbone, run_dir
    ):
        shutil.copytree(chain / "ckpt", run_dir / "ckpt")
        shutil.copytree(chain / "seg_label", run_dir / "elsewhere")
        flags = ["--label_dir", run_dir / "elsewhere"]
        assert "is complete" in run_stage("train_seg", fixed_voc, run_dir, tiny_backbone, *flags)
        label = label_of(run_dir / "elsewhere", NAMES[3]).copy()
        label[20, 40] = 255
        label_file.save(run_dir / f"elsewhere/{NAMES[3]}.png", label)
        with pytest.raises(InputError, match=r"seg\.pth"):
            run_stage("train_seg", fixed_voc, run_dir, tiny_backbone, *flags)

    def test_deeplab_v3_with_dropout_ends_with_the_same_weights_when_it_is_stopped(
        self, chain, fixed_voc, tiny_backbone, run_dir
    ):
        """With another number of workers, too.

        Its head learns BatchNorm's statistics, and its masks can be made.
        """
        flags = [
            "--network",
            "deeplabv3_resnet50",
            "--max_epochs",
            1,
            "--label_dir",
            chain / "seg_label",
        ]
        run_stage("train_seg", fixed_voc, run_dir / "whole", tiny_backbone, *flags)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train_seg, "train_step", 1)
            run_stage("train_seg", fixed_voc, run_dir / "stopped", tiny_backbone, *flags)
        run_stage("train_seg", fixed_voc, run_dir / "stopped", tiny_backbone, *flags, num_workers=1)
        assert_same_results(run_dir / "stopped/ckpt/seg.pth", run_dir / "whole/ckpt/seg.pth")
        after = weights_of(run_dir / "whole/ckpt/seg.pth")
        statistics = {
            name: value
            for name, value in after.items()
            if name.startswith("classifier.") and "running_" in name
        }
        assert (
            statistics
            and [
                name for name, value in statistics.items() if value.unique().tolist() in ([0], [1])
            ]
            == []
        )
        assert torch.equal(
            after["backbone.bn1.running_var"],
            torch.load(tiny_backbone, weights_only=True)["bn1.running_var"],
        )
        run_stage(
            "infer_seg",
            fixed_voc,
            run_dir / "whole",
            tiny_backbone,
            "--list",
            write_lines(run_dir / "one.txt", NAMES[0]),
        )
        assert label_of(run_dir / "whole/seg_pred", NAMES[0]).shape == SIZE

    def test_images_without_a_labelled_pixel_are_left_out(
        self, fixed_voc, tiny_backbone, run_dir, tmp_path
    ):
        shutil.copytree(fixed_voc / "SegmentationClass", tmp_path / "labels")
        for name in NAMES[2:4]:
            label_file.save(tmp_path / f"labels/{name}.png", np.full(SIZE, 255, np.uint8))
        flags = ["--label_dir", tmp_path / "labels", "--max_epochs", 1, "--batch_size", 2]
        for folder, names in (("some", NAMES[:4]), ("useful", NAMES[:2])):
            listed = write_lines(tmp_path / f"{folder}.txt", *names)
            printed = run_stage(
                "train_seg", fixed_voc, run_dir / folder, tiny_backbone, *flags, "--list", listed
            )
            assert "2 images, 20 classes, deeplabv2_resnet50, 1 steps" in printed
        assert_same_results(*(run_dir / folder / "ckpt/seg.pth" for folder in ("some", "useful")))
        with pytest.raises(InputError, match=str(tmp_path / "labels")):
            listed = write_lines(tmp_path / "useless.txt", *NAMES[2:4])
            run_stage(
                "train_seg", fixed_voc, run_dir / "useless", tiny_backbone, *flags, "--list", listed
            )

    @pytest.mark.parametrize("flag", [["--class_balance", 1], ["--max_side", 16]])
    def test_a_flag_changes_what_is_learned(self, flag, chain, fixed_voc, tiny_backbone, run_dir):
        flags = [
            "--label_dir",
            chain / "seg_label",
            "--max_epochs",
            1,
            "--batch_size",
            6,
            "--lr",
            1e-3,
        ]
        for folder, more in (("with", flag), ("without", [])):
            run_stage("train_seg", fixed_voc, run_dir / folder, tiny_backbone, *flags, *more)
        ours, theirs = (
            weights_of(run_dir / folder / "ckpt/seg.pth")["classifier.branches.0.weight"]
            for folder in ("with", "without")
        )
        assert not torch.equal(ours, theirs)

    @pytest.mark.parametrize(
        ("flags", "lr"),
        [([], 2.5e-4), (["--network", "deeplabv3_resnet50"], 1e-3), (["--lr", "0.1"], 0.1)],
    )
    def test_the_learning_rate_follows_the_head_unless_it_is_given(self, flags, lr):
        assert train_seg.parse_args(flags).lr == lr

    def test_a_batch_of_one_is_too_small_for_deeplab_v3(
        self, chain, fixed_voc, tiny_backbone, run_dir
    ):
        flags = [
            "--network",
            "deeplabv3_resnet50",
            "--batch_size",
            1,
            "--label_dir",
            chain / "seg_label",
        ]
        with pytest.raises(InputError, match="--batch_size 1"):
            run_stage("train_seg", fixed_voc, run_dir, tiny_backbone, *flags)


class TestOtherNetworks:
    """WideResNet38 in a quarter of its width, a network of one's own, and starts from nothing."""

    FLAGS = (
        "--network",
        "deeplabv1_wideresnet38",
        "--output_stride",
        8,
        "--weights",
        "none",
        "--max_epochs",
        1,
        "--lr",
        1e-3,
    )

    def test_wideresnet38_from_its_weights_to_masks(
        self, narrow_wideresnet, chain, fixed_voc, run_dir
    ):
        """A stopped run ends with the same weights, with and without --checkpointing."""
        run_dir.mkdir()
        torch.save(wideresnet.WideResNet38().state_dict(), run_dir / "start.pth")
        flags = [
            *self.FLAGS,
            "--weights",
            run_dir / "start.pth",
            "--label_dir",
            chain / "seg_label",
        ]
        run_stage("train_seg", fixed_voc, run_dir / "whole", Path(), *flags)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, train_seg, "train_step", 1)
            run_stage(
                "train_seg", fixed_voc, run_dir / "stopped", Path(), *flags, "--checkpointing"
            )
        run_stage("train_seg", fixed_voc, run_dir / "stopped", Path(), *flags, "--checkpointing")
        assert_same_results(run_dir / "stopped/ckpt/seg.pth", run_dir / "whole/ckpt/seg.pth")
        one, run = write_lines(run_dir / "one.txt", NAMES[1]), run_dir / "whole"
        with pytest.MonkeyPatch.context() as patch:
            told = []
            patch.setattr(
                crf, "refine_maps", lambda image, maps, **more: (told.append(more), maps)[1]
            )
            run_stage("infer_seg", fixed_voc, run, Path(), "--list", one, "--crf")
        assert (
            told
            == [crf.SEGMENTATION | {"iterations": 1}]
            == [read_json(run / "seg_pred/settings.json")["crf"]]
        )
        assert label_of(run / "seg_pred", NAMES[1]).shape == SIZE
        run_stage("predict", fixed_voc, run, Path())
        assert label_of(run / "predictions", NAMES[1]).shape == SIZE

    def test_wideresnet38_averages_logits_as_its_protocol_says(self, narrow_wideresnet, fixed_voc):
        def full_size(logits: torch.Tensor) -> torch.Tensor:
            return F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)[0]

        torch.manual_seed(0)
        model = wideresnet.DeepLabV1(3, frozen=False).eval()
        item, context = (
            MultiscaleImages(
                open_dataset("voc", fixed_voc).samples("val"), None, Scaling((1.0, 0.5))
            )[1],
            Context(torch.device("cpu")),
        )
        with torch.no_grad():
            total = torch.zeros(3, *SIZE)
            for image in item.images:
                straight = model(normalize(image[None]))
                mirrored = model(normalize(image.flip(2)[None]))
                total += full_size(straight) + full_size(mirrored).flip(2)
        expected = (total / 4).softmax(0)
        probability = inference.multiscale_probability(model, item, context)
        torch.testing.assert_close(probability, expected, atol=1e-4, rtol=1e-3)

    def test_its_defaults_are_its_recipe_unless_they_are_given(self):
        args = train_seg.parse_args(
            ["--network", "deeplabv1_wideresnet38", "--crop_size", "256", "--weights", "x.pth"]
        )
        assert (args.lr, args.batch_size, args.max_epochs, args.crop_size) == (1e-3, 10, 19, 256)
        assert (args.scales, args.color_jitter, args.output_stride) == ([0.5, 1.5], 10, 8)
        for wrong in (
            "--output_stride 16 --weights x",
            "--weights imagenet",
            "--weights none --checkpointing",
        ):
            with pytest.raises(SystemExit):
                train_seg.parse_args(["--network", "deeplabv1_wideresnet38", *wrong.split()])

    @pytest.mark.parametrize("network", ["deeplabv2_resnet50", "deeplabv1_wideresnet38"])
    def test_without_weights_everything_learns(
        self, narrow_wideresnet, network, chain, fixed_voc, run_dir
    ):
        """BatchNorm's statistics, too."""
        flags = [
            *self.FLAGS,
            "--network",
            network,
            "--label_dir",
            chain / "seg_label",
            "--batch_size",
            6,
        ]
        run_stage("train_seg", fixed_voc, run_dir, Path(), *flags)
        after = weights_of(run_dir / "ckpt/seg.pth")
        statistics = {name: value for name, value in after.items() if "running_" in name}
        assert statistics and all(
            value.unique().tolist() not in ([0], [1]) for value in statistics.values()
        )

    def test_a_network_takes_a_class_and_two_lines(self, chain, fixed_voc, run_dir, monkeypatch):
        """docs/architecture.md, "Where to add": the registry, and the training's defaults."""

        class Tiny(torch.nn.Conv2d):
            align_corners, mean_of_logits, crf = False, False, {}

            def parameter_groups(self) -> list[dict]:
                return [{"params": [*self.parameters()], "lr_scale": 1}]

        monkeypatch.setitem(
            deeplab.NETWORKS,
            "tiny",
            deeplab.NetworkSpec(
                "tiny",
                "net",
                lambda num_classes, output_stride, frozen: Tiny(3, num_classes, output_stride, 8),
            ),
        )
        monkeypatch.setitem(train_seg.DEFAULTS_OF_HEAD, "tiny", {"lr": 0.5, "color_jitter": 3})
        assert train_seg.parse_args(["--network", "tiny"]).lr == 0.5
        run_stage(
            "train_seg",
            fixed_voc,
            run_dir,
            Path(),
            *self.FLAGS,
            "--network",
            "tiny",
            "--label_dir",
            chain / "seg_label",
        )
        run_stage("infer_seg", fixed_voc, run_dir, Path())
        run_stage("predict", fixed_voc, run_dir, Path())
        assert type(load_network(run_dir / "ckpt/seg.pth").network) is Tiny
        assert all(
            label_of(run_dir / folder, NAMES[2]).shape == SIZE
            for folder in ("seg_pred", "predictions")
        )


class TestInference:
    @pytest.fixture
    def infer(self, checkpoints, fixed_voc, tiny_backbone, tmp_path) -> Callable[..., Path]:
        """Make the masks of a list by the untrained network, which finds several classes.

        Returns their folder.
        """

        def infer(*more, voc: Path = fixed_voc, folder: str = "run") -> Path:
            run_stage(
                "infer_seg",
                voc,
                tmp_path / folder,
                tiny_backbone,
                "--ckpt",
                checkpoints["segmentation"],
                *more,
            )
            return tmp_path / folder / "seg_pred"

        return infer

    def test_a_mask_is_the_most_probable_class_over_the_scales_and_their_mirrors(
        self, infer, checkpoints, fixed_voc
    ):
        masks, model = (
            infer(),
            load_network(checkpoints["segmentation"], VOC_CLASSES).network.eval(),
        )
        assert files_below(masks) == {
            "settings.json",
            *(f"{name}.{ending}" for name in NAMES for ending in ("png", "npz")),
        }
        item, total = (
            MultiscaleImages(
                open_dataset("voc", fixed_voc).samples("val"), None, Scaling((1.0, 0.5))
            )[1],
            torch.zeros(21, *SIZE),
        )
        for image in item.images:
            for mirror in (False, True):
                with torch.no_grad():
                    logits = model(normalize((image.flip(2) if mirror else image)[None]))
                one = torch.nn.functional.interpolate(
                    logits, SIZE, mode="bilinear", align_corners=False
                )[0].softmax(0)
                total += one.flip(2) if mirror else one
        assert (label_of(masks, NAMES[1]) == total.argmax(0).numpy()).mean() > 0.999
        assert len(np.unique(label_of(masks, NAMES[1]))) > 1
        keys, probability = probability_of(masks, NAMES[1])
        np.testing.assert_allclose(probability, total[keys] / 4, atol=1e-3)

    def test_probabilities_older_than_their_image_are_made_again(self, infer, tiny_voc, tmp_path):
        masks = infer("--save_prob", voc=tiny_voc)
        before = times_below(masks)
        (masks / f"{NAMES[2]}.npz").unlink()
        infer("--save_prob", voc=tiny_voc)
        after = times_below(masks)
        assert {name for name in after if after[name] != before[name]} == {
            f"{NAMES[2]}.npz",
            f"{NAMES[2]}.png",
        }

    def test_large_images_are_shrunk_for_the_network_alone(self, infer, tmp_path, seen):
        one = ["--list", write_lines(tmp_path / "one.txt", NAMES[0]), "--max_side", 32]
        for more in ([], ["--crf", "--overwrite"]):
            masks = infer(*one, *more)
            assert seen.pop() == ((12, 16), (24, 32))
            assert (
                label_of(masks, NAMES[0]).shape == SIZE
                and probability_of(masks, NAMES[0])[1].shape[1:] == SIZE
            )

    def test_the_crf_moves_borders_with_deeplabs_settings(self, infer, fixed_voc):
        plain, refined = infer(folder="plain"), infer("--crf", folder="refined")
        settings = [read_json(folder / "settings.json") for folder in (plain, refined)]
        assert [one["crf"] for one in settings] == [None, crf.SEGMENTATION]
        keys, probability = probability_of(plain, NAMES[1])
        image = read_image(fixed_voc / f"JPEGImages/{NAMES[1]}.jpg")
        expected = keys[
            crf.refine_maps(image, probability.astype(np.float32), **crf.SEGMENTATION).argmax(0)
        ]
        assert (label_of(refined, NAMES[1]) == expected).mean() > 0.99

    def test_a_submission_holds_the_masks_of_the_list_where_the_server_looks_for_them(
        self, infer, tmp_path
    ):
        two = ["--list", write_lines(tmp_path / "two.txt", *NAMES[4:])]
        infer()
        masks = infer(*two, "--submission", tmp_path / "packed/mine.tgz")
        with tarfile.open(tmp_path / "packed/mine.tgz", "r:gz") as archive:
            packed = {member.name: archive.extractfile(member).read() for member in archive}
        folder = "results/VOC2012/Segmentation/comp6_test_cls"
        assert packed == {
            f"{folder}/{name}.png": label_file.path_of(masks, name).read_bytes()
            for name in NAMES[4:]
        }

    def test_images_need_neither_tags_nor_masks(self, infer, tiny_voc):
        for folder in ("Annotations", "SegmentationClass"):
            shutil.rmtree(tiny_voc / folder)
        assert len(files_below(infer(voc=tiny_voc))) == 2 * len(NAMES) + 1

    @pytest.mark.parametrize("kind", ["ours", "authors"])
    def test_sipe_is_refused(self, kind, checkpoints, fixed_voc, tiny_backbone, tmp_path):
        with pytest.raises(InputError, match=str(checkpoints[kind])):
            run_stage(
                "infer_seg", fixed_voc, tmp_path / "run", tiny_backbone, "--ckpt", checkpoints[kind]
            )


class TestPrediction:
    @pytest.fixture
    def images(self, fixed_voc, tmp_path) -> Path:
        """Three images, one of which lies in a folder below."""
        folder = tmp_path / "images"
        (folder / "below").mkdir(parents=True)
        for name, place in zip(NAMES, (folder, folder, folder / "below")):
            shutil.copy(fixed_voc / f"JPEGImages/{name}.jpg", place)
        return folder

    @pytest.fixture
    def out(self, tmp_path) -> Path:
        return tmp_path / "out"

    @pytest.fixture
    def run(self, out, checkpoints) -> Callable[..., str]:
        """Call predict.py with the segmentation network, or another checkpoint."""

        def run(*flags, kind: str = "segmentation") -> str:
            more = [] if "--scales" in flags else ["--scales", 1.0]
            ckpt = ["--ckpt", checkpoints[kind]]
            return call(
                predict.main,
                *flags,
                "--output_dir",
                out,
                "--device",
                "cpu",
                "--num_workers",
                0,
                *ckpt,
                *more,
            )

        return run

    def test_an_image_gets_a_mask_an_overlay_and_a_line(self, run, out, images):
        printed = run(images / f"{NAMES[0]}.jpg")
        assert files_below(out) == {"settings.json", f"{NAMES[0]}.png", f"{NAMES[0]}_overlay.jpg"}
        mask = label_of(out, NAMES[0])
        original = read_image(images / f"{NAMES[0]}.jpg").astype(int)
        assert mask.shape == SIZE and len(np.unique(mask)) > 1
        with Image.open(out / f"{NAMES[0]}_overlay.jpg") as image:
            assert image.format == "JPEG"
            shown = np.asarray(image).astype(int)
        painted = visualize.overlay(original.astype(np.uint8), mask, VOC_CLASSES).astype(int)
        assert np.abs(shown - painted).mean() < np.abs(original - painted).mean() / 3
        assert all(
            f"{VOC_CLASSES[key]} {100 * (mask == key).mean():.1f} %" in printed
            for key in np.unique(mask)
        )

    @pytest.mark.parametrize("more", [[], ["--crf"], ["--max_side", 32]])
    def test_its_masks_are_those_of_the_stage(
        self, more, run, out, checkpoints, fixed_voc, tmp_path
    ):
        run(fixed_voc / "JPEGImages", "--scales", 1.0, 0.5, *more)
        flags = [
            *data_flags(fixed_voc, tmp_path / "run"),
            "--device",
            "cpu",
            "--ckpt",
            checkpoints["segmentation"],
        ]
        call(infer_seg.main, *flags, "--scales", 1.0, 0.5, *more)
        assert all(
            np.array_equal(label_of(out, name), label_of(tmp_path / "run/seg_pred", name))
            for name in NAMES
        )

    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [
            (["."], NAMES[:2]),
            (["*.jpg"], NAMES[:2]),
            (["2007_00000[12].jpg"], NAMES[1:2]),
            (["**/*.jpg"], NAMES[:3]),
            ([f"{NAMES[0]}.jpg", f"./{NAMES[0]}.jpg"], NAMES[:1]),
            ([".", f"{NAMES[1]}.jpg", "below", "**"], NAMES[:3]),
        ],
        ids=str,
    )
    def test_files_folders_and_patterns_are_found_by_name(
        self, images, monkeypatch, inputs, expected
    ):
        (images / "notes.txt").write_text("no image")
        (images / ".hidden.jpg").touch()
        monkeypatch.chdir(images)
        assert sorted(predict.find_images(inputs, Path("out")).names()) == expected

    def test_names_as_people_give_them_are_names_and_no_patterns(self, images, monkeypatch):
        odd = ["[x]*.jpg", "v1.5.JPG", "100%d.jpg", "a, b.jpg", "猫 と 犬.jpg"]
        for name in odd:
            shutil.copy(images / f"{NAMES[0]}.jpg", images / name)
        monkeypatch.chdir(images)
        assert list(predict.find_images(odd, Path("out")).names()) == [name[:-4] for name in odd]

    def test_results_of_an_earlier_run_are_no_images(self, run, out, images):
        """Masks and overlays below the folder that a pattern goes through."""
        for _ in range(2):
            assert run(out.parent / "**/*.*g").startswith("3 images, ")
        assert files_below(out) == {
            "settings.json",
            *(f"{name}{ending}" for name in NAMES[:3] for ending in (".png", "_overlay.jpg")),
        }

    def test_areas_can_be_added_later_and_add_up_to_the_pixels(self, run, out, images):
        run(images)
        before = times_below(out)
        run(images, "--areas")
        assert before.items() <= times_below(out).items()
        content = json.loads((out / "areas.json").read_text())
        assert content.keys() == set(NAMES[:2])
        for name, areas in content.items():
            mask = label_of(out, name)
            assert (areas["picture"], areas["size"]) == (str(images / f"{name}.jpg"), list(SIZE))
            assert areas["pixels"] == {
                VOC_CLASSES[key]: int((mask == key).sum()) for key in np.unique(mask)
            }

    def test_a_missing_overlay_is_made_again(self, run, out, images):
        run(images)
        (out / f"{NAMES[1]}_overlay.jpg").unlink()
        assert "2 images, 1 of them to do" in run(images)

    @pytest.mark.parametrize(
        ("flags", "kind", "named"),
        [
            (["none.jpg"], "segmentation", "none.jpg"),
            ([f"{NAMES[0]}.jpg", "none*.jpg"], "segmentation", "none*.jpg"),
            (["empty"], "segmentation", "empty"),
            ([f"{NAMES[0]}.jpg", TWIN], "segmentation", TWIN),
            (["notes.txt"], "segmentation", "notes.txt"),
            ([f"{NAMES[0]}.jpg"], "ours", "ours.pth"),
            ([f"{NAMES[0]}.jpg", "--tags", "cat"], "segmentation", "segmentation.pth"),
            ([f"{NAMES[0]}.jpg", "--tags", "cart"], "ours", "--tags"),
            ([f"{NAMES[0]}.jpg", "--tags", "background"], "ours", "--tags"),
            ([f"{NAMES[0]}.jpg", "--tag_table", "tags.csv"], "ours", "tags.csv"),
            ([f"{NAMES[0]}.jpg", "--tag_table", "none.csv"], "ours", "none.csv"),
        ],
        ids=str,
    )
    def test_what_cannot_be_predicted_is_named(
        self, flags, kind, named, run, out, images, monkeypatch
    ):
        (images / "empty").mkdir()
        (images / "other").mkdir()
        shutil.copy(images / f"{NAMES[1]}.jpg", images / f"other/{NAMES[0]}.jpg")
        (images / "notes.txt").write_text("no image")
        write_lines(images / "tags.csv", f"{NAMES[1]},dog")
        monkeypatch.chdir(images)
        with pytest.raises(InputError) as error:
            run(*flags, kind=kind)
        assert named in str(error.value)
        assert not list(out.glob("*.png"))

    def test_a_folder_of_images_is_no_place_for_masks(self, images, checkpoints):
        with pytest.raises(SystemExit) as error:
            predict.parse_args(
                [str(images), "--output_dir", str(images / "below/.."), "--ckpt", "seg.pth"]
            )
        assert error.value.code == 2

    @pytest.mark.parametrize(
        "content",
        [
            {},
            {"model": {}},
            {"net": {}},
            {"net": {"classifier.weight": torch.zeros(7, 4)}},
            {"model": {}, "class_names": ["background", "cat"]},
        ],
    )
    def test_a_checkpoint_of_something_else_is_named(self, content, images, tmp_path):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError, match=str(tmp_path / "other.pth")):
            call(
                predict.main,
                images,
                "--ckpt",
                tmp_path / "other.pth",
                "--output_dir",
                tmp_path / "out",
            )

    def test_sipe_finds_the_tagged_classes_with_ours_and_the_authors_checkpoints(
        self, run, out, images
    ):
        masks = {}
        for kind in ("ours", "authors"):
            run(images, "--tags", "cat", "dog", "--overwrite", kind=kind)
            masks[kind] = [label_of(out, name) for name in NAMES[:2]]
        for mask in masks["ours"]:
            classes = set(np.unique(mask))
            assert mask.shape == SIZE
            assert len(classes) > 1
            assert classes <= {0, 8, 12}
        assert np.array_equal(masks["ours"], masks["authors"])
        with pytest.raises(InputError, match=str(out / "settings.json")):
            run(images, "--tags", "dog", kind="authors")

    def test_sipes_masks_are_those_of_its_maps_and_refined_as_the_stage_does(
        self, run, out, checkpoints, fixed_voc, tmp_path
    ):
        images = [fixed_voc / f"JPEGImages/{name}.jpg" for name in NAMES[:3]]
        flags = [
            *data_flags(fixed_voc, tmp_path / "run"),
            "--list",
            write_lines(tmp_path / "three.txt", *NAMES[:3]),
            "--device",
            "cpu",
        ]
        call(make_cam.main, *flags, "--scales", 1.0, 0.5, "--ckpt", checkpoints["ours"])
        table = write_lines(
            tmp_path / "tags.csv",
            "name,classes",
            f"{NAMES[0]}.jpg,cat;dog",
            f"{NAMES[1]},dog",
            f"{NAMES[2]},cat;dog",
            "x,cow",
        )
        run(*images, "--tag_table", table, "--scales", 1.0, 0.5, kind="ours")
        plain = {name: label_of(out, name) for name in NAMES[:3]}
        for name, label in plain.items():
            assert (
                label == cam_file.load(cam_file.path_of(tmp_path / "run", name)).label("is_cam")
            ).mean() > 0.99
        run(
            *images, "--tag_table", table, "--scales", 1.0, 0.5, "--crf", "--overwrite", kind="ours"
        )
        for (name, label), path in zip(plain.items(), images):
            keys = np.array([0, 12] if name == NAMES[1] else [0, 8, 12])
            refined = crf.refine_label(read_image(path), np.searchsorted(keys, label), len(keys))
            assert np.array_equal(label_of(out, name), keys[refined.argmax(0)])
