"""Names the events that a watched line sends to Prefect."""

from __future__ import annotations

ALERT_EVENT, DRIFT_EVENT = "changepair.alert", "changepair.drifted"


def resource_of(pipeline: str) -> str:
    """Names a pipeline as the resource of its events."""
    return f"changepair.pipeline.{pipeline}"
