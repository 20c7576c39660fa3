"""Finds the prompts of a pool that show most nearly what the query shows: the class-agnostic protocol of MetaUAS (MetaUAS*)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.detectors.models.encoder import Features


def most_similar(queries: Features, pool: Features, count: int = 1) -> Tensor:
    """Finds for each query the so many of the pool's pictures whose last-stage features, averaged over positions, have the highest cosine.

    queries: BxCxhxw a stage; pool: KxCxhxw a stage. Indices Bxcount, the most similar first.
    """
    return (_signature(queries) @ _signature(pool).mT).topk(count, dim=1).indices


def _signature(features: Features) -> Tensor:
    return F.normalize(features[-1].mean(dim=(-2, -1)), dim=1)
