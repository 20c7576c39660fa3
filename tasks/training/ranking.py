"""Trains what scores a query against its prompt, on change pairs: whatever changed is to be scored above whatever did not.

RankNet's loss (Burges et al., "Learning to Rank using Gradient Descent", ICML 2005) over all such couples of a batch, log(1 + exp(-(s⁺ −
s⁻))): a smooth bound of 1 − AUROC. Where a change is does not count, and so neither how finely it is outlined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tasks.detectors.settings import TrainedSettings
from tasks.training.loop import Batch, Examples, Places, Trained
from tasks.training.on_pairs import PairCourse, train_on_pairs
from tasks.training.settings import PairTrainingSettings


class RankingCourse(PairCourse):
    """Queries and prompts in, image scores out."""

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask = batch
        return ranking_loss(model(query, prompt).float(), mask.flatten(1).amax(dim=1) > 0)


def ranking_loss(scores: Tensor, changed: Tensor) -> Tensor:
    """Gives the mean over every couple of one that changed and one that did not; 0 where there is no such couple. Both B."""
    differences = scores[changed][:, None] - scores[~changed][None]
    return F.softplus(-differences).sum() / max(1, differences.numel())


def train(
    detector: TrainedSettings,
    settings: PairTrainingSettings,
    *,
    examples: Examples,
    places: Places,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains on change pairs, as tasks.training.loop.fit says."""
    return train_on_pairs(RankingCourse, detector, settings, examples=examples, places=places, workers=workers, report=report)
