"""Finds the prompt of a pool that shows most nearly what the query shows: the class-agnostic protocol of MetaUAS (MetaUAS*)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tasks.detectors.models.encoder import Features


def most_similar(queries: Features, pool: Features) -> Tensor:
    """Finds for each query the index of the pool's picture whose last-stage features, averaged over positions, have the highest cosine.

    queries: BxCxhxw a stage; pool: KxCxhxw a stage. Indices B.
    """
    return (_signature(queries) @ _signature(pool).mT).argmax(dim=1)


def _signature(features: Features) -> Tensor:
    return F.normalize(features[-1].mean(dim=(-2, -1)), dim=1)
