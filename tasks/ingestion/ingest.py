"""Ingest a dataset: read a folder of pictures, and write one manifest and one list of rejected files.

Files are listed, read and written in portions. Only a picture's name and a few bytes of its hash stay in memory.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from changepair.tasks.common import decoding, stopping
from changepair.tasks.common.decoding import FULL, Extent, Intensity, Range, Samples, Undecodable
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import made_anew, write_csv, written_beside
from changepair.tasks.common.places import is_remote, is_url, place_of
from changepair.tasks.common.rows import rows_of, schema_of, table_of
from changepair.tasks.ingestion.cache import Known, known_files, stamp
from changepair.tasks.ingestion.check import GREYS, Facts, greys_from, greys_of, look_at, perceptual_hash, row
from changepair.tasks.ingestion.listing import LEADS_OUT, DatasetFolder, Item, ListedPicture, Rejected, Unusable, within, write_png
from changepair.tasks.ingestion.manifest import ANOMALOUS, NORMAL, PictureRow
from changepair.tasks.ingestion.packaged import PACKAGED
from changepair.tasks.ingestion.readers.catalogue import LAYOUTS
from changepair.tasks.ingestion.settings import AUTO, OF_A_FILE, IntensitySetting

PORTION = 2048  # files read between two commits
ROWS_A_GROUP = 65536  # of a manifest
MANIFEST = schema_of(PictureRow)
COPIES = "snapshot"  # folder of copies, within the dataset's folder under places.pictures
IN_8_BITS = "in-8-bits"  # folder of 8-bit copies in the dataset's folder of written pictures


@dataclass(frozen=True)
class IngestionFolders:
    pictures: Path  # folder of the pictures that the dataset does not have as files
    manifests: Path
    checkpoints: Path  # cache of the facts of unchanged files


@dataclass(frozen=True)
class Ingested:
    """Counts of an ingestion: pictures or objects kept, files rejected, and pictures by conversion."""

    kept: int
    rejected: int
    notes: dict[str, int] = field(default_factory=dict)
    greys: int = GREYS  # number of grey levels, of 256, that occur in the normal training pictures
    deep: int = 0  # number of pictures of more than 8 bits


class Look(Protocol):
    """The way pictures are read. `begin` returns a function that waits for the result of `look_at`."""

    @property
    def ahead(self) -> int: ...  # number of portions that are begun before the first has ended

    def begin(self, portion: Sequence[ListedPicture], source: DatasetFolder) -> Callable[[], Sequence[Facts]]: ...


@dataclass(frozen=True)
class LookHere:
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    ahead: int = 0

    def begin(self, portion: Sequence[ListedPicture], source: DatasetFolder) -> Callable[[], Sequence[Facts]]:
        return partial(look_at, portion, source, self.workers)


HERE = LookHere()


@dataclass
class _Reading:
    """State of a reading in progress, except for the rows, which are on disk."""

    kept: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    seen: dict[str, int] = field(default_factory=dict)  # categories in order, with the number of their pictures kept
    # Extents of the deep normal training pictures, joined by sample type and stated window.
    extents: dict[tuple[Samples, Range | None], Extent] = field(default_factory=dict)
    deep: int = 0
    greys: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(GREYS, bool))  # those that occur in the normal training pictures
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)  # first 64 bits of each kept picture's sha256
    labels: list[NDArray[np.int8]] = field(default_factory=list)

    def keep(self, rows: list[PictureRow]) -> None:
        self.kept += len(rows)
        self.hashes.append(np.array([int(row_.sha256[:16], 16) for row_ in rows], dtype=np.uint64))
        self.labels.append(np.array([row_.label for row_ in rows], dtype=np.int8))
        for row_ in rows:
            self.seen[row_.category] += 1

    def look(self, row_: PictureRow, facts: Facts) -> None:
        """Add a picture's grey levels or extent."""
        found = facts.extent
        self.deep += found is not None
        if row_.is_normal_training and found is not None:
            old = self.extents.get((found.samples, found.stated), found)
            self.extents[found.samples, found.stated] = replace(old, low=min(old.low, found.low), high=max(old.high, found.high))
        elif row_.is_normal_training:
            self.greys |= greys_from(facts.greys)

    def suspects(self) -> set[int]:
        """Find the hash prefixes that were read with both labels."""
        hashes, labels = np.concatenate(self.hashes), np.concatenate(self.labels)
        return set(np.intersect1d(hashes[labels == NORMAL], hashes[labels == ANOMALOUS]).tolist())


