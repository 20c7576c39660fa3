"""Reference code for the metrics of pixels: counts of whole masks and maps, and bounds of a histogram's metrics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from changepair.tasks.scoring.metrics import PRO_LIMIT, Tally, auroc, f1max, tally, tally_levels
from changepair.tasks.scoring.pixels import PixelScores, truth_of


def pixels_tally(masks: NDArray[np.bool_], maps: NDArray[np.floating]) -> Tally | None:
    """Count masks and maps, NxHxW, into the counts that `pixel_metrics` and `aupro` take."""
    truth = truth_of(list(masks), masks.shape[1:])
    return tally(maps.ravel()[truth.anomalous], np.sort(maps, axis=None), truth.overlap, among=True)


def bounds_of(scores: PixelScores) -> dict[str, tuple[float, float]]:
    """Return the bounds of the metrics of scores that were counted into a histogram."""
    anomalous, normal, overlap = scores._histograms
    return bounds(tally_levels(anomalous, normal, overlap)) if anomalous.any() and normal.any() else {}


def bounds(counts: Tally) -> dict[str, tuple[float, float]]:
    """Return the least and the greatest pixel metrics if equal scores of the counts are in fact not equal."""
    hits_so_far, more = np.cumsum(counts.hits), counts.above + counts.level
    positives, negatives = counts.positives, counts.negatives
    width = (counts.hits * counts.level).sum() / (2 * positives * negatives)
    area = auroc(counts)
    best = (counts.hits * hits_so_far / np.maximum(hits_so_far + counts.above, 1e-12)).sum() / positives
    worst = (counts.hits * (hits_so_far - counts.hits + 1) / (hits_so_far - counts.hits + 1 + more)).sum() / positives
    f1 = 2 * hits_so_far / (hits_so_far + counts.above + positives)
    result = {
        "pixel_auroc": (area - width, area + width),
        "pixel_ap": (worst, best),
        "pixel_f1max": (f1max(counts), f1.max()),
    }
    if counts.overlap is not None:
        room = [np.clip(PRO_LIMIT - rate / negatives, 0, None) for rate in (more, counts.above)]
        low, high = ((counts.overlap * each).sum() / (counts.overlap.sum() * PRO_LIMIT) for each in room)
        result["pixel_aupro"] = (low, high)
    return {name: (float(low), float(high)) for name, (low, high) in result.items()}
