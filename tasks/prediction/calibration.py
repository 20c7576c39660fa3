"""Set the threshold for a stated rate of false alarms from normal pictures alone.

Split conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section 4.2; for outliers, Bates et
al., "Testing for outliers with conformal p-values", Annals of Statistics 2023): of n normal scores the k-th smallest, k = ⌈(n + 1)(1 − α)⌉.
A fresh normal picture of the same kind is above it with a probability of at most α, whatever the scores are distributed like. The rate of
the threshold that one draw of n gives varies from draw to draw: it has the distribution Beta(n + 1 − k, k), where scores have no ties.

Scores and thresholds are reported with six decimals, and verdicts compare the reported numbers. The last bits of a score depend on how many
pictures are scored at once, so the threshold is the k-th smallest score plus TOLERANCE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from scipy.special import betaincinv

from tasks.common.bounds import FINITE, Between
from tasks.common.errors import BadInput
from tasks.common.texts import percent

LEAST_RATE, MOST_RATE = 1e-4, 0.5
INTERVAL = (0.025, 0.975)
DECIMALS = 6
"""Of a reported score or threshold."""
TOLERANCE = 5e-6
"""How far two scores of one picture may differ where the batch size does. It is added to the score that sets a threshold, so that its
picture is not flagged with another batch size. On CPUs, at batch sizes of 1 to 32, the scores of the packaged detectors differed by at most
6e-7, and those of WinCLIP, whose softmax is steep, by 2e-6."""


def reported(score: float) -> float:
    """Round a score to the digits that tables, the API and records show.

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
    """The score above which a picture is anomalous, and what it was set by."""

    __pydantic_config__ = FINITE

    value: float
    """The threshold, with DECIMALS."""
    false_alarms: Annotated[float, Between(0, 1)]
    """The rate that was asked for, a fraction: an upper bound of the mean over all draws of normal pictures."""
    low: Annotated[float, Between(0, 1)]
    """The lower end of the 95 % interval of the rate that this very threshold has."""
    high: Annotated[float, Between(0, 1)]
    normals: tuple[float, ...]
    """The scores that it was set by, ascending, with DECIMALS."""
    top: float
    """The map value that normal pictures reach: the maximum of a map, of the same rank as the threshold. 0 where no map was kept."""

    def exceeded(self, score: float) -> bool:
        """Tell whether a score is reported as greater than the threshold."""
        return reported(score) > self.value

    def __str__(self) -> str:
        return (
            f"{self.value:.{DECIMALS}f}, for {percent(self.false_alarms, digits=4)} % false alarms, set by {len(self.normals)} normal "
            f"pictures; the rate is {percent(self.low)} to {percent(self.high)} % (95 % interval)"
        )


def needed(false_alarms: float) -> int:
    """Count the normal pictures that a rate needs. Raises BadInput if the rate is out of bounds.

    >>> needed(0.01), needed(0.05)
    (99, 19)
    """
    if not LEAST_RATE <= false_alarms <= MOST_RATE:
        raise BadInput(f"false alarms: a fraction between {LEAST_RATE:g} and {MOST_RATE:g}, not {false_alarms:g}")
    return math.ceil(1 / false_alarms - 1e-9) - 1


def least_rate(count: int, wanted: float) -> float:
    """Give the wanted rate, or the least that so many normal pictures can promise."""
    return max(wanted, 1 / (count + 1))


def check_count(count: int, false_alarms: float, *, prompts: int = 0) -> None:
    """Refuse a number of normal pictures that is too small for a rate. Raises BadInput.

    prompts: how many more pictures were given that are prompts.
    """
    least = needed(false_alarms)
    if count >= least:
        return
    rate = f"{percent(false_alarms, digits=4)} % false alarms"
    lowest = f"; with {count} the lowest rate is {percent(1 / (count + 1), digits=3)} %" if count else ""
    if prompts:
        given = f"{prompts} of the {count + prompts} normal pictures are prompts, which cannot set a threshold"
        raise BadInput(
            f"{given}: {count} {'is' if count == 1 else 'are'} left, and {rate} needs {least}{lowest}; add other normal pictures"
        )
    raise BadInput(f"{count} normal picture{'' if count == 1 else 's'} cannot set a threshold for {rate}: it needs {least}{lowest}")


def calibrated(scores: Iterable[float], tops: Sequence[float], false_alarms: float) -> Threshold:
    """Set the threshold by the scores of normal pictures that are not the prompts.

    tops: the maxima of their maps; [] where no map was kept. false_alarms: the rate of them, a fraction. Raises BadInput if the rate is out
    of bounds, or the pictures are too few for it.

    >>> print(calibrated([place / 100 for place in range(199)], [0.5], 0.01))
    1.970005, for 1 % false alarms, set by 199 normal pictures; the rate is 0.12 to 2.8 % (95 % interval)
    """
    ascending = sorted(map(reported, scores))
    count = len(ascending)
    check_count(count, false_alarms)
    place = _rank(count, false_alarms)
    low, high = (float(betaincinv(count + 1 - place, place, share)) for share in INTERVAL)
    value = reported(ascending[place - 1] + TOLERANCE)  # both are whole millionths
    return Threshold(value, false_alarms, low, high, tuple(ascending), top_of(tops, false_alarms))


def top_of(tops: Sequence[float], false_alarms: float) -> float:
    """Give the map value that normal pictures reach: the maximum of the rank that a threshold for this rate has. 0 for no map."""
    return float(sorted(tops)[min(_rank(len(tops), false_alarms), len(tops)) - 1]) if len(tops) else 0.0


def _rank(count: int, false_alarms: float) -> int:
    """Give k of n."""
    return math.ceil((count + 1) * (1 - false_alarms) - 1e-9)
