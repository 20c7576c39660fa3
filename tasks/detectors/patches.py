"""Compare patches of queries with patches of prompts, and turn the cosines into anomaly maps and image scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.common.onednn import linear
from changepair.tasks.detectors.detector import Detector, upsample
from changepair.tasks.encoders.encoder import Encoder, Features, exporting

ROWS, COLUMNS = 512, 1024
"""Numbers of query and prompt patches whose cosines are held at once (2 MiB), so that they stay in the processor's cache."""
GROUP = 32  # columns that `_maximum` compares as one group
LAST_MAPS = 3  # number of the encoder's last maps that are the default


class PatchDetector(Detector):
    """A detector that compares patches of some of the encoder's maps."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        stages: Sequence[int] = (),
        top_share: float = 0.0,
        background: float = 0.0,
        rotations: int = 1,
        mirrored: bool = False,
    ) -> None:
        """Select the maps to compare and how they are scored.

        `stages` counts the encoder's maps from 1, the finest; the last three are the default. `top_share` and `background` are those of
        `image_scores`. `rotations` and `mirrored` are those of Detector.
        """
        super().__init__()
        self.encoder = encoder
        self.stages = chosen_stages(encoder, stages)
        self.top_share, self.background = top_share, background
        self.rotations, self.mirrored = rotations, mirrored

    def image_scores(self, maps: Tensor) -> Tensor:
        """Return image scores (B,) of maps (B, h, w)."""
        return image_scores(maps.flatten(1), self.top_share, self.background)


def chosen_stages(encoder: Encoder, stages: Sequence[int]) -> tuple[int, ...]:
    """Return the given stages, or the encoder's last three, at each of its scales. Raises ValueError if a stage does not exist."""
    each = encoder.maps // len(encoder.scales)
    if any(not 1 <= stage <= each for stage in stages):
        raise ValueError(f"stages: numbers from 1 to {each}, the number of the encoder's feature maps, not {list(stages)}")
    chosen = tuple(stages) or tuple(range(1, each + 1))[-LAST_MAPS:]
    return tuple(scale * each + stage for scale in range(len(encoder.scales)) for stage in chosen)


def unit_patches(features: Features, stages: Sequence[int]) -> Features:
    """Return the chosen stages with each patch at unit length."""
    return [F.normalize(features[stage - 1], dim=1) for stage in stages]


def nearest_cosine(query: Tensor, prompts: Tensor) -> Tensor:
    """Return each query patch's highest cosine with each prompt, (B, K, h, w).

    `query` is (B, C, h, w). `prompts` is (K, C, h, w) for all queries, or (B, K, C, h, w). Both have unit length.
    """
    patches = query.flatten(2).mT  # (B, N, C)
    banks = prompts.flatten(-2)  # (K, C, M), or (B, K, C, M)
    if exporting():
        nearest = (patches[:, None] @ banks).amax(dim=-1)
    elif banks.ndim == 3:
        together = patches.flatten(0, 1)
        nearest = torch.stack([_nearest(together, bank).view(len(query), -1) for bank in banks], dim=1)
    else:
        nearest = torch.stack([torch.stack([_nearest(own, bank) for bank in each]) for own, each in zip(patches, banks, strict=True)])
    return nearest.unflatten(-1, query.shape[-2:])


def _nearest(patches: Tensor, bank: Tensor) -> Tensor:
    """Return the highest cosine of each patch, (N,). `patches` (N, C) and `bank` (C, M) have unit length."""
    highest, patches = None, patches.contiguous()
    for columns in bank.mT.contiguous().split(COLUMNS):
        found = torch.cat([linear(part, columns).amax(dim=1) for part in patches.split(ROWS)])
        highest = found if highest is None else torch.maximum(highest, found)
    assert highest is not None
    return highest


