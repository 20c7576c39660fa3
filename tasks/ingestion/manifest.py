"""Define the manifest, one row a picture. Ingestion writes it and every later stage reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from changepair.tasks.common.decoding import Intensity, Range
from changepair.tasks.common.rows import Int8, Int32

NORMAL, ANOMALOUS = 0, 1
MADE_BY = "ingest"


@dataclass(frozen=True)
class PictureRow:
    image: str  # path of what is read: the dataset's own file, or a copy of it
    sha256: str  # of the bytes of the dataset's own file
    phash: str  # of what it shows, 64 bits as hex: near duplicates differ in few
    height: Int32  # pixels
    width: Int32  # pixels
    dataset: str
    category: str
    split: str  # train or test
    label: Int8  # 0 normal, 1 anomalous
    defect: str  # "good" for a normal picture
    mask: str | None  # path, of the picture's size; None where there is none
    mask_sha256: str | None  # of the bytes of its mask, or of all of its masks where it has several
    licence: str
    samples: str | None = None  # of a picture of more than 8 bits, of which `image` is a copy in 8: integer or float
    low: float | None = None  # the sample that is black in the copy ...
    high: float | None = None  # ... and the one that is white

    @property
    def is_normal_training(self) -> bool:
        """Whether it may be trained on as normal, and prompt."""
        return self.split == "train" and self.label == NORMAL


def intensities_of(rows: Iterable[PictureRow]) -> dict[str, Intensity]:
    """Return the ranges that pictures of more than 8 bits were scaled by, of each dataset that has any."""
    ranges: dict[str, dict[str, Range]] = {}
    for row in rows:
        if row.samples is not None and row.low is not None and row.high is not None:
            ranges.setdefault(row.dataset, {})[row.samples] = Range(row.low, row.high)
    return {dataset: Intensity(found.get("integer"), found.get("float")) for dataset, found in ranges.items()}
