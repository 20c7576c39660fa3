"""UniADet looks for what is broken by itself, with or without prompts (Gao and Wang, arXiv 2601.05552).

Each feature map has a pair of weights that decides about the whole picture, and another that decides about each patch. Nothing else is
learned. With prompts, the patch residual is added.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changepair.tasks.detectors.detector import ANY_CATEGORY, upsample
from changepair.tasks.detectors.patches import PatchDetector, nearest_cosine, residual_map, unit_patches
from changepair.tasks.encoders.encoder import Encoder, Features

TEMPERATURE = 0.07  # of the softmax over the two cosines (section 3.2)


class UniADet(PatchDetector):
    """UniADet: p = softmax(cos(f, W) / 0.07), with its own weights W (2, C) for each map and for each of the two decisions.

    The image score is ½·p of the picture + ½·the highest p of its patches, each averaged over the maps. With prompts, the patch residual
    1 − cosine is added to the patches' p. `learned` weights the learned parts against the residual, whose weight is 1.

    The paper decides about the picture by the class token of each layer. Here it is the mean of the layer's patches, which every encoder
    has.
    """

    needs_prompts = False

    def __init__(self, encoder: Encoder, *, learned: float = 0.3, **options: Any) -> None:
        """Draw random weights. `learned` is the weight of the learned parts if there are prompts. `options` are those of PatchDetector."""
        super().__init__(encoder, **options)
        channels = [encoder.channels[stage - 1] for stage in self.stages]
        self.class_weights, self.mask_weights = (
            # The rate of AdamW is that of each number, so longer weights would hardly turn.
            nn.ParameterList(nn.Parameter(torch.randn(2, each) / each**0.5) for each in channels)
            for _decision in range(2)
        )
        self.learned = learned

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of pictures (B, 3, H, W) in [0, 1]: the pictures' (B, L), and the patches' (B, h, w) for each of L maps."""
        units = unit_patches(self.encoder(pictures), self.stages)
        return self.of_pictures(units), self.of_patches(units)

    def of_pictures(self, units: Features) -> Tensor:
        """Return the logit of `anomalous` of each picture and map, (B, L)."""
        means = [unit.mean(dim=(-2, -1), keepdim=True) for unit in units]
        logits = [_logit(F.normalize(mean, dim=1), weights) for mean, weights in zip(means, self.class_weights, strict=True)]
        return torch.cat(logits, dim=1)[..., 0]

    def of_patches(self, units: Features) -> list[Tensor]:
        """Return the logit of `anomalous` of each patch, (B, h, w) for each map."""
        return [_logit(unit, weights) for unit, weights in zip(units, self.mask_weights, strict=True)]

    def remember(self, prompts: Features) -> Features:
        return unit_patches(prompts, self.stages)

    def relate(self, queries: Features, memory: Features) -> Features:
        """Return each query patch's highest cosine for each stage and prompt, (B, K, h, w)."""
        return [nearest_cosine(query, bank) for query, bank in zip(unit_patches(queries, self.stages), memory, strict=True)]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        units = unit_patches(queries, self.stages)
        of_picture, maps = self.of_pictures(units).sigmoid().mean(dim=1), mean_map([logits.sigmoid() for logits in self.of_patches(units)])
        if not relation:
            return 0.5 * (of_picture + self.image_scores(maps)), maps
        residual = (2.0 * residual_map(relation)).clamp_max(1.0)
        together = (residual + self.learned * maps) / (1.0 + self.learned)
        weights = self.learned, 1.0 + self.learned
        return (weights[0] * of_picture + weights[1] * self.image_scores(together)) / sum(weights), together


def mean_map(maps: list[Tensor]) -> Tensor:
    """Average maps (B, h, w) on the grid of the finest."""
    finest = max(tuple(map_.shape[-2:]) for map_ in maps)
    return torch.stack([upsample(map_, finest) for map_ in maps]).mean(dim=0)


def _logit(units: Tensor, weights: Tensor) -> Tensor:
    """Return the logit of the second of two classes (B, h, w), for patches (B, C, h, w) of unit length and weights (2, C)."""
    normal, anomalous = F.normalize(weights, dim=1)
    return torch.einsum("bchw,c->bhw", units, anomalous - normal) / TEMPERATURE
