"""The feature alignment module of MetaUAS: the prompt's features rebuilt on the query's grid (arXiv 2505.09265, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Alignment = Literal["soft", "hard", "none"]


class FeatureAlignment(nn.Module):
    """One stage. Each query position asks for the prompt positions that look like it.

    soft: aligned = softmax(q kᵀ) F, with no 1/sqrt(d); hard: the best-matching position only; none: the prompt as it is.
    q and k come from one 1x1 convolution to half the channels, shared by query and prompt.
    """

    def __init__(self, channels: int, mode: Alignment = "soft") -> None:
        super().__init__()
        self.mode = mode
        self.reduction = nn.Conv2d(channels, channels // 2, kernel_size=1)

    def forward(self, query: Tensor, prompts: Tensor) -> Tensor:
        """query: BxCxhxw; prompts: KxCxhxw for all, or BxKxCxhxw. Each prompt's aligned features, BxKxCxhxw."""
        shared = prompts.ndim == 4
        if self.mode == "none":
            return prompts[None].expand(len(query), -1, -1, -1, -1) if shared else prompts
        asked = self.reduction(query).flatten(2).mT[:, None]  # Bx1xNxd: the prompts are the attention's heads
        offered = self.reduction(prompts.flatten(0, -4)).flatten(2).mT  # (K or B*K)xMxd
        values = prompts.flatten(0, -4).flatten(2).mT  # (K or B*K)xMxC
        heads = prompts.shape[0] if shared else prompts.shape[1]
        asked, offered, values = (_per_query(part, len(query), heads, shared) for part in (asked, offered, values))
        aligned = self._soft(asked, offered, values) if self.mode == "soft" else self._hard(asked, offered, values)
        return aligned.mT.unflatten(-1, query.shape[-2:])

    @staticmethod
    def _soft(asked: Tensor, offered: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(asked, offered, values, scale=1.0)

    @staticmethod
    def _hard(asked: Tensor, offered: Tensor, values: Tensor) -> Tensor:
        best = (asked @ offered.mT).argmax(dim=-1, keepdim=True)
        return values.gather(2, best.expand(-1, -1, -1, values.shape[-1]))


def _per_query(part: Tensor, queries: int, heads: int, shared: bool) -> Tensor:
    """Gives every query its own view of the prompts, without copying shared ones: BxKxMxc."""
    if part.ndim == 4:
        return part.expand(-1, heads, -1, -1)
    return part[None].expand(queries, -1, -1, -1) if shared else part.unflatten(0, (queries, heads))
