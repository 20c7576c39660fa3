"""Measure how many perturbed normal pictures a detector flags, with the thresholds that unchanged normal pictures set.

Thresholds are those of operating.py. Each half of the normal pictures sets a threshold for the other half, unchanged and perturbed. So no
picture is judged by a threshold that it sets, under any perturbation. A detector that withstands a perturbation flags as many perturbed
pictures as unchanged ones, and the AUROC of perturbed against unchanged pictures is 0.5. Intervals are Clopper-Pearson's, over pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from changepair.tasks.common.bounds import FINITE
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.metrics import auroc, tally
from changepair.tasks.scoring.operating import binomial_interval, judging, thresholds_of
from changepair.tasks.scoring.perturbation_names import is_mild
from changepair.tasks.scoring.results import ALL, read_csv_rows, write_csv_rows
from changepair.tasks.scoring.scores import Scored

MOST_FLAGGED = 0.20  # share of normal pictures that a detector may flag under a mild perturbation


@dataclass(frozen=True)
class RobustnessRow:
    """A row of robustness.csv: one detector under one perturbation, with the prompts of the first seed."""

    __pydantic_config__ = FINITE

    target: str
    category: str
    detector: str
    protocol: str
    shots: int
    perturbation: str
    rate: float
    """Target false-alarm rate of the thresholds, a fraction."""
    nominal: float
    """Fraction of the same pictures that is flagged unchanged."""
    flagged: float
    """Fraction of the perturbed pictures that is flagged."""
    low: float
    """Lower end of the 95 % interval of `flagged` over pictures; `high` is the upper end."""
    high: float
    auroc: float
    """AUROC of perturbed against unchanged pictures, the mean over categories; 0.5 without an effect."""
    pictures: int

    @property
    def fragile(self) -> bool:
        """Whether it is a mild perturbation, more than MOST_FLAGGED are flagged, and the interval excludes the target rate."""
        return is_mild(self.perturbation) and self.flagged > MOST_FLAGGED and self.low > self.rate

    @property
    def words(self) -> str:
        """The share of flagged pictures, in percent."""
        return f"{100 * self.flagged:.0f} % under {self.perturbation}"


@dataclass(frozen=True)
class _Counted:
    """Counts and AUROC of one category."""

    nominal: int
    flagged: int
    pictures: int
    rate: float
    auroc: float


def robustness_rows(
    scored: Mapping[str, Iterable[Scored]], perturbed: Mapping[str, pa.Table], episodes: Sequence[Episode]
) -> list[RobustnessRow]:
    """Return the rows of every detector, over all categories and, with several, for each.

    Episodes with fewer than two normal queries are left out. scored: scores of unchanged pictures, by detector. perturbed: tables of
    PERTURBED, by detector.
    """
    counted: dict[tuple[str, str, str, int, str], dict[str, _Counted]] = defaultdict(dict)
    for detector, items in scored.items():
        by_episode: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for row in perturbed[detector].select(["episode", "perturbation", "image", "score"]).to_pylist():
            by_episode[row["episode"]][row["perturbation"]][row["image"]] = row["score"]
        for item in items:
            episode = episodes[item.number]
            for name, scores in by_episode[item.number].items():
                count = _count(episode, item, scores)
                if count is not None:
                    counted[episode.target, detector, episode.protocol, episode.shots, name][episode.category] = count
    rows = []
    for (target, detector, protocol, shots, name), categories in counted.items():
        for category in [ALL, *categories] if len(categories) > 1 else [ALL]:
            chosen = list(categories.values()) if category == ALL else [categories[category]]
            rows.append(_row((target, category, detector, protocol, shots, name), chosen))
    return rows


def write_robustness(file: Path, rows: Sequence[RobustnessRow]) -> None:
    write_csv_rows(file, RobustnessRow, rows)


def read_robustness(file: Path) -> list[RobustnessRow]:
    return read_csv_rows(file, RobustnessRow)


def _count(episode: Episode, item: Scored, perturbed: Mapping[str, float]) -> _Counted | None:
    """Count for one episode and perturbation. perturbed: scores by picture."""
    queries = zip(episode.queries, episode.labels, item.scores.tolist(), strict=False)  # a detector may score only the first queries
    normal = [(image, score) for image, label, score in queries if label != ANOMALOUS]
    thresholds = thresholds_of([score for _image, score in normal])
    if thresholds is None:
        return None
    own = {image: (judging(thresholds, place), score) for place, (image, score) in enumerate(normal)}
    pairs = [(*own[image], score) for image, score in perturbed.items()]
    counts = tally(np.array([after for _by, _before, after in pairs]), np.sort([before for _by, before, _after in pairs]))
    assert counts is not None
    return _Counted(
        nominal=sum(by.exceeded(before) for by, before, _after in pairs),
        flagged=sum(by.exceeded(after) for by, _before, after in pairs),
        pictures=len(pairs),
        rate=float(np.mean([threshold.false_alarms for threshold in thresholds])),
        auroc=float(auroc(counts)),
    )


def _row(about: tuple[str, str, str, str, int, str], categories: Sequence[_Counted]) -> RobustnessRow:
    pictures = sum(one.pictures for one in categories)
    nominal, flagged = (sum(getattr(one, name) for one in categories) for name in ("nominal", "flagged"))
    rate, ranking = (float(np.mean([getattr(one, name) for one in categories])) for name in ("rate", "auroc"))
    numbers = (rate, nominal / pictures, flagged / pictures, *binomial_interval(flagged, pictures), ranking)
    rate, before, after, low, high, ranking = (round(number, 6) for number in numbers)
    return RobustnessRow(*about, rate, before, after, low, high, ranking, pictures)
