"""The prompt-query adapter is a small convolutional head on each query patch and its difference to the nearest prompt patch.

It follows AdaptCLIP (Gao et al., AAAI 2026, arXiv 2505.09926), by the author of MetaUAS. There, the nearest neighbour of each query patch
aligns the prompt. The head sees the query's features and their absolute difference to the neighbour. This adapter takes several maps of any
encoder, and its head also sees the patch residuals.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from changepair.tasks.detectors.detector import ANY_CATEGORY, upsample
from changepair.tasks.detectors.patches import PatchDetector, median, most_alike, nearest_of_rest, resized, unit_patches
from changepair.tasks.encoders.encoder import Encoder, Features, exporting

RESIDUALS = 5  # residual maps of each stage that the head sees
SCALE = 10.0  # factor that brings residuals, about 0.1, to the size of the head's other inputs


class PromptQuery(PatchDetector):
    """The prompt-query adapter: a frozen encoder, a 1x1 convolution for each stage that reduces patches, and a head.

    The head returns one logit for each patch of the finest stage. It sees for each stage:

        1. the residual ½(1 − cosine) to the nearest prompt patch;
        2. this residual minus the picture's median, because an appearance shift raises the whole map;
        3. the residual of that prompt patch to the rest of the prompt;
        4. the query patch's self-residual;
        5. the self-residual minus its median;
        6. the absolute difference of the two reduced patches;
        7. with `context`, the query's reduced patch.
    """

    def __init__(self, encoder: Encoder, *, width: int = 32, head_width: int = 64, context: bool = True, **options: Any) -> None:
        """Build the adapter. `width` is the number of channels that a patch is reduced to, `head_width` that of the head.

        `options` are those of PatchDetector, applied to the map's probabilities.
        """
        super().__init__(encoder, **options)
        self.reductions = nn.ModuleList(nn.Conv2d(encoder.channels[stage - 1], width, kernel_size=1) for stage in self.stages)
        seen = len(self.stages) * (RESIDUALS + width * (2 if context else 1))
        layers = [*_layer(seen, head_width), *_layer(head_width, head_width)]
        self.head = nn.Sequential(*layers, nn.Conv2d(head_width, 1, kernel_size=1))
        self.context = context

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """Segment changes in queries against prompts, one prompt a query, both (B, 3, H, W) in [0, 1].

        Return logits (B, H, W), above 0 where the query differs.
        """
        features = self.encoder(queries)
        memory = [part[:, None] for part in self.remember(self.encoder(prompts))]
        return upsample(self.segment(features, self.relate(features, memory)), tuple(queries.shape[-2:]))

    def remember(self, prompts: Features) -> Features:
        """Return for each chosen stage the patches at unit length, (K, C, h, w).

        After those, return for each stage their cosines with the rest of the prompt, and the reduced patches: (K, 1+d, h, w).
        """
        units, reduced = self._patches(prompts)
        return [*units, *(torch.cat([nearest_of_rest(unit), part], dim=1) for unit, part in zip(units, reduced, strict=True))]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Find each query patch's nearest patch for each stage and prompt. Return (B, K, 3+d, h, w) for each stage.

        The channels are the cosine of the two, the stored channels of the prompt patch, and the query patch's cosine with the rest of the
        query. The last is the same for every prompt.
        """
        units, _reduced = self._patches(queries)
        banks, offered = memory[: len(units)], memory[len(units) :]
        found = [nearest(query, bank, values) for query, bank, values in zip(units, banks, offered, strict=True)]
        own = [nearest_of_rest(query)[:, None].expand(-1, of.shape[1], -1, -1, -1) for query, of in zip(units, found, strict=True)]
        return [torch.cat(parts, dim=2) for parts in zip(found, own, strict=True)]

    def segment(self, queries: Features, relation: Features) -> Tensor:
        """Return logits (B, h, w) on the finest chosen stage's grid. Each patch uses the prompt that holds the nearest patch."""
        _units, reduced = self._patches(queries)
        seen = [self._seen(query, found) for query, found in zip(reduced, relation, strict=True)]
        finest = max(tuple(part.shape[-2:]) for part in seen)
        return self.head(torch.cat([resized(part, finest) for part in seen], dim=1)).squeeze(1)

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        maps = self.segment(queries, relation).sigmoid()
        return self.image_scores(maps), maps

    def _patches(self, features: Features) -> tuple[Features, Features]:
        """Return the chosen stages' patches at unit length, and reduced."""
        units = unit_patches(features, self.stages)
        # Entries of a unit vector of C channels are about 1/sqrt(C). A randomly initialised convolution expects about 1.
        return units, [reduce(unit * unit.shape[1] ** 0.5) for reduce, unit in zip(self.reductions, units, strict=True)]

    def _seen(self, query: Tensor, found: Tensor) -> Tensor:
        """Return the head's input for one stage. `query` is reduced, (B, d, h, w). `found` is (B, K, 3+d, h, w), one entry a prompt."""
        best = found[:, :, :1].argmax(dim=1, keepdim=True).expand(-1, -1, found.shape[2], -1, -1)
        nearest_one = found.gather(1, best).squeeze(1)
        residual, of_prompt, own = (0.5 * (1.0 - nearest_one[:, place : place + 1 or None]) for place in (0, 1, -1))
        residuals = SCALE * torch.cat([residual, _above_median(residual), of_prompt, own, _above_median(own)], dim=1)
        differs = (query - nearest_one[:, 2:-1]).abs()
        return torch.cat([residuals, differs, *([query] if self.context else [])], dim=1)


def nearest(queries: Tensor, banks: Tensor, values: Tensor) -> Tensor:
    """Find in one stage each query patch's nearest patch of each prompt. Return its cosine and its value, (B, K, 1+d, h, w).

    `queries` is (B, C, h, w). `banks` is (K, C, h, w) for all queries, or (B, K, C, h, w). Both have unit length. `values` is (K, d, h, w)
    or (B, K, d, h, w).
    """
    patches = queries.flatten(2).mT  # (B, N, C)
    if banks.ndim == 4:
        banks, values = (part[None].expand(queries.shape[0], *part.shape) for part in (banks, values))
    if exporting():
        cosine, place = most_alike(patches[:, None], banks.flatten(-2))
    else:
        # The encoder is frozen, so no gradient is needed. Full precision, because a hundredth of a cosine matters here.
        with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
            pairs = [[most_alike(own, bank) for bank in each] for own, each in zip(patches, banks.flatten(-2), strict=True)]
            cosine, place = (torch.stack([torch.stack([pair[part] for pair in row]) for row in pairs]) for part in (0, 1))
    found = values.flatten(-2).gather(3, place[:, :, None].expand(-1, -1, values.shape[2], -1))
    return torch.cat([cosine[:, :, None], found], dim=2).unflatten(-1, queries.shape[-2:])


def _above_median(maps: Tensor) -> Tensor:
    """Subtract the median of each map (B, 1, h, w)."""
    return maps - median(maps.flatten(1))[:, None, None, None]


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
