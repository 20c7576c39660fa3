"""Set the threshold for a target false-alarm rate α, from normal pictures alone.

The threshold is the k-th smallest of n normal scores, k = ⌈(n + 1)(1 − α)⌉. This is split conformal prediction (Vovk, Gammerman and Shafer,
"Algorithmic Learning in a Random World", 2005, section 4.2). Bates et al. apply it to outliers ("Testing for outliers with conformal
p-values", Annals of Statistics 2023). A new normal picture of the same kind is above the threshold with a probability of at most α. This
holds for any distribution of the scores, on average over draws of n pictures. Without ties, the rate of one threshold has the distribution
Beta(n + 1 − k, k).

Scores and thresholds are reported with six decimals, and verdicts compare the reported numbers. The last bits of a score depend on the
batch size. So the threshold is the k-th smallest score plus TOLERANCE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import FINITE, Between
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.texts import percent

LEAST_RATE, MOST_RATE = 1e-4, 0.5
DECIMALS = 6  # decimals of a reported score or threshold
TOLERANCE = 5e-6
"""Largest difference of a picture's scores between batch sizes. It is added to the score that sets a threshold. Without it, this picture
could be flagged at another batch size. On CPUs, at batch sizes from 1 to 32, scores of the packaged detectors differed by at most 6e-7.
WinCLIP, with its steep softmax, differed by 2e-6."""


def reported(score: float) -> float:
    """Round a score to DECIMALS, as in tables, the API and records.

    >>> reported(0.09508845955133438)
    0.095088
    """
    return round(float(score), DECIMALS)


def rounded_up(value: float) -> float:
    """Round a threshold up to DECIMALS, so that no score at or below it is flagged.

    >>> rounded_up(0.0950881), rounded_up(0.095089)
    (0.095089, 0.095089)
    """
    near = reported(value)
    return near if near >= value else reported(near + 10**-DECIMALS)


@dataclass(frozen=True)
class Threshold:
    """The score above which a picture is anomalous, and the scores that set it."""

    __pydantic_config__ = FINITE

    value: float
    """The threshold, rounded to DECIMALS."""
    false_alarms: Annotated[float, Between(0, 1)]
    """Target false-alarm rate, a fraction. It bounds the mean rate over all draws of normal pictures."""
    low: Annotated[float, Between(0, 1)]
    """Lower end of the 95 % interval of this threshold's rate, a fraction; `high` is the upper end."""
    high: Annotated[float, Between(0, 1)]
    normals: tuple[float, ...]
    """Scores that set the threshold, ascending, rounded to DECIMALS."""
    top: float
    """Map value that normal pictures reach: the maximum of their maps with the threshold's rank. 0 without maps."""

    def exceeded(self, score: float) -> bool:
        """Tell whether a reported score is greater than the threshold."""
        return reported(score) > self.value

    def __str__(self) -> str:
        return (
            f"{self.value:.{DECIMALS}f}, for {percent(self.false_alarms, digits=4)} % false alarms, set by {len(self.normals)} normal "
            f"pictures; the rate is {percent(self.low)} to {percent(self.high)} % (95 % interval)"
        )


def needed(false_alarms: float) -> int:
    """Return the number of normal pictures that a false-alarm rate needs. Raises BadInput if the rate is out of bounds.

    >>> needed(0.01), needed(0.05)
    (99, 19)
    """
    if not LEAST_RATE <= false_alarms <= MOST_RATE:
        raise BadInput(f"false alarms: must be between {LEAST_RATE:g} and {MOST_RATE:g}, not {false_alarms:g}; give for example 0.01")
    return math.ceil(1 / false_alarms - 1e-9) - 1


def least_rate(count: int, wanted: float) -> float:
    """Return the wanted rate, or the lowest rate that `count` normal pictures can promise if that is higher."""
    return max(wanted, 1 / (count + 1))


def check_count(count: int, false_alarms: float, *, prompts: int = 0) -> None:
    """Raise BadInput if `count` normal pictures are too few for a rate. prompts: number of given pictures that are prompts."""
    least = needed(false_alarms)
    if count >= least:
        return
    rate = f"{percent(false_alarms, digits=4)} % false alarms"
    lowest = f"; with {count} the lowest rate is {percent(1 / (count + 1), digits=3)} %" if count else ""
    if prompts:
        given = f"{prompts} of the {count + prompts} normal pictures are prompts, which cannot set a threshold"
        left = f"{count} {'is' if count == 1 else 'are'} left"
        raise BadInput(f"{given}: {left}, and {rate} needs {least}{lowest}; add other normal pictures")
    raise BadInput(f"{count} normal picture{'' if count == 1 else 's'} cannot set a threshold for {rate}: it needs {least}{lowest}")


def calibrated(scores: Iterable[float], tops: Sequence[float], false_alarms: float) -> Threshold:
    """Set the threshold from the scores of normal pictures that are not prompts.

    tops: maxima of their maps; [] without maps. false_alarms: the rate, a fraction. Raises BadInput if the rate is out of bounds, or if the
    pictures are too few.

    >>> print(calibrated([place / 100 for place in range(199)], [0.5], 0.01))
    1.970005, for 1 % false alarms, set by 199 normal pictures; the rate is 0.12 to 2.8 % (95 % interval)
    """
    from scipy.special import betaincinv  # here, because it takes a tenth of a second

    ascending = sorted(map(reported, scores))
    count = len(ascending)
    check_count(count, false_alarms)
    place = _rank(count, false_alarms)
    low, high = (float(betaincinv(count + 1 - place, place, share)) for share in (0.025, 0.975))
    value = reported(ascending[place - 1] + TOLERANCE)  # both are whole millionths
    return Threshold(value, false_alarms, low, high, tuple(ascending), top_of(tops, false_alarms))


def top_of(tops: Sequence[float], false_alarms: float) -> float:
    """Return the map value that normal pictures reach: the value of `tops` with the threshold's rank. 0 without maps."""
    return float(sorted(tops)[min(_rank(len(tops), false_alarms), len(tops)) - 1]) if len(tops) else 0.0


def _rank(count: int, false_alarms: float) -> int:
    """Return k, the rank of the score that sets the threshold, from 1."""
    return math.ceil((count + 1) * (1 - false_alarms) - 1e-9)
