"""Run commands (Git, DVC, `changepair` in a clone) without a shell and pass on their output without secrets; clear stale locks of Git."""

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

REMEMBERED = 20  # lines of what a command said
POLL = 0.2  # seconds
STALE_AFTER = 10.0  # seconds: Git holds a lock for as long as it writes one file; a process on another machine cannot be seen


class CommandFailed(BadInput):
    """A command ended with another code than 0. The message is one line: what, and the last line of its output."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    what: str,
    tell: Callable[[str], None] = lambda line: None,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command; return its stdout and stderr together. tell: gets each line as it comes. timeout: seconds.

    SIGTERM is passed on to the command, which is then waited for. Raises CommandFailed, and Stopped if it was stopped.
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
        said = next((line for line in reversed(last) if line.strip()), "")
        said = said.removeprefix("changepair: ").removeprefix("fatal: ").removeprefix("ERROR: ")
        raise CommandFailed(f"{what}: {said or f'it ended with code {process.returncode}'}")
    return "".join(lines)


def git(folder: Path, *arguments: str, what: str = "", timeout: float | None = 600) -> str:
    """Run Git; return its output without the last newline."""
    return run(["git", *arguments], cwd=folder, what=what or f"git {arguments[0]} in {folder}", timeout=timeout).rstrip("\n")


def committed(folder: Path, commit: str, file: Path) -> bytes | None:
    """Return the bytes of a file in a commit; None if it has none."""
    command = ["git", "cat-file", "blob", f"{commit}:{file.as_posix()}"]
    given = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return None if given.returncode else given.stdout


def own(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this environment."""
    return [sys.executable, "-m", module, *arguments]


def of_this_environment(folder: Path) -> dict[str, str]:
    """Return environment variables that make `python` this one, and the project's code that of the clone `folder`."""
    return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONPATH": str(folder)}


def _read(process: subprocess.Popen[str], lines: list[str], last: deque[str], tell: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        shown = hide(line.rstrip())
        last.append(shown)
        with suppress(OSError, ValueError):  # nobody may be left to be told, as when a worker has died; the work goes on
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
            raise CommandFailed(f"{what}: no end after {timeout:.0f} s")


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
                why = f"cannot be removed ({error.strerror})"
                raise BadInput(f"{lock}: a Git that was killed left this lock, and it {why}; delete it") from error
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
        with suppress(psutil.Error, OSError):  # it has ended, or is another user's
            if process.name().startswith("git") and process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(place):
                return process.pid
    return None
