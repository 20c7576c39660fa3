"""Define the seven metrics: AUROC, AP and F1max of images and of pixels, and AUPRO.

All metrics follow from the same counts at each distinct score of a positive (`Tally`): the positives with this score, and the negatives
with a higher or the same score. So only the negatives' scores are sorted. Exact scores, histograms and a thousand resamples along a leading
axis (tasks/scoring/spread.py) use the same code.

AUROC: Fawcett, "An introduction to ROC analysis", 2006. AP equals scikit-learn's average_precision_score, F1max the best F1 of its
precision_recall_curve. AUPRO: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2. Undefined metrics (no
anomalous picture, no mask, no normal pixel) are left out, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

MetricName = Literal["image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
IMAGE_METRICS, PIXEL_METRICS = METRICS[:3], METRICS[3:]
PRO_LIMIT = 0.3  # false positive rate that AUPRO is integrated to, and divided by
PUBLISHED_STEPS = 200  # thresholds of AUPRO as published

Counts = NDArray[np.floating]


@dataclass(frozen=True)
class Tally:
    """Counts ...xT at each of T distinct scores of positives, highest first. Leading axes are resamples.

    Each score is a threshold: scores at or above it are anomalous.
    """

    hits: Counts
    """Positives with this score."""
    above: Counts
    """Negatives with a higher score."""
    level: Counts
    """Negatives with the same score."""
    negatives: Counts
    """All negatives, shape ..."""
    overlap: Counts | None = None
    """Sum of the hits' shares of their regions; pixels only."""

    @property
    def positives(self) -> Counts:
        return self.hits.sum(-1)

    @property
    def true_positive_rate(self) -> Counts:
        return np.cumsum(self.hits, -1) / self.positives[..., None]

    @property
    def false_positive_rate(self) -> Counts:
        return (self.above + self.level) / self.negatives[..., None]

    @property
    def precision(self) -> Counts:
        hits_so_far = np.cumsum(self.hits, -1)
        return hits_so_far / np.maximum(hits_so_far + self.above + self.level, 1e-12)  # a resample may lack them


def tally(
    positives: NDArray[np.floating], negatives: NDArray[np.floating], overlap: NDArray[np.floating] | None = None, *, among: bool = False
) -> Tally | None:
    """Count exact scores. Return None without positives or negatives.

    positives: P scores in any order. negatives: N scores, ascending. overlap: P shares of regions. among: whether `negatives` includes the
    positives, which are then subtracted; this saves separating them before the sort.
    """
    count = len(negatives) - among * len(positives)
    if not len(positives) or not count:
        return None
    scores, place = np.unique(positives, return_inverse=True)
    hits = np.bincount(place)
    upto = cast(NDArray[np.intp], np.searchsorted(negatives, scores, "right"))
    below = upto - among * hits
    tied = negatives[below - 1] == scores  # only these need a second search, and the lowest score if nothing is below it
    below[tied] = np.searchsorted(negatives, scores[tied], "left")
    level, above = upto - below, len(negatives) - upto
    del upto, below, tied  # the memory of a metric is a few tens of bytes for each anomalous pixel
    if among:
        level -= hits
        above -= len(positives) - np.cumsum(hits)  # positives with a higher score
    return Tally(
        hits=hits[::-1].astype(np.float64),
        above=above[::-1].astype(np.float64),
        level=level[::-1].astype(np.float64),
        negatives=np.float64(count) * np.ones(()),
        overlap=None if overlap is None else np.bincount(place, overlap)[::-1].astype(np.float64),
    )


def tally_levels(positives: Counts, negatives: Counts, overlap: Counts | None = None) -> Tally:
    """Count histograms ...xL of the scores, lowest level first. Scores in one level count as equal."""
    falling = negatives[..., ::-1]
    upto = np.cumsum(falling, -1)
    return Tally(positives[..., ::-1], upto - falling, falling, upto[..., -1], None if overlap is None else overlap[..., ::-1])


def auroc(counts: Tally) -> Counts:
    """Return how often a positive is scored higher than a negative; ties count half."""
    lower = counts.negatives[..., None] - counts.above - counts.level
    return (counts.hits * (lower + counts.level / 2)).sum(-1) / (counts.positives * counts.negatives)


