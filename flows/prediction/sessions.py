"""Bound the memory of a page: one computation at a time, and what the sessions of its visitors keep."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

from changepair.tasks.common.errors import BadInput
from changepair.tasks.prediction.memory import Needs, needs_of


class Keeps(Protocol):
    """A session that keeps something in memory."""

    @property
    def size(self) -> int:
        """Bytes."""

    def drop(self) -> None:
        """Keep nothing from now on."""


class Memory:
    """The memory of a page, in bytes. A computation holds `turn`, and claims what it takes before it begins."""

    def __init__(self, total: int, fixed: int = 0) -> None:
        """total: for one computation, for what sessions keep, and for `fixed`, which the page always holds. Raises BadInput if nothing is
        left of it."""
        if fixed >= total:
            raise BadInput(f"the detector and one batch take {fixed / 1e9:.2g} of {total / 1e9:.2g} GB; give more --memory")
        self.turn = threading.Lock()
        self._total = total - fixed
        self._kept: WeakKeyDictionary[Keeps, None] = WeakKeyDictionary()  # the least recently used first

    def room(self, own: Keeps | None = None) -> int:
        """Return how much a computation may take. own: its session, which stays."""
        return self._total - (own.size if own is not None else 0)

    def claim(self, size: int, what: str, own: Keeps | None = None) -> None:
        """Make room for a computation by dropping the least recently used sessions. Raises BadInput if it does not fit.

        what: what is computed, for the message. own: its session, which stays.
        """
        if size > self.room(own):
            raise BadInput(
                f"{what}: needs {size / 1e9:.2g} GB of memory, more than the {self.room(own) / 1e9:.2g} GB that the page has for it; "
                "give fewer or smaller pictures, or start the page with more --memory"
            )
        for one in list(self._kept):
            if sum(kept.size for kept in self._kept) + size <= self._total:
                break
            if one is not own:
                del self._kept[one]
                one.drop()

    def keep(self, own: Keeps) -> None:
        """Count what a session keeps, as the most recently used."""
        self._kept.pop(own, None)
        self._kept[own] = None


def needs_of_file(file: Path, room: int) -> Needs:
    """Estimate the memory that a picture takes, as `needs_of`. A file larger than `room` is not read."""
    try:
        size = file.stat().st_size
        return needs_of(file.read_bytes()) if size <= room else Needs((0, 0), size, 0)
    except OSError:  # whoever decodes it reports why
        return Needs((0, 0), 0, 0)
