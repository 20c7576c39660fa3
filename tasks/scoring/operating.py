"""Estimate the false alarms and the misses of a threshold that normal pictures set.

The normal queries of an episode are split into two halves: every second one in their seeded order. Each half sets a threshold
(tasks/prediction/calibration.py) for the other half and for all anomalous queries. So no picture is judged by a threshold that it sets. The
false-alarm rate is RATE, or the lowest rate that the half can promise. Reported rates are means over both halves and the seeds. Their 95 %
intervals are binomial, over the pictures (Clopper and Pearson, Biometrika 1934). They do not include the spread over seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.ingestion.manifest import ANOMALOUS, PictureRow
from changepair.tasks.prediction.calibration import Threshold, calibrated, least_rate
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.results import ALL, read_csv_rows, write_csv_rows
from changepair.tasks.scoring.scores import Scored
from changepair.tasks.scoring.spread import INTERVAL

RATE = 0.01  # target false-alarm rate, if there are enough normal pictures


@dataclass(frozen=True)
class OperatingRow:
    """A row of operating.csv: the share of one kind of pictures that is above the threshold."""

    target: str
    category: str
    detector: str
    protocol: str
    shots: int
    defect: str
    """`good` for normal pictures, empty for all anomalous pictures."""
    rate: float
    """Target false-alarm rate, a fraction."""
    threshold: float
    """Mean over categories, seeds and halves."""
    flagged: float
    """Fraction of the pictures above the threshold: false alarms if they are normal, otherwise found defects."""
    low: float
    """Lower end of the 95 % interval over pictures; `high` is the upper end."""
    high: float
    pictures: int
    """Number of pictures of this kind."""


@dataclass(frozen=True)
class _Counted:
    """Counts of one kind of pictures in an episode, means over both thresholds."""

    flagged: float
    pictures: int
    rate: float
    threshold: float


def kinds_of(pictures: Iterable[PictureRow]) -> dict[str, str]:
    """Return the kind of each picture: its defect or, if it is normal, its category, for protocols where other categories are anomalous."""
    return {row.image: row.category if row.defect == GOOD else row.defect for row in pictures}


def operating_rows(scored: Mapping[str, Iterable[Scored]], episodes: Sequence[Episode], kinds: Mapping[str, str]) -> list[OperatingRow]:
    """Return the rows of every detector, over all categories and, with several, for each.

    Episodes with fewer than two normal queries are left out. scored: scores by detector. kinds: from `kinds_of`.
    """
    counted: dict[tuple[str, str, str, int], dict[tuple[str, str], dict[int, list[_Counted]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for detector, items in scored.items():
        for item in items:
            episode = episodes[item.number]
            rows = counted[episode.target, detector, episode.protocol, episode.shots]
            for defect, count in _count(episode, item.scores, kinds).items():
                rows[episode.category, defect][episode.seed].append(count)
                rows[ALL, defect][episode.seed].append(count)
    return [
        _row((target, category, detector, protocol, shots, defect), list(rows[category, defect].values()))
        for (target, detector, protocol, shots), rows in counted.items()
        for category, defect in sorted(rows)
        if category == ALL or len({category for category, _defect in rows}) > 2
    ]


def write_operating(file: Path, rows: Sequence[OperatingRow]) -> None:
    write_csv_rows(file, OperatingRow, rows)


def read_operating(file: Path) -> list[OperatingRow]:
    return read_csv_rows(file, OperatingRow)


def binomial_interval(count: float, of: int) -> tuple[float, float]:
    """Return the 95 % Clopper-Pearson interval of count / of. count: may be a mean, so not a whole number. of: more than 0."""
    low = float(betaincinv(count, of - count + 1, INTERVAL[0])) if count > 0 else 0.0
    high = float(betaincinv(count + 1, of - count, INTERVAL[1])) if count < of else 1.0
    return low, high


def thresholds_of(normal: Sequence[float]) -> tuple[Threshold, Threshold] | None:
    """Return the thresholds that both halves of an episode's normal scores set. None for fewer than two scores.

    normal: in the episode's order. Each threshold's rate is RATE, or the lowest that its half can promise.
    """
    if len(normal) < 2:
        return None
    first, second = (calibrated(half, [], least_rate(len(half), RATE)) for half in (normal[::2], normal[1::2]))
    return first, second


def judging(thresholds: tuple[Threshold, Threshold], place: int) -> Threshold:
    """Return the threshold for a normal picture: that of the half without it. place: of the picture in the scores of `thresholds_of`."""
    return thresholds[1 - place % 2]


def _count(episode: Episode, scores: NDArray[np.float32], kinds: Mapping[str, str]) -> dict[str, _Counted]:
    labels = np.array(episode.labels[: len(scores)]) == ANOMALOUS
    normal = scores[~labels].tolist()
    thresholds = thresholds_of(normal)
    if thresholds is None:
        return {}
    about = float(np.mean([one.false_alarms for one in thresholds])), float(np.mean([one.value for one in thresholds]))
    false_alarms = sum(judging(thresholds, place).exceeded(score) for place, score in enumerate(normal))
    counted = {GOOD: _Counted(false_alarms, len(normal), *about)}
    defects = np.array([kinds[image] for image in episode.queries[: len(scores)]])
    for defect in ("", *sorted(set(defects[labels]))):
        chosen = scores[labels & (defects == defect)] if defect else scores[labels]
        if len(chosen):
            found = float(np.mean([sum(map(threshold.exceeded, chosen.tolist())) for threshold in thresholds]))
            counted[defect] = _Counted(found, len(chosen), *about)
    return counted


def _row(about: tuple[str, str, str, str, int, str], seeds: Sequence[Sequence[_Counted]]) -> OperatingRow:
    pictures = sum(count.pictures for count in seeds[0])
    flagged = float(np.mean([sum(count.flagged for count in seed) for seed in seeds]))
    rate, threshold = (float(np.mean([getattr(count, name) for seed in seeds for count in seed])) for name in ("rate", "threshold"))
    low, high = binomial_interval(flagged, pictures)
    rate, threshold, share, low, high = (round(value, 6) for value in (rate, threshold, flagged / pictures, low, high))
    return OperatingRow(*about, rate, threshold, share, low, high, pictures)
