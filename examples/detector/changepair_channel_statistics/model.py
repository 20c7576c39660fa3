"""The model: torch only."""

from __future__ import annotations

from torch import Tensor

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector
from changepair.tasks.encoders.encoder import Encoder, Features


class ChannelStatistics(Detector):
    """Mean squared deviation of each patch from the channel means of the prompts, in units of the channel variances."""

    def __init__(self, encoder: Encoder, *, stage: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.stage = stage

    def remember(self, prompts: Features) -> Features:
        """Keep the mean and the mean square of each channel, KxCx1x1 each."""
        map_ = prompts[self.stage - 1]
        return [map_.mean(dim=(-2, -1), keepdim=True), map_.square().mean(dim=(-2, -1), keepdim=True)]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Give every query the statistics of its prompts, BxKxCx1x1 each."""
        return [part[None].expand(len(queries[0]), *part.shape) if part.ndim == 4 else part for part in memory]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores B, and maps Bxhxw in [0, 1)."""
        mean, square = (part.mean(dim=1) for part in relation)
        deviation = (queries[self.stage - 1] - mean).square() / (square - mean.square()).clamp_min(1e-6)
        maps = deviation.mean(dim=1)
        maps = maps / (1 + maps)
        return maps.flatten(1).amax(dim=1), maps
