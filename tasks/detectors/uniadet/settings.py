"""Define the settings of UniADet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import Between
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.encoders.settings import Stages


@dataclass(frozen=True)
class UniADetSettings(TrainedSettings):
    """Settings of UniADet (arXiv 2601.05552), which also works without prompts."""

    stages: Stages = ()
    """Feature maps of the encoder to use, 1 for the finest. `[]` selects the last three."""
    learned: Annotated[float, Between(0, 10)] = 0.3
    """Weight of the learned parts if there are prompts. The patch residual has weight 1. The paper adds both, which is `1`. With `0`, only
    the residual counts."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """Share of patches, those with the highest values, whose mean is the map's part of the image score. `0` takes the maximum, as in the
    paper."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """Weight of the median patch, which is subtracted from the map's part of the image score."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """Number of rotated views of each prompt that are stored, evenly around the circle. Use several for parts with any orientation."""
    mirrored: bool = False
    """Whether each view is also stored mirrored."""


SCORING = ("resolution", "learned", "top_share", "background", "rotations", "mirrored")  # settings that no weight depends on
