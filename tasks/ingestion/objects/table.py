"""Define the table of objects in a dataset's photographs, with one row an object. The objects stage writes it and synthesis reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from changepair.tasks.common.files import written_beside
from changepair.tasks.common.pictures import Mask
from changepair.tasks.common.rows import Int32

MADE_BY = "objects"
ROWS_A_GROUP = 4096


@dataclass(frozen=True)
class ObjectRow:
    image: str  # path, as in the manifest
    label: str  # class of the object; "" if unknown
    height: Int32  # of the mask, in pixels; it has the photograph's aspect ratio, but not always its size
    width: Int32
    left: Int32  # the box around the object, in the mask's pixels
    top: Int32
    right: Int32
    bottom: Int32
    counts: bytes  # the mask, run-length encoded as by COCO (pycocotools)


@dataclass(frozen=True)
class Annotated:
    """An object in an annotation, before its photograph is found."""

    name: str  # file name of the photograph, with as much of its path as the annotation has; the suffix may be missing
    label: str
    mask: Mask  # (H, W)


@dataclass(frozen=True)
class Refused:
    item: str
    reason: str


def write_objects(path: Path, table: pa.Table) -> None:
    """Write a table of ObjectRow, sorted by image, so that the objects of a photograph are in one group of rows."""
    with written_beside(path) as partial:  # the sort is stable
        pq.write_table(table.sort_by("image"), partial, compression="zstd", row_group_size=ROWS_A_GROUP)


def to_row(image: str, label: str, mask: Mask) -> ObjectRow:
    """Return the row of an object. Its mask must not be empty."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    top, bottom, left, right = box_of(mask)
    return ObjectRow(image, label, mask.shape[0], mask.shape[1], left, top, right, bottom, encoded["counts"])


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Return the first row, end of rows, first column and end of columns of the marked pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def to_mask(row: ObjectRow) -> Mask:
    """Return the mask (H, W) of a row, at the mask's size."""
    return coco_mask.decode({"size": [row.height, row.width], "counts": row.counts}) > 0
