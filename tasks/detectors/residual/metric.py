"""The patch residual in a learnt metric: which channels and stages show a change, and which only an appearance shift.

Patches are compared as in the patch residual (Jeong et al., CVPR 2023, section 4.3; Damm et al., WACV 2025, section 3.2). Before that each
is moved and scaled channel by channel (Xing et al., "Distance metric learning", NIPS 2002, with a diagonal matrix). That is so little to
learn that it holds in other domains. At the start the metric is the patch residual itself.
"""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changepair.tasks.detectors.patches import most_alike, residual_map
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.encoders.encoder import Encoder, Features

STEEP = 100.0  # at the start: a hundredth of a residual is a nat of the ranking loss


class MetricResidual(PatchResidual):
    """PatchResidual between patches (u·√C − offset)·scale, where u is the encoder's patch at unit length and C its channels. Stages are
    averaged by weights. The metric is the same at all scales of the encoder."""

    def __init__(self, encoder: Encoder, **options: Any) -> None:
        super().__init__(encoder, **options)
        each = len(self.stages) // len(encoder.scales)
        channels = [encoder.channels[stage - 1] for stage in self.stages[:each]]  # of every scale: one metric for all of them
        self.offsets = nn.ParameterList(nn.Parameter(torch.zeros(each)) for each in channels)
        self.log_scales = nn.ParameterList(nn.Parameter(torch.zeros(each)) for each in channels)
        self.log_weights = nn.Parameter(torch.zeros(len(channels)))
        self.log_steepness = nn.Parameter(torch.tensor(math.log(STEEP)))  # of the ranking loss; no score depends on it

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """Score queries against prompts, both Bx3xHxW in [0, 1], one prompt a query, without `own`. Return image scores B times the
        steepness: for the ranking loss, a difference of 1 is e times as likely to be right (tasks/detectors/residual/train.py)."""
        asked, offered = (self.units(self.encoder(pictures)) for pictures in (queries, prompts))
        maps = self.maps([_cosines(query, prompt) for query, prompt in zip(asked, offered, strict=True)])
        return self.score_of(maps) * self.log_steepness.exp()

    def units(self, features: Features) -> Features:
        units = super().units(features)
        learnt = zip(units, cycle(self.offsets), cycle(self.log_scales), strict=False)
        moved = [(unit * unit.shape[1] ** 0.5 - offset[:, None, None]) * scale.exp()[:, None, None] for unit, offset, scale in learnt]
        return [F.normalize(patches, dim=1) for patches in moved]

    def mean(self, relation: Features) -> Tensor:
        return residual_map(relation, self.log_weights.softmax(dim=0))


def _cosines(queries: Tensor, prompts: Tensor) -> Tensor:
    """Return each query patch's cosine with its nearest patch of its own prompt, Bx1xhxw. Gradients flow through the cosine, not the choice
    of the nearest. queries, prompts: BxCxhxw, of unit length."""
    asked, offered = queries.flatten(2), prompts.flatten(2)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):  # a hundredth of a cosine is much here
        nearest = torch.stack([most_alike(query.mT, prompt)[1] for query, prompt in zip(asked, offered, strict=True)])
    found = offered.gather(2, nearest[:, None].expand(-1, offered.shape[1], -1))
    return (asked * found).sum(dim=1, keepdim=True).unflatten(-1, queries.shape[-2:])
