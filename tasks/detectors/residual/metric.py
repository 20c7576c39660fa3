"""The patch residual in a learned metric. It weights the channels and stages that show a change above those that show an appearance shift.

Patches are compared as in the patch residual (Jeong et al., CVPR 2023, section 4.3; Damm et al., WACV 2025, section 3.2). Before that, each
is shifted and scaled channel by channel (Xing et al., "Distance metric learning", NIPS 2002, with a diagonal matrix). The metric has few
parameters, so that it holds in other domains. Training starts from the patch residual itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changepair.tasks.detectors.detector import Detector
from changepair.tasks.detectors.patches import most_alike, residual_map
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.encoders.encoder import Encoder, Features

STEEP = 100.0  # initial steepness: a hundredth of a residual is a nat of the ranking loss


class MetricResidual(PatchResidual):
    """PatchResidual between patches (u·√C − offset)·scale, where u is the encoder's patch at unit length and C its number of channels.

    Stages are averaged with learned weights. All scales of the encoder share the metric.
    """

    def __init__(self, encoder: Encoder, **options: Any) -> None:
        super().__init__(encoder, **options)
        each = len(self.stages) // len(encoder.scales)
        channels = [encoder.channels[stage - 1] for stage in self.stages[:each]]  # of one scale: all scales share the metric
        self.offsets = nn.ParameterList(nn.Parameter(torch.zeros(each)) for each in channels)
        self.log_scales = nn.ParameterList(nn.Parameter(torch.zeros(each)) for each in channels)
        self.log_weights = nn.Parameter(torch.zeros(len(channels)))
        self.log_steepness = nn.Parameter(torch.tensor(math.log(STEEP)))  # of the ranking loss; scores do not depend on it

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """Score queries against prompts, both (B, 3, H, W) in [0, 1], one prompt a query, without the self-residual.

        Return image scores (B,) times the steepness, for the ranking loss of tasks/detectors/residual/train.py. A difference of 1
        multiplies the odds of the right order by e.
        """
        asked, offered = (self.units(self.encoder(pictures)) for pictures in (queries, prompts))
        maps = self.maps([_cosines(query, prompt) for query, prompt in zip(asked, offered, strict=True)])
        return self.score_of(maps) * self.log_steepness.exp()

    def units(self, features: Features) -> Features:
        units = super().units(features)
        learnt = zip(units, cycle(self.offsets), cycle(self.log_scales), strict=False)
        moved = [(unit * unit.shape[1] ** 0.5 - offset[:, None, None]) * scale.exp()[:, None, None] for unit, offset, scale in learnt]
        return [F.normalize(patches, dim=1) for patches in moved]

    def part_of(self, other: Detector) -> Callable[[Features], Features] | None:
        """Select as in the patch residual, if the other detector has the same metric."""
        if not isinstance(other, MetricResidual) or not type(self) is type(other) is MetricResidual:
            return super().part_of(other)
        mine, theirs = ((*one.offsets, *one.log_scales) for one in (self, other))
        alike = len(mine) == len(theirs) and all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))
        return self.selection(other) if alike else None

    def mean(self, relation: Features) -> Tensor:
        return residual_map(relation, self.log_weights.softmax(dim=0))


def _cosines(queries: Tensor, prompts: Tensor) -> Tensor:
    """Return each query patch's cosine with the nearest patch of its prompt, (B, 1, h, w).

    Gradients flow through the cosine, not through the choice of the nearest. `queries` and `prompts` are (B, C, h, w), of unit length.
    """
    asked, offered = queries.flatten(2), prompts.flatten(2)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):  # in full precision: a hundredth of a cosine matters here
        nearest = torch.stack([most_alike(query.mT, prompt)[1] for query, prompt in zip(asked, offered, strict=True)])
    found = offered.gather(2, nearest[:, None].expand(-1, offered.shape[1], -1))
    return (asked * found).sum(dim=1, keepdim=True).unflatten(-1, queries.shape[-2:])
