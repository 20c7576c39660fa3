"""Import large packages fast."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import packages without garbage collection, and leave all objects that exist at the end out of later collections.

    The import of torch creates 190,000 objects, which stay. Otherwise the collector visits them again and again, and at the end of the
    process too, which takes a third of the time of `import torch`. Use it in a process that this project starts, not in a library.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
