"""Networks of timm as backbones of SIPE. timm is imported only if one is asked for."""

from typing import Any

import torch
from torch import nn

from .resnet import FrozenNorms

# what networks need to take images of any size at a fine grid: convolutional, plain ViTs, others
OPTIONS = ({"output_stride": 16}, {"dynamic_img_size": True, "dynamic_img_pad": True}, {})


class TimmMaps(FrozenNorms):
    """Image to the last four feature maps of a timm network with random weights.

    They are at stride 16 if the network can be built so.

    Args:
        name: timm's.
        frozen: BatchNorm keeps its statistics, as training from ImageNet weights needs it. All
            layers train in any case.

    Raises:
        ImportError: timm is not installed.
        ValueError: the network does not give four maps of images of any size.
    """

    def __init__(self, name: str, frozen: bool = True):
        super().__init__()
        import timm

        self.name = name
        self.frozen = frozen
        # hf-hub: names are refused too, as they would download anyone's network
        if not timm.is_model(name):
            raise ValueError(f"timm {timm.__version__} has no {name}")
        self.options = {}
        self.net = self._create_by_first_options_that_fit()
        self.widths = tuple(self.net.feature_info.channels())
        self._train_used_parameters()
        self._register_normalization()
        self.train()

    def create(self, **more: Any) -> nn.Module:
        """Create the network of these options anew.

        more: of timm.create_model; pretrained=True downloads timm's weights once.
        """
        import timm

        last_four = (-4, -3, -2, -1)
        options = {"features_only": True, "out_indices": last_four, **self.options, **more}
        return timm.create_model(self.name, **options)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Compute the four maps, the coarsest last.

        (B, 3, H, W), normalised by ImageNet's mean and deviation -> (B, D, h, w) each.
        """
        return self.net(image * self.gain + self.shift)

    def _create_by_first_options_that_fit(self) -> nn.Module:
        reason = ""
        for options in OPTIONS:
            self.options = options
            try:
                net = self.create().eval()
                _try_backbone(net)
                return net
            except Exception as error:  # networks that do not fit raise nearly anything
                message = str(error).strip() or type(error).__name__
                reason = message.splitlines()[0]
        raise ValueError(
            f"timm's {self.name} does not give four feature maps of images of any size ({reason})"
        )

    def _train_used_parameters(self) -> None:
        """Freeze those without a gradient of `_try_backbone`: they stop DistributedDataParallel."""
        for parameter in self.net.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def _register_normalization(self) -> None:
        """Note what turns ImageNet's normalisation of an image into the network's own."""
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        config = self.net.pretrained_cfg
        mean = _per_channel(config["mean"])
        std = _per_channel(config["std"])
        usual_mean = _per_channel(IMAGENET_DEFAULT_MEAN)
        usual_std = _per_channel(IMAGENET_DEFAULT_STD)
        self.register_buffer("gain", usual_std / std, persistent=False)
        self.register_buffer("shift", (usual_mean - mean) / std, persistent=False)


def _try_backbone(net: nn.Module) -> None:
    """Run a small batch of an unusual size forward and backward.

    Raises nearly anything if it does not fit.
    """
    maps = net(torch.rand(2, 3, 70, 90))
    widths = tuple(feature.shape[1] for feature in maps)
    if widths != tuple(net.feature_info.channels()):
        shapes = [tuple(feature.shape) for feature in maps]
        raise ValueError(f"its maps are {shapes}, not (B, D, H, W)")
    maps[-1].mean().backward()  # SIPE trains the backbone by its last map alone


def _per_channel(values: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1)
