"""Stage objects: the masks of a dataset's objects in, whatever their format; one table out."""

from __future__ import annotations

from prefect import flow, get_run_logger

from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import MANIFESTS
from changepair.flows.running.steps import HOUR, step
from changepair.flows.settings.pipelines import read_pipelines
from changepair.flows.settings.reader import FILE, nearest
from changepair.tasks.common.errors import BadInput
from changepair.tasks.ingestion.ingest import Ingested
from changepair.tasks.ingestion.objects import ingest as objects_of_pictures

ingest_objects = step(name="ingest objects", task_run_name="ingest objects of {dataset}", timeout_seconds=6 * HOUR)(
    objects_of_pictures.ingest_objects
)


@flow(name="objects", flow_run_name="objects {dataset}")
@stoppable
def objects(dataset: str) -> None:
    declared = read_pipelines().datasets.objects
    if dataset not in declared:
        raise BadInput(f"{FILE}: datasets.objects: none of {dataset!r}{nearest(dataset, declared)}")
    ingested: Ingested = ingest_objects(dataset, declared[dataset], manifests=MANIFESTS)
    left_out = f", {ingested.rejected} left out: see {MANIFESTS}/{dataset}.objects.rejected.csv" if ingested.rejected else ""
    get_run_logger().info(f"{dataset}: {ingested.kept} objects{left_out}")


if __name__ == "__main__":
    start_stage(objects)
