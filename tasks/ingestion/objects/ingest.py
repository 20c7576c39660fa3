"""Ingest a dataset's object masks into one table. Each is compared with its photograph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_csv
from changepair.tasks.common.places import place_of
from changepair.tasks.common.rows import read_rows, table_of
from changepair.tasks.ingestion.ingest import Ingested
from changepair.tasks.ingestion.manifest import MADE_BY, PictureRow
from changepair.tasks.ingestion.objects.coco import read_coco
from changepair.tasks.ingestion.objects.png_masks import read_masks, read_open_images
from changepair.tasks.ingestion.objects.table import Annotated, ObjectRow, Refused, to_row, write_objects
from changepair.tasks.ingestion.settings import ObjectsSettings

MOST_DIFFERENT_SHAPE = 0.02  # largest relative difference of width over height, because Open Images' masks are reduced and rounded


def ingest_objects(dataset: str, settings: ObjectsSettings, *, manifests: Path) -> Ingested:
    """Write manifests/<dataset>.objects.parquet and manifests/<dataset>.objects.rejected.csv. Return their counts.

    Raises BadInput if the annotations are missing, have another format, or name none of the dataset's photographs.
    """
    path = place_of(settings.path)
    if not (path.is_dir() if settings.format == "masks" else path.is_file()):
        kind = "folder" if settings.format == "masks" else "file"
        raise BadInput(f"{dataset}: no {kind} {path}; correct datasets.objects.{dataset}.path in pipelines.yaml")
    by_name: dict[str, list[PictureRow]] = defaultdict(list)
    for row in read_rows(manifests / f"{dataset}.parquet", PictureRow, MADE_BY):
        name = PurePosixPath(row.image)
        for known_as in {name.name, name.stem}:
            by_name[known_as].append(row)
    if settings.format == "masks":
        items = read_masks(path, by_name)
    else:
        items = read_coco(path) if settings.format == "coco" else read_open_images(path)
    checked = [_checked(item, by_name) if isinstance(item, Annotated) else item for item in items]
    rows = [item for item in checked if isinstance(item, ObjectRow)]
    rejected = [item for item in checked if isinstance(item, Refused)]
    refused = manifests / f"{dataset}.objects.rejected.csv"
    write_csv(refused, ["object", "reason"], ([item.item, item.reason] for item in rejected))
    if not rows:
        raise BadInput(f"{dataset}: no object in {path} belongs to one of the dataset's photographs; {refused} lists the reason for each")
    write_objects(manifests / f"{dataset}.objects.parquet", table_of(ObjectRow, rows))
    return Ingested(len(rows), len(rejected))


def _checked(item: Annotated, by_name: Mapping[str, Sequence[PictureRow]]) -> ObjectRow | Refused:
    """Return the object's row, or the reason why it is rejected."""
    candidates = by_name.get(PurePosixPath(item.name).name, ())
    if len(candidates) > 1:  # if several folders have this file name, more of the path decides
        candidates = [row for row in candidates if row.image.endswith(item.name)]
    if len(candidates) != 1:
        return Refused(item.name, "several photographs have this name" if candidates else "no photograph of the dataset has this name")
    photograph = candidates[0]
    height, width = item.mask.shape
    if abs(width / height * photograph.height / photograph.width - 1) > MOST_DIFFERENT_SHAPE:
        return Refused(item.name, f"its mask is {width}x{height} pixels, but the photograph {photograph.width}x{photograph.height}")
    if not item.mask.any():
        return Refused(item.name, "its mask marks nothing")
    return to_row(photograph.image, item.label, item.mask)
