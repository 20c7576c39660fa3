"""Multi-scale residual: the metric residual with the settings for defects of any size, three scales that each have a map and a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import STRICT, Between
from changepair.tasks.detectors.residual import LearntResidualSettings
from changepair.tasks.detectors.residual import build_learnt as build
from changepair.tasks.detectors.settings import EncoderSettings, Resolution

__all__ = ["MultiScaleResidualSettings", "build"]


@dataclass(frozen=True)
class MultiScaleResidualSettings(LearntResidualSettings):
    """The metric residual's, with other defaults: beside it in one pipeline, for which is the better depends on the domain."""

    __pydantic_config__ = STRICT

    encoder: EncoderSettings = EncoderSettings(scales=(1.0, 0.4, 0.3))
    """What turns pictures into features, at the scales."""
    resolution: Resolution = 320
    """Pixels a side of the largest scale."""
    own: Annotated[float, Between(0, 10)] = 0.6
    """How much a patch's residual to the rest of its own picture counts, beside 1 for that to the prompts: helps where makes differ."""
    contrast: Annotated[float, Between(0.001, 1)] | None = 0.02
    """Where given, maps, not scores, say how far a patch stands out of its own picture: above the median, in standard deviations of the
    picture's residuals and this floor besides. null for residuals as they are, by which a picture in another light is higher everywhere."""
