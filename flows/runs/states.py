"""Define the states of runs and stages, which Prefect, the journal and `changepair status` show, and the events for automations."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class StageState(StrEnum):
    """State of a stage in a run."""

    RUNNING = "Running"
    RAN = "Ran"
    UP_TO_DATE = "Up to date"
    FAILED = "Failed"
    DIED = "Died"  # its process ended without a report


class RunState(StrEnum):
    """State of a retrain run."""

    RUNNING = "Running"
    PROMOTED = "Promoted"
    KEPT = "Kept"
    IN_USE = "In use already"
    SKIPPED = "Skipped"
    STOPPED = "Stopped"
    FAILED = "Failed"
    DIED = "Died"


ALERT_EVENT, DRIFT_EVENT, LABELLED_EVENT = "changepair.alert", "changepair.drifted", "changepair.labelled"
RETRAINING = (DRIFT_EVENT, LABELLED_EVENT)  # events that request a retraining
OF_AN_END = {RunState.PROMOTED: "changepair.promoted", RunState.KEPT: "changepair.kept", RunState.FAILED: "changepair.failed"}
"""Event at the end of a retraining, by its final state."""


def resource_of(pipeline: str) -> str:
    """Return the id of a pipeline as the resource of its events."""
    return f"changepair.pipeline.{pipeline}"


def emit(pipeline: str, event: str, about: Mapping[str, Any]) -> None:
    """Emit an event of a pipeline. `about` is its payload."""
    from prefect.events import emit_event  # takes a second

    resource = {"prefect.resource.id": resource_of(pipeline), "prefect.resource.name": pipeline}
    emit_event(event, resource=resource, payload=dict(about))
