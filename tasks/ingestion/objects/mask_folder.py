"""Reads a folder of mask PNGs: `<photograph>.png`, `<photograph>_<anything>.png`, or `<photograph>/<anything>.png`, at any depth.

Where a mask holds several values each is an object (DAVIS and VOC label their objects so; VOC's 255, its border, is left out of
palette pictures); where it holds one, each connected piece is.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
from skimage.measure import label as connected

from changepair.tasks.common.errors import in_short
from changepair.tasks.common.pictures import UNREADABLE, read_objects
from changepair.tasks.common.places import visible
from changepair.tasks.ingestion.listing import LEADS_OUT, within
from changepair.tasks.ingestion.objects.table import Annotated, Refused

BORDER = 255  # of palette pictures, https://host.robots.ox.ac.uk/pascal/VOC/voc2012/ section 2.3


def read_masks(folder: Path, stems: Container[str]) -> Iterator[Annotated | Refused]:
    """Yields every object of the PNGs in `folder`, in the order of their names. `stems`: the photographs' file names without suffix."""
    for file in sorted(visible(folder.rglob("*.png"), folder), key=lambda file: os.fsencode(str(file))):
        name = _photograph(file, folder, stems)
        if not within(file, folder):
            yield Refused(str(file.relative_to(folder)), LEADS_OUT)
            continue
        try:
            values, palette = read_objects(file)
        except UNREADABLE as error:
            yield Refused(str(file.relative_to(folder)), f"cannot be decoded ({in_short(error)})")
            continue
        if palette:
            values = np.where(values == BORDER, 0, values)
        objects = [value for value in np.unique(values) if value]
        if len(objects) == 1:
            values = connected(values > 0)
            objects = list(range(1, int(values.max()) + 1))
        if not objects:
            yield Refused(str(file.relative_to(folder)), "marks nothing")
        for value in objects:
            yield Annotated(name, "", values == value)


def _photograph(file: Path, folder: Path, stems: Container[str]) -> str:
    """Finds the photograph that a mask belongs to: by its whole name, by its folder's, or by the longest beginning that names one."""
    parts = file.stem.split("_")
    beginnings = ["_".join(parts[:length]) for length in range(len(parts), 0, -1)]
    candidates = [file.stem, *([file.parent.name] if file.parent != folder else []), *beginnings]
    return next((name for name in candidates if name in stems), file.stem)
