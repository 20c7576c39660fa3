"""Define the settings of the patch residual, the robust residual, and the metric residual, which learns its metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import MOST, Between, FileName
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.encoders.settings import LITE2, EncoderSettings, Stages


@dataclass(frozen=True)
class PatchResidualSettings(DetectorSettings):
    """Settings of the patch residual, the visual half of WinCLIP+ (section 4.3) and of AnomalyDINO. It needs no training."""

    stages: Stages = ()
    """Feature maps of the encoder to compare, 1 for the finest. `[]` selects the last three."""
    top_share: Annotated[float, Between(0, 1)] = 0.0
    """Share of patches, those with the highest residual, whose mean is the image score. `0` takes the maximum, as in WinCLIP+; AnomalyDINO
    uses 0.01."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """Weight of the median patch's residual, which is subtracted from the image score. It helps where defects are local, and hurts where
    they cover much of the picture."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """Number of rotated views of each prompt that are stored, evenly around the circle. Use several for parts with any orientation;
    AnomalyDINO uses 8."""
    mirrored: bool = False
    """Whether each view is also stored mirrored. It doubles the work for prompts, and hurts where a mirror image is a defect, as in
    letters."""
    self_residual: Annotated[float, Between(0, 10)] = 0.0
    """Weight of the self-residual, which compares a patch with the rest of its picture. The prompt residual has weight 1. It helps against
    appearance shift, as between devices or sensors. Among the values tried, none did better than 0.6 on development-textures at 256
    pixels."""
    foreground: Annotated[float, Between(0, None)] | None = None
    """Threshold of the first principal component of the last stage's features. Patches beyond it belong to the object, and all others score
    0. `null` scores the whole picture. AnomalyDINO uses 10 with DINOv2, for objects on an empty ground."""
    contrast: Annotated[float, Between(0.001, 1)] | None = None
    """Floor, in units of the residual, that makes anomaly maps relative to their picture. Each patch's excess over the picture's median is
    divided by the standard deviation of the picture's residuals plus this floor. A change of light that raises the whole map then has no
    effect. Image scores do not change. `null` leaves maps unchanged."""
    smoothing: Annotated[float, Between(0, 64)] = 0.0
    """Sigma in pixels of the Gaussian that smooths anomaly maps. Image scores do not change. AnomalyDINO uses 4; `0` turns it off."""
    memory: Annotated[int, Between(0, MOST)] = 0
    """Largest number of patches of all prompts that each stage keeps, with the selection of PatchCore. `0` keeps all. Use it with many
    prompts: a comparison then takes less time, and a kit is smaller. The selection depends on all prompts of a comparison, so every draw
    of prompts has its own. Under `class-agnostic`, so has every query, which takes time."""


@dataclass(frozen=True)
class RobustResidualSettings(DetectorSettings):
    """Settings of the robust residual, a patch residual that is robust to another camera. It needs no training.

    The defaults were chosen on the development datasets, most of them by the mean rank over categories.
    """

    encoder: EncoderSettings = EncoderSettings(name=LITE2, scales=(1.0, 0.5))
    """Network that turns pictures into feature maps. Scales below 1 count only if the prompt is a surface."""
    stages: Stages = ()
    """Feature maps of the encoder to compare, 1 for the finest. `[]` selects the last three."""
    patch: Annotated[int, Between(1, 64)] = 8
    """Side in pixels of the patches that are compared. Finer feature maps are averaged to it. `16` compares about 10 times as fast, with
    coarser anomaly maps, and finds fewer small defects."""
    versions: bool = True
    """Whether 11 appearance versions of each prompt are also stored: compressed, noisy, shifted, blurred, darker or brighter. A change of
    the camera then causes fewer false alarms. A kit becomes 12 times as large, and a comparison takes 12 times as long."""
    magnitude: bool = True
    """Whether the residual also compares the length of features if that varies much within the prompt. It helps with objects on a plain
    ground, and has no effect on surfaces."""
    whole: Annotated[float, Between(0, 10)] = 1.0
    """Largest share by which the image score rises if the picture differs from the prompts as a whole, for example in colour or weave. It
    applies before the score is mapped to [0, 1]. `0` turns it off."""
    positions: Literal["off", "auto", "on"] = "off"
    """Which prompt patches a patch is compared with. `off` takes all. `on` takes only those near its own position. `auto` does so if two or
    more prompts show that pictures are registered, and otherwise takes all. Use it for parts that always lie at the same place."""
    radius: Annotated[float, Between(0, 1)] = 0.08
    """Greatest distance of compared patches with `positions`, as a share of the picture's side. It is rounded to patches, and at least
    one."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """Share of patches, those with the highest residual, whose mean is the image score. `0` takes the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.7
    """Weight of the median patch's residual, which is subtracted from the map and the image score. A change of the camera raises the whole
    map, so the subtraction lowers the number of false alarms."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """Number of rotated views of each prompt that are stored, evenly around the circle. Use several for parts with any orientation."""
    mirrored: bool = False
    """Whether each view is also stored mirrored. It hurts where a mirror image is a defect, as in letters."""


@dataclass(frozen=True)
class MetricResidualSettings(PatchResidualSettings):
    """Settings of the patch residual in a metric that is learned from change pairs."""

    model: Annotated[str, FileName()] | None = None
    """Trained model to use: a model folder, its URL, or `packaged` for the one in this package. `null` trains one."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """Share of patches, those with the highest residual, whose mean is the image score. `0` takes the maximum. Training ranks pairs by this
    score; AnomalyDINO uses the same 0.01."""
    background: Annotated[float, Between(0, 1)] = 0.5
    """Weight of the median patch's residual, which is subtracted from the image score. It reduces the effect of an appearance shift that
    raises the whole map."""


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
    "memory",
    "encoder.scales",
)
"""Settings that a trained metric can be used with at other values."""
