"""Draw random numbers that depend on the item that is drawn, not on the process or the time."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *item: int | str) -> np.random.Generator:
    """Return the generator of an item, the same in any process, thread or order. An example is `generator(seed, "pair", 17)`."""
    name = "\x1f".join(str(part) for part in (seed, *item))
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words.tolist())))
