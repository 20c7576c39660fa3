"""The detectors by name: their settings, and how each is built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import TypedDict

from tasks.models.alignment import Alignment
from tasks.models.encoder import TimmEncoder, efficientnet_lite0
from tasks.models.metauas import MetaUAS, build_metauas
from tasks.models.patch_residual import PatchResidual
from tasks.settings import STRICT, Between
from tasks.weights import packaged_lite0

EncoderName = Literal["tf_efficientnet_lite0"]
Resolution = Annotated[int, Between(64, 2048)]


@dataclass(frozen=True)
class PatchResidualSettings:
    __pydantic_config__ = STRICT

    encoder: EncoderName = "tf_efficientnet_lite0"
    resolution: Resolution = 256
    """Pixels a side that pictures are scored at."""
    stages: Annotated[tuple[int, ...], Between(1, 5)] = (3, 4, 5)
    """Of the encoder, 1 the finest."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """The share of the map, its highest values, whose mean is the image score; 0 for the maximum."""


@dataclass(frozen=True)
class MetaUASSettings:
    __pydantic_config__ = STRICT

    encoder: EncoderName = "tf_efficientnet_lite0"
    resolution: Resolution = 256
    """Pixels a side that pictures are trained on and scored at; a multiple of 32."""
    alignment: Alignment = "soft"
    aligned_stages: Annotated[int, Between(1, 3)] = 3
    """How many of the encoder's last stages are aligned."""
    decoder_channels: Annotated[tuple[int, int, int, int, int], Between(16, 1024)] = (256, 128, 64, 64, 48)
    """Width of the decoder, coarsest first; at least 16, which scSE attention squeezes to one."""

    def __post_init__(self) -> None:
        if self.resolution % 32:
            raise ValueError(f"resolution: a multiple of 32, not {self.resolution}")


class DetectorSettings(TypedDict("Named", {"patch-residual": PatchResidualSettings, "metauas": MetaUASSettings}, total=False)):
    """What pipelines.yaml has under detectors: those to evaluate, each with its settings."""

    __pydantic_config__ = STRICT  # type: ignore[misc]


DetectorName = Literal["patch-residual", "metauas"]
TRAINED: tuple[DetectorName, ...] = ("metauas",)
"""Those that the train stage trains; the others need no training."""


def build_encoder(name: EncoderName) -> TimmEncoder:
    return {"tf_efficientnet_lite0": lambda: efficientnet_lite0(packaged_lite0())}[name]()


def build_detector(settings: PatchResidualSettings | MetaUASSettings, encoder: TimmEncoder) -> PatchResidual | MetaUAS:
    """A detector as its settings say; what is trained of it starts at random."""
    if isinstance(settings, PatchResidualSettings):
        return PatchResidual(encoder, stages=settings.stages, top_share=settings.top_share)
    return build_metauas(
        encoder,
        alignment=settings.alignment,
        aligned_stages=settings.aligned_stages,
        decoder_channels=settings.decoder_channels,
    )
