"""Settings and registration. No torch here: `changepair pipelines` imports this module to read pipelines.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import STRICT, Between
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.detectors.registry import Kind
from changepair.tasks.encoders.settings import EncoderSettings, Resolution


@dataclass(frozen=True)
class ChannelStatisticsSettings:
    __pydantic_config__ = STRICT

    encoder: EncoderSettings = EncoderSettings()
    resolution: Resolution = 256
    tiles: Tiles = "auto"
    stage: Annotated[int, Between(1, 64)] = 3
    """Which map of the encoder is used, 1 for the finest. The model gets this setting by its name."""


KIND = Kind(ChannelStatisticsSettings, "changepair_channel_statistics.model:ChannelStatistics")
