"""Settings of the patch residual, and of the metric residual, whose metric is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import Between, FileName
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.encoders.settings import Stages


@dataclass(frozen=True)
class PatchResidualSettings(DetectorSettings):
    stages: Stages = ()
    """Which maps of the encoder are used, 1 for the finest; [] for the last three."""
    top_share: Annotated[float, Between(0, 1)] = 0.0
    """Share of patches, those with the highest residual, whose mean is the image score; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """How much of the median patch's residual is taken off the image score: helps where defects are local, hurts where they are not."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """Number of rotated views of each prompt that are stored, for parts with any orientation."""
    mirrored: bool = False
    """Whether each view is also stored mirrored. Doubles the work for prompts; rarely worse."""
    self_residual: Annotated[float, Between(0, 10)] = 0.0
    """Weight of the self-residual, that of a patch to the rest of its picture; the prompt residual has weight 1. Helps against appearance
    shift, as between devices or sensors."""
    foreground: Annotated[float, Between(0, None)] | None = None
    """Value of the last stage's first principal component from which a patch is of the object, outside of which nothing counts; null for
    the whole picture. AnomalyDINO has 10 for objects on an empty ground, with DINOv2."""
    contrast: Annotated[float, Between(0.001, 1)] | None = None
    """Where given, maps, not scores, say how far a patch stands out of its own picture: above the median, in standard deviations of the
    picture's residuals and this floor besides. null for residuals as they are, by which a picture in another light is higher everywhere."""
    smoothing: Annotated[float, Between(0, 64)] = 0.0
    """Pixels, sigma of the Gaussian that maps are smoothed with (AnomalyDINO: 4); scores are read off before. 0 for none."""


@dataclass(frozen=True)
class MetricResidualSettings(PatchResidualSettings):
    model: Annotated[str, FileName()] | None = None
    """A model to use as it is: a folder, or `packaged`; null to train one."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """The share of patches, those of the highest residual, whose mean is the image score, which is what is learnt; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.5
    """How much of the median patch's residual is taken off the image score."""


SCORING = (
    "resolution",
    "top_share",
    "background",
    "rotations",
    "mirrored",
    "self_residual",
    "foreground",
    "contrast",
    "smoothing",
    "encoder.scales",
)
"""Settings that the learnt metric does not depend on."""
