"""The patch residual in a metric that is learnt: which channels and which stages say that something changed, and which only the make.

Patches are compared as the patch residual compares them (Jeong et al., CVPR 2023, section 4.3; Damm et al., WACV 2025, section 3.2). Before
that each is moved and scaled, channel by channel, as a metric between embeddings is learnt (Xing et al., "Distance metric learning", NIPS
2002, with a diagonal matrix), so little is learnt that it holds in other domains; at the start it is the patch residual itself.
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
    """PatchResidual between patches (u·√C − offset)·scale, u the encoder's patch at unit length and C its channels; stages are averaged by
    weights. At whatever scales the encoder sees pictures, the metric is the same. It gives scores and maps as PatchResidual does, with all
    that that can be asked for."""

    def __init__(self, encoder: Encoder, **options: Any) -> None:
        """options: PatchResidual's."""
        super().__init__(encoder, **options)
        each = len(self.stages) // len(encoder.scales)
        channels = [encoder.channels[stage - 1] for stage in self.stages[:each]]  # of every scale: one metric for all of them
        self.offsets = nn.ParameterList(nn.Parameter(torch.zeros(each)) for each in channels)
        self.log_scales = nn.ParameterList(nn.Parameter(torch.zeros(each)) for each in channels)
        self.log_weights = nn.Parameter(torch.zeros(len(channels)))
        self.log_steepness = nn.Parameter(torch.tensor(math.log(STEEP)))  # of the ranking loss; no score depends on it

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """Scores queries against prompts, both Bx3xHxW in [0, 1], one prompt a query; by the prompt alone, whatever `own` is. Image scores
        B, times the steepness: what differs by 1 is e times as likely to be ranked right (tasks/detectors/residual/train.py)."""
        asked, offered = (self.units(self.encoder(pictures)) for pictures in (queries, prompts))
        maps = self.maps([_cosines(query, prompt) for query, prompt in zip(asked, offered, strict=True)])
        return self.score_of(maps) * self.log_steepness.exp()

    def units(self, features: Features) -> Features:
        units = super().units(features)
        learnt = zip(units, cycle(self.offsets), cycle(self.log_scales), strict=False)
        moved = [(unit * unit.shape[1] ** 0.5 - _channels(offset)) * _channels(scale.exp()) for unit, offset, scale in learnt]
        return [F.normalize(patches, dim=1) for patches in moved]

    def mean(self, relation: Features) -> Tensor:
        return residual_map(relation, self.log_weights.softmax(dim=0))


def _channels(values: Tensor) -> Tensor:
    """Lays values C along the channels of maps BxCxhxw."""
    return values[:, None, None]


def _cosines(queries: Tensor, prompts: Tensor) -> Tensor:
    """Gives each query patch's cosine with its nearest patch of its own prompt, Bx1xhxw; gradients flow through the cosine, not through
    which is the nearest. Both BxCxhxw, of unit length."""
    asked, offered = queries.flatten(2), prompts.flatten(2)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):  # a hundredth of a cosine is much here
        nearest = torch.stack([most_alike(query.mT, prompt)[1] for query, prompt in zip(asked, offered, strict=True)])
    found = offered.gather(2, nearest[:, None].expand(-1, offered.shape[1], -1))
    return (asked * found).sum(dim=1, keepdim=True).unflatten(-1, queries.shape[-2:])
