"""Stage ingest: a dataset's pictures in, its manifest and list of rejected files out."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.runner import workers
from flows.settings import FILE, nearest, read_setting
from flows.stage import CHECKPOINTS, MANIFESTS, PICTURES, run_stage
from tasks.errors import BadInput
from tasks.ingestion.ingest import Places
from tasks.ingestion.packaged import PACKAGED
from tasks.ingestion.settings import FolderSettings
from tasks.ingestion.task import ingest_dataset
from tasks.stopping import stoppable


@flow(name="ingest", flow_run_name="ingest {dataset}")
@stoppable
def ingest(dataset: str) -> None:
    folders = read_setting(("datasets", "folders"), dict[str, FolderSettings], default={})
    if dataset not in folders and dataset not in PACKAGED:
        raise BadInput(f"{FILE}: datasets: no dataset {dataset!r}{nearest(dataset, [*PACKAGED, *folders])}")
    came = ingest_dataset(dataset, folders.get(dataset), places=Places(PICTURES, MANIFESTS, CHECKPOINTS), workers=workers())
    for note, count in came.notes.items():
        get_run_logger().info(f"{dataset}: {count} pictures are {note}")
    left_out = f", {came.rejected} left out: see {MANIFESTS}/{dataset}.rejected.csv" if came.rejected else ""
    get_run_logger().info(f"{dataset}: {came.kept} pictures{left_out}")


if __name__ == "__main__":
    run_stage(ingest)
