"""Stage ingest: a dataset's pictures in, its manifest and list of rejected files out."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.running.entry import start_stage
from flows.running.places import CHECKPOINTS, MANIFESTS, PICTURES
from flows.running.steps import HOUR, step
from flows.settings.pipelines import read_pipelines
from flows.settings.reader import FILE, nearest
from tasks.common.errors import BadInput
from tasks.common.places import place_of
from tasks.common.stopping import stoppable
from tasks.ingestion.ingest import Ingested, Places, ingest_folder, ingest_packaged
from tasks.ingestion.packaged import PACKAGED
from tasks.ingestion.settings import FolderSettings


@step(name="ingest dataset", task_run_name="ingest {dataset}", timeout_seconds=6 * HOUR)
def ingest_dataset(dataset: str, folder: FolderSettings | None, workers: int) -> Ingested:
    """Ingests a folder of the user's own or, where `folder` is None, a packaged dataset."""
    places = Places(PICTURES, MANIFESTS, CHECKPOINTS)
    if folder is None:
        return ingest_packaged(dataset, places=places, workers=workers)
    return ingest_folder(dataset, place_of(folder.path), layout=folder.layout, licence=folder.licence, places=places, workers=workers)


@flow(name="ingest", flow_run_name="ingest {dataset}")
@stoppable
def ingest(dataset: str) -> None:
    read = read_pipelines()
    folders = read.datasets.folders
    if dataset not in folders and dataset not in PACKAGED:
        raise BadInput(f"{FILE}: datasets: no dataset {dataset!r}{nearest(dataset, [*PACKAGED, *folders])}")
    ingested: Ingested = ingest_dataset(dataset, folders.get(dataset), read.execution.workers)
    for note, count in ingested.notes.items():
        get_run_logger().info(f"{dataset}: {count} pictures are {note}")
    left_out = f", {ingested.rejected} left out: see {MANIFESTS}/{dataset}.rejected.csv" if ingested.rejected else ""
    get_run_logger().info(f"{dataset}: {ingested.kept} pictures{left_out}")


if __name__ == "__main__":
    start_stage(ingest)
