"""Store the scores of a line's pictures, and find the pictures that are not scored yet.

    <record>/
      kit/                                 detector, prompts and threshold (tasks/prediction/kit.py)
      scores/day=<YYYY-MM-DD>/<n>.parquet  one row (Judged) for each picture, by day of scoring (UTC); earlier days are one file each
      flagged/<YYYY-MM-DD>/….png           copies of flagged pictures, because the line may delete its own before a review
      overlays/<YYYY-MM-DD>/….png          flagged pictures with their anomaly maps
      verdicts/                            labels that people gave (tasks/monitoring/verdicts.py)

Each part of a run adds a file of scores. `merge` joins the files of earlier days.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from changepair.tasks.common.decoding import ENDINGS
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import visible
from changepair.tasks.common.rows import read_rows, write_rows
from changepair.tasks.prediction.outputs import line_of, write_overlay, write_picture

if TYPE_CHECKING:
    from changepair.tasks.prediction.predictor import Predictor

MADE_BY = "`changepair watch`"
KIT_FOLDER, SCORES_FOLDER, FLAGGED_FOLDER, OVERLAYS_FOLDER, VERDICTS_FOLDER = "kit", "scores", "flagged", "overlays", "verdicts"
AT_ONCE = 32  # pictures in each part of the record; after a kill, at most this many are scored again, and still recorded once


@dataclass(frozen=True)
class Judged:
    """The result of one picture of the line."""

    picture: str
    """Path in the watched folder."""
    bytes: int
    """Size of the file."""
    modified: int
    """Modification time of the file, in nanoseconds since 1970."""
    time: str
    """Time of scoring in UTC, ISO 8601."""
    score: float | None
    """Image score. None if the picture is unreadable."""
    threshold: float
    verdict: str
    """normal, anomalous or unreadable."""
    reason: str | None
    """Why the picture is unreadable."""
    kit: str
    """Hash of the kit."""

    @property
    def key(self) -> tuple[str, int, int]:
        """Identify the picture among others with the same name."""
        return self.picture, self.bytes, self.modified

    @property
    def name(self) -> str:
        """Name the files that are written for the picture. The name is unique, even if the line reuses file names."""
        return f"{Path(self.picture).stem[:100]}-{hashlib.sha256(repr(self.key).encode()).hexdigest()[:8]}"


class Arrived(NamedTuple):
    """A picture that is not scored yet."""

    file: Path
    key: tuple[str, int, int]


class Record:
    """The results of a line's pictures, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[tuple[Path, int, int], list[Judged]] = {}

    def rows(self) -> list[Judged]:
        """Read all rows, in the order of writing. An unchanged file is read once."""
        read = {}
        for file in self._files():
            about = file.stat()
            version = (file, about.st_size, about.st_mtime_ns)
            read[version] = self._read.get(version) or read_rows(file, Judged, MADE_BY)
        self._read = read
        return list(dict.fromkeys(row for rows in read.values() for row in rows))  # a killed merge leaves its rows twice

    def append(self, rows: Sequence[Judged]) -> None:
        """Add rows as a new file of their day."""
        if rows:
            files = self._files()
            number = int(files[-1].stem) + 1 if files else 0  # not the number of files: old days may have been moved away
            write_rows(self._day(rows[0].time[:10]) / f"{number:08d}.parquet", Judged, rows)

    def merge(self, today: str) -> None:
        """Merge the files of each day before `today` (YYYY-MM-DD), because opening a file takes longer than reading its rows."""
        for folder in sorted((self.folder / SCORES_FOLDER).glob("day=*")):
            files = sorted(folder.glob("*.parquet"))
            if len(files) < 2 or folder.name >= self._day(today).name:
                continue
            rows = dict.fromkeys(row for file in files for row in read_rows(file, Judged, MADE_BY))
            write_rows(files[-1], Judged, rows)
            for file in files[:-1]:
                file.unlink()

    def flagged(self, row: Judged) -> Path:
        """Return the path of the copy of a flagged picture."""
        return self._made_of(row, FLAGGED_FOLDER)

    def overlay(self, row: Judged) -> Path:
        """Return the path of the overlay of a flagged picture."""
        return self._made_of(row, OVERLAYS_FOLDER)

    def _made_of(self, row: Judged, kind: str) -> Path:
        return self.folder / kind / row.time[:10] / Path(row.picture).parent / f"{row.name}.png"

    def _day(self, day: str) -> Path:
        return self.folder / SCORES_FOLDER / f"day={day}"

    def _files(self) -> list[Path]:
        return sorted((self.folder / SCORES_FOLDER).glob("day=*/*.parquet"), key=lambda file: file.name)


def arrived(folder: Path, record: Record, *, settled: float) -> list[Arrived]:
    """List the pictures below a folder that are not scored yet, the oldest first.

    settled: pictures that changed within this number of seconds are left out. Raises BadInput if the folder does not exist.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; mount it, or change watch.folder")
    known = {row.key for row in record.rows()}
    latest = time.time_ns() - round(settled * 1e9)
    files = (file for file in visible(folder.rglob("*"), folder) if file.suffix.lower() in ENDINGS and file.is_file())
    found = (Arrived(file, key_of(file, folder)) for file in files)
    return sorted((one for one in found if one.key[2] <= latest and one.key not in known), key=lambda one: (one.key[2], one.key[0]))


def key_of(file: Path, folder: Path) -> tuple[str, int, int]:
    """Return the `Judged.key` of a file in the watched folder."""
    about = file.stat()
    return file.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns


def parts_of(pictures: Sequence[Arrived]) -> list[Sequence[Arrived]]:
    """Divide pictures into parts that are scored and recorded together."""
    return [pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE)]


def judge(predictor: Predictor, kit: str, pictures: Sequence[Arrived], record: Record) -> Iterator[list[Judged]]:
    """Score and record pictures part by part. Yield the rows of each part. kit: the hash of the predictor's kit."""
    for part in parts_of(pictures):
        rows = judge_part(predictor, kit, part, record)
        record.append(rows)
        yield rows


def judge_part(predictor: Predictor, kit: str, part: Sequence[Arrived], record: Record) -> list[Judged]:
    """Score pictures, and store the flagged ones with their overlays. Return the rows; the caller appends them to the record."""
    refused: dict[int, BadInput] = {}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    predictions = {one.number: one for one in predictor.each((one.file for one in part), refuse=refused.__setitem__)}
    assert predictor.threshold is not None
    rows = []
    for number, one in enumerate(part):
        if number in refused:
            reason = str(refused[number]).replace(str(one.file), one.key[0])
            rows.append(Judged(*one.key, now, None, predictor.threshold.value, "unreadable", reason, kit))
            continue
        line = line_of(one.key[0], predictions[number].score, predictor.threshold)
        row = Judged(*one.key, now, line.score, predictor.threshold.value, line.verdict or "", None, kit)
        rows.append(row)
        if row.verdict == "anomalous":
            write_overlay(record.overlay(row), predictions[number], predictor.top)
            write_picture(record.flagged(row), predictions[number].picture)
    return rows
