"""Compare patches of a query with several appearance versions of the prompts. The detector needs no training.

It extends the patch residual (Jeong et al., "WinCLIP", CVPR 2023, section 4.3). `RobustResidual` describes the extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.detectors.appearance import versions_of
from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, other_views, unchanged, upsample
from changepair.tasks.detectors.patches import PatchDetector, image_scores, median, most_alike, nearest_cosine
from changepair.tasks.detectors.residual.positions import REGISTERED, Positions, distant, registration
from changepair.tasks.encoders.encoder import Encoder, Features, exporting

WINDOWS = 3  # windows per side of a prompt, for `spread`
SURFACE, OBJECT = 0.18, 0.28
"""Coefficients of variation of the patch lengths (standard deviation divided by mean). Up to SURFACE a prompt is a surface, from OBJECT it
is an object. On the development datasets, surfaces have 0.10 to 0.20, and labels and parts 0.27 to 0.40."""
ALIKE = 0.5  # h of two pictures of one surface; about √2 / 3 if the nine windows are independent
OTHER = 1.0  # h from which the whole-picture statistic raises the image score by its full share

RELATING = ("stages", "pools", "versions", "magnitude", "positions", "radius", "rotations", "mirrored")
"""Options that the relation depends on, in addition to the presence of the whole-picture statistic."""


class RobustResidual(PatchDetector):
    """Compare each query patch with the nearest patch of the prompts and their appearance versions.

    Residual: let q be a query patch, and p the patch of one prompt, in any version, with the highest cosine to q. The patch residual is
    r = ½(1 − cos). The relative distance is d = ‖q − p‖² / m, where m is the mean of ‖p‖² over the prompt's patches in all versions. The
    robust residual is r^(1 − w/2) · d^(w/2). The lowest residual of all prompts counts. The weight w depends on the prompt
    (`shows_object`). If the prompt shows a surface, w is 0 and the residual is r. If it shows an object on a plain ground, w is 1 and the
    residual is √(r · d), which also compares the length of features. A cosine ignores the length, so it gives faint grain of the ground as
    much weight as the structure of the object. `magnitude=False` replaces w by 0 in this formula.

    Map: the mean of the residuals over stages. With several scales, the map of the first one has weight 1. The mean map of the others has
    weight 1 − w, with the mean w of the prompts. A coarse scale shows the structure of a surface, but blurs details of an object. Anomaly
    maps are this map minus `background` times its median, clipped to [0, 1].

    Whole-picture statistic h: it measures changes that no single patch shows, such as another colour or focus. Each channel of a stage has
    a mean and a standard deviation over all positions (`statistics`). h is the root mean square of their differences between the query and
    the most similar version of the prompts. Each difference is divided by the standard deviation of the same value over 3 × 3 windows of
    this version (`spread`). h is averaged over the stages of the first scale. Two pictures of one surface have h ≈ ½.

    Image score: x / (1 + x) with x = (a − background · b) · (1 + whole · g). Here a is the mean of the highest values of the map, and b its
    median. `top_share` is the share of values in this mean. g is 0 up to h = ½, rises linearly, and is 1 from h = 1. It has an upper bound
    because h is also high for normal pictures that no prompt resembles. Nor does h measure how severe a defect is.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        patch: int = 8,
        versions: bool = True,
        magnitude: bool = True,
        whole: float = 1.0,
        positions: Positions = "off",
        radius: float = 0.08,
        top_share: float = 0.01,
        background: float = 0.7,
        **options: Any,
    ) -> None:
        """Set the options of the residual.

        `patch` is the stride in pixels that finer stages are averaged to. `versions` sets whether appearance versions of the prompts are
        stored. `magnitude`, `whole`, `top_share` and `background` are explained above. `whole=0` turns the whole-picture statistic off.
        `positions` sets when a patch is compared only with prompt patches within `radius`, a share of the picture's side. `options` are
        those of PatchDetector.
        """
        super().__init__(encoder, top_share=top_share, background=background, **options)
        self.versions, self.magnitude, self.whole = versions, magnitude, whole
        self.positions, self.radius = positions, radius
        self.joint = positions == "auto"
        self.pools = tuple(max(1, patch // encoder.strides[stage - 1]) for stage in self.stages)
        self.each = len(self.stages) // len(encoder.scales)  # stages of one scale

    def memorise(self, prompts: Tensor, features: Features | None = None) -> Features:
        if exporting():  # at once, so that the graph has the encoder once
            pictures = [prompts, *self._views(prompts)]
            every = self.remember(self.encoder(torch.cat(pictures)))
            return [self.joined(part.unflatten(0, (len(pictures), -1)).unbind()) for part in every]
        views = [self.remember(self.encoder(prompts) if features is None else features)]
        views += [self.remember(self.encoder(view)) for view in self._views(prompts)]
        return [self.joined(parts) for parts in zip(*views, strict=True)]

    def _views(self, prompts: Tensor) -> Iterator[Tensor]:
        if self.versions:
            yield from versions_of(prompts)
        yield from other_views(prompts, self.rotations, self.mirrored)

    def of_tile(self, memory: Features, seams: Sequence[float]) -> Features:
        """Append the seams for each prompt, (K, 4). Image scores leave them out, because content that moved into a tile is no defect."""
        return [*memory, memory[0].new_tensor(seams).expand(len(memory[0]), -1)] if any(seams) else memory

    def remember(self, prompts: Features) -> Features:
        """Return the patches of each stage at unit length, with their length as the last channel: (K, C+1, h, w).

        With `whole`, a tensor (K, 1, 1, 4C) follows for each stage of the first scale: its `statistics`, then their `spread`.
        """
        chosen = self._chosen(prompts)
        patches = [torch.cat([F.normalize(stage, dim=1), stage.norm(dim=1, keepdim=True)], dim=1) for stage in self._pooled(chosen)]
        return [*patches, *(torch.cat([statistics(stage), spread(stage)], dim=1)[:, None, None] for stage in self._wide(chosen))]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Return the residual of each query patch to each prompt, (B, K, h, w) for each stage.

        With `whole`, the whole-picture statistic of each stage of the first scale follows, (B, K, 1, 1). In a tile, its seams follow,
        (B, K, 4). The last tensor, (B, K, 1, 1), is the result of `shows_object`.
        """
        chosen, banks = self._chosen(queries), memory[: len(self.stages)]
        objects = shows_object(banks[: self.each]).expand(queries[0].shape[0], -1)
        weight, pooled = objects * float(self.magnitude), self._pooled(chosen)
        near = self._near(banks, pooled)
        residuals = [self._residuals(stage, bank, weight, near) for stage, bank in zip(pooled, banks, strict=True)]
        wide = self._wide(chosen)
        known, seams = memory[len(banks) : len(banks) + len(wide)], memory[len(banks) + len(wide) :]
        statistic = [changes(stage, one) for stage, one in zip(wide, known, strict=True)]
        return [*residuals, *statistic, *(one.expand(objects.shape[0], -1, -1) for one in seams), objects[..., None, None]]

    def part_of(self, other: Detector) -> Callable[[Features], Features] | None:
        """Select the whole relation of a detector that differs only in `top_share`, `background` or the size of `whole`."""
        if not isinstance(other, RobustResidual) or not type(self) is type(other) is RobustResidual:
            return super().part_of(other)
        alike = self.encoder.scales == other.encoder.scales and bool(self.whole) == bool(other.whole)
        return unchanged if alike and all(getattr(self, name) == getattr(other, name) for name in RELATING) else None

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores (B,) in [0, 1), and anomaly maps (B, h, w) in [0, 1] on the grid of the finest stage."""
        closest, objects = [part.amin(dim=1) for part in relation[:-1]], relation[-1].mean(dim=1)
        stages, rest = closest[: len(self.stages)], closest[len(self.stages) :]
        wide = len(self._wide(self._chosen(queries)))
        changed, seams = rest[:wide], rest[wide:]
        finest = max(tuple(stage.shape[-2:]) for stage in stages)
        maps = _mean(stages[: self.each], finest)
        if len(stages) > self.each:
            surface = 1.0 - objects
            maps = (maps + surface * _mean(stages[self.each :], finest)) / (1.0 + surface)
        above = maps - self.background * median(maps.flatten(1))[:, None, None]
        scored = above * inside(seams[0], finest) if seams else above
        scores = image_scores(scored.flatten(1), self.top_share, 0.0)
        if changed:
            statistic = torch.stack(changed).mean(dim=0).flatten()
            scores = scores * (1.0 + self.whole * ((statistic - ALIKE) / (OTHER - ALIKE)).clamp(0.0, 1.0))
        return scores / (1.0 + scores), above.clamp(0.0, 1.0)

    def _chosen(self, features: Features) -> Features:
        return [features[stage - 1] for stage in self.stages]

    def _wide(self, stages: Features) -> Features:
        """Return the stages for the whole-picture statistic: those of the first scale whose windows have at least 2 × 2 positions."""
        return [stage for stage in stages[: self.each] if self.whole and min(stage.shape[-2:]) >= 2 * WINDOWS]

    def _pooled(self, stages: Features) -> Features:
        return [F.avg_pool2d(stage, pool) if pool > 1 else stage for stage, pool in zip(stages, self.pools, strict=True)]

    def _near(self, banks: Features, queries: Features) -> Tensor | None:
        """Return whether the patches of each query are compared only with nearby ones, (1,) or (B,). None if this holds for no query."""
        if self.positions == "off":
            return None
        bank, height = max(((bank, query.shape[-2]) for bank, query in zip(banks, queries, strict=True)), key=lambda pair: pair[1])
        if self.positions == "on":
            return torch.ones(1, dtype=torch.bool, device=bank.device)
        near = registration(bank[..., :-1, :height, :], self.radius).view(-1) > REGISTERED  # of the unchanged prompts, which come first
        return near if exporting() or bool(near.any()) else None

    def _residuals(self, query: Tensor, bank: Tensor, weight: Tensor, near: Tensor | None) -> Tensor:
        """Return the residual of each patch of queries (B, C, h, w) to each prompt: (B, K, h, w).

        `bank` is (K, C+1, h, w) or (B, K, C+1, h, w). `weight` is w, (B, K). `near` is the result of `_near`.
        """
        units = F.normalize(query, dim=1)
        if near is None and not exporting() and not bool(weight.any()):  # which patch is nearest does not matter
            return (0.5 * (1.0 - nearest_cosine(units, bank[..., :-1, :, :]))).clamp_min(0.0)
        patches, banks = units.flatten(2).mT, bank.flatten(-2)  # (B, N, C), (K, C+1, M) or (B, K, C+1, M)
        if near is None:
            cosines, places = nearest(patches, banks[..., :-1, :])
        else:
            height, width = query.shape[-2:]
            far = distant(height, width, self.radius, query.device).repeat(1, bank.shape[-2] // height)  # (N, M)
            cosines, places = nearest_near(patches, banks[..., :-1, :], far, near)
        lengths = banks[..., -1, :].expand(query.shape[0], -1, -1)  # of the prompts' patches, (B, K, M)
        own, found = query.norm(dim=1).flatten(1)[:, None], lengths.gather(2, places)
        apart = (own.square() + found.square() - 2.0 * cosines * own * found).clamp_min(0.0) / lengths.square().mean(dim=2, keepdim=True)
        half = 0.5 * weight[..., None]
        residuals = (0.5 * (1.0 - cosines)).clamp_min(0.0) ** (1.0 - half) * apart**half
        return residuals.unflatten(-1, query.shape[-2:])


def shows_object(banks: Features) -> Tensor:
    """Return the weight w of each prompt, from 0 for a surface to 1 for an object on a plain ground: (K,) or (B, K).

    w rises linearly from SURFACE to OBJECT with the coefficient of variation of the patch lengths, averaged over stages. `banks` are the
    patches of each stage with their length as the last channel, (K, C+1, h, w) or (B, K, C+1, h, w).
    """
    lengths = [bank[..., -1, :, :].flatten(-2) for bank in banks]
    variation = torch.stack([each.std(dim=-1) / each.mean(dim=-1) for each in lengths]).mean(dim=0)
    return ((variation - SURFACE) / (OBJECT - SURFACE)).clamp(0.0, 1.0)


def nearest(patches: Tensor, banks: Tensor) -> tuple[Tensor, Tensor]:
    """Return each patch's highest cosine with a patch of each prompt, and its index, (B, K, N) each.

    `patches` is (B, N, C). `banks` is (K, C, M) for all queries, or (B, K, C, M). Both have unit length.
    """
    if exporting():
        return most_alike(patches[:, None], banks)
    if banks.ndim == 3:
        found = [most_alike(patches.flatten(0, 1), bank) for bank in banks]
        cosines, places = (torch.stack([one[part].view(len(patches), -1) for one in found], dim=1) for part in (0, 1))
    else:
        several = [[most_alike(own, bank) for bank in each] for own, each in zip(patches, banks, strict=True)]
        cosines, places = (torch.stack([torch.stack([one[part] for one in each]) for each in several]) for part in (0, 1))
    return cosines, places


def nearest_near(patches: Tensor, banks: Tensor, far: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `nearest`, but skip the pairs `far` (N, M) for queries whose `near` is true. `near` is (1,) or (B,)."""
    if exporting():
        return most_alike(patches[:, None], banks, far & near[:, None, None, None])
    own = zip(patches, banks.expand(len(patches), *banks.shape[-3:]), near.expand(len(patches)), strict=True)
    several = [[most_alike(query, bank, far if excluded else None) for bank in each] for query, each, excluded in own]
    cosines, places = (torch.stack([torch.stack([one[part] for one in each]) for each in several]) for part in (0, 1))
    return cosines, places


def _mean(maps: Features, size: Sequence[int]) -> Tensor:
    """Return the mean of maps (B, h, w), resized to (B, H, W)."""
    return torch.stack([upsample(map_, size) for map_ in maps]).mean(dim=0)


def inside(seams: Tensor, size: Sequence[int]) -> Tensor:
    """Return 1 for the patches (B, h, w) of a tile whose centre is not in its seams, otherwise 0. `seams` is (B, 4)."""
    between = []
    for side, (low, high) in zip(size, (seams[:, 0::2].unbind(1), seams[:, 1::2].unbind(1)), strict=True):
        centre = (torch.arange(side, device=seams.device) + 0.5) / side
        between.append((centre >= low[:, None]) & (centre <= 1.0 - high[:, None]))
    return (between[0][:, :, None] & between[1][:, None]).to(seams)


def statistics(maps: Tensor) -> Tensor:
    """Return the mean and the standard deviation of each channel of maps (B, C, h, w): (B, 2C)."""
    return torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3))], dim=1)


def spread(maps: Tensor) -> Tensor:
    """Return the standard deviation of `statistics` over 3 × 3 windows of maps (B, C, h, w), plus 1 % of its mean: (B, 2C)."""
    sides = [size // WINDOWS for size in maps.shape[-2:]]
    tops, lefts = (
        [place * (size - side) // (WINDOWS - 1) for place in range(WINDOWS)] for size, side in zip(maps.shape[2:], sides, strict=True)
    )
    windows = [maps[..., top : top + sides[0], left : left + sides[1]] for top in tops for left in lefts]
    found = torch.stack([statistics(window) for window in windows]).std(dim=0)
    return found + 0.01 * found.mean(dim=1, keepdim=True)  # a channel that is constant in the prompt does not decide alone


def changes(queries: Tensor, known: Tensor) -> Tensor:
    """Return the whole-picture statistic h of queries (B, C, h, w) against each prompt: (B, K, 1, 1).

    `known` holds the `statistics` and the `spread` of the V versions of each prompt, (K, 1, V, 4C) or (B, K, 1, V, 4C).
    """
    own = statistics(queries)[:, None, None, None]  # (B, 1, 1, 1, 2C)
    theirs, unit = known.chunk(2, dim=-1)
    return ((own - theirs) / unit).square().mean(dim=-1).sqrt().amin(dim=-1, keepdim=True)