def average_precision(counts: Tally) -> Counts:
    """Return the sum over thresholds of precision times the gain in recall."""
    return (counts.hits * counts.precision).sum(-1) / counts.positives


def f1max(counts: Tally) -> Counts:
    """Return the best F1 over thresholds. It is at a score of a positive: lower thresholds between two such scores add false positives."""
    hits_so_far = np.cumsum(counts.hits, -1)
    return (2 * hits_so_far / (hits_so_far + counts.above + counts.level + counts.positives[..., None])).max(-1)


def aupro(counts: Tally, limit: float = PRO_LIMIT) -> Counts:
    """Return AUPRO: the exact area under the mean overlap of regions, up to the false positive rate `limit`, divided by `limit`.

    The curve has a point at every distinct score and is straight between points. Each found pixel adds the area under a ramp. The ramp
    rises from the rate above its score to the rate at its score.
    """
    assert counts.overlap is not None
    before, after = counts.above / counts.negatives[..., None], counts.false_positive_rate
    cut = np.clip(limit - before, 0, None) ** 2 / (2 * np.maximum(after - before, 1e-30))
    area = np.where(after <= limit, limit - (before + after) / 2, cut)
    return (counts.overlap * area).sum(-1) / (counts.overlap.sum(-1) * limit)


def aupro_as_published(
    positives: NDArray[np.floating], negatives: NDArray[np.floating], overlap: NDArray[np.floating], *, among: bool = False
) -> float | None:
    """Return AUPRO as MetaUAS's code and most other code computes it.

    It uses 200 equidistant thresholds over the range of scores. False positive rates below 0.3 are rescaled between the lowest and the
    highest of them. This differs from the area up to 0.3: the curve before the lowest rate is cut off, and a coarse curve is stretched.

    The parameters are as in `tally`. Return None with fewer than two different rates below the limit, where the original divides by zero.
    """
    count = len(negatives) - among * len(positives)
    if not len(positives) or not count:
        return None
    low, high = float(min(positives.min(), negatives[0])), float(max(positives.max(), negatives[-1]))
    if high <= low:
        return None
    thresholds = np.arange(low, high, (high - low) / PUBLISHED_STEPS)
    order = np.argsort(positives)
    below = np.searchsorted(positives[order], thresholds, "right")  # positives that are not above
    rates = 1 - (np.searchsorted(negatives, thresholds, "right") - among * below) / count
    overlaps = 1 - np.append(0.0, np.cumsum(overlap[order]))[below] / overlap.sum()
    inside = rates < PRO_LIMIT
    if inside.sum() < 2 or np.ptp(rates[inside]) == 0:
        return None
    rescaled = (rates[inside] - rates[inside].min()) / np.ptp(rates[inside])
    return float(-np.trapezoid(overlaps[inside], rescaled))


def image_metrics(counts: Tally | None) -> dict[str, Counts]:
    """Return the three image metrics, as fractions."""
    return {} if counts is None else dict(zip(IMAGE_METRICS, (auroc(counts), average_precision(counts), f1max(counts)), strict=True))


def pixel_metrics(counts: Tally | None) -> dict[str, Counts]:
    """Return the four pixel metrics, as fractions, over all pixels of all pictures together."""
    if counts is None:
        return {}
    return dict(zip(PIXEL_METRICS, (auroc(counts), average_precision(counts), f1max(counts), aupro(counts)), strict=True))


def histogram_metrics(positives: Counts, negatives: Counts, overlap: Counts) -> dict[str, float]:
    """Return the pixel metrics of histograms L of the scores, accurate to one level."""
    if not positives.any() or not negatives.any():
        return {}
    return {name: float(value) for name, value in pixel_metrics(tally_levels(positives, negatives, overlap)).items()}


def heading(metric: str) -> str:
    """Format image_auroc as in the papers: I-AUROC."""
    level, _, name = metric.partition("_")
    names = {"auroc": "AUROC", "ap": "AP", "f1max": "F1max", "aupro": "AUPRO"}
    return f"{level[0].upper()}-{names[name]}" if name in names else metric
