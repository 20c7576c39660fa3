"""The events that pipelines send to Prefect's server, for automations to act on: of a retraining's end, and of a watched line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.assets import Asset, AssetProperties, materialize
from prefect.client.base import ServerType, determine_server_type
from prefect.events import emit_event

from changepair.flows.runs.states import RunState

ALERT_EVENT, DRIFT_EVENT, LABELLED_EVENT = "changepair.alert", "changepair.drifted", "changepair.labelled"
RETRAINING = (DRIFT_EVENT, LABELLED_EVENT)
"""Those that ask for a retraining."""
OF_AN_END = {
    RunState.PROMOTED: "changepair.promoted",
    RunState.KEPT: "changepair.kept",
    RunState.FAILED: "changepair.failed",
}
"""Those that a retraining ends with, by its state."""


def resource_of(pipeline: str) -> str:
    """Names a pipeline as the resource of its events."""
    return f"changepair.pipeline.{pipeline}"


def emit(pipeline: str, event: str, about: Mapping[str, Any]) -> None:
    """Sends an event of a pipeline. about: its payload."""
    resource = {"prefect.resource.id": resource_of(pipeline), "prefect.resource.name": pipeline}
    emit_event(event, resource=resource, payload=dict(about))


def show_asset(pipeline: str, datasets: Sequence[str], model: Mapping[str, str]) -> None:
    """Shows a model that was put to use as an asset that came of datasets, where the server is Prefect Cloud: one's own has no page for
    assets. To be called in a flow. datasets: by name. model: where DVC has it, its hash, and the commit it was made at."""
    if determine_server_type() != ServerType.CLOUD:
        return
    about = AssetProperties(name=f"{pipeline}: the model in use", description=f"DVC has it as {model.get('path')}, {model.get('hash')}")
    asset = Asset(key=f"dvc://changepair/{pipeline}/in-use", properties=about)

    @materialize(
        asset,
        by="dvc",
        asset_deps=[Asset(key=f"dvc://changepair/datasets/{name}") for name in datasets],
        name="show model",
        persist_result=False,
    )
    def show() -> None:
        asset.add_metadata(dict(model))

    show()
