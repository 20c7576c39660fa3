"""Ingests one dataset: what its folder holds in, one manifest and one list of rejected files out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from tasks.errors import BadInput
from tasks.files import write_csv, write_table, written_beside
from tasks.ingestion.check import check
from tasks.ingestion.folder import Found, Rejected, read_folder
from tasks.ingestion.manifest import SCHEMA
from tasks.ingestion.packaged import PACKAGED


@dataclass(frozen=True)
class Ingested:
    """How many pictures (or objects of them) a dataset gave, and how many were left out."""

    kept: int
    rejected: int


def ingest_packaged(dataset: str, *, pictures: Path, manifests: Path, workers: int) -> Ingested:
    """Writes a packaged dataset out as a folder `pictures`, then ingests that folder. Raises BadInput as `ingest_folder`."""
    packaged = PACKAGED[dataset]
    with written_beside(pictures) as partial:
        packaged.write(partial)
    return ingest_folder(dataset, pictures, licence=packaged.licence, manifests=manifests, workers=workers)


def ingest_folder(dataset: str, folder: Path, *, licence: str, manifests: Path, workers: int) -> Ingested:
    """Writes manifests/<dataset>.parquet and manifests/<dataset>.rejected.csv.

    The rows are in the layout's order, whatever the number of workers. Raises BadInput if the folder is missing, has an
    unknown layout, or a category has no usable picture left; the list of rejected files is written even then.
    """
    found = list(read_folder(dataset, folder))

    def judge(item: Found | Rejected) -> dict[str, object] | Rejected:
        return check(item, dataset, licence) if isinstance(item, Found) else item

    with ThreadPoolExecutor(workers) as pool:  # decoding and hashing release the GIL
        judged = list(tqdm(pool.map(judge, found), total=len(found), desc=f"ingest {dataset}", unit="file", mininterval=5))
    rows = [item for item in judged if not isinstance(item, Rejected)]
    rejected = [item for item in judged if isinstance(item, Rejected)]
    rejected_list = manifests / f"{dataset}.rejected.csv"
    write_csv(rejected_list, ["file", "reason"], ([_printable(item.file.relative_to(folder)), item.reason] for item in rejected))

    left = {row["category"] for row in rows}
    for category in dict.fromkeys(item.category for item in found if isinstance(item, Found)):
        if category not in left:
            raise BadInput(f"{dataset}: no usable picture is left in category {category!r}; {rejected_list} says why, file by file")
    if not rows:
        raise BadInput(f"{dataset}: no usable picture in {folder}; {rejected_list} says why, file by file")
    write_table(manifests / f"{dataset}.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))
    return Ingested(len(rows), len(rejected))


def _printable(path: Path) -> str:
    """The path as text, even where its name is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
