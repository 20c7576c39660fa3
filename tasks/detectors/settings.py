"""Define the settings that all detectors share. A detector of another package needs the same fields, but not these classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import STRICT, FileName
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.encoders.settings import EncoderSettings, Resolution


@dataclass(frozen=True)
class DetectorSettings:
    """Settings that every detector has."""

    __pydantic_config__ = STRICT

    encoder: EncoderSettings = EncoderSettings()
    """Network that turns pictures into feature maps."""
    resolution: Resolution = 256
    """Side in pixels of the square that a picture is resized to before scoring."""
    tiles: Tiles = "auto"
    """Grid that pictures are cut by before scoring. `auto` cuts them into tiles of at most 1,024 pixels a side if a prompt's longer side
    exceeds 2,048 pixels. `[rows, columns]` sets the grid. `[1, 1]` scores whole pictures. Evaluation and prediction both follow it."""


@dataclass(frozen=True)
class _Model:
    model: Annotated[str, FileName()] | None = None
    """Trained model to use: a model folder, its URL, or `packaged` for the one in this package. `null` trains one."""


@dataclass(frozen=True)
class TrainedSettings(DetectorSettings, _Model):
    resolution: Resolution = 256
    """Side in pixels of the square that a picture is resized to, in training and scoring."""
