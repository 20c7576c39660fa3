"""Pictures that are nearly the same, by perceptual hash: no sha256 tells that a target was trained on in another compression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

BITS = 64
MOST_BITS = 3  # in which near duplicates may differ
BANDS = MOST_BITS + 1  # two hashes that differ in so few bits agree in one of so many parts
BAND_BITS = BITS // BANDS


class NearDuplicate(NamedTuple):
    trained_on: str
    tested_on: str
    bits: int
    """In which their hashes differ, of 64."""


def near_duplicates(training: Sequence[Mapping[str, Any]], tested: Sequence[Mapping[str, Any]]) -> list[NearDuplicate]:
    """Every pair of a training and a tested picture whose perceptual hashes differ in at most 3 bits. Rows of manifests."""
    buckets: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
    for row in training:
        value = int(row["phash"], 16)
        for band in _bands(value):
            buckets[band].append((value, row["image"]))
    found = {
        NearDuplicate(image, row["image"], (value ^ other).bit_count())
        for row in tested
        for value in [int(row["phash"], 16)]
        for band in _bands(value)
        for other, image in buckets.get(band, [])
        if (value ^ other).bit_count() <= MOST_BITS
    }
    return sorted(found, key=lambda pair: (pair.bits, pair.trained_on, pair.tested_on))


def _bands(value: int) -> Iterator[tuple[int, int]]:
    yield from ((band, (value >> (band * BAND_BITS)) & ((1 << BAND_BITS) - 1)) for band in range(BANDS))
