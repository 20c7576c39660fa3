"""MetaUAS*+ averages MetaUAS with a visual prior (Gao, NeurIPS 2024, arXiv 2505.09265)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, upsample
from changepair.tasks.detectors.metauas.model import MetaUAS
from changepair.tasks.detectors.patches import resized, unit_patches
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.detectors.winclip.model import few_shot_map, windows_related
from changepair.tasks.encoders.clip import ClipEncoder, WindowEncoder
from changepair.tasks.encoders.encoder import Encoder, Features, FrozenEncoder


class MetaUASPlus(Detector):
    """MetaUAS*+: the map of MetaUAS averaged with the map of a visual prior, without text.

    The authors' prior is the few-shot map of WinCLIP: their table's parameters and time fit EfficientNet-B4 with ViT-B-16-plus-240. Without
    CLIP, the prior is the patch residual of MetaUAS's features.
    """

    def __init__(self, metauas: MetaUAS, prior: PatchResidual | SecondEncoder) -> None:
        """Combine a MetaUAS with a prior: a second encoder whose windows and patches are compared, or a patch residual."""
        super().__init__()
        self.metauas = metauas
        self.residual = prior if isinstance(prior, PatchResidual) else None
        self.encoder: Encoder = metauas.encoder if isinstance(prior, PatchResidual) else prior
        self.before = 0 if isinstance(prior, PatchResidual) else len(prior.second.channels)

    def remember(self, prompts: Features) -> Features:
        return [*self.metauas.remember(prompts[self.before :]), *self._remember(prompts)]

    def relate(self, queries: Features, memory: Features) -> Features:
        aligned, own = self.metauas.remembered, queries[self.before :]
        kept = memory[aligned:]
        prior = self.residual.relate(own, kept) if self.residual is not None else windows_related(self._remember(queries), kept)
        return [*self.metauas.relate(own, memory[:aligned]), *prior]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        related, own = self.metauas.related, queries[self.before :]
        _score, changed = self.metauas.conclude(own, relation[:related])
        prior = self.residual.conclude(own, relation[related:])[1] if self.residual is not None else few_shot_map(relation[related:])
        maps = 0.5 * (changed + upsample(prior, changed.shape[-2:]))
        return maps.flatten(1).amax(dim=1), maps

    def _remember(self, features: Features) -> Features:
        if self.residual is not None:
            return self.residual.remember(features)
        return unit_patches(features, range(1, cast(SecondEncoder, self.encoder).second.maps + 1))


class SecondEncoder(nn.Module):
    """Two encoders as one. It returns the second's features, of pictures at its resolution, and then the first's.

    The first's last entry represents the picture.
    """

    def __init__(self, first: Encoder, second: FrozenEncoder, resolution: int) -> None:
        """Join two encoders. `resolution` is the side in pixels of the second's pictures."""
        super().__init__()
        self.first, self.second, self.resolution = first, second, resolution
        self.channels = (*second.channels, *first.channels)
        self.strides = (*second.strides, *first.strides)
        self.maps = len(second.channels) + first.maps
        self.scales: tuple[float, ...] = (1.0,)

    def forward(self, images: Tensor) -> Features:
        with torch.no_grad():
            return [*self.second(resized(images, (self.resolution, self.resolution))), *self.first(images)]


def build(metauas: MetaUAS, *, prior: ClipEncoder | None, prior_resolution: int, stages: Sequence[int]) -> MetaUASPlus:
    """Build MetaUAS*+. `prior` encodes pictures of `prior_resolution` pixels a side.

    Without a `prior`, it is the patch residual of the given stages of MetaUAS.
    """
    if prior is None:
        return MetaUASPlus(metauas, PatchResidual(metauas.encoder, stages=stages))
    return MetaUASPlus(metauas, SecondEncoder(metauas.encoder, WindowEncoder(prior), prior_resolution))
