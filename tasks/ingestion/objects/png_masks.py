"""Read objects from PNG masks: a folder of them, or Open Images' CSV and PNGs."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected

from changepair.tasks.common.errors import in_short
from changepair.tasks.common.pictures import UNREADABLE, read_marks, read_objects
from changepair.tasks.common.places import visible
from changepair.tasks.common.texts import csv_lines, csv_rows
from changepair.tasks.ingestion.listing import LEADS_OUT, within
from changepair.tasks.ingestion.objects.table import Annotated, Refused

BORDER = 255  # value of the border in palette pictures, https://host.robots.ox.ac.uk/pascal/VOC/voc2012/ section 2.3
Content = TypeVar("Content")
NEEDED = ("MaskPath", "ImageID", "LabelName")


def read_masks(folder: Path, stems: Container[str]) -> Iterator[Annotated | Refused]:
    """Read mask PNGs in the order of their paths, at any depth. `stems` are the photographs' file names without suffix.

    A mask is named `<photograph>.png`, `<photograph>_<anything>.png` or `<photograph>/<anything>.png`. If it has several values, each value
    is an object, as in DAVIS and VOC; VOC's border of palette pictures is ignored. If it has a single value, each connected piece is an
    object.
    """
    for file in sorted(visible(folder.rglob("*.png"), folder), key=lambda file: os.fsencode(str(file))):
        item = str(file.relative_to(folder))
        read = _read(item, file, folder, read_objects)
        if isinstance(read, Refused):
            yield read
            continue
        values: NDArray = np.where(read[0] == BORDER, 0, read[0]) if read[1] else read[0]
        objects = [value for value in np.unique(values) if value]
        if len(objects) == 1:
            values = connected(values > 0)
            objects = list(range(1, int(values.max()) + 1))
        if not objects:
            yield Refused(item, "marks nothing")
        for value in objects:
            yield Annotated(_photograph(file, folder, stems), "", values == value)


def _photograph(file: Path, folder: Path, stems: Container[str]) -> str:
    """Find the photograph of a mask by its whole name, by its folder's name, or by the longest beginning that names a photograph."""
    parts = file.stem.split("_")
    beginnings = ["_".join(parts[:length]) for length in range(len(parts), 0, -1)]
    candidates = [file.stem, *([file.parent.name] if file.parent != folder else []), *beginnings]
    return next((name for name in candidates if name in stems), file.stem)


def read_open_images(file: Path) -> Iterator[Annotated | Refused]:
    """Read a mask CSV of Open Images (https://storage.googleapis.com/openimages/web/download_v7.html), in its order.

    Masks are found by name anywhere under the CSV's folder. If `*class-descriptions*.csv` is next to the CSV, labels become words. Raises
    BadInput if a column is missing.
    """
    listings = sorted(visible(file.parent.glob("*class-descriptions*.csv"), file.parent))
    words = {cells[0]: cells[1] for listing in listings for _line, cells in csv_lines(listing) if len(cells) >= 2}
    places = {mask.name: mask for mask in sorted(visible(file.parent.rglob("*.png"), file.parent))}
    for _line, row in csv_rows(file, NEEDED, "Open Images' mask CSV"):
        item = row["MaskPath"]
        if item not in places:
            yield Refused(item, f"no such mask under {file.parent}")
            continue
        mask = _read(item, places[item], file.parent, read_marks)
        yield mask if isinstance(mask, Refused) else Annotated(row["ImageID"], words.get(row["LabelName"], ""), mask)


def _read(item: str, file: Path, folder: Path, read: Callable[[Path], Content]) -> Content | Refused:
    if not within(file, folder):
        return Refused(item, LEADS_OUT)
    try:
        return read(file)
    except UNREADABLE as error:
        return Refused(item, f"cannot be decoded ({in_short(error)})")
