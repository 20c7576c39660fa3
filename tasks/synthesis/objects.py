"""Draw objects to appear, disappear or be exchanged. They are annotated, or else proposed by a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.photographs import Box, Photographs
from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.common.rows import rows_of
from changepair.tasks.ingestion.objects.table import ObjectRow, to_mask
from changepair.tasks.synthesis.settings import ObjectSettings

POINTS_A_SIDE = 8  # of the grid of points that Segment Anything is queried at
SCALE = 1.2  # k of felzenszwalb, relative to the side in pixels: larger pictures get larger segments


class Dropped(Exception):
    """Raised for a draw that makes no pair. The message states the reason, and the pair is drawn again."""


@dataclass(frozen=True)
class ObjectCutout:
    """A square of a photograph with one object in it."""

    photo: int
    picture: Picture  # (H, W, 3)
    mask: Mask  # (H, W), of the object
    label: str  # class of the object; "" if unknown


class Objects:
    """Draws squares with an object in them. `table` is the file of annotated objects from tasks/ingestion/objects."""

    def __init__(self, settings: ObjectSettings, sources: Photographs, table: Path) -> None:
        self.settings, self.sources, self.table = settings, sources, table

    def draw(self, rng: np.random.Generator, but: int | None = None) -> ObjectCutout:
        """Draw an object from a random photograph, if possible from another than `but`. Raises Dropped if it has none."""
        photo = self.sources.choose(rng, but)
        outlined = _outlined(str(self.table), self.sources.images[photo])
        chosen = self._outlined(photo, outlined, rng) if outlined else self._proposed(photo, rng)
        if not chosen.mask.any():
            raise Dropped("object too small")
        if not self.settings.cut_by_border and touches_border(chosen.mask):
            raise Dropped("object cut by the border")
        return chosen

    def _outlined(self, photo: int, rows: Sequence[ObjectRow], rng: np.random.Generator) -> ObjectCutout:
        row = rows[int(rng.integers(len(rows)))]
        box = Box(row.left / row.width, row.top / row.height, row.right / row.width, row.bottom / row.height)
        if not self.settings.cut_by_border and (min(box.left, box.top) <= 0 or max(box.right, box.bottom) >= 1):
            raise Dropped("object cut by the border")
        mask = to_mask(row)
        square = self.sources.square_around(photo, box, float(mask.mean()), self.settings.area, rng)
        if square is None:
            raise Dropped("object too small or too large for a square")
        return ObjectCutout(photo, self.sources.cut(photo, square), self.sources.cut_mask(mask, square), row.label)

    def _proposed(self, photo: int, rng: np.random.Generator) -> ObjectCutout:
        picture = self.sources.cut(photo, self.sources.square(photo, rng))
        low, high = self.settings.area
        masks = [mask for mask in propose(picture, self.settings) if low <= mask.mean() <= high]
        masks = [mask for mask in masks if self.settings.cut_by_border or not touches_border(mask)]
        if not masks:
            raise Dropped("no object proposed")
        return ObjectCutout(photo, picture, masks[int(rng.integers(len(masks)))], "")


def touches_border(mask: Mask) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


@lru_cache(maxsize=256)
def _outlined(table: str, image: str) -> list[ObjectRow]:
    """Read the rows of one photograph's objects, from the group of rows that holds them."""
    return rows_of(ObjectRow, pq.read_table(table, filters=[("image", "=", image)]).to_pylist())


def propose(picture: Picture, settings: ObjectSettings) -> list[Mask]:
    """Propose masks (H, W) of regions of a picture (H, W, 3) that may be objects, in a fixed order."""
    if settings.proposals == "segmentation":
        return segments(picture, settings.area[0])
    if settings.proposals == "sam":
        return segment_anything(picture, settings.sam)
    return []


def segments(picture: Picture, smallest: float) -> list[Mask]:
    """Return the segments of an efficient graph-based segmentation with smooth rims (Felzenszwalb and Huttenlocher, IJCV 2004).

    `smallest` is the share of the picture below which a segment is merged into a neighbour.
    """
    size = len(picture)
    labels = felzenszwalb(picture, scale=SCALE * size, sigma=size / 160, min_size=max(int(smallest * size * size), 1), channel_axis=2)
    masks = []
    for place, box in enumerate(ndimage.find_objects(labels + 1)):
        if box is None:
            continue
        mask = np.zeros(labels.shape, dtype=bool)
        mask[box] = labels[box] == place
        if not touches_border(mask):  # segments at the border are used only if cut_by_border allows them
            mask[box] = ndimage.binary_fill_holes(ndimage.binary_opening(mask[box]))
        masks.append(mask)
    return masks


def segment_anything(picture: Picture, model: str) -> list[Mask]:
    """Query Segment Anything (Kirillov et al., ICCV 2023; transformers) at a grid of points. Masks are best first, without duplicates."""
    answer = _generator(model)(Image.fromarray(picture), points_per_batch=POINTS_A_SIDE**2, points_per_crop=POINTS_A_SIDE)
    return [np.asarray(mask, dtype=bool) for mask in answer["masks"]]


@lru_cache(maxsize=1)
def _generator(model: str) -> Any:
    import torch
    from transformers import pipeline

    try:
        return pipeline("mask-generation", model=model, device="cuda" if torch.cuda.is_available() else "cpu")
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise BadInput(f"synthesis.objects.sam: {model!r} cannot be loaded as a Segment Anything model: {why}") from error
