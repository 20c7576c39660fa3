"""Decide whether a pipeline's model is ready for a target, in counts per hundred parts.

A target is ready if the recommended detector, with the prompts and thresholds of decision.json, meets both limits:

    missed defects      the upper end of the 95 % interval is at most MOST_MISSES
    false alarms        the upper end of the 95 % interval is at most MOST_FALSE_ALARMS

Each category also needs a threshold and an anomalous test picture. `changepair predict --model` uses the same prompts and thresholds.
Defects are the anomalous test pictures. Their interval is Clopper-Pearson's. The interval of the false-alarm rate is the threshold's own
(tasks/prediction/calibration.py): the pictures that set a threshold cannot also test it. With several categories, the rate and both ends
are means over the categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from changepair.tasks.common.texts import percent
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.prediction.calibration import Threshold, calibrated, needed
from changepair.tasks.scoring.operating import binomial_interval
from changepair.tasks.scoring.recommendation import Use, found_of
from changepair.tasks.scoring.scores import SCORES_NAME, read_scores

MOST_MISSES = 0.10  # share of defects that may be missed
MOST_FALSE_ALARMS = 0.05  # share of normal parts that may be flagged
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # false-alarm rates that the trade-off lists
MOST_PICTURES = 10_000  # where the search for a number of test pictures stops


@dataclass(frozen=True)
class Share:
    """A share of parts, a fraction, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        """The ends of the interval, in parts per hundred."""
        return f"{percent(self.low)} to {percent(self.high)}"


@dataclass(frozen=True)
class Verdict:
    """The first lines of a target's report."""

    ready: bool
    headline: str
    """`Ready: …` or `Not ready: …`, in counts per hundred parts."""
    reason: str
    """The measured counts, their intervals and the limits."""
    misses: Share | None
    """Missed defects. None without a threshold or without an anomalous test picture."""
    false_alarms: Share | None
    """Normal parts that are flagged. None without a threshold."""
    anomalous: int
    """Number of anomalous test pictures that were judged."""


@dataclass(frozen=True)
class Trade:
    """The missed defects at a false-alarm rate."""

    rate: float
    """False-alarm rate, a fraction."""
    misses: Share

    def __str__(self) -> str:
        return f"at {percent(self.rate)} false alarms per 100 normal parts, {missing(self.misses.value)}"


def verdict_of(uses: Sequence[Use]) -> Verdict:
    """Decide for one target. uses: one for each category of the target."""
    without = [use for use in uses if use.threshold is None]
    thresholds = [use.threshold for use in uses if use.threshold is not None]
    found = found_of(uses)
    misses = None if found is None else _missed(*found)
    anomalous = 0 if found is None else found[1]
    false_alarms = _false_alarms(thresholds)
    words = [*_misses_in_words(misses, found), *_false_alarms_in_words(false_alarms, thresholds)]
    words += [f"{use.category} has no threshold: {use.reason}." for use in without[:1]]
    failing = _failing(misses, false_alarms, without, untested(uses))
    if failing or misses is None or false_alarms is None:
        return Verdict(False, f"Not ready: {failing[0]}", " ".join(words), misses, false_alarms, anomalous)
    headline = f"Ready: {passing(misses.value)}, {_alarms(false_alarms.value)}"
    return Verdict(True, headline, " ".join(words), misses, false_alarms, anomalous)


def trade_of(uses: Sequence[Use], scores: Path) -> list[Trade]:
    """List the missed defects at each of RATES that the normal test pictures of all categories can promise.

    scores: the folder of the detector's scores. Returns nothing if it holds no scores, or if a category has no threshold.
    """
    thresholds = [use.threshold for use in uses if use.threshold is not None]
    if len(thresholds) < len(uses) or not (scores / SCORES_NAME).is_file():
        return []
    table = read_scores(scores)
    defects = []
    for use in uses:
        wanted = pc.equal(table["label"], ANOMALOUS)
        for name in ("target", "category", "protocol", "shots", "seed"):
            wanted = pc.and_(wanted, pc.equal(table[name], getattr(use, name)))
        defects.append(table.filter(wanted)["score"].to_pylist())
    total = sum(map(len, defects))
    rates = [rate for rate in RATES if all(needed(rate) <= len(threshold.normals) for threshold in thresholds)]
    trades = []
    for rate in rates if total else ():
        at_rate = [calibrated(threshold.normals, [], rate) for threshold in thresholds]
        found = sum(sum(map(threshold.exceeded, own)) for threshold, own in zip(at_rate, defects, strict=True))
        trades.append(Trade(rate, _missed(found, total, *binomial_interval(found, total))))
    return trades


