"""Networks from checkpoints of all kinds, and the maps and masks that they find in images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.annotations import read_classes
from data.registry import VOC, Samples
from errors import InputError
from network.deeplab import DeepLab
from network.sipe import SIPE
from tool import checkpoint, inference
from tool.context import Context

CLASSES = read_classes(VOC.classes)
SEGMENTATION = {"network": "deeplabv2_resnet50", "output_stride": 16}


@pytest.mark.parametrize(
    ("name", "kind"), [("ours", SIPE), ("authors", SIPE), ("segmentation", DeepLab)]
)
def test_a_checkpoint_becomes_its_network(checkpoints, name, kind):
    content = checkpoint.read(checkpoints[name])
    tensors = content.get("model", content.get("net"))
    for class_names in (None, CLASSES):
        model, found = inference.load_network(checkpoints[name], class_names)
        assert (type(model), found) == (kind, CLASSES)
        assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "names"),  # what the line names besides the file
    [
        *((content, "") for content in ({}, {"weights": 1}, {"model": {}})),
        *(({"model": {}, "class_names": names}, "") for names in ([], "cat", [1, 2])),
        *(
            ({"net": net}, "")
            for net in (
                {},
                [1],
                None,
                {"classifier.weight": torch.zeros(7, 1)},
                {"classifier.weight": torch.tensor(1)},
            )
        ),
        (
            {"net": {"classifier.weight": torch.zeros(20, 2048, 1, 1)}},
            "tensor resnet50.conv1.weight",
        ),
        ({"model": None, "class_names": ["background", "cat"]}, "tensor resnet50.conv1.weight"),
        (
            {"model": {}, "class_names": ["background", "cat"], "arguments": SEGMENTATION},
            "tensor backbone.conv1.weight",
        ),
        (
            {
                "model": {},
                "class_names": ["background", "cat"],
                "arguments": {"recipe": "of tomorrow"},
            },
            "of tomorrow",
        ),
    ],
)
def test_a_file_that_is_no_network_is_refused(tmp_path, content, names):
    torch.save(content, tmp_path / "other.pth")
    for recipe in None, "plus":
        with pytest.raises(InputError) as error:
            inference.load_network(tmp_path / "other.pth", recipe=recipe)
        assert str(error.value).startswith(f"{tmp_path / 'other.pth'}: ") and "\n" not in str(
            error.value
        )
        assert names in str(error.value) or recipe


def test_a_network_of_other_classes_is_refused(checkpoints):
    with pytest.raises(InputError) as error:
        inference.load_network(checkpoints["segmentation"], ("background", "cat"))
    assert str(error.value).startswith(f"{checkpoints['segmentation']}: ")


@pytest.mark.parametrize(
    ("probability", "keys"),
    [
        ([[0.9, 0.9], [0.1, 0.0], [0.0, 0.09], [0.0, 0.01]], [0, 1]),  # what reaches 0.1 anywhere
        ([[0.01, 0.01], [0.99, 0.99]], [0, 1]),  # the background in any case
        (
            [[0.05], *[[0.04]] * 10, [0.09], *[[0.046]] * 10],
            [0, 11],
        ),  # what wins a pixel, although it does not reach 0.1
    ],
)
def test_likely_classes_by_hand(probability, keys):
    assert inference.likely_classes(np.array(probability, np.float32)[:, None]).tolist() == keys


class Colours(nn.Module):
    """Three channels, one for each cell's strongest colour: red is class 1, green class 2, blue none."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(3, 3, 1, bias=False)
        self.classifier.weight.data = torch.diag(torch.tensor([9.0, 9.0, 0.0]))[:, :, None, None]

    def forward_features(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        cells = torch.nn.functional.one_hot(image.argmax(1), 3).movedim(3, 1).float()
        return self.classifier(cells), cells, None


class OneOfTwo(Context):
    def all_gather_object(self, value: dict) -> list[dict]:
        return [value]


def test_class_prototypes_are_of_strong_cells_less_weak_ones_and_processes_share_the_classes(
    tmp_path,
):
    for name, colour in (("a", 0), ("b", 1)):
        image = np.full((32, 32, 3), 20, np.uint8)
        image[:, :16, colour] = image[:, 16:, 2] = 250
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    samples, labels = (
        Samples.of((name, str(tmp_path / f"{name}.png"), "") for name in "ab"),
        np.eye(2, 3, dtype=np.float32),
    )
    expected, parts = torch.tensor([[1.0, 0, -1], [0, 1, -1], [0, 0, 0]]), []
    for context in (
        Context(torch.device("cpu")),
        *(OneOfTwo(torch.device("cpu"), rank, 2) for rank in range(2)),
    ):
        parts.append(inference.find_class_prototypes(Colours(), samples, labels, 1, 0, context))
    assert torch.allclose(parts[0], expected) and torch.allclose(parts[1] + parts[2], expected)
    assert not (parts[1].any(1) & parts[2].any(1)).any()


class Columns(nn.Module):
    """A segmentation network that finds class 1 in the left half of an image and of its mirror image."""

    align_corners, mean_of_logits, crf = False, False, {}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(image), 3, 2, 2)
        logits[0, 1, :, 0] = logits[1, 1, :, 1] = 20
        logits[:, 0] += 10
        return logits
