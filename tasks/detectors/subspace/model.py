"""SubspaceAD: how far each query patch is from the subspace that the prompts' patches lie in; nothing is trained
(Lendering, Akdag and Bondarev, CVPR 2026, arXiv 2602.23013)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, upsample
from changepair.tasks.detectors.patches import chosen_stages, image_scores
from changepair.tasks.encoders.encoder import Encoder, Features


class Subspace(Detector):
    """The principal components of all prompts' patches that hold a share of their variance; a patch's map value is the squared length of
    what they leave of it, in shares of the longest there can be.

    The paper averages a patch over the layers of a transformer. Stages of a CNN differ in width: those are brought to the finest grid and
    set side by side, each at unit length.
    """

    not_exported = "ONNX has no eigenvalue decomposition"

    def __init__(
        self,
        encoder: Encoder,
        *,
        stages: Sequence[int] = (),
        variance: float = 0.99,
        top_share: float = 0.01,
        background: float = 0.0,
        rotations: int = 1,
        mirrored: bool = False,
    ) -> None:
        """stages: of the encoder's maps, counted from 1; none for the last three. variance: share that the components hold, 0..1 (the
        paper's tau). rotations, mirrored: Detector's (the paper: 30 turned views)."""
        super().__init__()
        self.encoder = encoder
        self.stages = chosen_stages(encoder, stages)
        self.averaged = len({encoder.channels[stage - 1] for stage in self.stages}) == 1
        self.variance = variance
        self.top_share = top_share
        self.background = background
        self.rotations = rotations
        self.mirrored = mirrored

    def joined(self, views: Sequence[Tensor]) -> Tensor:
        return torch.stack([*views]).mean(dim=0)  # moments

    def remember(self, prompts: Features) -> Features:
        """Keeps the mean of each prompt's patches, KxCx1x1, and of their outer products, KxCxCx1."""
        patches = self._patches(prompts).flatten(2)  # KxCxN
        return [patches.mean(dim=2)[..., None, None], (patches @ patches.mT / patches.shape[2])[..., None]]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Gives every query its prompts' moments, BxK... each: the subspace is all its prompts' together, so nothing is compared yet."""
        shared = memory[0].ndim == 4
        return [part[None].expand(len(queries[0]), *part.shape) if shared else part for part in memory]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Gives image scores B, and anomaly maps Bxhxw on the finest chosen stage's grid."""
        patches = self._patches(queries)
        means, moments = relation[0].mean(dim=1)[..., 0, 0], relation[1].mean(dim=1)[..., 0]  # BxC, BxCxC
        maps = patches.new_empty(len(patches), *patches.shape[-2:])
        for alike in _alike(means):
            rest = patches[alike] - means[alike[0]][None, :, None, None]
            components = self._components(means[alike[0]], moments[alike[0]])
            inside = torch.einsum("cr,bchw->brhw", components, rest)
            maps[alike] = (rest.square().sum(dim=1) - inside.square().sum(dim=1)).clamp_min(0.0)
        maps = (maps / (4.0 * (1 if self.averaged else len(self.stages)))).clamp_max(1.0)  # two vectors of unit length are 2 apart at most
        return image_scores(maps.flatten(1), self.top_share, self.background), maps

    def _patches(self, features: Features) -> Tensor:
        """Gives the chosen stages' patches on the finest grid, BxCxhxw: their mean, or where they differ in width side by side."""
        units = [F.normalize(features[stage - 1], dim=1) for stage in self.stages]
        finest = max(tuple(unit.shape[-2:]) for unit in units)
        sized = [upsample(unit.flatten(0, 1), finest).unflatten(0, unit.shape[:2]) for unit in units]
        return torch.stack(sized).mean(dim=0) if self.averaged else torch.cat(sized, dim=1)

    def _components(self, mean: Tensor, moment: Tensor) -> Tensor:
        """Gives the principal components of patches of that mean C and second moment CxC, that hold the share of the variance: Cxr."""
        covariance = moment.double() - torch.outer(mean.double(), mean.double())
        values, vectors = torch.linalg.eigh(covariance)  # the largest last
        held = values.flip(0).clamp_min(0).cumsum(0)
        count = int((held < self.variance * held[-1]).sum()) + 1 if held[-1] > 0 else 0
        return vectors.flip(1)[:, :count].to(mean.dtype)


def _alike(means: Tensor) -> list[list[int]]:
    """Groups the queries whose prompts are the same, so that a subspace is found once for all of them."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for place, mean in enumerate(means.tolist()):
        groups.setdefault(tuple(mean), []).append(place)
    return list(groups.values())
