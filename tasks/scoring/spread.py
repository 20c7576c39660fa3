"""Estimates how far a figure may be trusted: bootstrap over the pictures it was measured on.

Pictures are drawn anew with replacement, the normal and the anomalous each in their number, DRAWS times; the 2.5 and 97.5 % quantiles of
the figure over those draws are its 95 % interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). The
draws follow from the names of the pictures alone, wherever the folder of them lies, so every detector, seed, number of shots and model
that was measured on the same pictures has the same ones: their differences, draw by draw, are a paired test. What prompts are drawn is
another spread, the standard deviation over seeds, and not in the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.randomness import generator
from changepair.tasks.scoring.figures import PIXEL_FIGURES, Tally, image_figures, pixel_figures, tally_levels

DRAWS = 1000
INTERVAL = (0.025, 0.975)

Draws = NDArray[np.float32]  # DRAWS values of a figure; NaN where a draw has no such figure


def resample(images: Sequence[str], labels: Sequence[int], *of: str) -> NDArray[np.float32]:
    """Draws DRAWSxN: how often each picture is in each draw. of: the target and the category of the pictures, as no path tells them."""
    counts = np.zeros((DRAWS, len(images)), dtype=np.float32)
    names = _names(images)
    for label in sorted(set(labels)):
        places = [place for place, other in enumerate(labels) if other == label]
        random = generator(0, "bootstrap", *of, label, *(names[place] for place in places))
        counts[:, places] = random.multinomial(len(places), np.full(len(places), 1 / len(places)), size=DRAWS)
    return counts


def _names(images: Sequence[str]) -> list[str]:
    """Names pictures from the folder that holds them all."""
    parts = [image.split("/") for image in images]
    levels = min(map(len, parts)) - 1
    common = next((level for level in range(levels) if len({part[level] for part in parts}) > 1), levels)
    return ["/".join(part[common:]) for part in parts]


def image_draws(counts: NDArray[np.float32], labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> dict[str, Draws]:
    """Gives the image figures of every draw. counts: DRAWSxN of `resample`; labels, scores: N."""
    if not labels.any() or labels.all():
        return {}
    positives, negatives = (np.flatnonzero(wanted)[np.argsort(-scores[wanted])] for wanted in (labels, ~labels))
    falling = scores[positives]
    starts = np.append(0, np.flatnonzero(np.diff(falling)) + 1)  # of each distinct score of a positive
    hits = counts[:, positives]
    if len(starts) < len(positives):
        hits = np.add.reduceat(hits, starts, axis=1)
    upto = np.concatenate([np.zeros((len(counts), 1), np.float32), np.cumsum(counts[:, negatives], axis=1)], axis=1)
    above, at_least = (upto[:, np.searchsorted(-scores[negatives], -falling[starts], side)] for side in ("left", "right"))
    counted = Tally(hits, above, at_least - above, upto[:, -1])
    return {name: values.astype(np.float32) for name, values in image_figures(counted).items()}


def pixel_draws(counts: NDArray[np.float32], by_picture: NDArray[np.float32], exact: dict[str, float]) -> dict[str, Draws]:
    """Gives the pixel figures of every draw. by_picture: 3xNxL of PixelScores.by_picture; exact: the figures of all pictures.

    The levels are coarse, so of a draw's figure only its distance from the figure of all pictures on those levels is taken.
    """
    anomalous, normal, overlap = by_picture.astype(np.float64).sum(1)
    if not anomalous.any() or not normal.any():
        return {}
    middle = pixel_figures(tally_levels(anomalous, normal, overlap))
    drawn = [counts @ part for part in by_picture]
    with np.errstate(invalid="ignore"):  # a draw without any anomalous pixel
        values = pixel_figures(tally_levels(*drawn))
    return {name: np.clip(exact[name] + values[name] - middle[name], 0, 1).astype(np.float32) for name in PIXEL_FIGURES if name in exact}


def coarse_figures(by_picture: NDArray[np.float32]) -> dict[str, float]:
    """Gives the pixel figures as the levels have them: within about 1 / COARSE."""
    anomalous, normal, overlap = by_picture.astype(np.float64).sum(1)
    if not anomalous.any() or not normal.any():
        return {}
    return {name: float(value) for name, value in pixel_figures(tally_levels(anomalous, normal, overlap)).items()}


def interval(draws: Draws) -> tuple[float, float] | None:
    """Gives the 95 % interval; None if no draw has the figure."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return None
    low, high = np.quantile(known, INTERVAL)
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One less the other, measured on the same pictures."""

    value: float
    low: float
    high: float
    p: float  # how often the draws would have the other sign if there were no difference: two-sided, at least 2 / (DRAWS + 1)


def difference(value: float, draws: Draws) -> Difference | None:
    """Gives a difference with its interval. value: of the figures themselves; draws: of the difference, draw by draw. None if no draw has
    it."""
    known = draws[np.isfinite(draws)]
    ends = interval(known)
    if ends is None:
        return None
    least = min((known <= 0).sum(), (known >= 0).sum())
    return Difference(value, *ends, p=min(1.0, 2 * (float(least) + 1) / (len(known) + 1)))
