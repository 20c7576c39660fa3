"""The prompt-query adapter: a small convolutional head reads a map off each query patch and what differs from the nearest prompt patch.

After AdaptCLIP (Gao et al., AAAI 2026, arXiv 2505.09926), by the author of MetaUAS: the prompt is aligned by each query patch's
nearest neighbour, and the head sees the query's features and their absolute difference to it. Ours takes any encoder's maps, several at
once, and sees besides what the patch residual sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, upsample
from changepair.tasks.detectors.patches import chosen_stages, image_scores, median, most_alike, nearest_of_rest, resized
from changepair.tasks.encoders.encoder import Encoder, Features, exporting


class PromptQuery(Detector):
    """A frozen encoder, a 1x1 convolution a stage that reduces patches, and a head to one logit a patch of the finest stage.

    For every stage the head sees: the residual ½(1 − cosine) to the nearest prompt patch; that less the picture's median, as another light
    or make raises all of a map; the residual of that prompt patch to the rest of its own prompt, which says how far apart what is alike
    lies there; the query patch's to the rest of the query, and that less its median; the absolute difference of the two reduced patches;
    and with `context` the query's reduced patch.
    """

    def __init__(
        self,
        encoder: Encoder,
        reductions: nn.ModuleList,
        head: nn.Sequential,
        *,
        stages: Sequence[int],
        context: bool,
        top_share: float = 0.0,
        background: float = 0.0,
        rotations: int = 1,
        mirrored: bool = False,
    ) -> None:
        """stages: of the encoder's maps, counted from 1. top_share, background: as of the patch residual, on the map's probabilities.
        rotations, mirrored: Detector's."""
        super().__init__()
        self.encoder = encoder
        self.reductions = reductions
        self.head = head
        self.stages = tuple(stages)
        self.context = context
        self.top_share = top_share
        self.background = background
        self.rotations = rotations
        self.mirrored = mirrored

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """Segments queries against prompts, both Bx3xHxW in [0, 1], one prompt a query. Gives logits BxHxW, above 0 where the query
        differs."""
        features = self.encoder(queries)
        memory = [part[:, None] for part in self.remember(self.encoder(prompts))]
        return upsample(self.segment(features, self.relate(features, memory)), tuple(queries.shape[-2:]))

    def remember(self, prompts: Features) -> Features:
        """Keeps for each chosen stage the patches at unit length, KxCxhxw; and after them their cosines with the rest of their own prompt
        and the reduced ones, Kx(1+d)xhxw."""
        units, reduced = self._patches(prompts)
        return [*units, *(torch.cat([nearest_of_rest(unit), part], dim=1) for unit, part in zip(units, reduced, strict=True))]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Finds for each stage and prompt each query patch's nearest: its cosine with it, and what is kept of it; and the patch's cosine
        with the rest of the query, the same for every prompt. BxKx(3+d)xhxw."""
        units, _reduced = self._patches(queries)
        banks, offered = memory[: len(units)], memory[len(units) :]
        found = [nearest(query, bank, values) for query, bank, values in zip(units, banks, offered, strict=True)]
        own = [nearest_of_rest(query)[:, None].expand(-1, of.shape[1], -1, -1, -1) for query, of in zip(units, found, strict=True)]
        return [torch.cat(parts, dim=2) for parts in zip(found, own, strict=True)]

    def segment(self, queries: Features, relation: Features) -> Tensor:
        """Gives logits Bxhxw on the finest chosen stage's grid. Of several prompts each patch counts the one with the nearest patch."""
        _units, reduced = self._patches(queries)
        seen = [self._seen(query, found) for query, found in zip(reduced, relation, strict=True)]
        finest = max(tuple(part.shape[-2:]) for part in seen)
        return self.head(torch.cat([resized(part, finest) for part in seen], dim=1)).squeeze(1)

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Gives image scores B, and anomaly maps Bxhxw."""
        maps = self.segment(queries, relation).sigmoid()
        return image_scores(maps.flatten(1), self.top_share, self.background), maps

    def _patches(self, features: Features) -> tuple[Features, Features]:
        """Gives the chosen stages' patches at unit length, and reduced."""
        units = [F.normalize(features[stage - 1], dim=1) for stage in self.stages]
        # Entries of a unit vector of C are some 1/sqrt(C); a convolution that starts at random wants some 1.
        return units, [reduce(unit * unit.shape[1] ** 0.5) for reduce, unit in zip(self.reductions, units, strict=True)]

    def _seen(self, query: Tensor, found: Tensor) -> Tensor:
        """Gives what the head sees of one stage. query: Bxdxhxw, reduced; found: BxKx(3+d)xhxw, of each prompt."""
        best = found[:, :, :1].argmax(dim=1, keepdim=True).expand(-1, -1, found.shape[2], -1, -1)
        nearest_one = found.gather(1, best).squeeze(1)
        residual, of_prompt, own = (0.5 * (1.0 - nearest_one[:, place : place + 1 or None]) for place in (0, 1, -1))
        residuals = SCALE * torch.cat([residual, _above_median(residual), of_prompt, own, _above_median(own)], dim=1)
        differs = (query - nearest_one[:, 2:-1]).abs()
        return torch.cat([residuals, differs, *([query] if self.context else [])], dim=1)


