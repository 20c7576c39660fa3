"""Cache the facts of files, so that a killed run resumes without reading unchanged files again. Sizes and times detect changes."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from changepair.tasks.common.decoding import MAX_PIXELS, Extent, Range
from changepair.tasks.common.places import is_remote, state_of
from changepair.tasks.ingestion.check import Facts
from changepair.tasks.ingestion.listing import ListedPicture

VERSION = f"4 {MAX_PIXELS}"  # version of the facts; a cache of another version is discarded


class Known:
    """A small database next to the checkpoints. Losing it costs only time."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def facts(self, listed: ListedPicture, stamp: str) -> Facts | None:
        asked = (os.fsencode(str(listed.image)), stamp)
        row = self.database.execute("SELECT facts FROM files WHERE path = ? AND stamp = ?", asked).fetchone()
        if row is None:
            return None
        content = json.loads(row[0])
        if content["extent"] is not None:
            stated = content["extent"]["stated"]
            content["extent"] = Extent(**content["extent"] | {"stated": None if stated is None else Range(*stated)})
        return Facts(**content)

    def learn(self, items: Sequence[tuple[ListedPicture, str, Facts]]) -> None:
        lasting = [(listed.image, stamp, json.dumps(asdict(facts))) for listed, stamp, facts in items if not facts.passing]
        rows = [(os.fsencode(str(image)), stamp, facts) for image, stamp, facts in lasting]
        self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
        self.database.commit()


@contextmanager
def known_files(file: Path) -> Iterator[Known]:
    """Open the database. A damaged one, or one of another version, is replaced."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        database = _open(file)
    except sqlite3.DatabaseError:
        file.unlink()
        database = _open(file)
    with closing(database):
        yield Known(database)


def stamp(listed: ListedPicture) -> str | None:
    """Return a text that changes when a picture or its masks change. Return None if changes cannot be detected, as for pictures cut out of
    others.

    The text includes the inode and ctime of local files, because a file may be replaced by another of the same size and mtime.
    """

    def state(file: Path) -> str:
        if is_remote(file):
            return state_of(file)
        about = file.stat()
        return f"{about.st_size}:{about.st_mtime_ns}:{about.st_ctime_ns}:{about.st_ino}"

    try:
        return " ".join(map(state, (listed.image, *listed.masks))) if listed.write is None and len(listed.masks) <= 1 else None
    except OSError:
        return None


def _open(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS about (version TEXT)")
    if database.execute("SELECT version FROM about").fetchone() != (VERSION,):
        database.executescript("DROP TABLE IF EXISTS files; DELETE FROM about;")
        database.execute("INSERT INTO about VALUES (?)", (VERSION,))
    database.execute("CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, facts TEXT)")
    database.commit()
    return database
