"""The training-free baseline: how far each query patch is from the nearest prompt patch.

The visual half of WinCLIP+ (Jeong et al., CVPR 2023, section 4.3) and of AnomalyDINO (Damm et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.models.encoder import Encoder, Features

MOST_SIMILARITIES = 2**20  # held at once (4 MiB of float32): it stays in the cache, and memory does not grow with the prompts


class PatchResidual(nn.Module):
    """½·min over all prompt patches of (1 − cosine), averaged over the chosen stages and upsampled to the picture.

    The image score is the mean over the highest `top_share` of patches (AnomalyDINO, section 3.2: the highest 1 %), less
    `background` times the median patch. A prompt that shows another make, or another light, raises a query's whole map; a defect
    stands out of it. With both at 0 the score is the maximum, as in WinCLIP+.
    """

    def __init__(self, encoder: Encoder, *, stages: Sequence[int] = (3, 4, 5), top_share: float = 0.0, background: float = 0.0) -> None:
        """stages: which of the encoder's feature maps, counted from 1 (the finest). top_share, background: 0..1."""
        super().__init__()
        self.encoder = encoder
        self.stages = tuple(stages)
        self.top_share = top_share
        self.background = background

    def remember(self, prompts: Features) -> Features:
        """What comparing needs of prompts' features, KxCxhxw a stage: the chosen stages, each patch at unit length."""
        return [F.normalize(prompts[stage - 1], dim=1) for stage in self.stages]

    def relate(self, queries: Features, memory: Features) -> Features:
        """For each stage and prompt every query patch's highest cosine with a patch of that prompt, BxKxhxw.

        memory: KxCxhxw a stage for all queries, or BxKxCxhxw.
        """
        return [nearest_cosine(F.normalize(queries[stage - 1], dim=1), unit) for stage, unit in zip(self.stages, memory, strict=True)]

    def conclude(self, queries: Features, relation: Features) -> tuple[Tensor, Tensor]:
        """Image scores B, and anomaly maps Bxhxw in [0, 1] on the finest chosen stage's grid. The nearest of all prompts counts."""
        residuals = [(0.5 * (1.0 - cosine.amax(dim=1, keepdim=True))).clamp(0.0, 1.0) for cosine in relation]
        finest = max(tuple(map_.shape[-2:]) for map_ in residuals)
        maps = torch.stack([_upsample(map_, finest) for map_ in residuals]).mean(dim=0).squeeze(1)
        return self._image_scores(maps.flatten(1)), maps

    def _image_scores(self, values: Tensor) -> Tensor:
        """values: BxN, the maps' patches."""
        highest = max(1, int(self.top_share * values.shape[1]))
        scores = values.topk(highest, dim=1).values.mean(dim=1)
        return scores - self.background * values.median(dim=1).values if self.background else scores

    def score(self, queries: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """queries Bx3xHxW against prompts Kx3xHxW, both in [0, 1]: image scores B, anomaly maps BxHxW."""
        features = self.encoder(queries)
        scores, maps = self.conclude(features, self.relate(features, self.remember(self.encoder(prompts))))
        return scores, _upsample(maps[:, None], tuple(queries.shape[-2:])).squeeze(1)


def nearest_cosine(query: Tensor, prompts: Tensor) -> Tensor:
    """One stage, vectors of unit length. query: BxCxhxw; prompts: KxCxhxw for all queries, or BxKxCxhxw. Cosines BxKxhxw."""
    patches = query.flatten(2).mT  # BxNxC
    banks = prompts.flatten(-2)  # KxCxM, or BxKxCxM
    nearest = [
        torch.stack([_nearest(patches[index], bank) for bank in (banks if banks.ndim == 3 else banks[index])])
        for index in range(len(query))
    ]
    return torch.stack(nearest).unflatten(-1, query.shape[-2:])


def _nearest(patches: Tensor, bank: Tensor) -> Tensor:
    """The highest cosine of each patch (NxC, unit length) with the bank (CxM, unit length): N."""
    rows = max(1, MOST_SIMILARITIES // bank.shape[-1])
    return torch.cat([(part @ bank).amax(dim=-1) for part in patches.split(rows)])


def _upsample(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
