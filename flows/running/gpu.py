"""Shares the GPUs of a team: stages that compute on one hold a slot of a limit on the Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LIMIT = "changepair-gpu"  # `changepair deploy` sets it on the server, to runs.gpus


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Holds one of the slots that `runs.gpus` counts, and waits for it; none is asked for on a machine without a GPU, and without the
    limit on the server there is no waiting. The server takes a slot back minutes after its holder has died."""
    import torch  # costs seconds, which the command line need not spend

    if not torch.cuda.is_available():
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(LIMIT, occupy=1):
        yield
