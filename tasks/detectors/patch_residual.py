"""Patch residual: its settings, and how it is built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from changepair.tasks.common.bounds import STRICT
from changepair.tasks.detectors.residual import ResidualSettings
from changepair.tasks.detectors.settings import options_of

if TYPE_CHECKING:
    from changepair.tasks.detectors.models.detector import Detector
    from changepair.tasks.detectors.models.encoder import FrozenEncoder


@dataclass(frozen=True)
class PatchResidualSettings(ResidualSettings):
    """Those of any residual, and no more."""

    __pydantic_config__ = STRICT


def build(settings: PatchResidualSettings, encoder: FrozenEncoder) -> Detector:
    from changepair.tasks.detectors.models.patch_residual import PatchResidual

    return PatchResidual(encoder, **options_of(settings))
