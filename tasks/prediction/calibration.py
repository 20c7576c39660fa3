"""Sets the threshold of a stated rate of false alarms from normal pictures alone.

Split conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section 4.2; for outliers, Bates et
al., "Testing for outliers with conformal p-values", Annals of Statistics 2023): of n normal scores the k-th smallest, k = ⌈(n + 1)(1 − α)⌉.
A fresh normal picture of the same kind is above it with a probability of at most α, whatever the scores are distributed like. The rate of
the threshold that one draw of n gives varies from draw to draw: it has the distribution Beta(n + 1 − k, k), where scores have no ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from tasks.common.errors import BadInput

LEAST_RATE, MOST_RATE = 1e-4, 0.5
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Threshold:
    """A picture that scores above `value` is anomalous."""

    value: float
    false_alarms: float
    """The rate that was asked for, a fraction: an upper bound of the mean over all draws of normal pictures."""
    low: float
    """The lower end of the 95 % interval of the rate that this very threshold has."""
    high: float
    normals: tuple[float, ...]
    """The scores that it was set by, ascending."""
    top: float
    """The highest value of their anomaly maps: of each picture's maximum the median. What normal pictures show too."""

    def exceeded(self, score: float) -> bool:
        return score > self.value

    def __str__(self) -> str:
        return (
            f"{self.value:.6g}, for {100 * self.false_alarms:g} % false alarms, set by {len(self.normals)} normal pictures; "
            f"the rate is {100 * self.low:.2g} to {100 * self.high:.2g} % (95 % interval)"
        )


def calibrated(scores: Sequence[float], tops: Sequence[float], false_alarms: float) -> Threshold:
    """Sets the threshold by the scores of normal pictures that are not the prompts.

    tops: the maxima of their maps. false_alarms: the rate of them, a fraction. Raises BadInput if the rate is out of bounds, or the
    pictures are too few for it.

    >>> print(calibrated([place / 100 for place in range(199)], [0.5], 0.01))
    1.97, for 1 % false alarms, set by 199 normal pictures; the rate is 0.12 to 2.8 % (95 % interval)
    """
    if not LEAST_RATE <= false_alarms <= MOST_RATE:
        raise BadInput(f"false alarms: a fraction between {LEAST_RATE:g} and {MOST_RATE:g}, not {false_alarms:g}")
    count = len(scores)
    place = math.ceil((count + 1) * (1 - false_alarms) - 1e-9)
    if place > count:
        needed = math.ceil(1 / false_alarms - 1e-9) - 1
        raise BadInput(
            f"{count} normal pictures are too few for a rate of {100 * false_alarms:g} % false alarms: it needs {needed}, and with "
            f"{count} the lowest is {100 / (count + 1):.2g} %"
        )
    ascending = np.sort(np.asarray(scores, dtype=np.float64))
    low, high = (float(betaincinv(count + 1 - place, place, share)) for share in INTERVAL)
    return Threshold(float(ascending[place - 1]), false_alarms, low, high, tuple(ascending.tolist()), float(np.median(tops)))
