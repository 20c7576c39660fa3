"""Import large packages fast."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(*, freeze: bool) -> Iterator[None]:
    """Import packages without garbage collection in between.

    The import of torch creates 190,000 objects, which stay. The collector would visit them again and again, and at the end of the process
    too: this takes a third of the time of `import torch`.

    `freeze` sets whether later collections leave out all objects that exist at the end. Set it in a process that this project starts, and
    not in a library, because it includes the objects of the caller.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        gc.enable()
