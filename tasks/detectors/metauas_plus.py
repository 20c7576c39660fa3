"""MetaUAS*+: its settings, and how it is built upon a pipeline's MetaUAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.common.bounds import STRICT
from tasks.detectors.settings import Stages

if TYPE_CHECKING:
    from tasks.detectors.models.detector import Detector
    from tasks.detectors.models.metauas import MetaUAS


@dataclass(frozen=True)
class MetaUASPlusSettings:
    """MetaUAS with the patch residual of its own encoder. Takes encoder, model and resolution from the pipeline's metauas."""

    __pydantic_config__ = STRICT

    stages: Stages = ()
    """Of the encoder's maps, for the patch residual; [] for the last three."""


def build(settings: MetaUASPlusSettings, metauas: MetaUAS) -> Detector:
    from tasks.detectors.models.metauas_plus import MetaUASPlus
    from tasks.detectors.models.patch_residual import PatchResidual

    return MetaUASPlus(metauas, PatchResidual(metauas.encoder, stages=settings.stages))
