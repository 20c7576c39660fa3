"""Ends politely: SIGTERM, and Ctrl-C, are remembered; work that takes long asks between two of its steps, saves, and ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended
CTRL_C = 128 + signal.SIGINT

_asked = threading.Event()
_interrupted = threading.Event()


class Stopped(Exception):
    """Asked to end, and ended between two steps. Its message says where, for the next run goes on from there."""


def asked() -> bool:
    """Tells whether SIGTERM or Ctrl-C has come."""
    return _asked.is_set()


def exit_code() -> int:
    """Gives what a process ends with that was asked to end: what a shell says of one that the signal ended."""
    return CTRL_C if _interrupted.is_set() else EXIT_CODE


def check(where: str) -> None:
    """Raises Stopped if SIGTERM or Ctrl-C has come. To be called where what was made is saved."""
    if _asked.is_set():
        raise Stopped(where)


@contextmanager
def on_sigterm(also: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Remembers SIGTERM, instead of letting it end the process, and calls `also` when it comes. A process has one main thread that hears
    signals; in any other this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def remember(_number: int, _frame: FrameType | None) -> None:
        _asked.set()
        also()

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield
    finally:
        # It may come twice (Linux sends one for each thread of a parent that dies), and the second must not break off what the first began.
        if not _asked.is_set():
            signal.signal(signal.SIGTERM, before)


def hear_ctrl_c(first: Callable[[], None], again: Callable[[], None]) -> None:
    """Takes Ctrl-C for SIGTERM from now on, and a second one for an end at once. first, again: what is to be done then, before that.

    A terminal sends Ctrl-C to all that it started. This process hears it in a thread of its own, or by its handler where a library's thread
    gets it, and blocks it for the threads and processes that it starts from now on: none of them breaks off what is to be saved. To be
    called once, in the main thread.
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
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=wait, name="Ctrl-C", daemon=True).start()
