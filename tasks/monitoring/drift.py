"""Tells when the scores of what passes as normal no longer are what they were when the threshold was set.

A conformal test martingale (Vovk, "Testing randomness online", Statistical Science 2021, sections 2 and 4): every score in turn is given
its rank among all before it, as a p-value; while nothing has changed those are independent and uniform, whatever scores are distributed
like. A bettor stakes a capital of 1 on p-values near 0, or near 1; how large it can be while nothing has changed is bounded (Ville's
inequality): the chance that it ever reaches 1/α is at most α, however long the line runs. So α is the chance that a line that does not
change is ever reported, not the chance at one look.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from changepair.tasks.common.randomness import generator
from changepair.tasks.prediction.calibration import Threshold

POWERS = np.linspace(0.04, 1.0, 25)  # the stakes: ε·p^(ε−1) of each ε has a mean of 1. Their mean is Vovk's simple mixture, on a grid.


@dataclass(frozen=True)
class Drift:
    """What the bettor has made of it."""

    evidence: float  # the largest capital so far, 1 at the start: of an unchanging line, above x with a chance of at most 1/x
    chance: float  # α: of an unchanging line ever being reported
    since: int | None  # how many scores there were when it was reported; None while it is not

    @property
    def found(self) -> bool:
        return self.since is not None


def drift_of(threshold: Threshold, scores: Sequence[float], *, chance: float) -> Drift:
    """Tests scores, in the order they came, against those that set the threshold; above it none counts, on either side: that is what
    passes as normal.

    The score that set the threshold is left out. Given it, the lower scores are distributed like those of new pictures that pass.

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
    capital = np.zeros((2, len(POWERS)))  # logarithms: on p near 0, and near 1
    evidence, since = 0.0, None
    for place, (score, tie) in enumerate(zip(fresh, ties, strict=True)):
        higher = len(before) - bisect_right(before, score)
        equal = len(before) - higher - bisect_left(before, score) + 1  # itself too
        insort(before, score)
        p = min(max((higher + tie * equal) / len(before), 1e-12), 1 - 1e-12)
        capital += np.log(POWERS) + (POWERS - 1) * np.log([[p], [1 - p]])
        top = capital.max()
        evidence = max(evidence, float(top + np.log(np.exp(capital - top).mean())))
        if since is None and evidence >= -np.log(chance):
            since = place + 1
    return Drift(float(np.exp(min(evidence, 700.0))), chance, since)
