"""Compare patches of queries with patches of prompts, and turn the result into maps and image scores. Shared by the detectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.detectors.detector import Detector, upsample
from changepair.tasks.encoders.encoder import Encoder, Features, exporting

MOST_SIMILARITIES = 2**19  # held at once (2 MiB of float32): it stays in the cache, and memory does not grow with the prompts
LAST_MAPS = 3  # of the encoder, where no others are chosen


class PatchDetector(Detector):
    """A detector that compares the patches of some of the encoder's maps."""

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
        """stages: of the encoder's maps, counted from 1 (the finest); none for the last three. top_share, background: of `image_scores`.
        rotations, mirrored: Detector's."""
        super().__init__()
        self.encoder = encoder
        self.stages = chosen_stages(encoder, stages)
        self.top_share, self.background = top_share, background
        self.rotations, self.mirrored = rotations, mirrored

    def image_scores(self, maps: Tensor) -> Tensor:
        """Return image scores B of maps Bxhxw."""
        return image_scores(maps.flatten(1), self.top_share, self.background)


def chosen_stages(encoder: Encoder, stages: Sequence[int]) -> tuple[int, ...]:
    """Return the given stages or the encoder's last three, at each of its scales. Raises ValueError if there is no such stage."""
    each = encoder.maps // len(encoder.scales)
    if any(not 1 <= stage <= each for stage in stages):
        raise ValueError(f"stages: numbers from 1 to {each}, as many as the encoder gives maps, not {list(stages)}")
    chosen = tuple(stages) or tuple(range(1, each + 1))[-LAST_MAPS:]
    return tuple(scale * each + stage for scale in range(len(encoder.scales)) for stage in chosen)


def unit_patches(features: Features, stages: Sequence[int]) -> Features:
    """Return the chosen stages, each patch at unit length."""
    return [F.normalize(features[stage - 1], dim=1) for stage in stages]


def nearest_cosine(query: Tensor, prompts: Tensor) -> Tensor:
    """Return each query patch's highest cosine with each prompt, BxKxhxw. query: BxCxhxw; prompts: KxCxhxw for all, or BxKxCxhxw. Both of
    unit length."""
    patches = query.flatten(2).mT  # BxNxC
    banks = prompts.flatten(-2)  # KxCxM, or BxKxCxM
    if exporting():
        nearest = (patches[:, None] @ banks).amax(dim=-1)
    elif banks.ndim == 3:
        together = patches.flatten(0, 1)
        nearest = torch.stack([_nearest(together, bank).view(len(query), -1) for bank in banks], dim=1)
    else:
        nearest = torch.stack([torch.stack([_nearest(own, bank) for bank in each]) for own, each in zip(patches, banks, strict=True)])
    return nearest.unflatten(-1, query.shape[-2:])


def _nearest(patches: Tensor, bank: Tensor) -> Tensor:
    """Return the highest cosine of each patch (NxC, unit length) with the bank (CxM, unit length): N."""
    rows = max(1, MOST_SIMILARITIES // bank.shape[-1])
    cosines = patches.new_empty(min(rows, len(patches)), bank.shape[-1])
    highest = patches.new_empty(len(patches))
    for part, highest_of_part in zip(patches.split(rows), highest.split(rows), strict=True):
        torch.mm(part, bank, out=cosines[: len(part)])
        torch.amax(cosines[: len(part)], dim=1, out=highest_of_part)
    return highest


def most_alike(patches: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest cosine of each patch (...xNxC, unit length) with the bank (...xCxM, unit length), and its index: ...xN each."""
    if exporting():
        highest = (patches @ bank).max(dim=-1)
        return highest.values, highest.indices
    rows = max(1, MOST_SIMILARITIES // bank.shape[-1])
    parts = [(part @ bank).max(dim=1) for part in patches.split(rows)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


@torch.no_grad()
def nearest_of_rest(units: Tensor) -> Tensor:
    """Return each patch's highest cosine with a patch of its own picture that is not adjacent; on a grid of at most 3x3, with any but
    itself. units: KxCxhxw, of unit length; Kx1xhxw."""
    height, width = units.shape[-2:]
    reach = 1 if max(height, width) > 3 else 0
    grid = torch.meshgrid(torch.arange(height, device=units.device), torch.arange(width, device=units.device), indexing="ij")
    y, x = (axis.flatten() for axis in grid)
    patches = units.flatten(2)  # KxCxN
    cosines, found = units.new_empty(units.shape[0], height * width), list[Tensor]()
    step = max(1, MOST_SIMILARITIES // len(y))
    for some in (slice(start, start + step) for start in range(0, len(y), step)):
        beside = ((y[some, None] - y).abs() <= reach) & ((x[some, None] - x).abs() <= reach)
        with torch.autocast(units.device.type, enabled=False):  # a hundredth of a cosine is much here
            if exporting():
                found.append((patches[:, :, some].mT @ patches).masked_fill(beside, -1.0).amax(dim=-1))
                continue
            for patch, highest in zip(patches, cosines, strict=True):
                highest[some] = (patch[:, some].mT @ patch).masked_fill_(beside, -1.0).amax(dim=1)
    return (torch.cat(found, dim=1) if found else cosines).view(-1, 1, height, width)


def residual_map(relation: Features, weights: Tensor | None = None) -> Tensor:
    """Return the residual to the nearest of all prompts, averaged over stages: Bxhxw in [0, 1]. relation: cosines BxKxhxw of each stage.
    weights: of the stages, with a sum of 1; None for equal weights."""
    residuals = [(0.5 * (1.0 - cosine.amax(dim=1))).clamp(0.0, 1.0) for cosine in relation]
    finest = max(tuple(map_.shape[-2:]) for map_ in residuals)
    stages = torch.stack([upsample(map_, finest) for map_ in residuals])
    return stages.mean(dim=0) if weights is None else (stages * weights[:, None, None, None]).sum(dim=0)


def image_scores(values: Tensor, top_share: float, background: float) -> Tensor:
    """Score pictures B by the mean of their highest patches, less a share of the median one. values: BxN, the maps' patches."""
    highest = max(1, int(top_share * values.shape[1]))
    scores = values.topk(highest, dim=1).values.mean(dim=1)
    return scores - background * median(values) if background else scores


def median(values: Tensor) -> Tensor:
    """Return the median of BxN over N, the lower of two: B."""
    if exporting():  # ONNX has a sort and no median
        return values.sort(dim=1).values[:, (values.shape[1] - 1) // 2]
    return values.median(dim=1).values


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize BxCxhxw to BxCxHxW, bilinear."""
    same = tuple(maps.shape[-2:]) == tuple(size)
    return maps if same else F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
