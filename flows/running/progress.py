"""What a stage's process tells the run that started it: why or where it ended, as files in a folder of the run's.

It needs no server and no pipe: DVC starts the process through a shell, and what it prints is the user's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from changepair.tasks.common.files import write_text

FOLDER = "CHANGEPAIR_TOLD"  # environment: the folder
LISTENER = "CHANGEPAIR_LISTENER"  # environment: the process of the run
FAILURE, STOP = "failure", "stop"


@dataclass(frozen=True)
class Progress:
    """What was told so far."""

    folder: Path

    @property
    def failure(self) -> str:
        """Why it failed, in one line; empty if it did not say."""
        return self._read(FAILURE)

    @property
    def stop(self) -> str:
        """Where it stopped, when it was asked to; empty if it did not say."""
        return self._read(STOP)

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except OSError:
            return ""


@contextmanager
def listening() -> Iterator[None]:
    """Has the processes that are started within it tell."""
    with tempfile.TemporaryDirectory(prefix="changepair-", ignore_cleanup_errors=True) as folder:
        os.environ |= {FOLDER: folder, LISTENER: str(os.getpid())}
        try:
            yield
        finally:
            del os.environ[FOLDER], os.environ[LISTENER]


def told() -> Progress:
    """Gives what was told since `listening` began."""
    return Progress(Path(os.environ[FOLDER]))


def has_listener() -> bool:
    """Tells whether a run started this process that lives, and says itself what matters."""
    return FOLDER in os.environ and psutil.pid_exists(int(os.environ.get(LISTENER, "0")))


def tell_failure(line: str) -> bool:
    """Tells why this process fails; gives whether anybody listens."""
    return _tell(FAILURE, line)


def tell_stop(where: str) -> None:
    """Tells where this process stopped, if anybody listens."""
    _tell(STOP, where)


def _tell(name: str, text: str) -> bool:
    if not has_listener():
        return False
    with suppress(OSError):  # who listened is gone
        write_text(Path(os.environ[FOLDER]) / name, text)
        return True
    return False
