"""Reads Open Images' segmentation masks (https://storage.googleapis.com/openimages/web/download_v7.html): a CSV and a folder of PNGs.

The masks lie beside the CSV or anywhere under its folder, as unpacking their archives leaves them. Labels are machine identifiers;
where the class descriptions (`*class-descriptions*.csv`) lie beside the CSV they become words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from changepair.tasks.common.errors import in_short
from changepair.tasks.common.pictures import UNREADABLE, read_marks
from changepair.tasks.common.places import visible
from changepair.tasks.common.texts import csv_lines, csv_rows
from changepair.tasks.ingestion.listing import LEADS_OUT, within
from changepair.tasks.ingestion.objects.table import Annotated, Refused

NEEDED = ("MaskPath", "ImageID", "LabelName")


def read_open_images(file: Path) -> Iterator[Annotated | Refused]:
    """Yields every object of a mask CSV, in its order. Raises BadInput if a column is missing."""
    words = {
        identifier: word
        for listing in sorted(visible(file.parent.glob("*class-descriptions*.csv"), file.parent))
        for identifier, word in _pairs(listing)
    }
    places = {mask.name: mask for mask in sorted(visible(file.parent.rglob("*.png"), file.parent))}
    for _line, row in csv_rows(file, NEEDED, "Open Images' mask CSV"):
        mask = places.get(row["MaskPath"])
        if mask is None:
            yield Refused(row["MaskPath"], f"no such mask under {file.parent}")
        elif not within(mask, file.parent):
            yield Refused(row["MaskPath"], LEADS_OUT)
        else:
            try:
                pixels = read_marks(mask)
            except UNREADABLE as error:
                yield Refused(row["MaskPath"], f"cannot be decoded ({in_short(error)})")
            else:
                yield Annotated(row["ImageID"], words.get(row["LabelName"], ""), pixels)


def _pairs(listing: Path) -> Iterator[tuple[str, str]]:
    yield from ((cells[0], cells[1]) for _line, cells in csv_lines(listing) if len(cells) >= 2)
