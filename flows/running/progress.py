"""Report from a stage's process to the run that started it why or where it ended, as files in a folder of the run.

Neither a server nor a pipe is needed: DVC starts the process through a shell, and its output is for the user.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from changepair.tasks.common.files import write_text

FOLDER = "CHANGEPAIR_TOLD"  # environment: the folder
LISTENER = "CHANGEPAIR_LISTENER"  # environment: the process of the run
FAILURE, STOP = "failure", "stop"


class Progress(NamedTuple):
    """The reports so far; each is empty if there is none."""

    failure: str  # why the process failed, in one line
    stop: str  # where it stopped, when it was asked to


@contextmanager
def listening() -> Iterator[None]:
    """Collect the reports of the processes that the block starts."""
    with tempfile.TemporaryDirectory(prefix="changepair-", ignore_cleanup_errors=True) as folder:
        os.environ |= {FOLDER: folder, LISTENER: str(os.getpid())}
        try:
            yield
        finally:
            del os.environ[FOLDER], os.environ[LISTENER]


def told() -> Progress:
    """Return the reports since `listening` began."""
    files = [Path(os.environ[FOLDER]) / name for name in (FAILURE, STOP)]
    return Progress(*(file.read_text(encoding="utf-8") if file.is_file() else "" for file in files))


def has_listener() -> bool:
    """Return whether a run started this process and is alive; it then prints the reports."""
    return FOLDER in os.environ and psutil.pid_exists(int(os.environ.get(LISTENER, "0")))


def report(kind: str, text: str) -> bool:
    """Report to the run that started this process; return whether there is one. kind: FAILURE or STOP."""
    with suppress(OSError):  # the run is gone
        if has_listener():
            write_text(Path(os.environ[FOLDER]) / kind, text)
            return True
    return False
