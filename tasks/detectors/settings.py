"""Settings that detectors share. The settings of another package need the same fields, not these classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import STRICT, FileName
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.encoders.settings import EncoderSettings, Resolution


@dataclass(frozen=True)
class DetectorSettings:
    __pydantic_config__ = STRICT

    encoder: EncoderSettings = EncoderSettings()
    """What turns pictures into features."""
    resolution: Resolution = 256
    """Pixels a side that pictures are scored at."""
    tiles: Tiles = "auto"
    """How pictures are cut, in evaluation and prediction. `auto`: into tiles of at most 1,024 pixels a side if a prompt's longer side has
    more than 2,048. [rows, columns]: into that grid. [1, 1] scores whole pictures."""


@dataclass(frozen=True)
class _Model:
    model: Annotated[str, FileName()] | None = None
    """A model to use as it is: a folder, or `packaged`; null to train one."""


@dataclass(frozen=True)
class TrainedSettings(DetectorSettings, _Model):
    resolution: Resolution = 256
    """Pixels a side that pictures are trained on and scored at."""
