"""The feature alignment module of MetaUAS: the prompt's features rebuilt on the query's grid (arXiv 2505.09265, section 3.3)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Alignment = Literal["soft", "hard", "none"]
Similarity = Literal["cosine", "dot"]
START = 20.0  # of the inverse temperature of cosines, which is learnt
SMALL_MATRIX = 2**17  # entries for one query and prompt (512 KiB of float32)
MOST_PRODUCTS = 2**22  # held at once by hard alignment (16 MiB of float32)


class FeatureAlignment(nn.Module):
    """One stage. Each query position asks for the prompt positions that look like it.

    soft: aligned = softmax(s(q, k)) F; hard: the best-matching position only; none: the prompt as it is. q and k come from one 1x1
    convolution to half the channels, shared by query and prompt. s is `dot`, q kᵀ with no 1/sqrt(d), as the authors' code has it; or
    `cosine`, as their paper says, times a scale that is learnt. Products of features as large as an EfficientNet's leave the softmax one
    position and no gradient.
    """

    def __init__(self, channels: int, mode: Alignment = "soft", similarity: Similarity = "cosine") -> None:
        super().__init__()
        self.mode = mode
        self.similarity = similarity
        if mode == "soft" and similarity == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(math.log(START)))
        if mode != "none":
            self.reduction = nn.Conv2d(channels, channels // 2, kernel_size=1)

    def forward(self, query: Tensor, prompts: Tensor) -> Tensor:
        """Aligns prompts to queries. query: BxCxhxw; prompts: KxCxhxw for all, or BxKxCxhxw. Gives each prompt's aligned features,
        BxKxCxhxw."""
        shared = prompts.ndim == 4
        if self.mode == "none":
            return prompts[None].expand(query.shape[0], -1, -1, -1, -1) if shared else prompts
        asked = self.reduction(query).flatten(2).mT[:, None]  # Bx1xNxd: the prompts are the attention's heads
        offered = self.reduction(prompts.flatten(0, -4)).flatten(2).mT  # (K or B*K)xMxd
        if self.similarity == "cosine":
            asked, offered = F.normalize(asked, dim=-1), F.normalize(offered, dim=-1)
            if self.mode == "soft":
                asked = asked * self.log_scale.exp()
        values = prompts.flatten(0, -4).flatten(2).mT.contiguous()  # (K or B*K)xMxC; the kernel `soft` wants takes no strides
        heads = prompts.shape[0] if shared else prompts.shape[1]
        asked, offered, values = (_per_query(part, query.shape[0], heads, shared) for part in (asked, offered, values))
        aligned = soft(asked, offered, values) if self.mode == "soft" else hard(asked, offered, values)
        return aligned.mT.unflatten(-1, query.shape[-2:])


def soft(asked: Tensor, offered: Tensor, values: Tensor) -> Tensor:
    """Attends from BxKxNxd to BxKxMxd and gives BxKxMxC as BxKxNxC, without the NxM matrix in memory.

    The kernels that never hold the matrix want queries and values of one width, and are silently passed over where they are not;
    zeros after q and k change no product. A small matrix is held: that is faster than twice the products.
    """
    if asked.shape[-2] * offered.shape[-2] > SMALL_MATRIX:
        room = values.shape[-1] - asked.shape[-1]
        asked, offered = (F.pad(part, (0, room)) for part in (asked, offered))
    return F.scaled_dot_product_attention(asked, offered, values, scale=1.0)


def hard(asked: Tensor, offered: Tensor, values: Tensor) -> Tensor:
    """Takes for each query position the one prompt position that it matches best; shapes as in `soft`."""
    rows = max(1, MOST_PRODUCTS // offered[..., 0].numel())
    best = torch.cat([(part @ offered.mT).argmax(dim=-1, keepdim=True) for part in asked.split(rows, dim=2)], dim=2)
    return values.gather(2, best.expand(-1, -1, -1, values.shape[-1]))


def _per_query(part: Tensor, queries: int, heads: int, shared: bool) -> Tensor:
    """Gives every query its own view of the prompts, without copying shared ones: BxKxMxc."""
    if part.ndim == 4:
        return part.expand(-1, heads, -1, -1)
    return part[None].expand(queries, -1, -1, -1) if shared else part.unflatten(0, (queries, heads))
