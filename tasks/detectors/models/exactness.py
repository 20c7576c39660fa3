"""Says how exactly a GPU multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def multiply_exactly(exact: bool) -> None:
    """Says whether a GPU's convolutions multiply float32 as it is or, as PyTorch has it unless it is told, rounded to the 10 bits of TF32:
    faster, and not what a CPU gives. A CPU's are exact always."""
    torch.backends.cudnn.allow_tf32 = not exact


@contextmanager
def exactly() -> Iterator[None]:
    """Multiplies exactly for a while."""
    before = torch.backends.cudnn.allow_tf32
    multiply_exactly(True)
    try:
        yield
    finally:
        multiply_exactly(not before)
