"""What the tests of networks for other tools share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from common import VOC_CLASSES

from network import resnet
from network.deeplab import DeepLab
from tool import checkpoint


@pytest.fixture(scope="module")
def shallow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An untrained segmentation network with a block or two a layer, for the length of a module.

    Its ResNet-50 has all kinds of blocks, the dilated one among them, but loads and is traced in a
    quarter of the time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, "resnet50", (1, 1, 1, 2))
        torch.manual_seed(0)
        network = DeepLab("deeplabv2_resnet50", len(VOC_CLASSES), output_stride=16)
        path = tmp_path_factory.mktemp("shallow") / "segmentation.pth"
        content = {
            "model": network.state_dict(),
            "class_names": list(VOC_CLASSES),
            "arguments": {"network": "deeplabv2_resnet50", "output_stride": 16},
        }
        checkpoint.save(path, content)
        yield path
        path.unlink()
