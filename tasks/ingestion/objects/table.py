"""Where the objects of a dataset's photographs are: one row an object. What the objects stage writes and synthesis reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from tasks.common.files import written_beside
from tasks.common.pictures import Mask

SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # path, as in the manifest
        pa.field("label", pa.string(), nullable=False),  # what the object is; "" where nobody said
        pa.field("height", pa.int32(), nullable=False),  # of the mask, pixels; of the photograph's shape, not always of its size
        pa.field("width", pa.int32(), nullable=False),
        pa.field("left", pa.int32(), nullable=False),  # the box around the object, in the mask's pixels
        pa.field("top", pa.int32(), nullable=False),
        pa.field("right", pa.int32(), nullable=False),
        pa.field("bottom", pa.int32(), nullable=False),
        pa.field("counts", pa.binary(), nullable=False),  # the mask, run-length encoded as COCO does it (pycocotools)
    ]
)
MADE_BY = "objects"
ROWS_A_GROUP = 4096


@dataclass(frozen=True)
class Annotated:
    """An object that an annotation names, not yet held against its photograph."""

    name: str  # of the photograph's file, with as much of its path as the annotation gives; may lack the suffix
    label: str
    mask: Mask  # HxW


@dataclass(frozen=True)
class Refused:
    """An annotation left out, and why."""

    item: str
    reason: str


def write_objects(path: Path, table: pa.Table) -> None:
    """Writes a table of SCHEMA, sorted by image so that the objects of one photograph are found by reading one group."""
    ordered = table.take(pc.sort_indices(table, [("image", "ascending")]))  # stable
    with written_beside(path) as partial:
        pq.write_table(ordered, partial, compression="zstd", row_group_size=ROWS_A_GROUP)


def to_row(image: str, label: str, mask: Mask) -> dict[str, Any]:
    """The row of an object; its mask must not be empty."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return {
        "image": image,
        "label": label,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "left": int(columns[0]),
        "top": int(rows[0]),
        "right": int(columns[-1]) + 1,
        "bottom": int(rows[-1]) + 1,
        "counts": encoded["counts"],
    }


def to_mask(row: dict[str, Any]) -> Mask:
    """The HxW mask of a row, at the mask's own size."""
    return coco_mask.decode({"size": [row["height"], row["width"]], "counts": row["counts"]}) > 0
