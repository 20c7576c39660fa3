"""Stop at checkpoints. A request to stop (SIGTERM, Ctrl-C, `ask`) is remembered; long work checks for it between two steps, saves, and
ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

EXIT_CODE, CTRL_C = 128 + signal.SIGTERM, 128 + signal.SIGINT  # exit codes that a shell reports after a signal
POLL = 0.2  # seconds
PR_SET_PDEATHSIG = 1  # prctl(2)

_asked, _interrupted, _paused = threading.Event(), threading.Event(), threading.Event()
_also: list[Callable[[], None]] = []  # callbacks for a request to stop


class Stopped(Exception):
    """Raised where work ends because it was asked to stop. The message says where, and the next run resumes there."""


def asked() -> bool:
    """Return whether this process was asked to stop."""
    return _asked.is_set()


def ask() -> None:
    """Ask this process to stop, as SIGTERM does."""
    _asked.set()
    for also in tuple(_also):
        also()


def pause() -> bool:
    """Make `check` wait until `resume` or a request to stop. Return whether the state changed."""
    changed = not _paused.is_set()
    _paused.set()
    return changed


def resume() -> bool:
    """End the waiting of `check`. Return whether the state changed."""
    changed = _paused.is_set()
    _paused.clear()
    return changed


def wait_while_paused() -> None:
    """Wait between `pause` and `resume`, or until a request to stop."""
    while _paused.is_set() and not _asked.is_set():
        time.sleep(POLL)


def exit_code() -> int:
    """Return the exit code of a process that was asked to stop, as if the signal had ended it."""
    return CTRL_C if _interrupted.is_set() else EXIT_CODE


def check(where: str) -> None:
    """Wait while paused. Raise Stopped if this process was asked to stop. Call it where results are saved."""
    wait_while_paused()
    if _asked.is_set():
        raise Stopped(where)


@contextmanager
def on_sigterm(also: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Remember SIGTERM instead of ending the process, and call `also` on it or on `ask`.

    Only the main thread of a process receives signals. In another thread SIGTERM keeps its effect.
    """
    _also.append(also)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: ask()) if main else None
    try:
        yield
    finally:
        # SIGTERM may come twice (Linux sends one for each thread of a parent that dies). The second must not interrupt the handling of the
        # first.
        if main and not _asked.is_set():
            signal.signal(signal.SIGTERM, before)
        _also.remove(also)


def defer_ctrl_c() -> None:
    """Block Ctrl-C until `admit_ctrl_c`, in this thread and in the threads and processes that it starts. Windows does not support this."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def admit_ctrl_c() -> None:
    """Receive Ctrl-C again, including one that waited."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def hear_ctrl_c(first: Callable[[], None], again: Callable[[], None]) -> None:
    """Treat Ctrl-C as SIGTERM from now on, and end at once on the second one. `first` and `again` are called before.

    A terminal sends Ctrl-C to all processes that it started. This process receives it in a thread, or by its handler if a thread of a
    library gets it. It blocks Ctrl-C for threads and processes that it starts from now on, so that they can save. Call it once, in the main
    thread.
    """
    times = count(1)

    def heard(*_signal: object) -> None:
        if next(times) > 1:
            again()
            os._exit(CTRL_C)
        _interrupted.set()
        first()
        os.kill(os.getpid(), signal.SIGTERM)

    def wait() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            heard()

    signal.signal(signal.SIGINT, heard)
    defer_ctrl_c()
    if hasattr(signal, "sigwait"):
        threading.Thread(target=wait, name="Ctrl-C", daemon=True).start()


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent process ends. On other systems do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
