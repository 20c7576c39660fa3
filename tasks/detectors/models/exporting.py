"""Helps models to be exported (torch.export, ONNX): there no step may depend on how many pictures a batch has, and some operators lack."""

from __future__ import annotations

import torch
from torch import Tensor


def exporting() -> bool:
    """Tells whether a model is being exported: it then computes all of a batch at once, where it else goes picture by picture to stay in
    the processor's cache. The results are the same."""
    return bool(torch.compiler.is_exporting())


def median(values: Tensor) -> Tensor:
    """Gives the median of BxN over N, of two the lower: B."""
    if exporting():  # ONNX has a sort and no median
        return values.sort(dim=1).values[:, (values.shape[1] - 1) // 2]
    return values.median(dim=1).values
