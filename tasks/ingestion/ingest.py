"""Ingests one dataset: what its folder holds in, one manifest and one list of rejected files out.

It streams: files are listed, read and written in portions, so that memory does not grow with the pictures but for their hashes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from tasks.errors import BadInput
from tasks.files import write_csv, write_table, written_beside
from tasks.ingestion.check import Facts, check, row, union
from tasks.ingestion.found import Found, Item, Rejected, Source
from tasks.ingestion.known import Known, known_files, stamp
from tasks.ingestion.manifest import SCHEMA
from tasks.ingestion.packaged import PACKAGED
from tasks.ingestion.readers.catalogue import LAYOUTS

PORTION = 2048  # files read between two commits


@dataclass(frozen=True)
class Places:
    """Where ingestion writes."""

    pictures: Path
    """Folder of the pictures that the dataset does not have as files."""
    manifests: Path
    checkpoints: Path
    """What is known of files that have not changed."""


@dataclass(frozen=True)
class Ingested:
    """How many pictures (or objects of them) a dataset gave, how many files were left out, and what was converted."""

    kept: int
    rejected: int
    notes: dict[str, int] = field(default_factory=dict)


@dataclass
class _Came:
    """What reading came to so far."""

    tables: list[pa.Table] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    seen: dict[str, None] = field(default_factory=dict)  # categories, in order

    @property
    def table(self) -> pa.Table:
        return pa.concat_tables([SCHEMA.empty_table(), *self.tables])


def ingest_packaged(dataset: str, *, places: Places, workers: int) -> Ingested:
    """Writes a packaged dataset out as a folder of pictures, then ingests that folder. Raises BadInput as `ingest_folder`."""
    packaged = PACKAGED[dataset]
    folder = places.pictures / dataset
    with written_beside(folder) as partial:
        packaged.write(partial)
    source = Source(dataset, folder, folder)
    return _ingest(source, LAYOUTS["folder"].read(source), packaged.licence, places, workers)


def ingest_folder(
    dataset: str, folder: Path, *, layout: str = "folder", licence: str | None = None, places: Places, workers: int
) -> Ingested:
    """Writes manifests/<dataset>.parquet and manifests/<dataset>.rejected.csv.

    layout: of tasks.ingestion.readers.catalogue. licence: the layout's, if None. The rows are in the layout's order, whatever the
    number of workers. Raises BadInput if the folder is missing or laid out otherwise, or a category has no usable picture left; the
    list of rejected files is written even then.
    """
    chosen = LAYOUTS[layout]
    if not folder.exists():
        raise BadInput(f"{dataset}: no folder {folder}; correct datasets.folders.{dataset}.path in pipelines.yaml")
    source = Source(dataset, folder, places.pictures / dataset)
    shutil.rmtree(source.written, ignore_errors=True)
    source.written.mkdir(parents=True)
    return _ingest(source, chosen.read(source), licence or chosen.licence, places, workers)


def _ingest(source: Source, items: Iterable[Item], licence: str, places: Places, workers: int) -> Ingested:
    came = _Came()
    with known_files(places.checkpoints / "ingest" / f"{source.name}.sqlite") as known, ThreadPoolExecutor(workers) as pool:
        bar = tqdm(desc=f"ingest {source.name}", unit="file", mininterval=5, delay=5)
        for portion in _portions(items):
            rows = []
            for item, facts in _judged(portion, source, known, pool):
                if isinstance(item, Rejected):
                    came.rejected.append(item)
                    continue
                came.seen.setdefault(item.category)
                if facts.fault:
                    came.rejected.append(Rejected(item.image, facts.fault))
                    continue
                came.notes.update([facts.note] if facts.note else [])
                rows.append(row(item, facts, source, licence))
            came.tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
            bar.update(len(portion))
        bar.close()
    table, conflicts = _without_conflicts(came.table)
    rejected = [*came.rejected, *conflicts]
    listed = places.manifests / f"{source.name}.rejected.csv"
    write_csv(listed, ["file", "reason"], ([_printable(_from(item.file, source)), item.reason] for item in rejected))

    left = set(pc.unique(table["category"]).to_pylist())
    for category in came.seen:
        if category not in left:
            raise BadInput(f"{source.name}: no usable picture is left in category {category!r}; {listed} says why, file by file")
    if not len(table):
        raise BadInput(f"{source.name}: no usable picture in {source.folder}; {listed} says why, file by file")
    write_table(places.manifests / f"{source.name}.parquet", table)
    return Ingested(len(table), len(rejected), dict(sorted(came.notes.items())))


def _portions(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while portion := list(islice(remaining, PORTION)):
        yield portion


def _judged(portion: list[Item], source: Source, known: Known, pool: ThreadPoolExecutor) -> Iterator[tuple[Item, Facts]]:
    """Each item with what is known of it; files that have not changed are not read."""
    found = [(number, item, stamp(item)) for number, item in enumerate(portion) if isinstance(item, Found)]
    facts: dict[int, Facts] = {}
    unknown = []
    for number, item, mark in found:
        old = known.facts(item, mark) if mark is not None else None
        if old is None:
            unknown.append((number, item, mark))
        else:
            facts[number] = old
    read = list(pool.map(lambda asked: _read(asked[1], source), unknown))  # decoding and hashing release the GIL
    facts |= {number: new for (number, _item, _mark), new in zip(unknown, read, strict=True)}
    known.learn([(item, mark, new) for (_number, item, mark), new in zip(unknown, read, strict=True) if mark is not None])
    for number, anything in enumerate(portion):
        yield anything, facts.get(number, Facts())


def _read(found: Found, source: Source) -> Facts:
    facts = check(found, source)
    if not facts.fault:
        union(found, source)
    return facts


def _without_conflicts(table: pa.Table) -> tuple[pa.Table, list[Rejected]]:
    """The rows but those of pictures that stand twice, byte for byte, and are once normal and once anomalous."""
    labels = table.group_by("sha256").aggregate([("label", "count_distinct")])
    both = labels.filter(pc.greater(labels["label_count_distinct"], 1))["sha256"]
    if not len(both):
        return table, []
    clash = pc.is_in(table["sha256"], both.combine_chunks())
    rows = table.filter(clash).to_pylist()
    rejected = []
    for item in rows:
        other = next(row_["image"] for row_ in rows if row_["sha256"] == item["sha256"] and row_["label"] != item["label"])
        names = ("normal", "anomalous")
        reason = f"labelled {names[item['label']]}, and {other}, the same picture byte for byte, {names[1 - item['label']]}: a conflict"
        rejected.append(Rejected(Path(item["image"]), reason))
    return table.filter(pc.invert(clash)), rejected


def _from(file: Path, source: Source) -> Path:
    root = source.folder if source.folder.is_dir() else source.folder.parent
    return file.relative_to(root) if file.is_relative_to(root) else file


def _printable(path: Path) -> str:
    """The path as text, even where its name is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
