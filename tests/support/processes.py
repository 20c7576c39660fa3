"""Commands that run beside a test and are gone at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def started(folder: Path, *command: str, log: str = "output.log", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, with its output in folder/log."""
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        **environment,
    }
    with (folder / log).open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started, as a power cut would."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(
    condition: Callable[[], object], *, seconds: float = 90, process: subprocess.Popen[bytes] | None = None, what: str = "it"
) -> None:
    """Raises AssertionError if it takes longer, or the process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"the process ended before {what} happened"
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:.0f} s"
        time.sleep(0.05)


def within(seconds: float, holds: Callable[[], Any], what: str = "it") -> Any:
    """Gives what `holds` gives once that is something. Raises AssertionError if it takes longer."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"{what} did not happen in {seconds:.0f} s"
        time.sleep(0.1)
    return found