def defects_needed(share: float) -> int | None:
    """Return how many anomalous test pictures show that MOST_MISSES holds, if `share` of them are missed. None if no number does.

    >>> defects_needed(0.0), defects_needed(0.05), defects_needed(0.1)
    (36, 142, None)
    """
    if share >= MOST_MISSES:
        return None
    few, many = 0, 1
    while binomial_interval(share * many, many)[1] > MOST_MISSES:
        few, many = many, 2 * many
        if few > MOST_PICTURES:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if binomial_interval(share * middle, middle)[1] <= MOST_MISSES else (middle, many)
    return many


def hundred(share: float) -> str:
    """Format a share as a number of parts in a hundred.

    >>> hundred(0.0), hundred(0.004), hundred(0.936), hundred(0.998)
    ('0', 'fewer than 1', '94', 'more than 99')
    """
    count = math.floor(100 * share + 0.5)
    if count == 0 and share > 0:
        return "fewer than 1"
    return "more than 99" if count == 100 and share < 1 else str(count)


def passing(share: float) -> str:
    """Describe the share of defects that pass.

    >>> passing(0.936), passing(0.01)
    ('94 of 100 defects pass', '1 of 100 defects passes')
    """
    return f"{hundred(share)} of 100 defects {'passes' if hundred(share) == '1' else 'pass'}"


def missing(share: float) -> str:
    """Describe the share of defects that are missed.

    >>> missing(0.936), missing(0.01)
    ('94 of 100 defects are missed', '1 of 100 defects is missed')
    """
    return f"{hundred(share)} of 100 defects {'is' if hundred(share) == '1' else 'are'} missed"


def _alarms(share: float) -> str:
    count = hundred(share)
    return f"{count} of 100 normal parts {'is a false alarm' if count == '1' else 'are false alarms'}"


def _missed(found: int, anomalous: int, low: float, high: float) -> Share:
    """Return the share that is missed. low, high: the interval of the share that is found."""
    return Share(1 - found / anomalous, 1 - high, 1 - low)


def _false_alarms(thresholds: Sequence[Threshold]) -> Share | None:
    if not thresholds:
        return None
    means = (float(np.mean([getattr(one, name) for one in thresholds])) for name in ("false_alarms", "low", "high"))
    return Share(*means)


def untested(uses: Sequence[Use]) -> list[str]:
    """List the categories with a threshold and without an anomalous test picture."""
    return [use.category for use in uses if use.threshold is not None and not use.anomalous]


def _up_to(share: float, limit: float) -> str:
    """Describe a share above a limit.

    >>> _up_to(0.17, 0.1), _up_to(0.101, 0.1)
    ('up to 17', 'more than 10')
    """
    return f"more than {hundred(limit)}" if hundred(share) == hundred(limit) else f"up to {hundred(share)}"


def _failing(misses: Share | None, false_alarms: Share | None, without: Sequence[Use], untested: Sequence[str]) -> list[str]:
    """Describe what keeps a target from being ready, the most serious first.

    The false alarms are too many only with too few normal pictures: with enough of them, the target rate is RATE.
    """
    found = []
    if misses is not None and misses.value > MOST_MISSES:
        more = "more than " if hundred(misses.value) == hundred(MOST_MISSES) else ""  # rounded to the limit
        found.append(f"{more}{passing(misses.value)}")
    if without:
        found.append(f"no threshold for {without[0].category}" if len(without) == 1 else f"no threshold for {len(without)} categories")
    if misses is None and not without:
        found.append("no defect was tested")
    if misses is not None and untested:
        found.append(
            f"no defect of {untested[0]} was tested" if len(untested) == 1 else f"no defect of {len(untested)} categories was tested"
        )
    if false_alarms is not None and false_alarms.high > MOST_FALSE_ALARMS:
        found.append(f"too few pictures; {_up_to(false_alarms.high, MOST_FALSE_ALARMS)} of 100 normal parts may be false alarms")
    if misses is not None and misses.value <= MOST_MISSES < misses.high:
        few = "" if defects_needed(misses.value) is None else "too few pictures; "
        found.append(f"{few}{_up_to(misses.high, MOST_MISSES)} of 100 defects may be missed")
    return found


def _misses_in_words(misses: Share | None, found: tuple[int, int, float, float] | None) -> list[str]:
    if misses is None or found is None:
        return []
    flagged, anomalous, _low, _high = found
    return [f"Missed defects: {anomalous - flagged} of {anomalous} (true rate {misses.interval} of 100; limit {percent(MOST_MISSES)})."]


def _false_alarms_in_words(false_alarms: Share | None, thresholds: Sequence[Threshold]) -> list[str]:
    if false_alarms is None:
        return []
    count = sum(len(one.normals) for one in thresholds)
    normals = f"{count} normal picture{'' if count == 1 else 's'}"
    several = len(thresholds) > 1
    set_by = f"The thresholds of {len(thresholds)} categories are set by" if several else "The threshold is set by"
    alarms = f"{percent(false_alarms.value)} of 100 normal parts ({false_alarms.interval}; limit {percent(MOST_FALSE_ALARMS)})"
    return [f"False alarms: {alarms}.", f"{set_by} {normals}."]
