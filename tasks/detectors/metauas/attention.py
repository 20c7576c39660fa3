"""scSE attention with a gradient in few passes over the maps, for training on a CPU.

See Roy et al., "Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks", MICCAI 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from segmentation_models_pytorch.base.modules import SCSEModule
from torch import Tensor


class Attention(SCSEModule):
    """The scSE attention of segmentation_models_pytorch, with the same weights: x·c + x·s, of maps x (B, C, H, W).

    The gate c (B, C) of the channels is σ(W₂ ReLU(W₁ mean(x) + b₁) + b₂), with the mean over positions. The gate s (B, H, W) of the
    positions is σ(w·x + b). In training on a CPU, x·(c + s) and its gradient take half the time of PyTorch's separate operations.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            plain: Tensor = super().forward(x)
            return plain
        weights = [part for layer in (self.cSE[1], self.cSE[3], self.sSE[0]) for part in (layer.weight.flatten(1), layer.bias)]
        with torch.autocast("cpu", enabled=False):
            gated: Tensor = _Gated.apply(x, *weights)
        return gated


class _Gated(torch.autograd.Function):
    """Compute x·(c + s). Maps are matrices (B, N, C) of N positions. Means and the small layers are in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w: Tensor, b: Tensor) -> Tensor:
        maps = x.permute(0, 2, 3, 1).flatten(1, 2)
        means = maps.mean(dim=1, dtype=torch.float32)
        hidden = torch.addmm(b1, means, w1.mT).relu()
        channels = torch.addmm(b2, hidden, w2.mT).sigmoid()  # (B, C)
        positions = (maps @ w.to(maps.dtype).mT + b.to(maps.dtype)).sigmoid()  # (B, N, 1)
        ctx.save_for_backward(maps, means, hidden, channels, positions, w1, w2, w)
        return _maps(maps * (channels.to(maps.dtype)[:, None] + positions), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        maps, means, hidden, channels, positions, w1, w2, w = ctx.saved_tensors
        own = gradients[0].permute(0, 2, 3, 1).flatten(1, 2)
        gates = own * maps  # the gradient of c + s
        of_channels = gates.sum(dim=1, dtype=torch.float32) * channels * (1 - channels)
        wide = positions.float()
        of_positions = gates.sum(dim=2, keepdim=True, dtype=torch.float32) * wide * (1 - wide)
        of_hidden = (of_channels @ w2) * (hidden > 0)
        of_means = of_hidden @ w1 / maps.shape[1]
        # Both gates add a product of a column and a row to the gradient of each picture's map.
        narrow = of_positions.to(maps.dtype)
        columns = torch.cat([narrow, torch.ones_like(narrow)], dim=2)
        rows = torch.stack([w.expand_as(of_means), of_means], dim=1).to(maps.dtype)
        of_maps = torch.baddbmm(own * (channels.to(maps.dtype)[:, None] + positions), columns, rows)
        of_w = (narrow.flatten() @ maps.flatten(0, 1)).to(w.dtype)[None]
        small = (of_hidden.mT @ means, of_hidden.sum(dim=0), of_channels.mT @ hidden, of_channels.sum(dim=0))
        return _maps(of_maps, gradients[0]), *small, of_w, of_positions.sum().reshape(1)


def _maps(matrices: Tensor, like: Tensor) -> Tensor:
    """Return matrices (B, N, C) as maps (B, C, H, W), with channels last."""
    return matrices.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
