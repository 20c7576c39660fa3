"""Train a detector to score changed queries above unchanged ones, on change pairs.

The loss is RankNet's (Burges et al., "Learning to Rank using Gradient Descent", ICML 2005): log(1 + exp(−(s⁺ − s⁻))). It runs over all
couples of a changed and an unchanged pair in a batch. It is a smooth bound of 1 − AUROC. Neither the position nor the outline of a change
matters. Pairs whose change fills less than half of every patch are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.training.step import Batch, gathered
from changepair.tasks.training.task import PairTask, train_on_pairs


class RankingTask(PairTask):
    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask = batch
        detector: Any = self.model
        patch = min(detector.encoder.strides[stage - 1] for stage in detector.stages)
        scores, changed = model(query, prompt).float(), filled(mask, patch)
        return ranking_loss(gathered(scores), gathered(changed)) if detector.training else ranking_loss(scores, changed)


def filled(masks: Tensor, patch: int) -> Tensor:
    """Return the largest share of a patch that each mask fills, (B,). `masks` is (B, H, W) of 0 and 1. `patch` is a patch's side in
    pixels."""
    return F.avg_pool2d(masks[:, None], patch).flatten(1).amax(dim=1)


def ranking_loss(scores: Tensor, changed: Tensor) -> Tensor:
    """Return the mean loss over every couple of a changed and an unchanged pair, or 0 without such a couple.

    A pair is changed if its share in `changed` is above 0.5, and unchanged if it is 0. `scores` and `changed` are (B,).
    """
    differences = scores[changed > 0.5][:, None] - scores[changed == 0][None]
    return F.softplus(-differences).sum() / max(1, differences.numel())


train = partial(train_on_pairs, RankingTask)
