"""Names the events that a watched line sends to Prefect."""

from __future__ import annotations

ALERT_EVENT, DRIFT_EVENT, LABELLED_EVENT = "changepair.alert", "changepair.drifted", "changepair.labelled"
RETRAINING = (DRIFT_EVENT, LABELLED_EVENT)
"""Those that ask for a retraining."""


def resource_of(pipeline: str) -> str:
    """Names a pipeline as the resource of its events."""
    return f"changepair.pipeline.{pipeline}"
