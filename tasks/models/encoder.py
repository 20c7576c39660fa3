"""The seam between pictures and detectors: `encoder(images) -> feature maps`, finest first, each with its stride."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

Features = list[Tensor]
"""Maps BxCxhxw for queries; for prompts KxCxhxw shared by all queries, or BxKxCxhxw. Finest first. Some encoders end it with an
embedding of the whole picture, as a map of one position; the mean over positions of the last entry always stands for the picture."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that most weights were trained with


class Encoder(Protocol):
    """Maps images Bx3xHxW in [0, 1] to feature maps."""

    channels: tuple[int, ...]
    """Of every entry of the features."""
    strides: tuple[int, ...]
    """Pixels a position, of every entry; of an embedding the picture's side."""
    maps: int
    """How many of the entries are maps: all, or all but the embedding."""

    def __call__(self, images: Tensor) -> Features: ...


class FrozenEncoder(nn.Module):
    """A network that never trains and stays in evaluation mode. It normalises its input itself."""

    mean: Tensor
    std: Tensor
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    maps: int

    def __init__(self, network: nn.Module, *, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        """mean, std: of the pictures in [0, 1] that the network was trained on; one number, or one a channel."""
        super().__init__()
        self.network = network.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        return super().train(False)

    def forward(self, images: Tensor) -> Features:
        """images: Bx3xHxW in [0, 1]."""
        with torch.no_grad():
            return self.features((images - self.mean) / self.std)

    def features(self, normalised: Tensor) -> Features:
        raise NotImplementedError


class TimmEncoder(FrozenEncoder):
    """A timm network made with features_only: five stages of a CNN, strides 2 to 32, or chosen blocks of a vision transformer."""

    def __init__(self, network: nn.Module, *, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        super().__init__(network, mean=mean, std=std)
        about: Any = network.feature_info
        self.channels = tuple(about.channels())
        self.strides = tuple(about.reduction())
        self.maps = len(self.channels)

    def features(self, normalised: Tensor) -> Features:
        return list(self.network(normalised))


class SmpEncoder(FrozenEncoder):
    """An encoder of segmentation_models_pytorch, five stages. The published MetaUAS was trained on one: its EfficientNet pads and
    counts its stages otherwise than timm's of the same name."""

    def __init__(self, name: str) -> None:
        """name: as segmentation_models_pytorch calls it, for example efficientnet-b4. Its weights start at random."""
        network: Any = get_encoder(name, weights=None)
        super().__init__(network, mean=IMAGENET[0], std=IMAGENET[1])
        self.channels = tuple(network.out_channels[1:])
        self.strides = tuple(2 ** (stage + 1) for stage in range(len(self.channels)))
        self.maps = len(self.channels)

    def features(self, normalised: Tensor) -> Features:
        return list(self.network(normalised)[1:])  # the first is the picture


def efficientnet_lite0(weights: Mapping[str, Tensor] | None) -> TimmEncoder:
    """timm's tf_efficientnet_lite0 (Tan and Le, ICML 2019, in its Lite variant): 16, 24, 40, 112, 320 channels.

    weights: a classifier's state dict with the same tensors in the same order under any names; the head is left over. None leaves
    them at random. Raises ValueError if a tensor's shape does not fit.
    """
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    if weights is not None:
        network.load_state_dict(_in_order(network.state_dict(), weights))
    return TimmEncoder(network, mean=0.5, std=0.5)


def _in_order(own: dict[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given = [(name, tensor) for name, tensor in weights.items() if not name.endswith("num_batches_tracked")]
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    for (name, tensor), target in zip(given, wanted, strict=False):
        if tensor.shape != own[target].shape:
            raise ValueError(f"encoder weights: {name} has shape {tuple(tensor.shape)}, {target} needs {tuple(own[target].shape)}")
        own[target] = tensor
    if len(given) < len(wanted):
        raise ValueError(f"encoder weights: {len(given)} tensors, but the encoder has {len(wanted)}")
    return own
