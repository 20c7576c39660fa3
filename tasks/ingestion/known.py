"""Remembers what earlier runs read of files that have not changed since, by their size and time of change; a killed run goes on from it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple
from pathlib import Path

from tasks.common.places import state_of
from tasks.ingestion.check import MAX_PIXELS, Facts
from tasks.ingestion.listing import Listed

VERSION = f"2 {MAX_PIXELS}"  # of what is found out; files known to another are read again


class Known:
    """A small database beside the checkpoints; losing it costs time and nothing else."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def facts(self, listed: Listed, stamp: str) -> Facts | None:
        columns = "sha256, phash, height, width, note, fault"
        asked = (os.fsencode(str(listed.image)), stamp)
        row = self.database.execute(f"SELECT {columns} FROM files WHERE path = ? AND stamp = ?", asked).fetchone()
        return Facts(*row) if row else None

    def learn(self, items: Sequence[tuple[Listed, str, Facts]]) -> None:
        lasting = [(os.fsencode(str(listed.image)), stamp, *astuple(facts)[:-1]) for listed, stamp, facts in items if not facts.passing]
        self.database.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            lasting,
        )
        self.database.commit()


@contextmanager
def known_files(file: Path) -> Iterator[Known]:
    """Opens or makes the database; one that is damaged or of another version is made anew."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        database = _open(file)
    except sqlite3.DatabaseError:
        file.unlink()
        database = _open(file)
    with closing(database):
        yield Known(database)


def stamp(listed: Listed) -> str | None:
    """Gives size and time of change of a picture and its masks; None where they cannot tell, as for pictures cut out of others."""
    if listed.write is not None or len(listed.masks) > 1:
        return None
    try:
        return " ".join(state_of(file) for file in (listed.image, *listed.masks))
    except OSError:
        return None


def _open(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS about (version TEXT)")
    if database.execute("SELECT version FROM about").fetchone() != (VERSION,):
        database.executescript("DROP TABLE IF EXISTS files; DELETE FROM about;")
        database.execute("INSERT INTO about VALUES (?)", (VERSION,))
    columns = "path BLOB PRIMARY KEY, stamp TEXT, sha256 TEXT, phash TEXT, height INT, width INT, note TEXT, fault TEXT"
    database.execute(f"CREATE TABLE IF NOT EXISTS files ({columns})")
    database.commit()
    return database
