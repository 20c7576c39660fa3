"""The training-free baseline: how far each query patch is from the nearest prompt patch.

The visual half of WinCLIP+ (Jeong et al., CVPR 2023, section 4.3) and of AnomalyDINO (Damm et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, upsample
from changepair.tasks.detectors.patches import (
    chosen_stages,
    image_scores,
    median,
    nearest_cosine,
    nearest_of_rest,
    residual_map,
    unit_patches,
)
from changepair.tasks.encoders.encoder import Encoder, Features

RIM = 0.2  # share of a picture's side that is not its middle


class PatchResidual(Detector):
    """½·min over all prompt patches of (1 − cosine), averaged over the chosen stages and upsampled to the picture.

    Where the encoder sees pictures at several scales, each has a map and an image score of its own, and those are averaged: a defect of
    one size stands out of one of the maps, and in their mean less.

    The image score of a map is the mean over the highest `top_share` of patches (AnomalyDINO, section 3.2: the highest 1 %), less
    `background` times the median patch. A prompt that shows another make, or another light, raises a query's whole map; a defect
    stands out of it. With both at 0 the score is the maximum, as in WinCLIP+.

    `own` adds what a query says without a prompt: each of its patches' residual to the rest of its own picture. A scratch has no like
    in its picture, whatever make the prompt shows.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        stages: Sequence[int] = (),
        top_share: float = 0.0,
        background: float = 0.0,
        rotations: int = 1,
        mirrored: bool = False,
        own: float = 0.0,
        foreground: float | None = None,
        contrast: float | None = None,
        smoothing: float = 0.0,
    ) -> None:
        """stages: which of the encoder's feature maps, counted from 1 (the finest); none for the last three. top_share, background: 0..1.

        rotations, mirrored: Detector's. own: weight of the residual to the query's own rest, that to the prompts has 1. foreground:
        threshold of `foreground_of`, outside of which nothing counts (AnomalyDINO, section 3.3: 10, for DINOv2's last block); None for the
        whole picture. contrast: the floor of `contrasted`, as which maps, not scores, are given; None for maps as they are. smoothing:
        sigma in pixels of the Gaussian that the map, not the score, is smoothed with (AnomalyDINO, section 3.2: 4); 0 for none.
        """
        super().__init__()
        self.encoder = encoder
        self.stages = chosen_stages(encoder, stages)
        self.top_share = top_share
        self.background = background
        self.rotations = rotations
        self.mirrored = mirrored
        self.own = own
        self.foreground = foreground
        if foreground is not None:
            self.not_exported = "ONNX has no eigenvalue decomposition, by which the foreground is found"
        self.contrast = contrast
        self.smoothing = smoothing

    def units(self, features: Features) -> Features:
        """Gives the patches that are compared: of the chosen stages, at unit length."""
        return unit_patches(features, self.stages)

    def mean(self, relation: Features) -> Tensor:
        """Averages the residuals of one scale's stages to one map."""
        return residual_map(relation)

    def maps(self, relation: Features) -> list[Tensor]:
        """Gives a map Bxhxw of each scale, from the cosines of all stages."""
        each = len(self.stages) // len(self.encoder.scales)
        return [self.mean(relation[start : start + each]) for start in range(0, len(self.stages), each)]

    def score_of(self, maps: Sequence[Tensor]) -> Tensor:
        """Gives image scores B of a map Bxhxw of each scale."""
        return torch.stack([image_scores(map_.flatten(1), self.top_share, self.background) for map_ in maps]).mean(dim=0)

    def remember(self, prompts: Features) -> Features:
        return self.units(prompts)

    def relate(self, queries: Features, memory: Features) -> Features:
        """Gives for each stage and prompt every query patch's highest cosine with a patch of that prompt, BxKxhxw. After those, alike for
        every prompt, what the settings ask for: for each stage the cosine with the query's own rest, and at the end the foreground."""
        units = self.units(queries)
        cosines = [nearest_cosine(query, bank) for query, bank in zip(units, memory, strict=True)]
        of_query = [nearest_of_rest(unit) for unit in units] if self.own else []
        if self.foreground is not None:
            of_query.append(foreground_of(queries[self.stages[-1] - 1], self.foreground).to(units[0].dtype))
        return [*cosines, *(part.expand(-1, cosines[0].shape[1], -1, -1) for part in of_query)]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Gives image scores B, and anomaly maps Bxhxw on the finest chosen stage's grid. The nearest of all prompts counts."""
        maps = self.maps(relation)
        if self.own:
            of_query = self.maps(relation[len(self.stages) :])
            maps = [(map_ + self.own * own) / (1.0 + self.own) for map_, own in zip(maps, of_query, strict=True)]
        if self.foreground is not None:
            maps = [map_ * F.interpolate(relation[-1][:, :1], size=map_.shape[-2:], mode="nearest")[:, 0] for map_ in maps]
        finest = max(tuple(map_.shape[-2:]) for map_ in maps)
        together = torch.stack([upsample(map_, finest) for map_ in maps]).mean(dim=0)
        if self.contrast is not None:
            together = contrasted(together, self.contrast)
        whole = smoothed(upsample(together, self._size(queries)), self.smoothing) if self.smoothing else together
        return self.score_of(maps), whole

    def _size(self, queries: Features) -> list[int]:
        """Gives height and width of the pictures, in pixels."""
        return [side * self.encoder.strides[0] for side in queries[0].shape[-2:]]


def foreground_of(features: Tensor, threshold: float) -> Tensor:
    """Finds the patches of the object in the middle of each picture: those whose first principal component is beyond the threshold, on the
    side that holds more of the middle; a patch wider, and with small gaps closed. features: BxCxhxw, as the encoder gives them; Bx1xhxw.

    AnomalyDINO (Damm et al., WACV 2025, section 3.3) and its code, but for the side: there the other one is taken if the first, which the
    decomposition leaves to chance, has no more than 35 % of the middle.
    """
    height, width = features.shape[-2:]
    patches = features.flatten(2).double()  # BxCxN
    patches = patches - patches.mean(dim=2, keepdim=True)
    vectors = torch.linalg.eigh(patches @ patches.mT).eigenvectors[:, :, -1:]  # of the largest value
    component = (vectors.mT @ patches).view(-1, 1, height, width)
    sides = torch.stack([component > threshold, component < -threshold])
    rows, columns = (slice(int(side * RIM), int(side * (1 - RIM))) for side in (height, width))
    held = sides[..., rows, columns].flatten(2).sum(dim=2)  # 2xB
    chosen = torch.where((held[0] >= held[1])[:, None, None, None], sides[0], sides[1]).float()
    wider = _widest(_widest(chosen))
    return -_widest(-wider) > 0  # dilated; and closed, which is dilated and eroded


def _widest(mask: Tensor) -> Tensor:
    """Gives each position the highest of the nine around it. Bx1xhxw."""
    return F.max_pool2d(mask, 3, stride=1, padding=1)


def contrasted(maps: Tensor, floor: float) -> Tensor:
    """Tells how far each patch stands out of its own picture, BxN..., in [0, 1): r/(1 + r), where r is by how much it is above the median,
    in standard deviations of the picture's values and `floor` besides, so that of a picture where nothing stands out nothing does.

    What of a map is another light or make, all of its picture has in common."""
    values = maps.flatten(1)
    above = (values - median(values)[:, None]).clamp_min(0.0)
    ratio = above / (values.std(dim=1, keepdim=True) + floor)
    return (ratio / (1.0 + ratio)).view_as(maps)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Smooths maps BxHxW with a Gaussian of that many pixels, cut off at four of them; mirrored at the rim, the rim's own pixel too."""
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
