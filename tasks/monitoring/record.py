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
AT_ONCE = 32  # pictures between two parts of the record: so many at most are scored again after a kill, and recorded once all the same


@dataclass(frozen=True)
class Judged:
    """A picture of the line, and its result."""

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
        """Identifies it among pictures with the same name."""
        return self.picture, self.bytes, self.modified

    @property
    def name(self) -> str:
        """The name of files made from it, unique though a line may use a name again."""
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
        """Read all rows, in the order they were written. An unchanged file is read once."""
        read = {}
        for file in self._files():
            about = file.stat()
            version = (file, about.st_size, about.st_mtime_ns)
            read[version] = self._read.get(version) or read_rows(file, Judged, MADE_BY)
        self._read = read
        return list(dict.fromkeys(row for rows in read.values() for row in rows))  # those of a merge that was killed are there twice

    def append(self, rows: Sequence[Judged]) -> None:
        """Add rows, as a new file of their day."""
        if rows:
            files = self._files()
            number = int(files[-1].stem) + 1 if files else 0  # not how many there are: old days may have been moved away
            write_rows(self._day(rows[0].time[:10]) / f"{number:08d}.parquet", Judged, rows)

    def merge(self, today: str) -> None:
        """Merge the files of each day before `today` (YYYY-MM-DD): opening a file takes longer than reading its rows."""
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
    """List the pictures below a folder that are not scored, the oldest first, without those written to within `settled` seconds. Raises
    BadInput if there is no such folder."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder to watch; name it as watch.folder, or mount it")
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
    """Score and record pictures part by part; yield the rows of each. kit: the hash of the predictor's kit."""
    for part in parts_of(pictures):
        rows = judge_part(predictor, kit, part, record)
        record.append(rows)
        yield rows


def judge_part(predictor: Predictor, kit: str, part: Sequence[Arrived], record: Record) -> list[Judged]:
    """Score pictures, and store the flagged ones with their overlays. Return the rows, which are still to be appended to the record."""
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