def ingest_packaged(dataset: str, *, places: IngestionFolders, look: Look = HERE) -> Ingested:
    """Write a packaged dataset as a folder of pictures, and ingest that folder. Raises BadInput as `ingest_folder`."""
    folder = places.pictures / dataset
    with made_anew(folder) as partial:
        PACKAGED[dataset].write(partial)
    source = DatasetFolder(dataset, folder, folder)
    return _ingest(source, LAYOUTS["folder"].read(source), PACKAGED[dataset].licence, places, look)


def ingest_folder(
    dataset: str,
    folder: Path,
    *,
    layout: str = "folder",
    licence: str | None = None,
    snapshot: bool = False,
    intensity: IntensitySetting = AUTO,
    normal: Sequence[str] = (),
    abnormal: Sequence[str] = (),
    masks: str | None = None,
    places: IngestionFolders,
    look: Look = HERE,
) -> Ingested:
    """Write manifests/<dataset>.parquet and manifests/<dataset>.rejected.csv.

    The settings are those of `FolderSettings`. `licence` None selects the layout's. With `snapshot`, pictures are copied to places.pictures
    and read there. Pictures of more than 8 bits are always copied there in 8 bits. The rows are in the layout's order.

    Raises BadInput if the folder is missing or has another layout, or if a category has no usable picture. The list of rejected files is
    written even then.
    """
    chosen = LAYOUTS[layout]
    if not folder.exists():
        raise BadInput(f"{dataset}: no folder {folder}; correct datasets.folders.{dataset}.path in pipelines.yaml")
    if layout != OF_A_FILE and not folder.is_dir():
        raise BadInput(
            f"{dataset}: {folder} is a file; set datasets.folders.{dataset}.path to the folder of the pictures (`changepair unpack` "
            f"extracts an archive), or set layout: {OF_A_FILE} if it lists them"
        )
    source = DatasetFolder(dataset, folder, places.pictures / dataset, tuple(normal), tuple(abnormal), masks)
    _refuse_what_it_writes_to(source, places)
    shutil.rmtree(source.written, ignore_errors=True)
    source.written.mkdir(parents=True)
    items = chosen.read(source)
    return _ingest(source, _copied(items, source) if snapshot else items, licence or chosen.licence, places, look, intensity)


def _copied(items: Iterable[Item], source: DatasetFolder) -> Iterator[Item]:
    """Arrange that pictures and masks are copied before they are read, under the names that they have in the dataset."""
    for item in items:
        if isinstance(item, Rejected) or item.write is not None:
            yield item
            continue
        copies = {file: source.written / COPIES / _from(file, source) for file in (item.image, *item.masks)}
        if any(copy == file for file, copy in copies.items()):  # it lies outside the dataset, so it is refused later
            yield item
            continue
        masks = tuple(copies[mask] for mask in item.masks)
        yield replace(item, image=copies[item.image], masks=masks, write=partial(_copy, copies, source.folder), original=item.image)


def _copy(copies: Mapping[Path, Path], folder: Path) -> None:
    """Copy files of a dataset. Raises Unusable if one is a link to outside it. Reading the copy reports a missing file."""
    for file, copy in copies.items():
        if not within(file, folder):
            raise Unusable(LEADS_OUT)
        if file.is_file():
            with written_beside(copy) as partial_copy:
                partial_copy.write_bytes(file.read_bytes())


def _refuse_what_it_writes_to(source: DatasetFolder, places: IngestionFolders) -> None:
    """Raise BadInput if ingestion would delete the dataset, because it lies where ingestion writes, directly or by a link."""
    if is_remote(source.folder):
        return
    written = places.pictures.resolve()
    stated = (*source.normal, *source.abnormal, *([source.masks] if source.masks else []))
    for folder in (source.folder / one for one in stated or ("",)):
        if not (folder.resolve().is_relative_to(written) or source.written.resolve().is_relative_to(folder.resolve())):
            continue
        raise BadInput(
            f"{source.name}: {folder} lies where ingestion writes and deletes files ({places.pictures}); move the dataset to "
            f"another place and set datasets.folders.{source.name}.path to it"
        )


