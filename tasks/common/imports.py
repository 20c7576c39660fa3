"""Import large packages faster."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(*, freeze: bool) -> Iterator[None]:
    """Import packages without garbage collection.

    The import of torch creates 190,000 objects that are never freed. Collections during the import and at the end of the process would
    visit them repeatedly, which takes a third of the time of `import torch`.

    `freeze` sets whether later collections skip all objects that exist at the end of the block. Set it only in processes that this project
    starts, because it includes the objects of the caller.
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
