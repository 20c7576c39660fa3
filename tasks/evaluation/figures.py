"""The seven figures: AUROC, AP and F1max of images and of pixels, and AUPRO, all exact over every threshold.

One descending sort of the scores serves all of them; scikit-learn, which the tests hold them against, would sort for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.pictures import Mask

FIGURES = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro")
PRO_LIMIT = 0.3  # false positive rate AUPRO is integrated to (Bergmann et al., CVPR 2019)
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)  # as in MVTec AD's own evaluation code


@dataclass(frozen=True)
class Ranking:
    """Counts at every distinct threshold, highest first; a point is «everything scored at least this is anomalous»."""

    true_positives: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    order: NDArray[np.intp]  # of the scores, descending
    ends: NDArray[np.intp]  # where each threshold's ties end in that order

    @property
    def positives(self) -> float:
        return float(self.true_positives[-1])

    @property
    def negatives(self) -> float:
        return float(self.false_positives[-1])


def rank(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> Ranking:
    """labels and scores: N each. Tied scores share one threshold."""
    order = np.argsort(-scores)
    ordered = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.cumsum(labels[order], dtype=np.float64)[ends]
    return Ranking(hits, ends + 1.0 - hits, order, ends)


def auroc(ranking: Ranking) -> float:
    """Area under true over false positive rate, by trapezoids."""
    true, false = ranking.true_positives / ranking.positives, ranking.false_positives / ranking.negatives
    return float(np.trapezoid(np.append(0.0, true), np.append(0.0, false)))


def average_precision(ranking: Ranking) -> float:
    """Sum over thresholds of precision times the gain in recall."""
    precision = ranking.true_positives / (ranking.true_positives + ranking.false_positives)
    return float(np.sum(np.diff(ranking.true_positives / ranking.positives, prepend=0.0) * precision))


def f1max(ranking: Ranking) -> float:
    """The best F1 over thresholds."""
    return float(np.max(2 * ranking.true_positives / (ranking.true_positives + ranking.false_positives + ranking.positives)))


def image_figures(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> dict[str, float]:
    """The three image figures, as fractions. Both labels must occur."""
    ranking = rank(labels, scores)
    return {"image_auroc": auroc(ranking), "image_ap": average_precision(ranking), "image_f1max": f1max(ranking)}


def pixel_figures(masks: NDArray[np.bool_], maps: NDArray[np.floating]) -> dict[str, float]:
    """The four pixel figures, as fractions, over all pixels of all pictures. masks, maps: NxHxW; some pixel of each label."""
    ranking = rank(masks.ravel(), maps.ravel())
    return {
        "pixel_auroc": auroc(ranking),
        "pixel_ap": average_precision(ranking),
        "pixel_f1max": f1max(ranking),
        "pixel_aupro": aupro(masks, ranking),
    }


def aupro(masks: NDArray[np.bool_], ranking: Ranking) -> float:
    """Area under the mean overlap a region over the false positive rate up to 0.3, divided by 0.3.

    Regions are the connected components of each mask (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021,
    section 5.2). Exact: the curve has a point at every distinct score, and the last piece is cut at 0.3 by interpolation.
    """
    # Every pixel of a region adds 1 / (its region's size x number of regions) to the mean overlap.
    share = np.zeros(masks.shape, dtype=np.float64)
    regions = 0
    for mask, target in zip(masks, share, strict=True):
        for region in _regions(mask):
            target[region] = 1.0 / region.sum()
            regions += 1
    overlap = np.append(0.0, np.cumsum(share.ravel()[ranking.order])[ranking.ends] / regions)
    rate = np.append(0.0, ranking.false_positives / ranking.negatives)
    inside = rate <= PRO_LIMIT
    at_limit = np.interp(PRO_LIMIT, rate, overlap)
    return float(np.trapezoid(np.append(overlap[inside], at_limit), np.append(rate[inside], PRO_LIMIT)) / PRO_LIMIT)


def _regions(mask: Mask) -> Iterator[Mask]:
    labelled, count = ndimage.label(mask, structure=EIGHT_CONNECTED)
    for number in range(1, count + 1):
        yield labelled == number