RESIDUALS = 5  # of a stage, that the head sees
SCALE = 10.0  # residuals are some .1: brought to the size of what else the head sees


def build_prompt_query(
    encoder: Encoder,
    *,
    stages: Sequence[int] = (),
    width: int = 32,
    head_width: int = 64,
    context: bool = True,
    **scoring: Any,
) -> PromptQuery:
    """Builds the adapter. stages: of the encoder's maps, counted from 1; none for the last three. width: channels that a patch is reduced
    to. head_width: channels of the head. scoring: the other options of PromptQuery."""
    chosen = chosen_stages(encoder, stages)
    reductions = nn.ModuleList(nn.Conv2d(encoder.channels[stage - 1], width, kernel_size=1) for stage in chosen)
    seen = len(chosen) * (RESIDUALS + width * (2 if context else 1))
    head = nn.Sequential(
        *_layer(seen, head_width, 3),
        *_layer(head_width, head_width, 3),
        nn.Conv2d(head_width, 1, kernel_size=1),
    )
    return PromptQuery(encoder, reductions, head, stages=chosen, context=context, **scoring)


def nearest(queries: Tensor, banks: Tensor, values: Tensor) -> Tensor:
    """Finds in one stage each query patch's nearest patch of each prompt, and gives its cosine and its value.

    queries: BxCxhxw, banks: KxCxhxw for all queries or BxKxCxhxw, both of unit length; values: Kxdxhxw or BxKxdxhxw. BxKx(1+d)xhxw.
    """
    patches = queries.flatten(2).mT  # BxNxC
    if banks.ndim == 4:
        banks, values = (part[None].expand(queries.shape[0], *part.shape) for part in (banks, values))
    if exporting():
        cosine, place = most_alike(patches[:, None], banks.flatten(-2))
        found = values.flatten(-2).gather(3, place[:, :, None].expand(-1, -1, values.shape[2], -1))
        return torch.cat([cosine[:, :, None], found], dim=2).unflatten(-1, queries.shape[-2:])
    cosines, places = [], []
    # Of a frozen encoder's features, so no gradient; and a hundredth of a cosine is much here, so in full precision.
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        for own, each in zip(patches, banks.flatten(-2), strict=True):
            pairs = [most_alike(own, bank) for bank in each]
            cosines.append(torch.stack([cosine for cosine, _place in pairs]))
            places.append(torch.stack([place for _cosine, place in pairs]))
    chosen = torch.stack(places)[:, :, None].expand(-1, -1, values.shape[2], -1)
    found = values.flatten(-2).gather(3, chosen)
    return torch.cat([torch.stack(cosines)[:, :, None], found], dim=2).unflatten(-1, queries.shape[-2:])


def _above_median(maps: Tensor) -> Tensor:
    """Takes the median of each map Bx1xhxw off it."""
    return maps - median(maps.flatten(1))[:, None, None, None]


def _layer(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
