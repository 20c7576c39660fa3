"""Define the manifest, with one row a picture. Ingestion writes it, and every later stage reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from changepair.tasks.common.decoding import Intensity, Range
from changepair.tasks.common.rows import Int8, Int32

NORMAL, ANOMALOUS = 0, 1
MADE_BY = "ingest"


@dataclass(frozen=True)
class PictureRow:
    image: str  # path of the file to read: the dataset's file, or a copy of it
    sha256: str  # of the bytes of the dataset's file
    phash: str  # of the picture's content, 64 bits as hex; near duplicates differ in few bits
    height: Int32  # pixels
    width: Int32  # pixels
    dataset: str
    category: str
    split: str  # train or test
    label: Int8  # 0 normal, 1 anomalous
    defect: str  # "good" for a normal picture
    mask: str | None  # path of a mask of the picture's size; None if there is none
    mask_sha256: str | None  # of the bytes of the mask; of several masks, of their joined hashes
    licence: str
    samples: str | None = None  # integer or float, for a picture of more than 8 bits; `image` is then its 8-bit copy
    low: float | None = None  # the sample that is black in the copy
    high: float | None = None  # the sample that is white in the copy

    @property
    def is_normal_training(self) -> bool:
        """Whether it may serve as a prompt and be trained on as normal."""
        return self.split == "train" and self.label == NORMAL


def intensities_of(rows: Iterable[PictureRow]) -> dict[str, Intensity]:
    """Return the ranges that pictures of more than 8 bits were scaled by, for each dataset that has such pictures."""
    ranges: dict[str, dict[str, Range]] = {}
    for row in rows:
        if row.samples is not None and row.low is not None and row.high is not None:
            ranges.setdefault(row.dataset, {})[row.samples] = Range(row.low, row.high)
    return {dataset: Intensity(found.get("integer"), found.get("float")) for dataset, found in ranges.items()}
