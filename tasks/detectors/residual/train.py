"""Trains what scores a query against its prompt, on change pairs: whatever changed is to be scored above whatever did not.

RankNet's loss (Burges et al., "Learning to Rank using Gradient Descent", ICML 2005) over all such couples of a batch, log(1 + exp(-(s⁺ −
s⁻))): a smooth bound of 1 − AUROC. Where a change is does not count, and so neither how finely it is outlined.

A change that fills no patch by half is not expected to be seen, and not taught as unchanged either: of such pairs nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.training.on_pairs import PairTask, train_on_pairs
from changepair.tasks.training.shared import gathered
from changepair.tasks.training.step import Batch


class RankingCourse(PairTask):
    """Queries and prompts in, image scores out."""

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask = batch
        scores, changed = model(query, prompt).float(), filled(mask, self.patch)
        return ranking_loss(gathered(scores), gathered(changed)) if self.model.training else ranking_loss(scores, changed)

    @property
    def patch(self) -> int:
        """Pixels a side of the smallest patch that is compared."""
        model: Any = self.model
        return min(model.encoder.strides[stage - 1] for stage in model.stages)


def filled(masks: Tensor, patch: int) -> Tensor:
    """Gives the largest share of a patch of so many pixels a side that each mask fills, B. masks: BxHxW of 0 and 1."""
    return F.avg_pool2d(masks[:, None], patch).flatten(1).amax(dim=1)


def ranking_loss(scores: Tensor, changed: Tensor) -> Tensor:
    """Gives the mean over every couple of a score whose share of change is above a half, and one whose share is 0; 0 where there is no such
    couple. Both B."""
    differences = scores[changed > 0.5][:, None] - scores[changed == 0][None]
    return F.softplus(-differences).sum() / max(1, differences.numel())


train = partial(train_on_pairs, RankingCourse)
