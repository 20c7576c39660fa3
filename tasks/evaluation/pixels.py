"""The pixel scores of an episode and what is anomalous among them, taken in batch by batch as they are made.

Exact figures need every pixel's score: four bytes each, and nothing else is held. An episode whose scores would pass HELD_SCORES is
counted into a histogram of 65,536 levels instead, whose figures are off by at most what tasks.evaluation.figures.bounds says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.figures import Tally, aupro_as_published, bounds, pixel_figures, tally, tally_levels
from tasks.evaluation.settings import Convention
from tasks.pictures import Mask

HELD_SCORES = 2**30  # bytes: 4,096 pictures at 256x256
FINE = 2**16  # levels of the histogram, from 0 to 1
COARSE = 256  # levels of each picture's own counts, that resamples of pictures are made of
EVEN = 0.1  # share of the coarse levels spread evenly, for scores that the first batch does not have

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """What is anomalous in B pictures of HxW.

    A picture that is anomalous and has no mask is not known: its pixels count for nothing.
    """

    normal: NDArray[np.bool_]  # BxHxW: pixels that are known and not anomalous
    anomalous: NDArray[np.intp]  # places of the P anomalous pixels among all BxHxW
    overlap: NDArray[np.float64]  # P: one over the pixels of its region, a connected component (8 neighbours) of one mask

    def first(self, count: int) -> Truth:
        """Of the first so many pictures."""
        if count == len(self.normal):
            return self
        until = np.searchsorted(self.anomalous, count * self.normal[0].size)
        return Truth(self.normal[:count], self.anomalous[:until], self.overlap[:until])


def truth_of(masks: Sequence[Mask | None], shape: tuple[int, int]) -> Truth:
    """masks: B of HxW, None for a picture that is anomalous nobody knows where."""
    normal = np.zeros((len(masks), *shape), dtype=bool)
    places, overlaps = [np.zeros(0, dtype=np.intp)], [np.zeros(0)]
    for index, mask in enumerate(masks):
        if mask is None:
            continue
        normal[index] = ~mask
        if mask.any():
            _count, regions, statistics, _centres = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
            inside = np.flatnonzero(mask)
            places.append(inside + index * mask.size)
            overlaps.append(1.0 / statistics[regions.ravel()[inside], cv2.CC_STAT_AREA])
    return Truth(normal, np.concatenate(places), np.concatenate(overlaps))


def pixels_tally(masks: NDArray[np.bool_], maps: NDArray[np.floating]) -> Tally | None:
    """masks, maps: NxHxW. The counts that `pixel_figures` and `aupro` take."""
    truth = truth_of(list(masks), masks.shape[1:])
    return tally(maps.ravel()[truth.anomalous], np.sort(maps[truth.normal]), truth.overlap)


class PixelScores:
    """Room for the pixel scores of `pixels` pixels; `add` them, then ask for the figures, once."""

    def __init__(self, pixels: int, *, exact: bool) -> None:
        self.exact = exact
        self._normal = np.empty(pixels if exact else 0, dtype=np.float32)  # memory is taken as it is filled
        self._filled = 0
        self._anomalous: list[Maps] = []
        self._overlap: list[NDArray[np.float64]] = []
        self._histograms = np.zeros((3, 0 if exact else FINE))
        self._level_of: NDArray[np.int32] | None = None
        self._by_picture: list[NDArray[np.float32]] = []

    def add(self, maps: Maps, truth: Truth) -> None:
        """maps: BxHxW in [0, 1]."""
        normal, anomalous = maps[truth.normal], maps.ravel()[truth.anomalous]
        fine = np.minimum(maps * np.float32(FINE), np.float32(FINE - 1)).astype(np.uint16)
        if self._level_of is None:
            self._level_of = _levels(fine[truth.normal], fine.ravel()[truth.anomalous])
        picture = np.arange(len(maps), dtype=np.int32)[:, None, None] * COARSE
        coarse = self._level_of[fine] + picture
        self._by_picture.append(_counts(coarse, truth, len(maps) * COARSE).reshape(3, len(maps), COARSE).astype(np.float32))
        if self.exact:
            self._normal[self._filled : self._filled + len(normal)] = normal
            self._filled += len(normal)
            self._anomalous.append(anomalous)
            self._overlap.append(truth.overlap)
        else:
            self._histograms += _counts(fine, truth, FINE)

    def figures(self, convention: Convention) -> dict[str, float]:
        """The four pixel figures of everything added, those that are defined."""
        if not self.exact:
            counts = self._fine_tally()
            return {} if counts is None else {name: float(value) for name, value in pixel_figures(counts).items()}
        normal = self._normal[: self._filled]
        normal.sort()  # in place: a second copy would double what is held
        anomalous, overlap = np.concatenate(self._anomalous), np.concatenate(self._overlap)
        figures = {name: float(value) for name, value in pixel_figures(tally(anomalous, normal, overlap)).items()}
        if convention == "published" and figures:
            published = aupro_as_published(anomalous, normal, overlap)
            del figures["pixel_aupro"]
            if published is not None:
                figures["pixel_aupro"] = published
        return figures

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Of a histogram: what the figures of the scores themselves are at the least and at the most."""
        counts = self._fine_tally()
        return {} if counts is None else bounds(counts)

    def by_picture(self) -> NDArray[np.float32]:
        """3xNxCOARSE: each picture's anomalous pixels, its normal ones, and the shares of its regions, by level of score."""
        return np.concatenate(self._by_picture, axis=1)

    def _fine_tally(self) -> Tally | None:
        anomalous, normal, overlap = self._histograms
        return tally_levels(anomalous, normal, overlap) if anomalous.any() and normal.any() else None


def _counts(level: NDArray[np.integer], truth: Truth, levels: int) -> NDArray[np.float64]:
    """3xL: anomalous pixels, normal pixels and shares of regions on each level. level: BxHxW."""
    anomalous = level.ravel()[truth.anomalous]
    return np.stack(
        [
            np.bincount(anomalous, minlength=levels),
            np.bincount(level[truth.normal], minlength=levels),
            np.bincount(anomalous, truth.overlap, minlength=levels),
        ]
    )


def _levels(normal: NDArray[np.uint16], anomalous: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Which coarse level each fine one belongs to: as many of the normal pixels on each, and of the anomalous, as can be."""
    mass = np.full(FINE, EVEN / FINE)
    there = [scores for scores in (normal, anomalous) if len(scores)]
    for scores in there:
        mass += (1 - EVEN) / len(there) * np.bincount(scores, minlength=FINE) / len(scores)
    level: NDArray[np.int32] = np.minimum((np.cumsum(mass) - mass / 2) / mass.sum() * COARSE, COARSE - 1).astype(np.int32)
    return level
