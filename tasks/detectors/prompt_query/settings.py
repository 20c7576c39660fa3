"""Define the settings of the prompt-query adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import Between
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.encoders.settings import Stages


@dataclass(frozen=True)
class PromptQuerySettings(TrainedSettings):
    """Settings of the prompt-query adapter, which follows AdaptCLIP (AAAI 2026, arXiv 2505.09926)."""

    stages: Stages = ()
    """Feature maps of the encoder to compare, 1 for the finest. `[]` selects the last three."""
    width: Annotated[int, Between(1, 1024)] = 32
    """Channels that a patch of each feature map is reduced to."""
    head_width: Annotated[int, Between(1, 1024)] = 64
    """Channels of the head's convolutions."""
    context: bool = True
    """Whether the head sees the query's own features in addition to the differences. With them the adapter scored higher on textures and
    relied less on its prompt."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """Share of patches, those with the highest probability, whose mean is the image score. `0` takes the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """Weight of the median patch's probability, which is subtracted from the image score."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """Number of rotated views of each prompt that are stored, evenly around the circle. Use several for parts with any orientation."""
    mirrored: bool = False
    """Whether each view is also stored mirrored."""


SCORING = ("resolution", "top_share", "background", "rotations", "mirrored")  # settings that no weight depends on
