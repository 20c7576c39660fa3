"""Find nearly equal pictures by perceptual hash, such as one picture in two compressions, which differ in their sha256."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from changepair.tasks.ingestion.manifest import PictureRow

BITS = 64
MOST_BITS = 3  # in which near duplicates may differ
BANDS = MOST_BITS + 1  # two hashes that differ in so few bits agree in one of so many parts
BAND_BITS = BITS // BANDS
TRAINED_ON, PROMPTS = "trained on", "prompts"


class NearDuplicate(NamedTuple):
    seen: str
    tested_on: str
    bits: int  # in which their hashes differ, of 64
    how: str = TRAINED_ON  # how the first was seen: TRAINED_ON, or as one of those that PROMPTS


def repeated(prompting: Sequence[PictureRow], tested: Sequence[PictureRow]) -> list[NearDuplicate]:
    """Find the tested pictures with the hash of one that may prompt their category. One camera's pictures of one kind of part differ in few
    bits, so only equal hashes count."""
    by_look = {(row.dataset, row.category, row.phash): row.image for row in reversed(prompting)}
    keys = [((row.dataset, row.category, row.phash), row.image) for row in tested]
    return [NearDuplicate(by_look[key], image, 0, PROMPTS) for key, image in keys if key in by_look]


def near_duplicates(training: Sequence[PictureRow], tested: Sequence[PictureRow]) -> list[NearDuplicate]:
    """Find for each tested picture the most similar training picture, if their hashes differ in at most 3 bits.

    Of training pictures with one hash the first stands for all, so that a thousand blank ones cost no more than one.
    """
    first = {int(row.phash, 16): row.image for row in reversed(training)}
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for value in first:
        for band in _bands(value):
            buckets[band].append(value)
    pairs = []
    for row in tested:
        value = int(row.phash, 16)
        near = [((value ^ other).bit_count(), first[other]) for band in _bands(value) for other in buckets.get(band, [])]
        bits, image = min(near, default=(BITS, ""))
        if bits <= MOST_BITS:
            pairs.append(NearDuplicate(image, row.image, bits))
    return sorted(pairs, key=lambda pair: (pair.bits, pair.seen, pair.tested_on))


def _bands(value: int) -> Iterator[tuple[int, int]]:
    yield from ((band, (value >> (band * BAND_BITS)) & ((1 << BAND_BITS) - 1)) for band in range(BANDS))
