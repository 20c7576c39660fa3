"""Timing, where two things are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def medians(*works: Callable[[], object], times: int = 5) -> list[float]:
    """Seconds of each, the median of runs taken in turns, so that the machine's moods meet all alike; first one of each is not counted."""
    took: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(times):
        for work, seconds in zip(works, took, strict=True):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in took]
