"""The seam between pictures and detectors: `encoder(images) -> feature maps`, finest first, each with its stride."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import timm
import torch
from torch import Tensor, nn

Features = list[Tensor]
"""One map a stage, finest first: BxCxhxw for queries; for prompts KxCxhxw shared by all queries, or BxKxCxhxw."""


class Encoder(Protocol):
    """Maps images Bx3xHxW in [0, 1] to one feature map a stage."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, images: Tensor) -> Features: ...


class TimmEncoder(nn.Module):
    """A frozen timm network. It normalises its input itself, never trains and stays in evaluation mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: float, std: float) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        about: Any = network.feature_info
        self.channels: tuple[int, ...] = tuple(about.channels())
        self.strides: tuple[int, ...] = tuple(about.reduction())
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> TimmEncoder:
        return super().train(False)

    def forward(self, images: Tensor) -> Features:
        """images: Bx3xHxW in [0, 1]. One BxCxhxw map a stage, strides 2, 4, 8, 16, 32."""
        with torch.no_grad():
            return list(self.network((images - self.mean) / self.std))


def efficientnet_lite0(weights: Mapping[str, Tensor]) -> TimmEncoder:
    """timm's tf_efficientnet_lite0 (Tan and Le, ICML 2019, in its Lite variant): 16, 24, 40, 112, 320 channels.

    weights: a classifier's state dict with the same tensors in the same order under any names; the head is left over.
    Raises ValueError if a tensor's shape does not fit.
    """
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    own = network.state_dict()
    given = [(name, tensor) for name, tensor in weights.items() if not name.endswith("num_batches_tracked")]
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    for (name, tensor), target in zip(given, wanted, strict=False):
        if tensor.shape != own[target].shape:
            raise ValueError(f"encoder weights: {name} has shape {tuple(tensor.shape)}, {target} needs {tuple(own[target].shape)}")
        own[target] = tensor
    if len(given) < len(wanted):
        raise ValueError(f"encoder weights: {len(given)} tensors, but the encoder has {len(wanted)}")
    network.load_state_dict(own)
    return TimmEncoder(network, mean=0.5, std=0.5)
