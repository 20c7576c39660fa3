"""Define a detector: it returns image scores and anomaly maps of queries, compared with normal prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # `upsample` alone does not need the encoders' libraries
    from changepair.tasks.encoders.encoder import Encoder, Features

ANY_CATEGORY = "object"  # name of an unknown category


class Detector(nn.Module):
    """A detector of anomalies. It compares in three steps, so that a caller with many episodes does each once: `remember` prompts, `relate`
    every query to every prompt, `conclude` from some of the prompts. `score` does all three. A score depends neither on the other queries
    of a batch nor on the order of the prompts.
    """

    encoder: Encoder
    needs_prompts = True  # whether it cannot score without a prompt
    reads = False  # whether it uses the category's name
    not_exported: str | None = None  # why it cannot be exported; None if it can
    rotations = 1  # rotated views of each prompt that are stored, evenly around the circle (AnomalyDINO, WACV 2025, section 3.3: 8)
    mirrored = False  # whether each view is also stored mirrored

    def remember(self, prompts: Features) -> Features:
        """Return what to store of prompts' features, Kx... each."""
        raise NotImplementedError

    def relate(self, queries: Features, memory: Features) -> Features:
        """Compare each query with each prompt, BxKx... each. memory: Kx... for all queries, or BxKx... ."""
        raise NotImplementedError

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores B, and anomaly maps Bxhxw in [0, 1] on the detector's grid. relation: to all prompts that count, or [] if
        there are none. category: what the pictures show, for detectors with `reads`."""
        raise NotImplementedError

    def memorise(self, prompts: Tensor, features: Features | None = None) -> Features:
        """Return what scoring needs of prompts Kx3xHxW in [0, 1]. features: theirs, if they are known already."""
        views = [self.remember(self.encoder(prompts) if features is None else features)]
        views += [self.remember(self.encoder(view)) for view in other_views(prompts, self.rotations, self.mirrored)]
        return [self.joined(parts) for parts in zip(*views, strict=True)]

    def joined(self, views: Sequence[Tensor]) -> Tensor:
        """Join what is stored of the views of each prompt, Kx...xhxw each: more views are more patches."""
        return torch.cat([*views], dim=-2)

    def score(self, queries: Tensor, prompts: Tensor | Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Score queries Bx3xHxW in [0, 1] against prompts Kx3xHxW, or what `memorise` returned. Return image scores B, anomaly maps BxHxW
        in [0, 1]."""
        features = self.encoder(queries)
        memory = self.memorise(prompts) if isinstance(prompts, Tensor) and prompts.shape[0] > 0 else prompts
        relation = self.relate(features, memory) if isinstance(memory, list) and memory else []
        if self.needs_prompts and not relation:
            raise ValueError(f"{type(self).__name__} needs at least one prompt")
        scores, maps = self.conclude(features, relation, category)
        return scores, upsample(maps, tuple(queries.shape[-2:]))


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps Bxhxw to BxHxW, bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def other_views(pictures: Tensor, rotations: int, mirrored: bool) -> Iterator[Tensor]:
    """Yield square pictures Bx3xHxW rotated evenly around the circle, and each mirrored; all but the original."""
    for view in range(rotations):
        seen = turned(pictures, 360.0 * view / rotations)
        if view:
            yield seen
        if mirrored:
            yield seen.flip(-1)


def turned(pictures: Tensor, degrees: float) -> Tensor:
    """Rotate square pictures Bx3xHxW about their centre, mirrored at the rim. Quarter turns move pixels and change none."""
    quarters, rest = divmod(degrees, 90.0)
    if rest == 0.0:
        return pictures.rot90(int(quarters), dims=(-2, -1))
    angle = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    affine = torch.cat([matrix, torch.zeros(2, 1)], dim=1).to(pictures)[None].expand(pictures.shape[0], -1, -1)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
