"""The metric residual: its settings, and how it is built from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from tasks.common.bounds import STRICT, Between
from tasks.detectors.residual import ResidualSettings

if TYPE_CHECKING:
    from tasks.detectors.models.detector import Detector
    from tasks.detectors.models.encoder import FrozenEncoder


@dataclass(frozen=True)
class MetricResidualSettings(ResidualSettings):
    """Those of any residual, and what is used as it is."""

    __pydantic_config__ = STRICT

    model: str | None = None
    """A model to use as it is: a folder, or `packaged`; null to train one."""
    top_share: Annotated[float, Between(0, 1)] = 0.01
    """The share of patches, those of the highest residual, whose mean is the image score, which is what is learnt; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.5
    """How much of the median patch's residual is taken off the image score."""


def build(settings: MetricResidualSettings, encoder: FrozenEncoder) -> Detector:
    from tasks.detectors.models.metric_residual import MetricResidual

    options = asdict(settings)
    for other in ("encoder", "resolution", "model"):
        del options[other]
    return MetricResidual(encoder, **options)