def _ingest(
    source: DatasetFolder, items: Iterable[Item], licence: str, places: IngestionFolders, look: Look, intensity: IntensitySetting = AUTO
) -> Ingested:
    listed, manifest = (places.manifests / f"{source.name}.{ending}" for ending in ("rejected.csv", "parquet"))
    work = places.checkpoints / "ingest"
    work.mkdir(parents=True, exist_ok=True)
    with written_beside(work / f"{source.name}.rows.parquet") as rows:
        reading = _read_all(source, items, licence, rows, work, look)
        if reading.deep:
            if intensity == AUTO:
                chosen = decoding.choose_range(reading.extents.values())
            else:
                chosen = FULL if intensity == "full" else Intensity(Range(*intensity), Range(*intensity))
            with written_beside(work / f"{source.name}.scaled.parquet") as scaled:
                _scale(rows, scaled, chosen, source, reading)
                shutil.copyfile(scaled, rows)
        conflicts = _conflicts(rows, reading.suspects()) if reading.kept else {}
        reading.rejected += conflicts.values()
        # Names that are not UTF-8 are written with escapes.
        files = (os.fsencode(str(_from(item.file, source))).decode("utf-8", "backslashreplace") for item in reading.rejected)
        write_csv(listed, ["file", "reason"], zip(files, (item.reason for item in reading.rejected), strict=True))
        for _image, category in conflicts:
            reading.seen[category] -= 1
        for category, count in reading.seen.items():
            if not count:
                raise BadInput(f"{source.name}: no usable picture in category {category!r}; {listed} lists the reason for each file")
        if not reading.seen:
            raise BadInput(f"{source.name}: no usable picture in {source.folder}; {listed} lists the reason for each file")
        _write_manifest(rows, manifest, {image for image, _category in conflicts})
    (work / f"{source.name}.rows.parquet").unlink()
    greys = int(reading.greys.sum()) if reading.greys.any() else GREYS
    return Ingested(reading.kept - len(conflicts), len(reading.rejected), dict(sorted(reading.notes.items())), greys, reading.deep)


def _scale(rows: Path, scaled: Path, intensity: Intensity, source: DatasetFolder, reading: _Reading) -> None:
    """Rewrite the rows so that deep pictures refer to 8-bit copies. Pictures outside the range are rejected."""

    def scale(row_: PictureRow) -> tuple[PictureRow, Facts]:
        if row_.samples is None:
            return row_, Facts()
        try:
            decoded = decoding.decode(place_of(row_.image).read_bytes())
            low, high = decoding.range_of(decoded, intensity)
            picture = decoding.to_picture(decoded, intensity)
        except Undecodable as error:
            return row_, Facts(fault=str(error))
        copy = source.written / IN_8_BITS / f"{_below(Path(row_.image) if not is_url(row_.image) else place_of(row_.image), source)}.png"
        write_png(copy, picture)
        known = perceptual_hash(Image.fromarray(picture))
        return replace(row_, image=copy.as_posix(), phash=known, low=low, high=high), Facts(greys=greys_of(picture))

    with ThreadPoolExecutor() as pool, pq.ParquetWriter(scaled, MANIFEST, compression="zstd") as writer:
        for batch in pq.ParquetFile(rows).iter_batches(PORTION):
            kept = []
            for new, facts in pool.map(scale, rows_of(PictureRow, batch.to_pylist())):
                if facts.fault:
                    reading.kept -= 1
                    reading.seen[new.category] -= 1
                    reading.rejected.append(Rejected(Path(new.image), facts.fault))
                    continue
                if new.samples is not None:
                    reading.notes[f"of more than 8 bits, scaled from {new.low:g} to {new.high:g}"] += 1
                    reading.greys |= greys_from(facts.greys) & new.is_normal_training
                kept.append(new)
            writer.write_table(table_of(PictureRow, kept))
            stopping.check(f"ingest {source.name}, pictures scaled to 8 bits")


def _below(file: Path, source: DatasetFolder) -> Path:
    """Return a picture's path relative to the dataset's folder, or to the folder of files written from it."""
    for folder in (source.written / COPIES, source.written):
        if not is_remote(file) and file.is_relative_to(folder):
            return file.relative_to(folder)
    return Path(str(_from(file, source)).lstrip("/"))


