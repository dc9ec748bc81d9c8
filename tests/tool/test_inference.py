"""Networks from checkpoints of all kinds, and the classes that matter to an image."""

import numpy as np
import pytest
import torch

from data.annotations import read_classes
from data.registry import VOC
from errors import InputError
from network.deeplab import DeepLab
from network.sipe import SIPE
from tool import checkpoint, inference

CLASSES = read_classes(VOC.classes)
TWO_CLASSES = ["background", "cat"]
SEGMENTATION = {"network": "deeplabv2_resnet50", "output_stride": 16}


@pytest.mark.parametrize(
    ("name", "network", "kind"),
    [
        ("ours", SIPE, "sipe"),
        ("authors", SIPE, "sipe"),
        ("segmentation", DeepLab, "segmentation"),
    ],
)
@pytest.mark.parametrize("class_names", [None, CLASSES], ids=["unknown", "given"])
def test_a_checkpoint_becomes_its_network(checkpoints, name, network, kind, class_names):
    content = checkpoint.read(checkpoints[name])
    tensors = content.get("model", content.get("net"))
    loaded = inference.load_network(checkpoints[name], class_names)
    assert type(loaded.network) is network
    assert (loaded.kind, loaded.class_names) == (kind, CLASSES)
    assert loaded.needs_tags == (kind == "sipe")
    assert loaded.files == (checkpoints[name],)
    for tensor, value in loaded.network.state_dict().items():
        assert torch.equal(value, tensors[tensor])


NO_NETWORK = [
    {},
    {"weights": 1},
    {"model": {}},
    {"model": {}, "class_names": []},
    {"model": {}, "class_names": "cat"},
    {"model": {}, "class_names": [1, 2]},
    {"net": {}},
    {"net": [1]},
    {"net": None},
    {"net": {"classifier.weight": torch.zeros(7, 1)}},
    {"net": {"classifier.weight": torch.tensor(1)}},
]
INCOMPLETE = [  # with what the line names besides the file
    ({"net": {"classifier.weight": torch.zeros(20, 2048, 1, 1)}}, "tensor resnet50.conv1.weight"),
    ({"model": None, "class_names": TWO_CLASSES}, "tensor resnet50.conv1.weight"),
    (
        {"model": {}, "class_names": TWO_CLASSES, "arguments": SEGMENTATION},
        "tensor backbone.conv1.weight",
    ),
    (
        {"model": {}, "class_names": TWO_CLASSES, "arguments": {"recipe": "of tomorrow"}},
        "of tomorrow",
    ),
    (
        {"model": {}, "class_names": TWO_CLASSES, "arguments": {"network": "of tomorrow"}},
        "of tomorrow",
    ),
    ({"model": {}, "class_names": TWO_CLASSES, "kind": "irn"}, "IRN"),
]


def refusal(path, recipe: str | None = None) -> str:
    """The line that ends loading a file; it is one line about the file."""
    with pytest.raises(InputError) as error:
        inference.load_network(path, recipe=recipe)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("recipe", [None, "plus"])
@pytest.mark.parametrize("content", NO_NETWORK, ids=str)
def test_a_file_that_is_no_network_is_refused(tmp_path, content, recipe):
    torch.save(content, tmp_path / "other.pth")
    refusal(tmp_path / "other.pth", recipe)


@pytest.mark.parametrize(("content", "named"), INCOMPLETE)
def test_what_is_wrong_with_a_network_is_named(tmp_path, content, named):
    torch.save(content, tmp_path / "other.pth")
    assert named in refusal(tmp_path / "other.pth")


def test_a_network_of_other_classes_is_refused(checkpoints):
    path = checkpoints["segmentation"]
    with pytest.raises(InputError) as error:
        inference.load_network(path, ("background", "cat"))
    assert str(error.value).startswith(f"{path}: ")


REACHES_A_TENTH = [[0.9, 0.9], [0.1, 0.0], [0.0, 0.09], [0.0, 0.01]]
BACKGROUND_IN_ANY_CASE = [[0.01, 0.01], [0.99, 0.99]]
WINS_WITHOUT_A_TENTH = [[0.05], *[[0.04]] * 10, [0.09], *[[0.046]] * 10]


@pytest.mark.parametrize(
    ("probability", "class_ids"),
    [
        (REACHES_A_TENTH, [0, 1]),
        (BACKGROUND_IN_ANY_CASE, [0, 1]),
        (WINS_WITHOUT_A_TENTH, [0, 11]),
    ],
)
def test_likely_classes_by_hand(probability, class_ids):
    column = np.array(probability, np.float32)[:, None]
    assert inference.likely_classes(column).tolist() == class_ids
