"""The training-free baseline: how far each query patch is from the nearest prompt patch.

The visual half of WinCLIP+ (Jeong et al., CVPR 2023, section 4.3) and of AnomalyDINO (Damm et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.detectors.models.detector import ANY_CATEGORY, Detector, upsample
from tasks.detectors.models.encoder import Encoder, Features

MOST_SIMILARITIES = 2**19  # held at once (2 MiB of float32): it stays in the cache, and memory does not grow with the prompts
LAST_MAPS = 3  # of the encoder, where no others are chosen


class PatchResidual(Detector):
    """½·min over all prompt patches of (1 − cosine), averaged over the chosen stages and upsampled to the picture.

    The image score is the mean over the highest `top_share` of patches (AnomalyDINO, section 3.2: the highest 1 %), less
    `background` times the median patch. A prompt that shows another make, or another light, raises a query's whole map; a defect
    stands out of it. With both at 0 the score is the maximum, as in WinCLIP+.
    """

    def __init__(
        self, encoder: Encoder, *, stages: Sequence[int] = (), top_share: float = 0.0, background: float = 0.0, rotations: int = 1
    ) -> None:
        """stages: which of the encoder's feature maps, counted from 1 (the finest); none for the last three. top_share, background: 0..1.

        rotations: as how many turned views each prompt is remembered, evenly around the circle (AnomalyDINO, section 3.3: 8).
        """
        super().__init__()
        self.encoder = encoder
        self.stages = chosen_stages(encoder, stages)
        self.top_share = top_share
        self.background = background
        self.rotations = rotations

    def memorise(self, prompts: Tensor, features: Features | None = None) -> Features:
        views = [super().memorise(prompts, features)]
        views += [self.remember(self.encoder(turned(prompts, 360.0 * view / self.rotations))) for view in range(1, self.rotations)]
        return [torch.cat(stages, dim=-2) for stages in zip(*views, strict=True)]  # a view more is so many patches more

    def remember(self, prompts: Features) -> Features:
        return unit_patches(prompts, self.stages)

    def relate(self, queries: Features, memory: Features) -> Features:
        """Gives for each stage and prompt every query patch's highest cosine with a patch of that prompt, BxKxhxw."""
        return [nearest_cosine(query, bank) for query, bank in zip(unit_patches(queries, self.stages), memory, strict=True)]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Gives image scores B, and anomaly maps Bxhxw on the finest chosen stage's grid. The nearest of all prompts counts."""
        maps = residual_map(relation)
        return image_scores(maps.flatten(1), self.top_share, self.background), maps


def image_scores(values: Tensor, top_share: float, background: float) -> Tensor:
    """Scores pictures B by the mean of their highest patches, less a share of the median one. values: BxN, the maps' patches."""
    highest = max(1, int(top_share * values.shape[1]))
    scores = values.topk(highest, dim=1).values.mean(dim=1)
    return scores - background * values.median(dim=1).values if background else scores


def chosen_stages(encoder: Encoder, stages: Sequence[int]) -> tuple[int, ...]:
    """Chooses the stages asked for, or the encoder's last three. Raises ValueError if it has no such stage."""
    if any(not 1 <= stage <= encoder.maps for stage in stages):
        raise ValueError(f"stages: numbers from 1 to {encoder.maps}, as many as the encoder gives maps, not {list(stages)}")
    return tuple(stages) or tuple(range(1, encoder.maps + 1))[-LAST_MAPS:]


def unit_patches(features: Features, stages: Sequence[int]) -> Features:
    """Gives the chosen stages, each patch at unit length."""
    return [F.normalize(features[stage - 1], dim=1) for stage in stages]


def residual_map(relation: Features) -> Tensor:
    """Turns each stage's cosines BxKxhxw into the residual to the nearest of all prompts, averaged over stages: Bxhxw in [0, 1]."""
    residuals = [(0.5 * (1.0 - cosine.amax(dim=1))).clamp(0.0, 1.0) for cosine in relation]
    finest = max(tuple(map_.shape[-2:]) for map_ in residuals)
    return torch.stack([upsample(map_, finest) for map_ in residuals]).mean(dim=0)


def nearest_cosine(query: Tensor, prompts: Tensor) -> Tensor:
    """Finds the nearest patches in one stage of vectors of unit length. query: BxCxhxw; prompts: KxCxhxw for all queries, or BxKxCxhxw.
    Cosines BxKxhxw."""
    patches = query.flatten(2).mT  # BxNxC
    banks = prompts.flatten(-2)  # KxCxM, or BxKxCxM
    if banks.ndim == 3:
        together = patches.flatten(0, 1)
        nearest = torch.stack([_nearest(together, bank).view(len(query), -1) for bank in banks], dim=1)
    else:
        nearest = torch.stack([torch.stack([_nearest(own, bank) for bank in each]) for own, each in zip(patches, banks, strict=True)])
    return nearest.unflatten(-1, query.shape[-2:])


def _nearest(patches: Tensor, bank: Tensor) -> Tensor:
    """Finds the highest cosine of each patch (NxC, unit length) with the bank (CxM, unit length): N."""
    rows = max(1, MOST_SIMILARITIES // bank.shape[-1])
    cosines = patches.new_empty(min(rows, len(patches)), bank.shape[-1])
    highest = patches.new_empty(len(patches))
    for part, highest_of_part in zip(patches.split(rows), highest.split(rows), strict=True):
        torch.mm(part, bank, out=cosines[: len(part)])
        torch.amax(cosines[: len(part)], dim=1, out=highest_of_part)
    return highest


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes BxCxhxw to BxCxHxW, bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def turned(pictures: Tensor, degrees: float) -> Tensor:
    """Turns square pictures Bx3xHxW about their middle, mirrored at the rim; quarter turns move pixels and change none."""
    quarters, rest = divmod(degrees, 90.0)
    if rest == 0.0:
        return pictures.rot90(int(quarters), dims=(-2, -1))
    angle = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    affine = torch.cat([matrix, torch.zeros(2, 1)], dim=1).to(pictures)[None].expand(len(pictures), -1, -1)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
