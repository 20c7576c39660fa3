"""Ingestion as Prefect tasks: one a dataset, and one for the masks of its objects."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from tasks.ingestion import ingest
from tasks.ingestion.objects import ingest as objects
from tasks.ingestion.settings import FolderSettings
from tasks.retries import worth_retrying


@task(
    task_run_name="ingest {dataset}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=6 * 3600,
    persist_result=False,
)
def ingest_dataset(dataset: str, folder: FolderSettings | None, *, places: ingest.Places, workers: int) -> ingest.Ingested:
    """A folder of the user's own, or, where `folder` is None, a packaged dataset."""
    if folder is None:
        return ingest.ingest_packaged(dataset, places=places, workers=workers)
    return ingest.ingest_folder(dataset, Path(folder.path), layout=folder.layout, licence=folder.licence, places=places, workers=workers)


ingest_objects = task(
    name="ingest objects",
    task_run_name="ingest objects of {dataset}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=6 * 3600,
    persist_result=False,
)(objects.ingest_objects)
