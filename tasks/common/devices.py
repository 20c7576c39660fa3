"""Chooses what to compute on, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Tells whether the device multiplies bfloat16 in hardware; where it does not, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.13
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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
