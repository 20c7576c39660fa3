"""The manifest: one row a picture. Ingestion writes it and every later stage reads it."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.common.rows import Int8, Int32

NORMAL = 0
ANOMALOUS = 1
MADE_BY = "ingest"


@dataclass(frozen=True)
class PictureRow:
    """A picture of a dataset."""

    image: str  # path, as pipelines.yaml gives its folder
    sha256: str  # of the file's bytes
    phash: str  # of what it shows, 64 bits as hex: near duplicates differ in few
    height: Int32  # pixels
    width: Int32  # pixels
    dataset: str
    category: str
    split: str  # train or test
    label: Int8  # 0 normal, 1 anomalous
    defect: str  # "good" for a normal picture
    mask: str | None  # path, of the picture's size; None where there is none
    licence: str

    @property
    def is_normal_training(self) -> bool:
        """Tells whether it may be learnt from as normal, and prompt."""
        return self.split == "train" and self.label == NORMAL
