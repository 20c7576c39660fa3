"""Let one process work at a time by a file lock, which the kernel releases when the process ends, even if it is killed."""

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

FOLDER = Path(".dvc/tmp/changepair")  # DVC's folder for files of this checkout alone
POLL = 0.5  # seconds
MOMENT = 0.1  # seconds; `holder` takes the lock for less time while it checks


@dataclass(frozen=True)
class LockHolder:
    """The work that holds a lock, as recorded in the lock file."""

    what: str
    process: int
    host: str
    started: str  # UTC


class Held(Exception):
    """Raised if another process holds the lock. The message names the process."""


@contextmanager
def one_at_a_time(
    name: str, what: str, *, folder: Path = FOLDER, where: Path | None = None, wait: bool, tell: Callable[[str], None]
) -> Iterator[None]:
    """Hold the lock `name` during the block. If another process holds it, wait and report that once through `tell`, or raise Held.

    Raises Stopped on SIGTERM during the wait.

    Args:
        what: Description of the work, for messages.
        where: Folder of the work, for messages; None for the working directory.
    """
    file = folder / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as stream:
        if not _locked(stream, patience=MOMENT):
            who = holder(file)
            busy = f"{what}: another run is active in {where or Path.cwd()}{f': {who}' if who else ''}"
            if not wait:
                raise Held(busy)
            tell(f"{busy}; waiting for it to end")
            while not _locked(stream):
                stopping.check(f"{what}, while it waited for another run")
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
    """Describe the process that holds a lock; None if the lock is free."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as stream, suppress(ValueError):  # the file is empty until the new holder has written it
        if not _locked(stream):
            work = as_record(LockHolder, stream.read())
            return f"{work.what} (process {work.process} on {work.host}, since {work.started})"
    return None


def _locked(stream: Any, patience: float = 0) -> bool:
    """Take the lock if it is free now, or after `patience` seconds; return whether it was taken."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(patience)
        return patience > 0 and _locked(stream)
    return True
