"""Removes the lock files that a killed Git left in a workspace. Git writes no process into them and waits for none of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput

STALE_AFTER = 10.0  # seconds: Git holds a lock for as long as it writes one file; a process on another machine cannot be seen
POLL = 0.2  # seconds


def clear_locks(folder: Path, tell: Callable[[str], None]) -> None:
    """Remove the locks of dead processes from a clone: those that no Git at work there can hold, once they are STALE_AFTER old.

    To be called while no other run works in the clone. Raise BadInput, which names the file, if a lock is in use or cannot be removed.
    """
    for lock in sorted(folder.joinpath(".git").rglob("*.lock")):
        if _left(lock):
            holder = _git_in(folder)
            if holder is not None:
                raise BadInput(f"{lock}: is the lock of Git, which is at work there (process {holder}); run again when it has ended")
            try:
                lock.unlink(missing_ok=True)
            except OSError as error:
                raise BadInput(
                    f"{lock}: a Git that was killed left this lock, and it cannot be removed ({error.strerror}); delete it"
                ) from error
            tell(f"{lock}: removed, a Git that was killed had left it")


def _left(lock: Path) -> bool:
    """Wait until a lock is old enough to be stale; return whether it is still there."""
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return False
    deadline = time.monotonic() + min(max(STALE_AFTER - age, 0), STALE_AFTER)  # the time of a file may be in the future
    while lock.exists() and time.monotonic() < deadline:
        stopping.check("while a lock of Git was awaited")
        time.sleep(POLL)
    return lock.exists()


def _git_in(folder: Path) -> int | None:
    """Find a process of Git that works in a folder of this machine."""
    place = folder.resolve()
    for process in psutil.process_iter():
        try:
            if process.name().startswith("git") and process.status() != psutil.STATUS_ZOMBIE:
                where = Path(process.cwd())
                if where == place or place in where.parents:
                    return process.pid
        except (psutil.Error, OSError):  # it has ended, or is another user's
            continue
    return None
