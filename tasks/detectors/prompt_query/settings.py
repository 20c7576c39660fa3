"""Settings of the prompt-query adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import Between
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.encoders.settings import Stages


@dataclass(frozen=True)
class PromptQuerySettings(TrainedSettings):
    stages: Stages = ()
    """Of the encoder's maps, 1 the finest; [] for the last three."""
    width: Annotated[int, Between(1, 1024)] = 32
    """Channels that a patch is reduced to, a stage."""
    head_width: Annotated[int, Between(1, 1024)] = 64
    """Channels of the head."""
    context: bool = True
    """Whether the head sees the query's own features, and not only what differs."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """The share of patches, those of the highest probability, whose mean is the image score; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """How much of the median patch's probability is taken off the image score."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """As how many turned views each prompt is remembered."""
    mirrored: bool = False
    """Whether each of those is remembered mirrored too."""


SCORING = ("resolution", "top_share", "background", "rotations", "mirrored")  # settings that no weight depends on
