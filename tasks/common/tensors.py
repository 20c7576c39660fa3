"""Reads pictures as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.common.pictures import read_picture


def read_tensors(images: Sequence[str], resolution: int, device: torch.device) -> Tensor:
    """Reads pictures as Bx3xHxW float32 in [0, 1], `resolution` pixels a side: the one way from pictures to what networks take."""
    pictures = np.stack([read_picture(Path(image), resolution) for image in images])
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div_(255)
