"""How detectors are evaluated, as pipelines.yaml asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tasks.detector_settings import DetectorName
from tasks.settings import STRICT, Between

Queries = Annotated[int, Between(2, None)]


@dataclass(frozen=True)
class EvaluationSettings:
    __pydantic_config__ = STRICT

    batch_size: Annotated[int, Between(1, None)] = 32
    """Queries scored at once; no score depends on it."""
    resolution: Annotated[int, Between(32, 2048)] = 256
    """Pixels a side that anomaly maps and masks are compared at."""
    subset: dict[DetectorName, Queries] = field(default_factory=dict)
    """For a slow detector, how many queries of each category it scores: the first of the episodes' seeded order."""
    shown: Annotated[int, Between(0, None)] = 6
    """Pictures of each category in the overlay pictures."""
