"""MetaUAS*+: its settings, and how it is built upon a pipeline's MetaUAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from changepair.tasks.common.bounds import STRICT, Some
from changepair.tasks.detectors.settings import EncoderSettings, Resolution, Stages

if TYPE_CHECKING:
    from changepair.tasks.detectors.models.clip import ClipEncoder
    from changepair.tasks.detectors.models.detector import Detector
    from changepair.tasks.detectors.models.metauas import MetaUAS


@dataclass(frozen=True)
class MetaUASPlusSettings:
    """MetaUAS with a visual prior. Takes encoder, model and resolution from a MetaUAS of the same pipeline."""

    __pydantic_config__ = STRICT

    model_of: Annotated[str, Some()] = "metauas"
    """Name of the pipeline's detector of kind metauas."""
    prior: EncoderSettings | None = None
    """The CLIP transformer whose few-shot map, as WinCLIP has it, is averaged with the map of MetaUAS: the authors' is ViT-B-16-plus-240;
    null for the patch residual of the features of MetaUAS itself."""
    prior_resolution: Resolution = 240
    """Pixels a side that pictures are shown to the prior's encoder at."""
    stages: Stages = ()
    """Of the encoder's maps, for the patch residual; [] for the last three."""

    def __post_init__(self) -> None:
        if self.prior is not None and self.prior.library != "open_clip":
            raise ValueError(f"prior: a transformer of open_clip, not of {self.prior.library}")


def build(settings: MetaUASPlusSettings, metauas: MetaUAS) -> Detector:
    from changepair.tasks.detectors.models.metauas_plus import MetaUASPlus, SecondEncoder
    from changepair.tasks.detectors.models.patch_residual import PatchResidual

    if settings.prior is None:
        return MetaUASPlus(metauas, PatchResidual(metauas.encoder, stages=settings.stages))
    from changepair.tasks.detectors.encoders import build_encoder
    from changepair.tasks.detectors.models.clip import WindowEncoder

    clip = cast("ClipEncoder", build_encoder(settings.prior, settings.prior_resolution))
    return MetaUASPlus(metauas, SecondEncoder(metauas.encoder, WindowEncoder(clip), settings.prior_resolution))
