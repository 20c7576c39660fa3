"""SubspaceAD scores a query patch by its distance from the subspace of the prompts' patches. It needs no training.

Lendering, Akdag and Bondarev, CVPR 2026, arXiv 2602.23013.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from changepair.tasks.detectors.detector import ANY_CATEGORY, upsample
from changepair.tasks.detectors.patches import PatchDetector, unit_patches
from changepair.tasks.encoders.encoder import Encoder, Features


class Subspace(PatchDetector):
    """SubspaceAD: principal components of all prompts' patches that explain a given share of their variance.

    The map value of a patch is the squared length of its remainder outside the subspace, divided by the greatest possible value.

    The paper averages a patch over the layers of a transformer. Stages of a CNN differ in width; those are resized to the finest grid and
    concatenated, each at unit length.
    """

    not_exported = "ONNX has no eigenvalue decomposition"

    def __init__(self, encoder: Encoder, *, variance: float = 0.99, top_share: float = 0.01, **options: Any) -> None:
        """Set the share of the variance that the components explain, 0 to 1, the paper's tau. `options` are those of PatchDetector. The
        paper uses 30 rotations."""
        super().__init__(encoder, top_share=top_share, **options)
        self.averaged = len({encoder.channels[stage - 1] for stage in self.stages}) == 1
        self.variance = variance

    def joined(self, views: Sequence[Tensor]) -> Tensor:
        return torch.stack([*views]).mean(dim=0)  # moments of several views are averaged

    def remember(self, prompts: Features) -> Features:
        """Return the mean of each prompt's patches, (K, C, 1, 1), and the mean of their outer products, (K, C, C, 1)."""
        patches = self._patches(prompts).flatten(2)  # (K, C, N)
        return [patches.mean(dim=2)[..., None, None], (patches @ patches.mT / patches.shape[2])[..., None]]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Return the moments of each query's prompts, (B, K, ...). The subspace covers all prompts together, so nothing is compared yet."""
        shared = memory[0].ndim == 4
        return [part[None].expand(len(queries[0]), *part.shape) if shared else part for part in memory]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores (B,), and anomaly maps (B, h, w) on the finest chosen stage's grid."""
        patches = self._patches(queries)
        means, moments = relation[0].mean(dim=1)[..., 0, 0], relation[1].mean(dim=1)[..., 0]  # (B, C), (B, C, C)
        maps = patches.new_empty(len(patches), *patches.shape[-2:])
        groups: dict[tuple[float, ...], list[int]] = {}  # queries with the same prompts share a subspace
        for place, mean in enumerate(means.tolist()):
            groups.setdefault(tuple(mean), []).append(place)
        for alike in groups.values():
            rest = patches[alike] - means[alike[0]][None, :, None, None]
            components = self._components(means[alike[0]], moments[alike[0]])
            inside = torch.einsum("cr,bchw->brhw", components, rest)
            maps[alike] = (rest.square().sum(dim=1) - inside.square().sum(dim=1)).clamp_min(0.0)
        maps = (maps / (4.0 * (1 if self.averaged else len(self.stages)))).clamp_max(1.0)  # vectors of unit length are at most 2 apart
        return self.image_scores(maps), maps

    def _patches(self, features: Features) -> Tensor:
        """Return the chosen stages' patches on the finest grid, (B, C, h, w): averaged, or concatenated if they differ in width."""
        units = unit_patches(features, self.stages)
        finest = max(tuple(unit.shape[-2:]) for unit in units)
        sized = [upsample(unit.flatten(0, 1), finest).unflatten(0, unit.shape[:2]) for unit in units]
        return torch.stack(sized).mean(dim=0) if self.averaged else torch.cat(sized, dim=1)

    def _components(self, mean: Tensor, moment: Tensor) -> Tensor:
        """Return the principal components (C, r) that explain the share of the variance. `mean` (C,) and `moment` (C, C) are those of the
        patches."""
        covariance = moment.double() - torch.outer(mean.double(), mean.double())
        values, vectors = torch.linalg.eigh(covariance)  # eigenvalues in ascending order
        held = values.flip(0).clamp_min(0).cumsum(0)
        count = int((held < self.variance * held[-1]).sum()) + 1 if held[-1] > 0 else 0
        return vectors.flip(1)[:, :count].to(mean.dtype)