def _read_all(source: DatasetFolder, items: Iterable[Item], licence: str, rows: Path, work: Path, look: Look) -> _Reading:
    """Write the rows of usable pictures, portion by portion."""
    reading = _Reading()
    bar = tqdm(desc=f"ingest {source.name}", unit="file", mininterval=5, delay=5)
    with known_files(work / f"{source.name}.sqlite") as known, pq.ParquetWriter(rows, MANIFEST, compression="zstd") as writer:
        for portion in _judged(items, source, known, look):
            kept = []
            for item, facts in portion:
                if isinstance(item, Rejected):
                    reading.rejected.append(item)
                    continue
                reading.seen.setdefault(item.category, 0)
                if facts.fault:
                    reading.rejected.append(Rejected(item.original or item.image, facts.fault))
                    continue
                reading.notes.update(facts.note.split("; ") if facts.note else [])
                kept.append(row(item, facts, source, licence))
                reading.look(kept[-1], facts)
            reading.keep(kept)
            writer.write_table(table_of(PictureRow, kept))
            bar.update(len(portion))
            stopping.check(f"ingest {source.name}, {reading.kept} pictures read")  # after the facts are cached for the next run
    bar.close()
    return reading


def _judged(items: Iterable[Item], source: DatasetFolder, known: Known, look: Look) -> Iterator[list[tuple[Item, Facts]]]:
    """Yield the items portion by portion, each with its facts. Unchanged files are not read."""
    begun: deque[Callable[[], list[tuple[Item, Facts]]]] = deque()
    remaining = iter(items)
    while portion := list(islice(remaining, PORTION)):
        begun.append(_begin(portion, source, known, look))
        if len(begun) > look.ahead:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


def _begin(portion: Sequence[Item], source: DatasetFolder, known: Known, look: Look) -> Callable[[], list[tuple[Item, Facts]]]:
    """Begin to read a portion. Return a function that waits for the facts, and caches them."""
    facts: dict[int, Facts] = {}
    unknown: list[tuple[int, ListedPicture, str | None]] = []
    for number, item in enumerate(portion):
        if isinstance(item, ListedPicture):
            mark = stamp(item)
            old = known.facts(item, mark) if mark is not None else None
            if old is None:
                unknown.append((number, item, mark))
            else:
                facts[number] = old
    read = look.begin([item for _number, item, _mark in unknown], source) if unknown else list

    def judged() -> list[tuple[Item, Facts]]:
        found = list(zip(unknown, read(), strict=True))
        facts.update((number, new) for (number, _item, _mark), new in found)
        known.learn([(item, mark, new) for (_number, item, mark), new in found if mark is not None])
        return [(item, facts.get(number, Facts())) for number, item in enumerate(portion)]

    return judged


def _conflicts(rows: Path, suspects: set[int]) -> dict[tuple[str, str], Rejected]:
    """Find pictures that occur twice, byte for byte, once normal and once anomalous. Return them by path and category."""
    if not suspects:
        return {}
    suspicious = [
        row_
        for batch in pq.ParquetFile(rows).iter_batches(ROWS_A_GROUP)
        for row_ in rows_of(PictureRow, batch.to_pylist())
        if int(row_.sha256[:16], 16) in suspects
    ]
    names = ("normal", "anomalous")
    conflicts = {}
    for row_ in suspicious:
        other = next((one.image for one in suspicious if one.sha256 == row_.sha256 and one.label != row_.label), None)
        if other is not None:
            reason = f"conflict: labelled {names[row_.label]}, but {other} has the same bytes and is labelled {names[1 - row_.label]}"
            conflicts[row_.image, row_.category] = Rejected(Path(row_.image), reason)
    return conflicts


def _write_manifest(rows: Path, manifest: Path, without: set[str]) -> None:
    with written_beside(manifest) as partial, pq.ParquetWriter(partial, MANIFEST, compression="zstd") as writer:
        for batch in pq.ParquetFile(rows).iter_batches(ROWS_A_GROUP):
            table = pa.Table.from_batches([batch], schema=MANIFEST)
            if without:
                table = table.filter(pc.invert(pc.is_in(table["image"], pa.array(sorted(without), pa.string()))))
            writer.write_table(table, row_group_size=ROWS_A_GROUP)


def _from(file: Path, source: DatasetFolder) -> Path:
    root = source.folder if source.folder.is_dir() else source.folder.parent
    return file.relative_to(root) if is_remote(file) == is_remote(root) and file.is_relative_to(root) else file
