"""The detectors' settings, by the names pipelines.yaml gives them. No torch: reading settings stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import TypedDict

from tasks.settings import STRICT, Between

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
    top_share: Annotated[float, Between(0, 1)] = 0.0
    """The share of patches, those of the highest residual, whose mean is the image score; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """How much of the median patch's residual is taken off the image score: helps where defects are local, hurts where they are not."""


@dataclass(frozen=True)
class MetaUASSettings:
    __pydantic_config__ = STRICT

    encoder: EncoderName = "tf_efficientnet_lite0"
    resolution: Resolution = 256
    """Pixels a side that pictures are trained on and scored at; a multiple of 32."""
    alignment: Literal["soft", "hard", "none"] = "soft"
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
