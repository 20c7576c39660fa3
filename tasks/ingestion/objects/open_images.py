"""Reads Open Images' segmentation masks (https://storage.googleapis.com/openimages/web/download_v7.html): a CSV and a folder of PNGs.

The masks lie beside the CSV or anywhere under its folder, as unpacking their archives leaves them. Labels are machine identifiers;
where the class descriptions (`*class-descriptions*.csv`) lie beside the CSV they become words.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.common.errors import BadInput
from tasks.common.pictures import opened
from tasks.ingestion.objects.table import Annotated, Refused

NEEDED = ("MaskPath", "ImageID", "LabelName")


def read_open_images(file: Path) -> Iterator[Annotated | Refused]:
    """Yields every object of a mask CSV, in its order. Raises BadInput if a column is missing."""
    words = {identifier: word for listing in sorted(file.parent.glob("*class-descriptions*.csv")) for identifier, word in _pairs(listing)}
    places = {mask.name: mask for mask in sorted(file.parent.rglob("*.png"))}
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise BadInput(f"{file}: no column {missing[0]!r}; not Open Images' mask CSV")
        for row in reader:
            mask = places.get(row["MaskPath"])
            if mask is None:
                yield Refused(row["MaskPath"], f"no such mask under {file.parent}")
                continue
            try:
                with opened(mask) as image:
                    pixels = np.asarray(image.convert("L")) > 0
            except (OSError, Image.DecompressionBombError) as error:
                yield Refused(row["MaskPath"], f"cannot be decoded ({' '.join(str(error).split())})")
            else:
                yield Annotated(row["ImageID"], words.get(row["LabelName"], ""), pixels)


def _pairs(listing: Path) -> Iterator[tuple[str, str]]:
    with listing.open(newline="", encoding="utf-8") as stream:
        yield from ((row[0], row[1]) for row in csv.reader(stream) if len(row) >= 2)
