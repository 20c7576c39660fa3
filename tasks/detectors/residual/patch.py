"""The patch residual is the distance of each query patch to the nearest prompt patch. It needs no training.

It is the visual half of WinCLIP+ (Jeong et al., CVPR 2023, section 4.3) and of AnomalyDINO (Damm et al., WACV 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, upsample
from changepair.tasks.detectors.patches import PatchDetector, median, nearest_cosine, nearest_of_rest, residual_map, unit_patches
from changepair.tasks.detectors.residual.coreset import bounded
from changepair.tasks.encoders.encoder import Encoder, Features

RIM = 0.2  # share of a picture's side at each border that is not its middle


class PatchResidual(PatchDetector):
    """½·min over all prompt patches of (1 − cosine), averaged over the chosen stages and upsampled to the picture.

    If the encoder works at several scales, each scale has its own map and image score, and both are averaged. A defect of one size stands
    out in one of the maps, but less in their mean.

    The image score of a map is the mean of the highest `top_share` of patches, minus `background` times the median patch. AnomalyDINO
    (section 3.2) takes the highest 1 %. An appearance shift of the prompt raises a query's whole map, while a defect stands out of it. With
    both at 0 the score is the maximum, as in WinCLIP+.

    `self_residual` adds the self-residual, which compares each patch with the rest of its picture and depends on no prompt.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        self_residual: float = 0.0,
        foreground: float | None = None,
        contrast: float | None = None,
        smoothing: float = 0.0,
        memory: int = 0,
        **options: Any,
    ) -> None:
        """Set the options of the residual.

        `self_residual` is the weight of the self-residual; the prompt residual has weight 1. `foreground` is the threshold of
        `foreground_of`. Patches outside the foreground score 0, and None scores the whole picture. AnomalyDINO (section 3.3) uses 10 with
        DINOv2's last block. `contrast` is the floor of `contrasted`, which changes maps but not scores; None leaves maps unchanged.
        `smoothing` is the sigma in pixels of the Gaussian that smooths maps but not scores, or 0 (AnomalyDINO, section 3.2: 4). `memory` is
        the largest number of patches that each stage keeps of all prompts (tasks/detectors/residual/coreset.py), or 0 to keep all.
        `options` are those of PatchDetector.
        """
        super().__init__(encoder, **options)
        self.self_residual, self.foreground, self.contrast, self.smoothing = self_residual, foreground, contrast, smoothing
        self.memory, self.joint = memory, memory > 0
        if foreground is not None:
            self.not_exported = "ONNX has no eigenvalue decomposition, which the foreground needs"

    def units(self, features: Features) -> Features:
        """Return the patches to compare: those of the chosen stages, at unit length."""
        return unit_patches(features, self.stages)

    def mean(self, relation: Features) -> Tensor:
        """Average the residuals of one scale's stages to one map."""
        return residual_map(relation)

    def maps(self, relation: Features) -> list[Tensor]:
        """Return a map (B, h, w) for each scale, from the cosines of all stages."""
        each = len(self.stages) // len(self.encoder.scales)
        return [self.mean(relation[start : start + each]) for start in range(0, len(self.stages), each)]

    def score_of(self, maps: Sequence[Tensor]) -> Tensor:
        """Return image scores (B,) from one map (B, h, w) a scale."""
        return torch.stack([self.image_scores(map_) for map_ in maps]).mean(dim=0)

    def remember(self, prompts: Features) -> Features:
        return self.units(prompts)

    def bounded(self, memory: Features) -> Features:
        """Keep the patches of all prompts that cover the others, if the settings bound the memory: (1, C, 1, `memory`) for each stage."""
        return bounded(memory, self.memory) if self.memory else memory

    def relate(self, queries: Features, memory: Features) -> Features:
        """Return for each stage and prompt every query patch's highest cosine with a patch of that prompt, (B, K, h, w).

        If the settings ask for them, the cosines with the rest of the query follow for each stage, and then the foreground. Those are the
        same for every prompt.
        """
        units = self.units(queries)
        cosines = [nearest_cosine(query, bank) for query, bank in zip(units, memory, strict=True)]
        of_query = [nearest_of_rest(unit) for unit in units] if self.self_residual else []
        if self.foreground is not None:
            of_query.append(foreground_of(queries[self.stages[-1] - 1], self.foreground).to(units[0].dtype))
        return [*cosines, *(part.expand(-1, cosines[0].shape[1], -1, -1) for part in of_query)]

    def part_of(self, other: Detector) -> Callable[[Features], Features] | None:
        if not isinstance(other, PatchResidual) or not type(self) is type(other) is PatchResidual:  # a subclass may relate differently
            return super().part_of(other)
        return self.selection(other)

    def selection(self, other: PatchResidual) -> Callable[[Features], Features] | None:
        """Return a function for `part_of`; None unless `other` has the same stages and options, and all scales and residuals."""
        own, scales = self.encoder.scales, other.encoder.scales
        each = len(self.stages) // len(own)
        alike = self.stages[:each] == other.stages[: len(other.stages) // len(scales)]
        alike = alike and all(getattr(self, name) == getattr(other, name) for name in ("rotations", "mirrored", "foreground", "memory"))
        last = self.foreground is None or own[-1] == scales[-1]  # the foreground is found at the last scale
        if not alike or not last or not set(own) <= set(scales) or bool(self.self_residual) > bool(other.self_residual):
            return None
        places = [scales.index(scale) * each + stage for scale in own for stage in range(each)]
        if self.self_residual:
            places += [len(other.stages) + place for place in places]
        places += [-1] if self.foreground is not None else []
        return lambda relation: [relation[place] for place in places]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores (B,), and anomaly maps (B, h, w) on the finest chosen stage's grid. The nearest of all prompts counts."""
        maps = self.maps(relation)
        if self.self_residual:
            of_query = self.maps(relation[len(self.stages) :])
            maps = [(map_ + self.self_residual * own) / (1.0 + self.self_residual) for map_, own in zip(maps, of_query, strict=True)]
        if self.foreground is not None:
            maps = [map_ * F.interpolate(relation[-1][:, :1], size=map_.shape[-2:], mode="nearest")[:, 0] for map_ in maps]
        finest = max(tuple(map_.shape[-2:]) for map_ in maps)
        together = torch.stack([upsample(map_, finest) for map_ in maps]).mean(dim=0)
        if self.contrast is not None:
            together = contrasted(together, self.contrast)
        if self.smoothing:
            size = [side * self.encoder.strides[0] for side in queries[0].shape[-2:]]  # height and width of the pictures
            together = smoothed(upsample(together, size), self.smoothing)
        return self.score_of(maps), together


def foreground_of(features: Tensor, threshold: float) -> Tensor:
    """Find the patches of the object in the middle of each picture, (B, 1, h, w). `features` is the encoder's map (B, C, h, w).

    These are the patches whose first principal component exceeds the threshold, on the side that holds more of the middle. The region is
    dilated by a patch, and small gaps are closed.

    It follows AnomalyDINO (Damm et al., WACV 2025, section 3.3) and its code, except for the choice of the side. AnomalyDINO takes the
    other side if the first, which the decomposition leaves to chance, covers at most 35 % of the middle.
    """
    height, width = features.shape[-2:]
    patches = features.flatten(2).double()  # (B, C, N)
    patches = patches - patches.mean(dim=2, keepdim=True)
    vectors = torch.linalg.eigh(patches @ patches.mT).eigenvectors[:, :, -1:]  # vector of the largest eigenvalue
    component = (vectors.mT @ patches).view(-1, 1, height, width)
    sides = torch.stack([component > threshold, component < -threshold])
    rows, columns = (slice(int(side * RIM), int(side * (1 - RIM))) for side in (height, width))
    held = sides[..., rows, columns].flatten(2).sum(dim=2)  # (2, B)
    chosen = torch.where((held[0] >= held[1])[:, None, None, None], sides[0], sides[1]).float()
    for _dilation in range(2):
        chosen = F.max_pool2d(chosen, 3, stride=1, padding=1)
    return -F.max_pool2d(-chosen, 3, stride=1, padding=1) > 0  # erosion after two dilations: dilated once, and closed


def contrasted(maps: Tensor, floor: float) -> Tensor:
    """Return how far each patch stands out of its picture, in [0, 1), for maps (B, ...).

    The value is r / (1 + r), where r is the distance above the median divided by the standard deviation of the picture's values plus
    `floor`. An appearance shift that raises all patches of a picture has no effect.
    """
    values = maps.flatten(1)
    above = (values - median(values)[:, None]).clamp_min(0.0)
    ratio = above / (values.std(dim=1, keepdim=True) + floor)
    return (ratio / (1.0 + ratio)).view_as(maps)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps (B, H, W) with a Gaussian of `sigma` pixels, cut off at 4 sigma. Borders are mirrored, including the border pixel."""
    reach = int(4.0 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = kernel / kernel.sum()
    for axis in (1, 2):
        lines = maps.movedim(axis, -1)
        size = lines.shape[-1]
        places = torch.arange(-reach, size + reach, device=maps.device).remainder(2 * size)
        mirrored = lines[..., torch.minimum(places, 2 * size - 1 - places)]
        lines = F.conv1d(mirrored.flatten(0, 1)[:, None], kernel.view(1, 1, -1)).view(lines.shape)
        maps = lines.movedim(-1, axis)
    return maps
