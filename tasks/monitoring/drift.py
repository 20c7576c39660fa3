"""Detect drift: a change of the scores of passing pictures since the threshold was set.

The test is a conformal test martingale (Vovk, "Testing randomness online", Statistical Science 2021, sections 2 and 4). Each score gets a
p-value, its rank among all earlier scores. Without a change, p-values are independent and uniform for any distribution of scores. A bettor
stakes a capital of 1 on p-values near 0 or near 1. Without a change, the capital ever reaches 1/α with a probability of at most α (Ville's
inequality). So α bounds the probability of a false report over the whole run of the line, not at one look.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from changepair.tasks.common.randomness import generator
from changepair.tasks.prediction.calibration import Threshold

POWERS = np.linspace(0.04, 1.0, 25)  # ε of the stakes ε·p^(ε−1), each with mean 1. Their mean is Vovk's simple mixture, on a grid.


@dataclass(frozen=True)
class Drift:
    """The result of the test."""

    evidence: float
    """Largest capital so far, 1 at the start. Without a change, it exceeds x with a probability of at most 1/x."""
    chance: float
    """α: probability that a line without a change is ever reported."""
    since: int | None
    """Number of scores at the report. None without a report."""

    @property
    def found(self) -> bool:
        return self.since is not None


def drift_of(threshold: Threshold, scores: Sequence[float], *, chance: float) -> Drift:
    """Test scores, in order of arrival, against the scores that set the threshold.

    Only scores below the threshold count, on both sides. The score that set the threshold is left out. Given this score, the lower scores
    are distributed like those of new pictures that pass.

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
