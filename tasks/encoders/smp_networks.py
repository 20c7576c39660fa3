"""Encoders of segmentation_models_pytorch. The import takes two seconds, because it imports timm."""

from __future__ import annotations

from typing import Any

from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from changepair.tasks.encoders.encoder import IMAGENET, Features, FrozenEncoder


class SmpEncoder(FrozenEncoder):
    """An encoder of segmentation_models_pytorch with five stages, as the published MetaUAS uses.

    Its EfficientNet pads differently and counts its stages differently from timm's of the same name, and from that of the current
    segmentation_models_pytorch.
    """

    def __init__(self, name: str) -> None:
        """Build the encoder `name` of segmentation_models_pytorch, for example efficientnet-b4. Its weights start at random."""
        network: Any = get_encoder(name, weights=None)
        _pad_as_published(network)
        super().__init__(network, mean=IMAGENET[0], std=IMAGENET[1])
        self.channels = tuple(network.out_channels[1:])
        self.strides = tuple(2 ** (stage + 1) for stage in range(len(self.channels)))
        self.maps = len(self.channels)

    def features(self, normalised: Tensor) -> Features:
        return list(self.run(normalised)[1:])  # the first entry is the picture


def _pad_as_published(network: nn.Module) -> None:
    """Pad an EfficientNet like efficientnet-pytorch 0.6.3, which the authors of MetaUAS pin.

    Every convolution is padded as for the picture side that the network is defined at (380 for B4), even if its input is much smaller.
    """
    settings: Any = getattr(network, "_global_params", None)
    for module in network.modules() if settings is not None else ():
        if isinstance(module, nn.Conv2d) and hasattr(module, "static_padding"):
            kernel, stride = module.kernel_size[0], module.stride[0]
            room = max((-(-settings.image_size // stride) - 1) * stride + kernel - settings.image_size, 0)
            module.static_padding = nn.ZeroPad2d((room // 2, room - room // 2) * 2)
