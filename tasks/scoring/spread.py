"""Estimate the interval of a metric by bootstrap over the pictures that it was measured on.

Each of DRAWS draws takes as many normal and anomalous pictures as there are, with replacement. The 2.5 and 97.5 % quantiles of the metric
are its 95 % interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). The draws depend only on the names of
the pictures, not on their folder. So all detectors, seeds, shots and models have the same draws on the same pictures. Their differences,
draw by draw, are a paired test. The interval does not include the spread over prompts, which is the standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.randomness import generator
from changepair.tasks.scoring.metrics import PIXEL_METRICS, Tally, histogram_metrics, image_metrics, pixel_metrics, tally_levels

DRAWS = 1000
INTERVAL = (0.025, 0.975)

Draws = NDArray[np.float32]  # DRAWS values of a metric; NaN where it is undefined


def resample(images: Sequence[str], labels: Sequence[int], *of: str) -> NDArray[np.float32]:
    """Return how often each of N pictures is in each draw, DRAWSxN. of: target and category of the pictures; they seed the draws."""
    counts = np.zeros((DRAWS, len(images)), dtype=np.float32)
    names = _names(images)
    for label in sorted(set(labels)):
        places = [place for place, other in enumerate(labels) if other == label]
        random = generator(0, "bootstrap", *of, label, *(names[place] for place in places))
        counts[:, places] = random.multinomial(len(places), np.full(len(places), 1 / len(places)), size=DRAWS)
    return counts


def _names(images: Sequence[str]) -> list[str]:
    """Return the paths of pictures relative to their common folder."""
    parts = [image.split("/") for image in images]
    levels = min(map(len, parts)) - 1
    common = next((level for level in range(levels) if len({part[level] for part in parts}) > 1), levels)
    return ["/".join(part[common:]) for part in parts]


def image_draws(counts: NDArray[np.float32], labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> dict[str, Draws]:
    """Return the image metrics of every draw. counts: DRAWSxN from `resample`. labels, scores: N."""
    if not labels.any() or labels.all():
        return {}
    positives, negatives = (np.flatnonzero(wanted)[np.argsort(-scores[wanted])] for wanted in (labels, ~labels))
    falling = scores[positives]
    starts = np.append(0, np.flatnonzero(np.diff(falling)) + 1)  # first place of each distinct score of a positive
    hits = counts[:, positives]
    if len(starts) < len(positives):
        hits = np.add.reduceat(hits, starts, axis=1)
    upto = np.concatenate([np.zeros((len(counts), 1), np.float32), np.cumsum(counts[:, negatives], axis=1)], axis=1)
    above, at_least = (upto[:, np.searchsorted(-scores[negatives], -falling[starts], side)] for side in ("left", "right"))
    counted = Tally(hits, above, at_least - above, upto[:, -1])
    return {name: values.astype(np.float32) for name, values in image_metrics(counted).items()}


def pixel_draws(counts: NDArray[np.float32], by_picture: NDArray[np.float32], exact: dict[str, float]) -> dict[str, Draws]:
    """Return the pixel metrics of every draw.

    The levels are coarse. So each draw uses only the distance between its metric and the metric of all pictures on these levels.
    by_picture: 3xNxL from PixelScores.by_picture. exact: the metrics of all pictures.
    """
    middle = coarse_metrics(by_picture)
    if not middle:
        return {}
    drawn = [counts @ part for part in by_picture]
    with np.errstate(invalid="ignore"):  # a draw without any anomalous pixel
        values = pixel_metrics(tally_levels(*drawn))
    return {name: np.clip(exact[name] + values[name] - middle[name], 0, 1).astype(np.float32) for name in PIXEL_METRICS if name in exact}


def coarse_metrics(by_picture: NDArray[np.float32]) -> dict[str, float]:
    """Return the pixel metrics on the coarse levels, accurate to about 1 / COARSE."""
    return histogram_metrics(*by_picture.astype(np.float64).sum(1))


def interval(draws: Draws) -> tuple[float, float] | None:
    """Return the 95 % interval; None if no draw has the metric."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return None
    low, high = np.quantile(known, INTERVAL)
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """A difference of a metric on the same pictures."""

    value: float
    low: float
    """Lower end of the 95 % interval; `high` is the upper end."""
    high: float
    p: float
    """Two-sided p-value, at least 2 / (DRAWS + 1)."""


def difference(value: float, draws: Draws) -> Difference | None:
    """Return a difference with its interval. draws: the difference in each draw. None if no draw has it."""
    known = draws[np.isfinite(draws)]
    ends = interval(known)
    if ends is None:
        return None
    least = min((known <= 0).sum(), (known >= 0).sum())
    return Difference(value, *ends, p=min(1.0, 2 * (float(least) + 1) / (len(known) + 1)))
