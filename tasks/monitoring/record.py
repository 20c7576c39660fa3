"""Store the scores of a line's pictures, and find the pictures that are not scored yet.

<record>/
  kit/                                 detector, prompts and threshold, of tasks/prediction/kit.py
  scores/day=<YYYY-MM-DD>/<n>.parquet  one row a picture (Judged), by the day in UTC that it was scored on; a day that is over is one file
  flagged/<YYYY-MM-DD>/….png           the flagged ones, as they were read: a line may not keep its pictures until somebody looks
  overlays/<YYYY-MM-DD>/….png          those with their maps laid over
  verdicts/                            what people said of them, of tasks/monitoring/verdicts.py
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from changepair.tasks.common.decoding import ENDINGS
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import visible
from changepair.tasks.common.rows import read_rows, write_rows
from changepair.tasks.prediction.outputs import line_of, write_overlay, write_picture

if TYPE_CHECKING:
    from changepair.tasks.prediction.predictor import Prediction, Predictor

MADE_BY = "`changepair watch`"
KIT_FOLDER, SCORES_FOLDER, FLAGGED_FOLDER, OVERLAYS_FOLDER, VERDICTS_FOLDER = "kit", "scores", "flagged", "overlays", "verdicts"
AT_ONCE = 32
"""Pictures between two parts of the record: so many at most are scored again after a kill, and recorded once all the same."""


@dataclass(frozen=True)
class Judged:
    """A picture of the line, and what was said of it."""

    picture: str  # from the watched folder
    bytes: int
    modified: int  # nanoseconds since 1970
    time: str  # UTC, ISO 8601: when it was scored
    score: float | None  # None if it could not be read
    threshold: float
    verdict: str  # normal, anomalous, unreadable
    reason: str | None  # why it could not be read
    kit: str  # a hash of the kit

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from another picture, and from another of the same name."""
        return self.picture, self.bytes, self.modified

    @property
    def name(self) -> str:
        """What files that are made of it are called: as no other picture's, though a line may use a name again and again."""
        own = hashlib.sha256(repr(self.key).encode()).hexdigest()[:8]
        return f"{Path(self.picture).stem[:100]}-{own}"


@dataclass(frozen=True)
class Arrived:
    """A picture that nothing was said of yet."""

    file: Path
    key: tuple[str, int, int]


class Record:
    """What was said of a line's pictures, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[tuple[Path, int, int], list[Judged]] = {}

    def rows(self) -> list[Judged]:
        """Reads all rows, in the order they were written; a file that this object has read is not read again."""
        read = {}
        for file in self._files():
            about = file.stat()
            as_it_is = (file, about.st_size, about.st_mtime_ns)
            read[as_it_is] = self._read.get(as_it_is) or read_rows(file, Judged, MADE_BY)
        self._read = read
        return list(dict.fromkeys(row for rows in read.values() for row in rows))  # those of a merge that was killed are there twice

    def append(self, rows: Sequence[Judged]) -> None:
        """Adds rows as a part of the day that they are of."""
        if rows:
            files = self._files()
            number = int(files[-1].stem) + 1 if files else 0  # not how many there are: old days may have been moved away
            write_rows(self._day(rows[0].time[:10]) / f"{number:08d}.parquet", Judged, rows)

    def merge(self, today: str) -> None:
        """Makes one file of each day before `today` (YYYY-MM-DD) that has several: to open a file takes longer than to read its rows."""
        for folder in sorted((self.folder / SCORES_FOLDER).glob("day=*")):
            files = sorted(folder.glob("*.parquet"))
            if len(files) < 2 or folder.name >= self._day(today).name:
                continue
            rows = dict.fromkeys(row for file in files for row in read_rows(file, Judged, MADE_BY))
            write_rows(files[-1], Judged, rows)
            for file in files[:-1]:
                file.unlink()

    def flagged(self, row: Judged) -> Path:
        """Names the copy of a flagged picture."""
        return self._made_of(row, FLAGGED_FOLDER)

    def overlay(self, row: Judged) -> Path:
        """Names the picture of a flagged one with its map laid over."""
        return self._made_of(row, OVERLAYS_FOLDER)

    def keep(self, row: Judged, prediction: Prediction, top: float) -> None:
        """Keeps a flagged picture, and its map. top: as for `overlay` of tasks/prediction/outputs.py."""
        write_overlay(self.overlay(row), prediction, top)
        write_picture(self.flagged(row), prediction.picture)

    def _made_of(self, row: Judged, kind: str) -> Path:
        return self.folder / kind / row.time[:10] / Path(row.picture).parent / f"{row.name}.png"

    def _day(self, day: str) -> Path:
        return self.folder / SCORES_FOLDER / f"day={day}"

    def _files(self) -> list[Path]:
        return sorted((self.folder / SCORES_FOLDER).glob("day=*/*.parquet"), key=lambda file: file.name)


def arrived(folder: Path, record: Record, *, settled: float) -> list[Arrived]:
    """Lists the pictures in a folder and below that nothing was said of, the oldest first; those written to within `settled` seconds are
    left for later. Raises BadInput if there is no such folder."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder to watch; name it as watch.folder, or mount it")
    known = {row.key for row in record.rows()}
    latest = time.time_ns() - round(settled * 1e9)
    new = []
    for file in visible(folder.rglob("*"), folder):
        if file.suffix.lower() not in ENDINGS or not file.is_file():
            continue
        key = key_of(file, folder)
        if key[2] <= latest and key not in known:
            new.append(Arrived(file, key))
    return sorted(new, key=lambda one: (one.key[2], one.key[0]))


def key_of(file: Path, folder: Path) -> tuple[str, int, int]:
    """Gives what Judged.key is of a file in the watched folder."""
    about = file.stat()
    return file.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns


def parts_of(pictures: Sequence[Arrived]) -> list[Sequence[Arrived]]:
    """Parts pictures into those that are judged at once."""
    return [pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE)]


def judge(predictor: Predictor, kit: str, pictures: Sequence[Arrived], record: Record) -> Iterator[list[Judged]]:
    """Scores pictures and records what is said of them, some at a time; gives those rows. kit: a hash of the predictor's."""
    for part in parts_of(pictures):
        rows = judge_part(predictor, kit, part, record)
        record.append(rows)
        yield rows


def judge_part(predictor: Predictor, kit: str, part: Sequence[Arrived], record: Record) -> list[Judged]:
    """Scores pictures and keeps the flagged; gives the rows, which are still to be appended to the record."""
    refused: dict[int, BadInput] = {}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    predictions = {one.number: one for one in predictor.each((one.file for one in part), refuse=refused.__setitem__)}
    rows = []
    for number, one in enumerate(part):
        if number in refused:
            rows.append(_unreadable(one, refused[number], now, predictor, kit))
            continue
        rows.append(row := _judged(one, predictions[number], now, predictor, kit))
        if row.verdict == "anomalous":
            record.keep(row, predictions[number], predictor.top)
    return rows


def _judged(one: Arrived, prediction: Prediction, now: str, predictor: Predictor, kit: str) -> Judged:
    line = line_of(one.key[0], prediction.score, predictor.threshold)
    assert line.threshold is not None and line.verdict is not None
    return Judged(*one.key, now, line.score, line.threshold, line.verdict, None, kit)


def _unreadable(one: Arrived, error: BadInput, now: str, predictor: Predictor, kit: str) -> Judged:
    assert predictor.threshold is not None
    return Judged(*one.key, now, None, predictor.threshold.value, "unreadable", str(error).replace(str(one.file), one.key[0]), kit)
