"""Run Git, DVC and `changepair` commands without a shell, forward their output without secrets, and clear stale Git locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from changepair.flows.running.secrets import hide
from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput

REMEMBERED = 20  # last lines of a command's output
POLL = 0.2  # seconds
STALE_AFTER = 10.0  # seconds; Git holds a lock while it writes one file, and processes on other machines are invisible


class CommandFailed(BadInput):
    """Raised if a command fails. The message is one line: a description of the command, and the last line of its output."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    what: str,
    tell: Callable[[str], None] = lambda line: None,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command; return its stdout and stderr together.

    SIGTERM is forwarded to the command, and this waits for its end. Raises CommandFailed, or Stopped after SIGTERM.

    Args:
        what: Description of the command, for messages.
        tell: Receives each line of output as it arrives.
        timeout: Time limit in seconds; None for no limit.
    """
    with subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        lines: list[str] = []
        last: deque[str] = deque(maxlen=REMEMBERED)
        reader = threading.Thread(target=_read, args=(process, lines, last, tell), daemon=True)
        reader.start()
        try:
            _wait(process, timeout, what)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            reader.join(timeout=10)
    if process.returncode:
        stopping.check(what)
        reason = next((line for line in reversed(last) if line.strip()), "")
        reason = reason.removeprefix("changepair: ").removeprefix("fatal: ").removeprefix("ERROR: ")
        raise CommandFailed(f"{what}: {reason or f'failed with exit code {process.returncode}'}")
    return "".join(lines)


def git(folder: Path, *arguments: str, what: str = "", timeout: float | None = 600) -> str:
    """Run Git; return its output without the trailing newline."""
    return run(["git", *arguments], cwd=folder, what=what or f"git {arguments[0]} in {folder}", timeout=timeout).rstrip("\n")


def committed(folder: Path, commit: str, file: Path) -> bytes | None:
    """Return the bytes of a file in a commit; None if the commit does not contain the file."""
    command = ["git", "cat-file", "blob", f"{commit}:{file.as_posix()}"]
    given = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return None if given.returncode else given.stdout


def own(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this environment's Python."""
    return [sys.executable, "-m", module, *arguments]


def of_this_environment(folder: Path) -> dict[str, str]:
    """Return environment variables that select this environment's `python`, and the project's code in the clone `folder`."""
    return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONPATH": str(folder)}


def _read(process: subprocess.Popen[str], lines: list[str], last: deque[str], tell: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        shown = hide(line.rstrip())
        last.append(shown)
        with suppress(OSError, ValueError):  # after a worker has died, nobody reads the output; the work continues
            tell(shown)


def _wait(process: subprocess.Popen[str], timeout: float | None, what: str) -> None:
    waited, passed_on = 0.0, False
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL)
            return
        waited += POLL
        if stopping.asked() and not passed_on:
            process.terminate()
            passed_on = True
        if timeout is not None and waited > timeout:
            raise CommandFailed(f"{what}: timed out after {timeout:.0f} s")


def clear_locks(folder: Path, tell: Callable[[str], None]) -> None:
    """Remove the lock files of killed Git processes from a clone. A lock is stale after STALE_AFTER seconds, if no Git process works there.

    Call it only while no other run works in the clone. Raises BadInput, with the path, if a lock is in use or cannot be removed.
    """
    for lock in sorted(folder.joinpath(".git").rglob("*.lock")):
        if _left(lock):
            holder = _git_in(folder)
            if holder is not None:
                raise BadInput(f"{lock}: Git is running there (process {holder}) and holds this lock; run again after it has ended")
            try:
                lock.unlink(missing_ok=True)
            except OSError as error:
                raise BadInput(f"{lock}: cannot remove this lock of a killed Git process ({error.strerror}); delete it") from error
            tell(f"{lock}: removed the lock of a killed Git process")


def _left(lock: Path) -> bool:
    """Wait until a lock is old enough to be stale; return whether it is still there."""
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return False
    deadline = time.monotonic() + min(max(STALE_AFTER - age, 0), STALE_AFTER)  # a file's time may be in the future
    while lock.exists() and time.monotonic() < deadline:
        stopping.check("while it waited for a Git lock")
        time.sleep(POLL)
    return lock.exists()


def _git_in(folder: Path) -> int | None:
    """Find a Git process on this machine that works in a folder; return its id."""
    place = folder.resolve()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # the process has ended, or belongs to another user
            if process.name().startswith("git") and process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(place):
                return process.pid
    return None
