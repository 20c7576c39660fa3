"""Keeps what was said of a line's pictures, and finds those of which nothing was said yet.

data/watch/<pipeline>/
  kit/                                 detector, prompts and threshold, of tasks.prediction.kit
  scores/day=<YYYY-MM-DD>/<n>.parquet  one row a picture (Judged), by the day in UTC that it was scored on
  overlays/<YYYY-MM-DD>/….png          the flagged ones with their maps laid over
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.common.errors import BadInput
from tasks.common.rows import read_rows, write_rows
from tasks.prediction.files import ENDINGS, names_of
from tasks.prediction.outputs import line_of, write_overlay
from tasks.prediction.predictor import Prediction, Predictor

MADE_BY = "`changepair score`"
KIT_FOLDER, SCORES_FOLDER, OVERLAYS_FOLDER = "kit", "scores", "overlays"
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


@dataclass(frozen=True)
class Arrived:
    """A picture that nothing was said of yet."""

    file: Path
    key: tuple[str, int, int]


class Record:
    """What was said of a line's pictures, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self) -> list[Judged]:
        """Reads all rows, in the order they were written."""
        return [row for file in self._files() for row in read_rows(file, Judged, MADE_BY)]

    def append(self, rows: Sequence[Judged]) -> None:
        """Adds rows as a part of the day that they are of."""
        if rows:
            files = self._files()
            number = int(files[-1].stem) + 1 if files else 0  # not how many there are: old days may have been moved away
            part = self.folder / SCORES_FOLDER / f"day={rows[0].time[:10]}" / f"{number:08d}.parquet"
            write_rows(part, Judged, rows)

    def overlay_of(self, row: Judged) -> Path:
        """Names the picture of a flagged one."""
        name = next(names_of([Path(row.picture)]))
        return self.folder / OVERLAYS_FOLDER / row.time[:10] / Path(row.picture).parent / f"{name}.png"

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
    for file in folder.rglob("*"):
        if file.suffix.lower() not in ENDINGS or not file.is_file():
            continue
        about = file.stat()
        key = (file.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns)
        if about.st_mtime_ns <= latest and key not in known:
            new.append(Arrived(file, key))
    return sorted(new, key=lambda one: (one.key[2], one.key[0]))


def judge(predictor: Predictor, kit: str, pictures: Sequence[Arrived], record: Record) -> Iterator[list[Judged]]:
    """Scores pictures and records what is said of them, some at a time; gives those rows. kit: a hash of the predictor's."""
    for start in range(0, len(pictures), AT_ONCE):
        part = pictures[start : start + AT_ONCE]
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
                write_overlay(record.overlay_of(row), predictions[number], predictor.top)
        record.append(rows)
        yield rows


def _judged(one: Arrived, prediction: Prediction, now: str, predictor: Predictor, kit: str) -> Judged:
    line = line_of(one.key[0], prediction.score, predictor.threshold)
    assert line.threshold is not None and line.verdict is not None
    return Judged(*one.key, now, line.score, line.threshold, line.verdict, None, kit)


def _unreadable(one: Arrived, error: BadInput, now: str, predictor: Predictor, kit: str) -> Judged:
    assert predictor.threshold is not None
    return Judged(*one.key, now, None, predictor.threshold.value, "unreadable", str(error).replace(str(one.file), one.key[0]), kit)
