"""Stage objects: the masks of a dataset's objects in, whatever their format; one table out."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.settings import read_setting
from flows.stage import MANIFESTS, run_stage
from tasks.ingestion.settings import ObjectsSettings
from tasks.ingestion.task import ingest_objects
from tasks.stopping import stoppable


@flow(name="objects", flow_run_name="objects {dataset}")
@stoppable
def objects(dataset: str) -> None:
    settings = read_setting(("datasets", "objects", dataset), ObjectsSettings)
    came = ingest_objects(dataset, settings, manifests=MANIFESTS)
    left_out = f", {came.rejected} left out: see {MANIFESTS}/{dataset}.objects.rejected.csv" if came.rejected else ""
    get_run_logger().info(f"{dataset}: {came.kept} objects{left_out}")


if __name__ == "__main__":
    run_stage(objects)
