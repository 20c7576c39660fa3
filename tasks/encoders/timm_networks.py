"""Encoders of timm. The import takes two seconds, because timm imports torchvision and torch._dynamo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import FeatureInfo
from torch import Tensor, nn

from changepair.tasks.encoders.encoder import Features, FrozenEncoder


class TimmEncoder(FrozenEncoder):
    """A timm network built with features_only: five stages of a CNN with strides 2 to 32, or chosen blocks of a vision transformer."""

    def __init__(self, network: nn.Module, *, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        super().__init__(network, mean=mean, std=std)
        about: Any = network.feature_info
        self.channels = tuple(about.channels())
        self.strides = tuple(about.reduction())
        self.maps = len(self.channels)

    def features(self, normalised: Tensor) -> Features:
        return list(self.run(normalised))


class NormalisedBlocks(nn.Module):
    """Chosen blocks of a timm transformer, each through its last LayerNorm."""

    def __init__(self, model: nn.Module, indices: Sequence[int]) -> None:
        """Wrap a network without classifier. `indices` counts its blocks from 0. Raises ValueError if it has no LayerNorm at its end."""
        super().__init__()
        if not isinstance(getattr(model, "norm", None), nn.LayerNorm) or not hasattr(model, "num_prefix_tokens"):
            raise ValueError(f"layer_norm needs a transformer with a LayerNorm at its end, not {type(model).__name__}")
        prune: Any = model.prune_intermediate_layers
        self.indices = prune(list(indices), prune_norm=False)
        self.feature_info = FeatureInfo(model.feature_info, self.indices)  # type: ignore[arg-type]
        self.model = model

    def forward(self, normalised: Tensor) -> Any:
        return self.model.forward_intermediates(normalised, indices=self.indices, norm=True, intermediates_only=True)  # type: ignore[operator]
