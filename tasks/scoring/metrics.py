"""Define the seven metrics: AUROC, AP and F1max of images and of pixels, and AUPRO.

All of them follow from the same counts at each distinct score of a positive: the positives with this score, and the negatives with a higher
or the same score (`Tally`). So only the negatives' scores are sorted, and the same code serves exact scores, histograms and, along a
leading axis, a thousand resamples at once (tasks/scoring/spread.py).

AUROC: Fawcett, "An introduction to ROC analysis", 2006. AP, F1max: as scikit-learn's average_precision_score and the best F1 of its
precision_recall_curve. AUPRO: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2. An undefined metric (no
anomalous picture, no mask, no normal pixel) is left out, never NaN.
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
PUBLISHED_STEPS = 200  # thresholds of the authors' AUPRO

Counts = NDArray[np.floating]


@dataclass(frozen=True)
class Tally:
    """Counts at each of T distinct scores of positives, highest first, ...xT; leading axes are resamples. Each score is a threshold: scores
    at or above it are anomalous."""

    hits: Counts  # positives with this score
    above: Counts  # negatives with a higher one
    level: Counts  # negatives with the same one
    negatives: Counts  # all of them, ...
    overlap: Counts | None = None  # of pixels: what these hits add to the sum, over regions, of the share found

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
    """Count. positives: P scores in any order, negatives: N scores ascending, overlap: P. Return None without positives or negatives.
    among: the positives are among the negatives too, so that they need not be separated before the sort, and are subtracted."""
    count = len(negatives) - among * len(positives)
    if not len(positives) or not count:
        return None
    scores, place = np.unique(positives, return_inverse=True)
    hits = np.bincount(place)
    higher = cast(NDArray[np.intp], len(negatives) - np.searchsorted(negatives, scores, "right"))
    at_least = cast(NDArray[np.intp], len(negatives) - np.searchsorted(negatives, scores, "left"))
    if among:
        own = len(positives) - np.cumsum(hits)  # positives with a higher score
        higher, at_least = higher - own, at_least - own - hits
    return Tally(
        hits=hits[::-1].astype(np.float64),
        above=higher[::-1].astype(np.float64),
        level=(at_least - higher)[::-1].astype(np.float64),
        negatives=np.float64(count) * np.ones(()),
        overlap=None if overlap is None else np.bincount(place, overlap)[::-1].astype(np.float64),
    )


def tally_levels(positives: Counts, negatives: Counts, overlap: Counts | None = None) -> Tally:
    """Count histograms ...xL of the scores, lowest first. Scores in one level count as equal."""
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
    """Return the best F1 over thresholds. Between two scores of positives only false positives are added, so one of them is the best."""
    hits_so_far = np.cumsum(counts.hits, -1)
    return (2 * hits_so_far / (hits_so_far + counts.above + counts.level + counts.positives[..., None])).max(-1)


def aupro(counts: Tally, limit: float = PRO_LIMIT) -> Counts:
    """Return the exact area under the mean overlap of regions over the false positive rate, up to `limit` and divided by it.

    The curve has a point at every distinct score and is straight between them. So each pixel found adds the area under a ramp, from the
    rate above its score to the rate at its score.
    """
    assert counts.overlap is not None
    before, after = counts.above / counts.negatives[..., None], counts.false_positive_rate
    cut = np.clip(limit - before, 0, None) ** 2 / (2 * np.maximum(after - before, 1e-30))
    area = np.where(after <= limit, limit - (before + after) / 2, cut)
    return (counts.overlap * area).sum(-1) / (counts.overlap.sum(-1) * limit)


def aupro_as_published(
    positives: NDArray[np.floating], negatives: NDArray[np.floating], overlap: NDArray[np.floating], *, among: bool = False
) -> float | None:
    """Return AUPRO as most code of the field, such as MetaUAS's, computes it: at 200 equidistant thresholds of the scores' range, those
    with a false positive rate below 0.3, rescaled between their least and greatest rate. This is not the area to 0.3: the curve before the
    least rate is cut away, and a coarse curve is stretched.

    The parameters are those of `tally`. None if fewer than two different rates are below the limit (the original divides by zero).
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
    return {} if counts is None else dict(zip(IMAGE_METRICS, (auroc(counts), average_precision(counts), f1max(counts)), strict=True))


def pixel_metrics(counts: Tally | None) -> dict[str, Counts]:
    """Return the four pixel metrics, as fractions, over all pixels of all pictures together."""
    if counts is None:
        return {}
    return dict(zip(PIXEL_METRICS, (auroc(counts), average_precision(counts), f1max(counts), aupro(counts)), strict=True))


def histogram_metrics(positives: Counts, negatives: Counts, overlap: Counts) -> dict[str, float]:
    """Return the pixel metrics of histograms L of the scores, as exact as their levels."""
    if not positives.any() or not negatives.any():
        return {}
    return {name: float(value) for name, value in pixel_metrics(tally_levels(positives, negatives, overlap)).items()}


def heading(metric: str) -> str:
    """Format image_auroc as in the papers: I-AUROC."""
    level, _, name = metric.partition("_")
    names = {"auroc": "AUROC", "ap": "AP", "f1max": "F1max", "aupro": "AUPRO"}
    return f"{level[0].upper()}-{names[name]}" if name in names else metric
