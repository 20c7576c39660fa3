"""Defines how a line is watched, as pipelines.yaml asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import STRICT, Between, NonEmpty


@dataclass(frozen=True)
class WatchSettings:
    """Pictures that appear in a folder are scored, each once, by the pipeline's model in use."""

    __pydantic_config__ = STRICT

    folder: Annotated[str, NonEmpty()]
    """Where pictures appear."""
    prompts: Annotated[str, NonEmpty()]
    """Normal pictures that they are held against: a file, a folder or a pattern."""
    normals: Annotated[str, NonEmpty()]
    """Normal pictures that set the threshold, others than the prompts: a file, a folder or a pattern."""
    detector: str | None = None
    """One of the pipeline's detectors; null for the detector of its decision."""
    false_alarms: Annotated[float, Between(0.0001, 0.5)] = 0.01
    """The rate of normal pictures that may be flagged, as a fraction."""
    alert: Annotated[float, Between(0, 1)] = 0.1
    """The share of a run's pictures that are flagged, above which it alerts."""
    drift: Annotated[float, Between(1e-6, 0.5)] = 0.01
    """The chance that a line that does not change is ever reported to have drifted."""
    record: Annotated[str, NonEmpty()] | None = None
    """The folder of what was said, and of people's verdicts; null for data/watch/<pipeline> of the checkout that scores."""
    retrain_after: Annotated[int, Between(1, 100_000)] | None = None
    """So many new verdicts of `changepair review` ask for a retraining, by an event; null for never."""
    settled: Annotated[float, Between(0, 3600)] = 2.0
    """Seconds since a picture was last written to, before it is taken: it may still be on its way."""
