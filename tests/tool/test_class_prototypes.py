"""The prototypes of all classes: their cells, and their file beside a checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.registry import Samples
from errors import InputError
from tool import checkpoint, class_prototypes
from tool.class_prototypes import Sampling
from tool.context import Context

CPU = torch.device("cpu")
PROTOTYPES = torch.eye(3)


class Colours(nn.Module):
    """Three channels, one for the strongest colour of each cell: red is class 1, green class 2."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(3, 3, 1, bias=False)
        weight = torch.diag(torch.tensor([9.0, 9.0, 0.0]))
        self.classifier.weight.data = weight[:, :, None, None]

    def forward_features(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        cells = nn.functional.one_hot(image.argmax(1), 3).movedim(3, 1).float()
        return self.classifier(cells), cells, None


class OneOfTwo(Context):
    """One of two processes, which does not see what the other finds."""

    def all_gather_object(self, value: dict) -> list[dict]:
        return [value]


@pytest.fixture
def samples(tmp_path):
    """An image that is red and blue, and one that is green and blue."""
    for name, colour in (("a", 0), ("b", 1)):
        image = np.full((32, 32, 3), 20, np.uint8)
        image[:, :16, colour] = 250
        image[:, 16:, 2] = 250
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    return Samples.of((name, str(tmp_path / f"{name}.png"), "") for name in "ab")


def find(samples: Samples, context: Context) -> torch.Tensor:
    tags = np.eye(2, 3, dtype=np.float32)
    sampling = Sampling(seed=1, num_workers=0)
    return class_prototypes.find_class_prototypes(Colours(), samples, tags, sampling, context)


def test_class_prototypes_are_of_strong_cells_less_weak_ones(samples):
    expected = torch.tensor([[1.0, 0, -1], [0, 1, -1], [0, 0, 0]])
    assert torch.allclose(find(samples, Context(CPU)), expected)


def test_processes_share_the_classes(samples):
    first = find(samples, OneOfTwo(CPU, 0, 2))
    second = find(samples, OneOfTwo(CPU, 1, 2))
    assert torch.allclose(first + second, find(samples, Context(CPU)))
    assert not (first.any(1) & second.any(1)).any()


@pytest.fixture
def ckpt(tmp_path):
    checkpoint.save(tmp_path / "final.pth", {"model": {}})
    return tmp_path / "final.pth"


def test_a_file_beside_a_checkpoint_holds_its_class_prototypes(ckpt):
    assert class_prototypes.read_beside(ckpt) == {}
    class_prototypes.save(ckpt, PROTOTYPES, "plus", ("background", "a", "b", "c"))
    content = class_prototypes.read_beside(ckpt)
    assert content["recipe"] == "plus"
    assert content["class_names"] == ["background", "a", "b", "c"]
    assert torch.equal(content["class_prototypes"], PROTOTYPES)


def test_the_class_prototypes_of_an_older_training_do_not_count(ckpt):
    class_prototypes.save(ckpt, PROTOTYPES, "plus", ("background", "a", "b", "c"))
    checkpoint.save(ckpt, {"model": {"retrained": torch.ones(1)}})
    assert class_prototypes.read_beside(ckpt) == {}


def test_a_file_without_class_prototypes_is_refused(ckpt):
    path = class_prototypes.path_beside(ckpt)
    checkpoint.save(path, {"recipe": "plus"})
    with pytest.raises(InputError, match=f"^{path}: holds no class prototypes"):
        class_prototypes.read_beside(ckpt)
