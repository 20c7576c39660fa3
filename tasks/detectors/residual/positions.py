"""Compare a patch only with prompt patches near its own position, where the prompts show that pictures are registered.

The residual of RAD (ICML 2026) is the minimum of 1 − cos over the prompts and over the offsets |Δ| ≤ r. RAD always restricts positions.
Here the prompts decide, because the restriction needs pictures in which a part always lies at the same place.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Positions = Literal["off", "auto", "on"]

GRID = 16  # patches a side of the grid on which prompts are compared with each other
REGISTERED = 0.7
"""Registration above which pictures count as registered. With four prompts of the development datasets, it is 0.77 to 0.98 for parts,
labels, letters and monocrystalline cells, -0.38 to 0.63 for surfaces, textures and sheets, and 0.43 to 0.77 for other cells."""
LEAST = 1e-4  # cosine by which the best position must exceed the mean position; below it, all positions are alike


def distant(height: int, width: int, radius: float, device: torch.device) -> Tensor:
    """Return which positions of a grid are farther apart than `radius`, a share of its height, or at least one patch: (N, N) bool."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    apart = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return (apart > reach(height, radius)).to(device)


def reach(side: int, radius: float) -> int:
    """Return the radius of the window in patches."""
    return max(1, round(radius * side))


@torch.no_grad()
def registration(patches: Tensor, radius: float) -> Tensor:
    """Measure how well prompts are registered, (...), from their patches (..., K, C, h, w) of unit length.

    A patch of one prompt is compared with windows of the others. The value is (a − b) / (c − b), averaged over patches: a is the highest
    cosine in the window at its own position, b the mean over windows at all positions, and c the highest cosine anywhere. It is 1 if the
    nearest patch is always near, and about 0 if its position does not matter. A single prompt has no evidence, and 0.
    """
    count, height, width = patches.shape[-4], *patches.shape[-2:]
    if count == 1:
        return patches.new_zeros(patches.shape[:-4])
    side = max(1, height // GRID)
    grid = F.normalize(F.avg_pool2d(patches.flatten(0, -4), side), dim=1).unflatten(0, patches.shape[:-3])
    height, width = grid.shape[-2:]
    size = reach(height, radius)
    units, excess = grid.flatten(-2), list[tuple[Tensor, Tensor]]()
    for place in range(count):
        rest = [other for other in range(count) if other != place]
        cosines = (units[..., place, None, :, :].mT @ units[..., rest, :, :]).unflatten(-1, (height, width))  # (..., K-1, N, h, w)
        windows = F.max_pool2d(cosines.flatten(0, -4), 2 * size + 1, stride=1, padding=size).view(cosines.shape)
        best = windows.flatten(-2).amax(dim=-3)  # (..., N, N), over the other prompts
        mean = best.mean(dim=-1)
        excess.append(((best.diagonal(dim1=-2, dim2=-1) - mean).mean(dim=-1), (best.amax(dim=-1) - mean).mean(dim=-1)))
    near, most = (torch.stack(part).mean(dim=0) for part in zip(*excess, strict=True))
    return near / most.clamp_min(LEAST)
