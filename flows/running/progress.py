"""Report why or where a stage's process ended to the run that started it, as files in a folder of the run.

DVC starts the process through a shell and its output is for the user, so neither a pipe nor a return value is available.
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

FOLDER = "CHANGEPAIR_TOLD"  # environment variable: the folder
LISTENER = "CHANGEPAIR_LISTENER"  # environment variable: the process of the run
FAILURE, STOP = "failure", "stop"


class Progress(NamedTuple):
    """Reports of a stage's process. A missing report is empty."""

    failure: str  # reason of the failure, in one line
    stop: str  # the point at which the process stopped on request


@contextmanager
def listening() -> Iterator[None]:
    """Collect the reports of the block's child processes."""
    with tempfile.TemporaryDirectory(prefix="changepair-", ignore_cleanup_errors=True) as folder:
        os.environ |= {FOLDER: folder, LISTENER: str(os.getpid())}
        try:
            yield
        finally:
            del os.environ[FOLDER], os.environ[LISTENER]


def told() -> Progress:
    """Return the reports that arrived since `listening` began."""
    files = [Path(os.environ[FOLDER]) / name for name in (FAILURE, STOP)]
    return Progress(*(file.read_text(encoding="utf-8") if file.is_file() else "" for file in files))


def has_listener() -> bool:
    """Return whether the run that started this process is alive. It then prints the reports."""
    return FOLDER in os.environ and psutil.pid_exists(int(os.environ.get(LISTENER, "0")))


def report(kind: str, text: str) -> bool:
    """Report to the run that started this process; return whether that run is alive. `kind` is FAILURE or STOP."""
    with suppress(OSError):  # the run has ended
        if has_listener():
            write_text(Path(os.environ[FOLDER]) / kind, text)
            return True
    return False
