"""SubspaceAD: its settings, and how it is built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from changepair.tasks.common.bounds import STRICT, Between
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.detectors.settings import EncoderSettings, Resolution, Stages, options_of

if TYPE_CHECKING:
    from changepair.tasks.detectors.models.detector import Detector
    from changepair.tasks.detectors.models.encoder import FrozenEncoder


@dataclass(frozen=True)
class SubspaceSettings:
    __pydantic_config__ = STRICT

    encoder: EncoderSettings = EncoderSettings()
    """What turns pictures into features; the paper's is a DINOv2 transformer."""
    resolution: Resolution = 256
    """Pixels a side that pictures are scored at."""
    tiles: Tiles = "auto"
    """How pictures are cut, in evaluation and prediction. `auto`: into tiles of at most 1,024 pixels a side if a prompt's longer side has
    more than 2,048. [rows, columns]: into that grid. [1, 1] scores whole pictures."""
    stages: Stages = ()
    """Of the encoder's maps, 1 the finest; [] for the last three."""
    variance: Annotated[float, Between(0, 1)] = 0.99
    """Share of the variance of the prompts' patches that the subspace holds."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """The share of patches, those farthest from the subspace, whose mean is the image score; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """How much of the median patch's value is taken off the image score."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """As how many turned views each prompt is seen."""
    mirrored: bool = False
    """Whether each of those is seen mirrored too."""


def build(settings: SubspaceSettings, encoder: FrozenEncoder) -> Detector:
    from changepair.tasks.detectors.models.subspace import Subspace

    return Subspace(encoder, **options_of(settings))
