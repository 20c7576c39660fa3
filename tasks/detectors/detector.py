"""Define the interface of a detector: it compares queries with normal prompts and returns image scores and anomaly maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # `upsample` alone does not need the encoders' libraries
    from changepair.tasks.encoders.encoder import Encoder, Features

ANY_CATEGORY = "object"  # name that stands for an unknown category


class Detector(nn.Module):
    """Base class of the detectors.

    A detector compares in three steps, so that a caller with many episodes runs each step once. `remember` reduces prompts to what is
    stored. `relate` compares every query with every prompt. `conclude` computes scores and maps from a selection of the prompts. `score`
    runs all three. After `remember`, `bounded` may reduce the memory of all prompts that are compared together. A score depends neither on
    the other queries of a batch nor on the order of the prompts.

    Shapes: B queries, K prompts, C channels, H and W pixels, h and w positions of a feature map.
    """

    encoder: Encoder
    needs_prompts = True  # whether it cannot score without a prompt
    reads = False  # whether it uses the name of the category
    joint = False  # whether the relation to a prompt depends on the other prompts
    not_exported: str | None = None  # reason why it cannot be exported; None if it can
    rotations = 1  # number of rotated views stored for each prompt, evenly around the circle (AnomalyDINO, WACV 2025, section 3.3: 8)
    mirrored = False  # whether each view is also stored mirrored

    def remember(self, prompts: Features) -> Features:
        """Reduce prompts' features to what is stored: a list of tensors (K, ...)."""
        raise NotImplementedError

    def relate(self, queries: Features, memory: Features) -> Features:
        """Compare each query with each prompt: a list of tensors (B, K, ...). `memory` is (K, ...) for all queries, or (B, K, ...)."""
        raise NotImplementedError

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores (B,), and anomaly maps (B, h, w) in [0, 1] on the detector's grid.

        `relation` covers the selected prompts; without prompts it is []. `category` names what the pictures show, for detectors with
        `reads`.
        """
        raise NotImplementedError

    def part_of(self, other: Detector) -> Callable[[Features], Features] | None:
        """Return a function that selects this detector's relation from that of `other`; None if `other` does not compute it.

        Both detectors have the same encoder network. The selection equals the result of `relate` byte for byte, so that the memory of
        `other` serves both. By default, a detector uses only its own relation.
        """
        return unchanged if other is self else None

    def memorise(self, prompts: Tensor, features: Features | None = None) -> Features:
        """Return what scoring needs of prompts (K, 3, H, W) in [0, 1]. `features` are those of the prompts, if already computed."""
        views = [self.remember(self.encoder(prompts) if features is None else features)]
        views += [self.remember(self.encoder(view)) for view in other_views(prompts, self.rotations, self.mirrored)]
        return [self.joined(parts) for parts in zip(*views, strict=True)]

    def of_tile(self, memory: Features, seams: Sequence[float]) -> Features:
        """Add to the memory of prompts what scoring needs to know about their tile. By default, this is nothing.

        `seams` are the widths of the strips at the tile's top, left, bottom and right that a neighbouring tile shows too, as shares of its
        side.
        """
        return memory

    def bounded(self, memory: Features) -> Features:
        """Reduce the memory of all prompts that queries are compared with. By default, return it unchanged.

        A detector that reduces it is `joint`. Memory that is reduced already stays unchanged.
        """
        return memory

    def joined(self, views: Sequence[Tensor]) -> Tensor:
        """Join what is stored of the views of each prompt, each (K, ..., h, w). By default, more views are more patches."""
        return torch.cat([*views], dim=-2)

    def score(self, queries: Tensor, prompts: Tensor | Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Score queries (B, 3, H, W) in [0, 1] against prompts (K, 3, H, W), or against the results of `memorise` and `bounded`.

        Return image scores (B,) and anomaly maps (B, H, W) in [0, 1].
        """
        features = self.encoder(queries)
        memory = self.bounded(self.memorise(prompts)) if isinstance(prompts, Tensor) and prompts.shape[0] > 0 else prompts
        relation = self.relate(features, memory) if isinstance(memory, list) and memory else []
        if self.needs_prompts and not relation:
            raise ValueError(f"{type(self).__name__} needs at least one prompt")
        scores, maps = self.conclude(features, relation, category)
        return scores, upsample(maps, tuple(queries.shape[-2:]))


def unchanged(relation: Features) -> Features:
    """Return the whole relation, as a result of `part_of`."""
    return relation


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, h, w) to (B, H, W), bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def other_views(pictures: Tensor, rotations: int, mirrored: bool) -> Iterator[Tensor]:
    """Yield square pictures (B, 3, H, W) rotated evenly around the circle, and each rotation mirrored. The original is left out."""
    for view in range(rotations):
        seen = turned(pictures, 360.0 * view / rotations)
        if view:
            yield seen
        if mirrored:
            yield seen.flip(-1)


def turned(pictures: Tensor, degrees: float) -> Tensor:
    """Rotate square pictures (B, 3, H, W) about their centre, reflected at the border. Quarter turns copy pixels exactly."""
    quarters, rest = divmod(degrees, 90.0)
    if rest == 0.0:
        return pictures.rot90(int(quarters), dims=(-2, -1))
    angle = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    affine = torch.cat([matrix, torch.zeros(2, 1)], dim=1).to(pictures)[None].expand(pictures.shape[0], -1, -1)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
