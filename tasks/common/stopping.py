"""Ends politely: SIGTERM is remembered; work that takes long asks between two of its steps, saves, and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

EXIT_CODE = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended

P = ParamSpec("P")
R = TypeVar("R")
_asked = threading.Event()


class Stopped(Exception):
    """Asked to end, and ended between two steps. Its message says where, for the next run goes on from there."""


def asked() -> bool:
    """Tells whether SIGTERM has come."""
    return _asked.is_set()


def check(where: str) -> None:
    """Raises Stopped if SIGTERM has come. To be called where what was made is saved."""
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


def stoppable(work: Callable[P, R]) -> Callable[P, R]:
    """Wraps `work` in `on_sigterm`. Prefect has a handler of its own, set when a flow starts: this is for the function inside it."""

    @wraps(work)
    def stopped_politely(*arguments: P.args, **named: P.kwargs) -> R:
        with on_sigterm():
            return work(*arguments, **named)

    return stopped_politely
