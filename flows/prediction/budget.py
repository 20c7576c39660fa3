"""Bound the memory that a service holds for its clients."""

from __future__ import annotations

import asyncio
import ctypes
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

SHARE, MOST = 0.5, 4 * 2**30  # default budget: a share of the memory of the machine or container, and an upper limit in bytes
MMAP_FROM = 2**20  # bytes; larger allocations return to the system as soon as they are freed
M_MMAP_THRESHOLD = -3  # from malloc.h of glibc
GROUPS = Path("/sys/fs/cgroup")
Result = TypeVar("Result")


class TooLarge(Exception):
    """Raised if a request needs more than the whole budget."""


class Full(Exception):
    """Raised if no memory is free in time, or if too many requests wait."""


class Budget:
    """Grant memory in bytes, first come, first served. All methods run in one event loop."""

    def __init__(self, total: int, *, fixed: int = 0, most_waiting: int, patience: float, drop: Callable[[], bool] = lambda: False) -> None:
        """Create a budget.

        total: bytes. fixed: bytes that are always in use. most_waiting: how many may wait, each for at most `patience` seconds. drop: frees
        something that is kept; it returns False if nothing is left to free.
        """
        self.total = total
        self.used = self._fixed = fixed
        self._most_waiting, self._patience, self._drop = most_waiting, patience, drop
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Wait for `size` bytes. Raises TooLarge or Full."""
        most = self.total - self._fixed
        if size > most:
            raise TooLarge(
                f"needs {size / 1e9:.2g} GB of memory, more than the {most / 1e9:.2g} GB that the service has for it; "
                "send fewer or smaller pictures"
            )
        if not self._waiting and self._fits(size):
            self.used += size
            return
        if len(self._waiting) >= self._most_waiting:
            raise Full
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        try:
            async with asyncio.timeout(self._patience):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():
                self.give(size)
            else:
                with suppress(ValueError):  # _grant may have removed it already
                    self._waiting.remove((size, granted))
                self._grant()
            if isinstance(error, TimeoutError):
                raise Full from error
            raise

    def give(self, size: int) -> None:
        """Release bytes."""
        self.used -= size
        self._grant()

    async def hold(self, size: int, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do work that takes `size` bytes. A cancelled caller cancels the work; the bytes are released when the work ends."""
        await self.take(size)

        async def done() -> Result:
            try:
                return await work()
            finally:
                self.give(size)

        task = asyncio.ensure_future(done())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nothing else retrieves it
            raise
        finally:
            del task  # its exception refers to this frame, so pictures would stay until the garbage collector runs

    def _fits(self, size: int) -> bool:
        while self.used + size > self.total and self._drop():
            pass
        return self.used + size <= self.total

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, granted = self._waiting.popleft()
            if not granted.done():
                self.used += size
                granted.set_result(None)


async def in_thread(work: Callable[[], Result], stop: Callable[[], None] = lambda: None) -> Result:
    """Do work in a thread. If the caller is cancelled, call `stop` and wait for the end, because memory is in use until then."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop()
        with suppress(Exception):
            await future
        raise
    finally:
        del future  # as in Budget.hold


def default_budget() -> int:
    """Return the default budget of this process, in bytes."""
    return min(MOST, int(SHARE * memory_limit()))


def memory_limit(own: Path = Path("/proc/self/cgroup"), groups: Path = GROUPS) -> int:
    """Return the memory limit in bytes: the memory of the machine, or the lowest limit of this process's control groups (v1 or v2)."""
    limits = [psutil.virtual_memory().total]
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _number, controllers, path = line.split(":", 2)
            root, name = (groups, "memory.max") if not controllers else (groups / "memory", "memory.limit_in_bytes")
            if controllers and "memory" not in controllers.split(","):
                continue
            inner = root / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(root) and (folder / name).is_file():
                    text = (folder / name).read_text(encoding="utf-8").strip()
                    limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def return_freed_memory() -> None:
    """Make glibc return freed memory to the system at once. By default it keeps blocks of up to 32 MB (mallopt(3))."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_FROM)
