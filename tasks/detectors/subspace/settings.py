"""Define the settings of SubspaceAD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import Between
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.encoders.settings import EncoderSettings, Stages


@dataclass(frozen=True)
class SubspaceSettings(DetectorSettings):
    """Settings of SubspaceAD (CVPR 2026, arXiv 2602.23013). It needs no training."""

    encoder: EncoderSettings = EncoderSettings()
    """Network that turns pictures into feature maps. The paper uses a DINOv2 transformer."""
    stages: Stages = ()
    """Feature maps of the encoder to compare, 1 for the finest. `[]` selects the last three."""
    variance: Annotated[float, Between(0, 1)] = 0.99
    """Share of the variance of the prompts' patches that the subspace explains, the paper's tau."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """Share of patches, those farthest from the subspace, whose mean is the image score. `0` takes the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """Weight of the median patch's value, which is subtracted from the image score."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """Number of rotated views of each prompt that the subspace is fitted to, evenly around the circle. The paper uses 30."""
    mirrored: bool = False
    """Whether the subspace is also fitted to each view mirrored."""
