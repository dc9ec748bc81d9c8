"""Networks of timm as backbones of SIPE. timm is imported only where one is asked for."""

from typing import Any

import torch
from torch import nn

from .resnet import FrozenNorms

# what networks need to see images of any size at a fine grid: convolutional ones, plain ViTs, others
OPTIONS = ({"output_stride": 16}, {"dynamic_img_size": True, "dynamic_img_pad": True}, {})


class TimmMaps(FrozenNorms):
    """Image to the last four feature maps of a timm network, at stride 16 where it can be built so; its weights are random.

    frozen: BatchNorm keeps its statistics, as from ImageNet weights. All layers train in any case.
    Raises ImportError where timm is not installed, ValueError for a network that does not give four maps of images of any size.
    """

    def __init__(self, name: str, frozen: bool = True):
        super().__init__()
        import timm
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        self.name, self.frozen = name, frozen
        if not timm.is_model(
            name
        ):  # refuses hf-hub: names too, which would download anyone's network
            raise ValueError(f"timm {timm.__version__} has no {name}")
        for self.options in OPTIONS:
            try:
                self.net = self.create().eval()
                maps = self.net(torch.rand(2, 3, 70, 90))
                self.widths = tuple(self.net.feature_info.channels())
                if tuple(one.shape[1] for one in maps) != self.widths:
                    raise ValueError(
                        f"its maps are {[tuple(one.shape) for one in maps]}, not (B, D, H, W)"
                    )
                maps[-1].mean().backward()  # the others train no layer of the backbone
                break
            except Exception as error:  # networks that do not fit raise nearly anything
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            raise ValueError(
                f"timm's {name} does not give four feature maps of images of any size ({reason})"
            )
        for (
            parameter
        ) in self.net.parameters():  # what is not used would stop DistributedDataParallel
            parameter.requires_grad_(parameter.grad is not None).grad = None
        about, usual = self.net.pretrained_cfg, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        mean, std, usual_mean, usual_std = (
            torch.tensor(values).view(3, 1, 1) for values in (about["mean"], about["std"], *usual)
        )
        self.register_buffer("gain", usual_std / std, persistent=False)
        self.register_buffer("shift", (usual_mean - mean) / std, persistent=False)
        self.train()

    def create(self, **more: Any) -> nn.Module:
        """The network of these options anew; pretrained=True: with timm's weights, which are downloaded once."""
        import timm

        return timm.create_model(
            self.name, features_only=True, out_indices=(-4, -3, -2, -1), **self.options, **more
        )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W), normalised by ImageNet's mean and deviation -> four maps (B, D, h, w), the coarsest last."""
        return self.net(image * self.gain + self.shift)
