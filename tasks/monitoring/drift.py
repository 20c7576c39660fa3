"""Detect drift: a change in the image scores of pictures that pass, after the threshold was set.

The test is a conformal test martingale (Vovk, "Testing randomness online", Statistical Science 2021, sections 2 and 4). The p-value of a
score is the share of higher scores among all scores so far, with ties broken at random. The scores that set the threshold come first.
Without drift, p-values are independent and uniform on [0, 1], for any distribution of the scores. The test bets a capital of 1: half of it
on p-values near 0 (scores rise), half on p-values near 1 (scores fall). It reports drift when the capital reaches 1/α. Without drift, the
probability that this ever happens is at most α (Ville's inequality), however many pictures are scored.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from changepair.tasks.common.randomness import generator
from changepair.tasks.prediction.calibration import Threshold

POWERS = np.linspace(0.04, 1.0, 25)
"""Values of ε in the betting functions ε·p^(ε−1), which have mean 1. The mean capital over these values approximates Vovk's simple
mixture."""


@dataclass(frozen=True)
class Drift:
    """The result of the test."""

    evidence: float
    """Largest capital so far, at least 1. Without drift, it ever reaches x with a probability of at most 1/x."""
    chance: float
    """α: upper limit of the probability that a line without drift is ever reported."""
    since: int | None
    """Number of tested scores at the report. None without a report."""

    @property
    def found(self) -> bool:
        return self.since is not None


def drift_of(threshold: Threshold, scores: Sequence[float], *, chance: float) -> Drift:
    """Test new image scores, in order of arrival, against the normal scores that set the threshold.

    `chance` is α, between 0 and 1. The limit is the highest normal score that does not exceed the threshold. Only scores below this limit
    are tested, and only normal scores below it are compared with them. So the scores of flagged pictures do not change the result. Given
    the limit, both kinds of scores have the same distribution if nothing has changed.

    >>> from changepair.tasks.prediction.calibration import calibrated
    >>> random = np.random.default_rng(0)
    >>> threshold = calibrated(random.normal(0.1, 0.01, 200).tolist(), [0.5], 0.01)
    >>> drift_of(threshold, random.normal(0.1, 0.01, 500).tolist(), chance=0.01).found
    False
    >>> drift_of(threshold, random.normal(0.11, 0.01, 500).tolist(), chance=0.01).since < 100
    True
    """
    limit = max((score for score in threshold.normals if not threshold.exceeded(score)), default=threshold.value)
    before = sorted(score for score in threshold.normals if score < limit)
    fresh = [score for score in scores if score < limit]
    ties = generator(0, "drift", len(before)).random(len(fresh))
    capital = np.zeros((2, len(POWERS)))  # logarithms of the capitals staked on p near 0 and near 1
    evidence, since = 0.0, None
    for place, (score, tie) in enumerate(zip(fresh, ties, strict=True)):
        higher = len(before) - bisect_right(before, score)
        equal = len(before) - higher - bisect_left(before, score) + 1  # includes the score itself
        insort(before, score)
        p = min(max((higher + tie * equal) / len(before), 1e-12), 1 - 1e-12)
        capital += np.log(POWERS) + (POWERS - 1) * np.log([[p], [1 - p]])
        top = capital.max()
        evidence = max(evidence, float(top + np.log(np.exp(capital - top).mean())))
        if since is None and evidence >= -np.log(chance):
            since = place + 1
    return Drift(float(np.exp(min(evidence, 700.0))), chance, since)
