"""The events that pipelines send to Prefect's server, for automations to act on: of a retraining's end, and of a watched line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.events import emit_event

from changepair.flows.runs.states import RunState

ALERT_EVENT, DRIFT_EVENT, LABELLED_EVENT = "changepair.alert", "changepair.drifted", "changepair.labelled"
RETRAINING = (DRIFT_EVENT, LABELLED_EVENT)  # those that ask for a retraining
OF_AN_END = {RunState.PROMOTED: "changepair.promoted", RunState.KEPT: "changepair.kept", RunState.FAILED: "changepair.failed"}
"""Those that a retraining ends with, by its state."""


def resource_of(pipeline: str) -> str:
    """Names a pipeline as the resource of its events."""
    return f"changepair.pipeline.{pipeline}"


def emit(pipeline: str, event: str, about: Mapping[str, Any]) -> None:
    """Sends an event of a pipeline. about: its payload."""
    resource = {"prefect.resource.id": resource_of(pipeline), "prefect.resource.name": pipeline}
    emit_event(event, resource=resource, payload=dict(about))
