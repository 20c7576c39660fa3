"""Defines how detectors are evaluated, as pipelines.yaml asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between

Queries = Annotated[int, Between(2, None)]
Convention = Literal["exact", "published"]


@dataclass(frozen=True)
class EvaluationSettings:
    __pydantic_config__ = STRICT

    batch_size: Annotated[int, Between(1, None)] = 32
    """Queries scored at once. Scores at different batch sizes agree within 5e-6."""
    resolution: Annotated[int, Between(32, 2048)] = 256
    """Pixels a side that anomaly maps and masks are compared at."""
    subset: dict[str, Queries] = field(default_factory=dict)
    """For a slow detector, how many queries of each category it scores: the first of the episodes' seeded order."""
    shown: Annotated[int, Between(0, None)] = 6
    """Pictures of each category in the overlays, and in each detector's galleries of what it missed, its false alarms, what was borderline,
    and what it found."""
    convention: Convention = "exact"
    """How AUPRO is taken: `exact`, the area to a false positive rate of 0.3 divided by 0.3; or as `published` metrics are, at 200
    thresholds with the rate rescaled between the least and the greatest below 0.3, to stand beside those. With `published`, masks are
    resized as MetaUAS's authors do, too: bilinear, and anything above 0 counts. With `exact`, a pixel is anomalous if any mask pixel that
    it covers is, so no region vanishes."""
