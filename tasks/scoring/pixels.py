"""Collect the pixel scores of an episode and its anomalous pixels, batch by batch.

Exact metrics need every pixel's score, four bytes each. They temporarily need some tens of bytes for each anomalous pixel. If the scores of
an episode exceed HELD_SCORES, a histogram of 65,536 levels replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.pictures import Mask
from changepair.tasks.scoring.metrics import aupro_as_published, histogram_metrics, pixel_metrics, tally
from changepair.tasks.scoring.settings import Convention

HELD_SCORES = 2**30  # bytes: 4,096 pictures at 256x256
FINE = 2**16  # levels of the histogram, from 0 to 1
COARSE = 256  # levels of each picture's counts; the bootstrap uses these counts
EVEN = 0.1  # share of the coarse levels that are spread evenly, for scores that the first batch lacks

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """The anomalous pixels of B pictures of HxW."""

    known: NDArray[np.bool_]
    """Whether each picture's pixels count, B. They do not if it is anomalous and has no mask."""
    pixels: int
    """Pixels of each picture."""
    anomalous: NDArray[np.intp]
    """Indices of the P anomalous pixels among all BxHxW."""
    overlap: NDArray[np.float64]
    """One over the number of pixels in its region, for each anomalous pixel: P. A region is a connected component of a mask, with 8
    neighbours."""

    def first(self, count: int) -> Truth:
        """Return the truth of the first pictures."""
        until = np.searchsorted(self.anomalous, count * self.pixels)
        return Truth(self.known[:count], self.pixels, self.anomalous[:until], self.overlap[:until])


def truth_of(masks: Sequence[Mask | None], shape: tuple[int, int]) -> Truth:
    """Find the anomalous pixels. masks: B masks HxW, None for an anomalous picture without a mask."""
    places, overlaps = [np.zeros(0, dtype=np.intp)], [np.zeros(0)]
    for index, mask in enumerate(masks):
        if mask is not None and mask.any():
            _count, regions = cv2.connectedComponents(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
            inside = np.flatnonzero(mask)
            region = regions.ravel()[inside]
            places.append(inside + index * mask.size)
            overlaps.append(1.0 / np.bincount(region)[region])
    known = np.array([mask is not None for mask in masks])
    return Truth(known, shape[0] * shape[1], np.concatenate(places), np.concatenate(overlaps))


class PixelScores:
    """Collect pixel scores with `add`, then call `metrics` once."""

    def __init__(self, pixels: int, *, exact: bool, like: PixelScores | None = None) -> None:
        """Reserve memory.

        pixels: number of pixels in total. exact: whether to keep every score. like: another episode of the same detector with the same
        coarse levels; None sets the levels from the first batch.
        """
        self.exact = exact
        self._scores = np.empty(pixels if exact else 0, dtype=np.float32)  # uses memory only as it is filled
        self._filled = 0
        self._anomalous: list[Maps] = []
        self._overlap: list[NDArray[np.float64]] = []
        self._histograms = np.zeros((3, 0 if exact else FINE))
        self._level_of: NDArray[np.uint8] | None = None if like is None else like._level_of
        self._by_picture: list[NDArray[np.float32]] = []

    def add(self, maps: Maps, truth: Truth) -> None:
        """Add maps BxHxW in [0, 1]."""
        fine = (maps * np.float32(FINE - 1)).astype(np.uint16)
        if self._level_of is None:
            self._level_of = _levels(fine, truth)
        self._by_picture.append(_by_picture(self._level_of[fine], truth))
        anomalous = maps.ravel()[truth.anomalous]
        if self.exact:
            for picture in maps[truth.known]:
                self._scores[self._filled : self._filled + picture.size] = picture.ravel()
                self._filled += picture.size
            self._anomalous.append(anomalous)
            self._overlap.append(truth.overlap)
        else:
            places = fine.ravel()[truth.anomalous]
            hits = np.bincount(places, minlength=FINE)
            everything = np.bincount(fine[truth.known].ravel(), minlength=FINE)
            self._histograms += np.stack([hits, everything - hits, np.bincount(places, truth.overlap, minlength=FINE)])

    def metrics(self, convention: Convention) -> dict[str, float]:
        """Return the pixel metrics, as fractions. convention: how AUPRO is computed."""
        if not self.exact:
            return histogram_metrics(*self._histograms)
        everything = self._scores[: self._filled]
        everything.sort()  # in place, because a copy would double the memory
        anomalous, overlap = np.concatenate(self._anomalous), np.concatenate(self._overlap)
        metrics = {name: float(value) for name, value in pixel_metrics(tally(anomalous, everything, overlap, among=True)).items()}
        if convention == "published" and metrics:
            del metrics["pixel_aupro"]
            published = aupro_as_published(anomalous, everything, overlap, among=True)
            metrics |= {} if published is None else {"pixel_aupro": published}
        return metrics

    def by_picture(self) -> NDArray[np.float32]:
        """Return the counts of each picture by level, 3xNxCOARSE: anomalous pixels, normal pixels and shares of regions."""
        return np.concatenate(self._by_picture, axis=1)


def _by_picture(level: NDArray[np.uint8], truth: Truth) -> NDArray[np.float32]:
    """Count each picture's anomalous pixels, normal pixels and shares of regions by level: 3xBxCOARSE. level: BxHxW."""
    everything = np.stack([cv2.calcHist([picture], [0], None, [COARSE], [0, COARSE]).ravel() for picture in level])
    everything[~truth.known] = 0
    places = level.ravel()[truth.anomalous] + truth.anomalous // level[0].size * COARSE
    shape = (len(level), COARSE)
    hits = np.bincount(places, minlength=everything.size).reshape(shape)
    overlap = np.bincount(places, truth.overlap, minlength=everything.size).reshape(shape)
    return np.stack([hits, everything - hits, overlap]).astype(np.float32)


def _levels(fine: NDArray[np.uint16], truth: Truth) -> NDArray[np.uint8]:
    """Return the coarse level of each fine level. Normal and anomalous pixels spread evenly over the coarse levels."""
    mass = np.full(FINE, EVEN / FINE)
    everything = np.bincount(fine[truth.known].ravel(), minlength=FINE)
    hits = np.bincount(fine.ravel()[truth.anomalous], minlength=FINE)
    sides = [counts for counts in (everything - hits, hits) if counts.any()]
    for counts in sides:
        mass += (1 - EVEN) / len(sides) * counts / counts.sum()
    return np.minimum((np.cumsum(mass) - mass / 2) / mass.sum() * COARSE, COARSE - 1).astype(np.uint8)