def most_alike(patches: Tensor, bank: Tensor, excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return each patch's highest cosine and its index in the bank, (..., N) each. The first of equal cosines counts.

    `patches` (..., N, C) and `bank` (..., C, M) have unit length. `excluded` (..., N, M) are the pairs that are not compared.
    """
    if exporting():
        cosines = patches @ bank
        highest = (cosines if excluded is None else cosines.masked_fill(excluded, -2.0)).max(dim=-1)
        return highest.values, highest.indices
    patches = patches.contiguous()  # once, instead of in each product
    best: tuple[Tensor, Tensor] | None = None
    for start, columns in zip(range(0, bank.shape[1], COLUMNS), bank.mT.contiguous().split(COLUMNS), strict=True):
        found = []
        for row, part in zip(range(0, len(patches), ROWS), patches.split(ROWS), strict=True):
            cosines = linear(part, columns)
            if excluded is not None:
                cosines = cosines.masked_fill_(excluded[row : row + ROWS, start : start + COLUMNS], -2.0)
            found.append(_maximum(cosines))
        value, place = (torch.cat(parts) for parts in zip(*found, strict=True))
        if best is None:
            best = value, place
        else:
            later = (value > best[0]) | value.isnan()  # so that it stays, as in a maximum of the whole
            best = torch.where(later, value, best[0]), torch.where(later, start + place, best[1])
    assert best is not None
    return best


def _maximum(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each row of (N, M) and its lowest index, (N,) each. Groups make this 3 times as fast as Tensor.max."""
    if values.shape[1] % GROUP:
        highest = values.max(dim=1)
        return highest.values, highest.indices
    groups = values.unflatten(1, (-1, GROUP))
    value, group = groups.amax(dim=2).max(dim=1)
    return value, group * GROUP + groups[torch.arange(len(values), device=values.device), group].argmax(dim=1)


@torch.no_grad()
def nearest_of_rest(units: Tensor) -> Tensor:
    """Return each patch's highest cosine with a patch of the same picture that is not adjacent, (K, 1, h, w).

    On a grid of at most 3x3, only the patch itself is excluded. `units` is (K, C, h, w), of unit length.
    """
    height, width = units.shape[-2:]
    adjacent = _adjacent(height, width, 1 if max(height, width) > 3 else 0, units.device)
    patches = units.flatten(2)  # (K, C, N)
    cosines = units.new_empty(units.shape[0], height * width)
    step = max(1, ROWS * COLUMNS // 2 // len(adjacent))  # half, because the cosines are written twice
    with torch.autocast(units.device.type, enabled=False):  # in full precision: a hundredth of a cosine matters here
        if exporting():
            parts = [
                (patches[:, :, some].mT @ patches, adjacent[some].expand(units.shape[0], -1, -1)) for some in _slices(len(adjacent), step)
            ]
            cosines = torch.cat([part.scatter(2, near, -1.0).amax(dim=2) for part, near in parts], dim=1)
        else:
            for patch, highest in zip(patches, cosines, strict=True):
                rows = patch.mT.contiguous()
                for some in _slices(len(adjacent), step):
                    highest[some] = linear(rows[some], rows).scatter_(1, adjacent[some], -1.0).amax(dim=1)
    return cosines.view(-1, 1, height, width)


def _adjacent(height: int, width: int, reach: int, device: torch.device) -> Tensor:
    """Return the indices of the positions at most `reach` rows and columns from each position of a grid, itself included: (N, R).

    At a border, some occur twice.
    """
    near = torch.arange(-reach, reach + 1, device=device)
    y = (torch.arange(height, device=device)[:, None] + near).clamp(0, height - 1)
    x = (torch.arange(width, device=device)[:, None] + near).clamp(0, width - 1)
    return (y[:, None, :, None] * width + x[None, :, None, :]).flatten(2).flatten(0, 1)


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]


def residual_map(relation: Features, weights: Tensor | None = None) -> Tensor:
    """Return the residual ½(1 − cosine) to the nearest of all prompts, averaged over stages: (B, h, w) in [0, 1].

    `relation` holds the cosines (B, K, h, w) of each stage. `weights` of the stages sum to 1; None weights them equally.
    """
    residuals = [(0.5 * (1.0 - cosine.amax(dim=1))).clamp(0.0, 1.0) for cosine in relation]
    finest = max(tuple(map_.shape[-2:]) for map_ in residuals)
    stages = torch.stack([upsample(map_, finest) for map_ in residuals])
    return stages.mean(dim=0) if weights is None else (stages * weights[:, None, None, None]).sum(dim=0)


def image_scores(values: Tensor, top_share: float, background: float) -> Tensor:
    """Score pictures, (B,), by the mean of their highest patches minus a share of the median patch.

    `values` (B, N) are the maps' patches. `top_share` is the share of patches in the mean, and `background` the weight of the median.
    """
    highest = max(1, int(top_share * values.shape[1]))
    scores = values.topk(highest, dim=1).values.mean(dim=1)
    return scores - background * median(values) if background else scores


def median(values: Tensor) -> Tensor:
    """Return the lower median of (B, N) over N: (B,)."""
    if exporting():  # ONNX has a sort, but no median
        return values.sort(dim=1).values[:, (values.shape[1] - 1) // 2]
    return values.median(dim=1).values


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) to (B, C, H, W), bilinear."""
    same = tuple(maps.shape[-2:]) == tuple(size)
    return maps if same else F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
