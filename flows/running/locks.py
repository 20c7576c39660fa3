"""Let one process work at a time: it locks a file, which the kernel unlocks however the process ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from changepair.flows.running.records import as_record
from changepair.tasks.common import stopping

FOLDER = Path(".dvc/tmp/changepair")  # DVC's own place for what belongs to this checkout and to nobody else
POLL = 0.5  # seconds
MOMENT = 0.1  # seconds; `holder` has the lock for less while it looks, and that is no work


@dataclass(frozen=True)
class LockHolder:
    """The work that a lock is held for, as the lock's file has it."""

    what: str
    process: int
    host: str
    started: str  # UTC


class Held(Exception):
    """Another process holds the lock. Its message says which."""


@contextmanager
def one_at_a_time(
    name: str, what: str, *, folder: Path = FOLDER, where: Path | None = None, wait: bool, tell: Callable[[str], None]
) -> Iterator[None]:
    """Hold the lock `name` for the work `what`. If another process holds it, wait and report that once through `tell`, or raise Held.

    where: the folder worked in, for the message; the working directory if None. Raises Stopped if SIGTERM comes while it waits.
    """
    file = folder / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as stream:
        if not _locked(stream, patience=MOMENT):
            who = holder(file)
            whose = f"{what}: another run is at work in {where or Path.cwd()}{f': {who}' if who else ''}"
            if not wait:
                raise Held(whose)
            tell(f"{whose}; waiting for it to end")
            while not _locked(stream):
                stopping.check(f"{what}, which was waiting for another run")
                time.sleep(POLL)
        stream.truncate(0)
        work = LockHolder(what, os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))
        stream.write(json.dumps(asdict(work)))
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def holder(file: Path) -> str | None:
    """Describe who holds a lock; None if nobody does."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as stream, suppress(ValueError):  # which it is while the lock is taken and not yet written
        if not _locked(stream):
            work = as_record(LockHolder, stream.read())
            return f"{work.what} (process {work.process} on {work.host}, since {work.started})"
    return None


def _locked(stream: Any, patience: float = 0) -> bool:
    """Take the lock if it is free, or is free after `patience` seconds."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(patience)
        return patience > 0 and _locked(stream)
    return True
