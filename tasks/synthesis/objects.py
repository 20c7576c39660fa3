"""Draws objects to appear, disappear or be exchanged: those that somebody has outlined, or else what a segmentation proposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from changepair.tasks.common.photographs import Box, Photographs, Thing
from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.common.rows import rows_of
from changepair.tasks.ingestion.objects.table import ObjectRow, to_mask
from changepair.tasks.synthesis.proposals import propose
from changepair.tasks.synthesis.settings import ObjectSettings


class Dropped(Exception):
    """A draw that makes no pair; the message says why. The pair is drawn again."""


@dataclass(frozen=True)
class Listed:
    """A square of a photograph with one object in it."""

    photo: int
    picture: Picture  # HxWx3
    mask: Mask  # HxW, of the object
    label: str  # what it is; "" where nobody said


class Objects:
    """Draws squares with an object in them. `table`: the file of tasks/ingestion/objects with the outlined ones."""

    def __init__(self, settings: ObjectSettings, sources: Photographs, table: Path) -> None:
        self.settings = settings
        self.sources = sources
        self.table = table

    def draw(self, rng: np.random.Generator, but: int | None = None) -> Listed:
        """Draws an object of a random photograph, of another than `but` if there is one. Raises Dropped if it has none."""
        photo = self.sources.choose(rng, but)
        outlined = _outlined(str(self.table), self.sources.images[photo])
        chosen = self._outlined(photo, outlined, rng) if outlined else self._proposed(photo, rng)
        if not chosen.mask.any():
            raise Dropped("object too small")
        if not self.settings.cut_by_border and _touches_border(chosen.mask):
            raise Dropped("object cut by the border")
        return chosen

    def _outlined(self, photo: int, rows: Sequence[ObjectRow], rng: np.random.Generator) -> Listed:
        row = rows[int(rng.integers(len(rows)))]
        box = Box(row.left / row.width, row.top / row.height, row.right / row.width, row.bottom / row.height)
        if not self.settings.cut_by_border and (min(box.left, box.top) <= 0 or max(box.right, box.bottom) >= 1):
            raise Dropped("object cut by the border")
        mask = to_mask(row)
        square = self.sources.square_around(photo, Thing(box, float(mask.mean())), self.settings.area, rng)
        if square is None:
            raise Dropped("object too small or too large for a square")
        return Listed(photo, self.sources.cut(photo, square), self.sources.cut_mask(mask, square), row.label)

    def _proposed(self, photo: int, rng: np.random.Generator) -> Listed:
        picture = self.sources.cut(photo, self.sources.square(photo, rng))
        low, high = self.settings.area
        masks = [
            mask
            for mask in propose(picture, self.settings)
            if low <= mask.mean() <= high and (self.settings.cut_by_border or not _touches_border(mask))
        ]
        if not masks:
            raise Dropped("no object proposed")
        return Listed(photo, picture, masks[int(rng.integers(len(masks)))], "")


def _touches_border(mask: Mask) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


@lru_cache(maxsize=256)
def _outlined(table: str, image: str) -> list[ObjectRow]:
    """Reads the rows of one photograph's objects, read from the group of rows that holds them."""
    return rows_of(ObjectRow, pq.read_table(table, filters=[("image", "=", image)]).to_pylist())
