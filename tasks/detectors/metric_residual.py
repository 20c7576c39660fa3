"""The metric residual: its settings, and how it is built from them."""

from __future__ import annotations

from dataclasses import dataclass

from changepair.tasks.common.bounds import STRICT
from changepair.tasks.detectors.residual import LearntResidualSettings
from changepair.tasks.detectors.residual import build_learnt as build

__all__ = ["MetricResidualSettings", "build"]


@dataclass(frozen=True)
class MetricResidualSettings(LearntResidualSettings):
    """Those of any residual in a metric that is learnt, and no more."""

    __pydantic_config__ = STRICT
