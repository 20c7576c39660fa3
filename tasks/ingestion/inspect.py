"""Inspect a dataset: counts, sizes, mask coverage, rejected files, and a contact sheet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from changepair.tasks.common.errors import BadInput, in_general
from changepair.tasks.common.files import written_beside
from changepair.tasks.common.pictures import Picture, read_marks, read_mask, read_picture
from changepair.tasks.common.places import place_of
from changepair.tasks.common.rows import read_rows
from changepair.tasks.common.sheets import TILE, SheetRow, contact_sheet, outlined
from changepair.tasks.common.texts import csv_rows
from changepair.tasks.ingestion.ingest import IngestionFolders, ingest_folder
from changepair.tasks.ingestion.listing import GOOD, folders
from changepair.tasks.ingestion.manifest import MADE_BY, PictureRow
from changepair.tasks.ingestion.readers.trees import Taken, usual_names
from changepair.tasks.ingestion.settings import FolderSettings

A_LINE = 8  # pictures a row of the sheet
MOST_LINES = 40
QUANTILES = (0.0, 0.5, 1.0)


class LeftOut(NamedTuple):
    """A rejected file, relative to the dataset's folder, and the reason."""

    file: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """Contents of a dataset that was read."""

    counts: dict[tuple[str, str, str], int]  # pictures by category, split and defect, in the layout's order
    sizes: dict[str, tuple[int, int, int]]  # smallest, median and largest width and height, in pixels
    covered: dict[tuple[str, str], tuple[float, float, float]]  # the same for the share that a mask covers, by category and defect
    rejected: dict[str, list[LeftOut]]  # rejected files by reason without names and numbers, the most frequent reason first
    notes: dict[str, int]  # number of pictures by conversion
    taken: dict[str, str]  # folders, relative to the dataset's folder, that were read as `normal` or `abnormal`
    greys: int  # number of grey levels, of 256, that occur in the normal training pictures


def inspect(dataset: str, settings: FolderSettings, *, work: Path, sheet: Path) -> Inspection:
    """Ingest a dataset into the temporary folder `work`, and draw a contact sheet to `sheet`. Raises BadInput as ingestion does."""
    places = IngestionFolders(work / "pictures", work / "manifests", work / "checkpoints")
    listed = places.manifests / f"{dataset}.rejected.csv"
    try:
        ingested = ingest_folder(
            dataset,
            place_of(settings.path),
            layout=settings.layout,
            intensity=settings.intensity,
            normal=settings.normal,
            abnormal=settings.abnormal,
            masks=settings.masks,
            places=places,
        )
    except BadInput as error:
        if str(listed) not in str(error):
            raise
        reasons = "; ".join(f"{len(files)} x {files[0].reason} ({files[0].file})" for files in _left_out(listed).values())
        raise BadInput(f"{str(error).partition(f'; {listed}')[0]}; rejected: {reasons}") from error
    rows = read_rows(places.manifests / f"{dataset}.parquet", PictureRow, MADE_BY)
    with written_beside(sheet) as partial:
        sheet_of(rows).save(partial, "PNG")
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in (row for row in rows if row.mask is not None):
        shares[row.category, row.defect].append(float(read_marks(place_of(str(row.mask))).mean()))
    return Inspection(
        dict(Counter((row.category, row.split, row.defect) for row in rows)),
        {side: _spread([getattr(row, side) for row in rows], int) for side in ("width", "height")},
        {key: _spread(values, float) for key, values in shares.items()},
        _left_out(listed),
        ingested.notes,
        _taken(settings),
        ingested.greys,
    )


def _left_out(listed: Path) -> dict[str, list[LeftOut]]:
    """Read the list of rejected files, grouped by reason, the most frequent first."""
    reasons: dict[str, list[LeftOut]] = defaultdict(list)
    for _line, rejected in csv_rows(listed):
        reasons[in_general(rejected["reason"])].append(LeftOut(rejected["file"], rejected["reason"]))
    return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))


def _taken(settings: FolderSettings) -> dict[str, str]:
    """Map folders to `normal` or `abnormal`, as they were read. Return {} for other layouts."""
    folder = place_of(settings.path)
    taken = Taken(settings.normal, settings.abnormal)
    if settings.layout == "folder" and not any(taken) and not any((at / "train" / GOOD).is_dir() for at in (folder, *folders(folder))):
        taken = usual_names(folder)
    return dict.fromkeys(taken.normal, "normal") | dict.fromkeys(taken.abnormal, "abnormal")


def sheet_of(rows: Sequence[PictureRow]) -> Image.Image:
    """Draw a row for each category, split and defect: its first pictures with their masks outlined."""
    groups: dict[tuple[str, str, str], list[PictureRow]] = defaultdict(list)
    for row in rows:
        groups[row.category, row.split, row.defect].append(row)
    return contact_sheet([SheetRow([_tile(row) for row in of[:A_LINE]], beside=names) for names, of in list(groups.items())[:MOST_LINES]])


def _tile(row: PictureRow) -> Picture:
    picture = read_picture(place_of(row.image), TILE)
    return picture if row.mask is None else outlined(picture, read_mask(place_of(row.mask), TILE))


def _spread(values: Sequence[float], kind: type) -> Any:
    return tuple(kind(value) for value in np.quantile(values, QUANTILES))
