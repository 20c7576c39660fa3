"""Name the states of a run and of its stages, for the Prefect UI, the journal and `changepair status`, and the events for automations."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class StageState(StrEnum):
    """The states of a stage in a run."""

    RUNNING = "Running"
    RAN = "Ran"
    UP_TO_DATE = "Up to date"
    FAILED = "Failed"
    DIED = "Died"  # its process is gone and nobody has said so


class RunState(StrEnum):
    """The states of a retrain."""

    RUNNING = "Running"
    PROMOTED = "Promoted"
    KEPT = "Kept"
    IN_USE = "In use already"
    SKIPPED = "Skipped"
    STOPPED = "Stopped"
    FAILED = "Failed"
    DIED = "Died"


ALERT_EVENT, DRIFT_EVENT, LABELLED_EVENT = "changepair.alert", "changepair.drifted", "changepair.labelled"
RETRAINING = (DRIFT_EVENT, LABELLED_EVENT)  # those that ask for a retraining
OF_AN_END = {RunState.PROMOTED: "changepair.promoted", RunState.KEPT: "changepair.kept", RunState.FAILED: "changepair.failed"}
"""Those that a retraining ends with, by its state."""


def resource_of(pipeline: str) -> str:
    """Names a pipeline as the resource of its events."""
    return f"changepair.pipeline.{pipeline}"


def emit(pipeline: str, event: str, about: Mapping[str, Any]) -> None:
    """Sends an event of a pipeline. about: its payload."""
    from prefect.events import emit_event  # costs a second

    resource = {"prefect.resource.id": resource_of(pipeline), "prefect.resource.name": pipeline}
    emit_event(event, resource=resource, payload=dict(about))
