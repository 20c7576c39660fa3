"""Settings of SubspaceAD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import Between
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.encoders.settings import EncoderSettings, Stages


@dataclass(frozen=True)
class SubspaceSettings(DetectorSettings):
    encoder: EncoderSettings = EncoderSettings()
    """What turns pictures into features; the paper's is a DINOv2 transformer."""
    stages: Stages = ()
    """Of the encoder's maps, 1 the finest; [] for the last three."""
    variance: Annotated[float, Between(0, 1)] = 0.99
    """Share of the variance of the prompts' patches that the subspace holds."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """The share of patches, those farthest from the subspace, whose mean is the image score; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """How much of the median patch's value is taken off the image score."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """As how many turned views each prompt is seen."""
    mirrored: bool = False
    """Whether each of those is seen mirrored too."""
