"""InCTRL scores a query by its residuals to a few normal prompts (Zhu and Pang, CVPR 2024, arXiv 2403.06495).

The adapter and the heads are trained on some domains and applied to others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector
from changepair.tasks.detectors.patches import chosen_stages, nearest_cosine, residual_map, unit_patches
from changepair.tasks.encoders.clip import ClipEncoder
from changepair.tasks.encoders.encoder import Features, FrozenEncoder
from changepair.tasks.encoders.texts import TextPrior

BOTTLENECK = 4  # factor by which the adapter's middle layer is narrower
HIDDEN = (128, 64)  # hidden widths of both heads
QUANTILES = (1.0, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.75, 0.5, 0.25)  # levels of the quantiles of a picture's residuals


class Adapter(nn.Sequential):
    """Adapter ψ of a picture's embedding: two layers without biases, each followed by a ReLU. (..., D) to (..., D)."""

    def __init__(self, width: int) -> None:
        narrow = width // BOTTLENECK
        super().__init__(nn.Linear(width, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, width, bias=False), nn.ReLU())


class Head(nn.Module):
    """Head with layers N -> 128 -> 64 -> 1. ReLU and BatchNorm follow the first two layers, a sigmoid the last."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Linear(inputs, HIDDEN[0]), nn.BatchNorm1d(HIDDEN[0])
        self.second, self.second_norm = nn.Linear(*HIDDEN), nn.BatchNorm1d(HIDDEN[1])
        self.last = nn.Linear(HIDDEN[1], 1)
        # `forward` never uses it, but the published checkpoint contains it.
        self.input_norm = nn.BatchNorm1d(inputs).requires_grad_(False)

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N) to scores (B,) in (0, 1)."""
        hidden = self.first_norm(self.first(values).relu())
        hidden = self.second_norm(self.second(hidden).relu())
        return self.last(hidden).sigmoid().squeeze(1)


class InCTRL(Detector):
    """InCTRL: a frozen encoder, the adapter, one head for the image residual, and one for all evidence.

    With an image-text encoder the text prior contributes too. The holistic head sees the residual of each patch at its position, as in the
    paper. Alternatively it sees their quantiles and mean, which depend on neither position nor resolution.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        *,
        texts: bool = True,
        natural: Collection[str] = (),
        stages: Sequence[int] = (),
        holistic: Literal["patches", "quantiles"] = "patches",
    ) -> None:
        """Build the heads around a frozen encoder.

        `texts` adds the text prior, for which the encoder must read texts. `natural` lists categories of natural objects. `stages` counts
        the encoder's maps from 1; the last three are the default. With `holistic="patches"` the model works at the encoder's resolution
        only, because the holistic head has an input for each patch of the finest stage.
        """
        super().__init__()
        self.encoder: FrozenEncoder = encoder
        self.stages = chosen_stages(encoder, stages)
        side = -(-encoder.resolution // min(encoder.strides[stage - 1] for stage in self.stages))
        width = encoder.channels[-1]
        self.adapter = Adapter(width)
        self.image_head = Head(width)
        self.holistic_head = Head(side * side if holistic == "patches" else len(QUANTILES) + 1)
        self.holistic = holistic
        self.reads = texts
        self.prior = prior = TextPrior(cast(ClipEncoder, encoder).embed_texts, natural) if texts else None
        if prior is not None:
            self.register_load_state_dict_post_hook(lambda _module, _keys: prior.forget())

    def forward(self, residual: Tensor, query: Tensor, prompts: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Return final scores and image scores, each (B,) in (0, 1).

        `residual` is (B, N), one value a patch. `query` (B, D) and `prompts` (B, K, D) are embeddings. `prior` is (B,), and 0 without
        texts.

        The final score is s = (s_h + max residual) / 2, where s_h is the holistic head's output for residuals, image score and prior
        (equations 3 to 8).
        """
        image = self.image_head(self.adapter(prompts).mean(dim=1) - self.adapter(query))
        seen = residual if self.holistic == "patches" else quantiles(residual)
        holistic = self.holistic_head(seen + (image + prior)[:, None])
        return 0.5 * (holistic + residual.amax(dim=1)), image

    def remember(self, prompts: Features) -> Features:
        """Return the chosen stages' patches at unit length, (K, C, h, w) each, and the embeddings (K, D, 1, 1)."""
        return [*unit_patches(prompts, self.stages), embedding(prompts)[:, :, None, None]]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Return each query patch's highest cosine for each stage and prompt, (B, K, h, w), and the prompts' embeddings (B, K, D, 1, 1)."""
        *banks, prompts = memory
        nearest = [nearest_cosine(query, bank) for query, bank in zip(unit_patches(queries, self.stages), banks, strict=True)]
        return [*nearest, prompts[None].expand(queries[0].shape[0], *prompts.shape) if prompts.ndim == 4 else prompts]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores (B,), and the patch residuals as anomaly maps (B, h, w)."""
        scores, _image = self(*self.evidence(queries, relation, category))
        return scores, residual_map(relation[:-1])

    def evidence(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the inputs of `forward`. The encoder is frozen, so they never change for the same pictures."""
        query = embedding(queries)
        prior = query.new_zeros(query.shape[0]) if self.prior is None else self.prior(query, category)
        return residual_map(relation[:-1]).flatten(1), query, relation[-1].flatten(2), prior


def embedding(features: Features) -> Tensor:
    """Return one vector for each picture, (B, D): the encoder's embedding, or the mean of its last map."""
    return features[-1].mean(dim=(-2, -1))


def quantiles(residual: Tensor) -> Tensor:
    """Return the quantiles at QUANTILES and the mean of residuals (B, N): (B, 11)."""
    levels = torch.tensor(QUANTILES, device=residual.device, dtype=residual.dtype)
    return torch.cat([torch.quantile(residual, levels, dim=1).mT, residual.mean(dim=1, keepdim=True)], dim=1)


def binary_focal_loss(scores: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss, the mean of −(1 − p)^γ log p (Lin et al., ICCV 2017).

    p is the probability of the correct label. `scores` are in (0, 1), and `labels` are 0 or 1.
    """
    right = torch.where(labels > 0.5, scores, 1.0 - scores).clamp_min(1e-7)
    return (-((1.0 - right) ** gamma) * right.log()).mean()
