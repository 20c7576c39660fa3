"""Define the settings in pipelines.yaml of a watched production line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from changepair.tasks.common.bounds import STRICT, Between, NonEmpty


@dataclass(frozen=True)
class WatchSettings:
    """Settings of a watched folder. The pipeline's current model scores each new picture once."""

    __pydantic_config__ = STRICT

    folder: Annotated[str, NonEmpty()]
    """Folder that new pictures appear in."""
    prompts: Annotated[str, NonEmpty()]
    """Normal pictures that new pictures are compared with: a file, a folder or a pattern."""
    normals: Annotated[str, NonEmpty()]
    """Normal pictures that set the threshold, different from the prompts: a file, a folder or a pattern."""
    detector: str | None = None
    """One of the pipeline's detectors; null for the recommended detector."""
    false_alarms: Annotated[float, Between(0.0001, 0.5)] = 0.01
    """Target false-alarm rate, a fraction."""
    alert: Annotated[float, Between(0, 1)] = 0.1
    """Share of flagged pictures in a run above which an alert is sent."""
    drift: Annotated[float, Between(1e-6, 0.5)] = 0.01
    """Probability that drift is ever reported for a line without a change."""
    record: Annotated[str, NonEmpty()] | None = None
    """Folder of the scores and of people's labels; null for data/watch/<pipeline> in the checkout that scores."""
    retrain_after: Annotated[int, Between(1, 100_000)] | None = None
    """Number of new labels from `changepair review` that triggers a retraining event; null for never."""
    settled: Annotated[float, Between(0, 3600)] = 2.0
    """Seconds that a file must be unchanged before it is scored, because it may still be being written."""
