"""Choose the device to compute on, and find whether it computes bfloat16 in hardware."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware. On other devices float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.13
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
