"""Run the stage `objects`: read the masks of a dataset's objects; write them as one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import MANIFESTS
from changepair.flows.settings.pipelines import Datasets, Execution
from changepair.flows.stage import Input, Output, Setting, Stage, stage_flow
from changepair.tasks.common.places import place_of
from changepair.tasks.ingestion.settings import ObjectsSettings


@dataclass(frozen=True)
class Objects(Stage):
    """Declare the table of a dataset's objects."""

    dataset: str
    masks: Input[str]
    manifest: Input[Path]
    objects: Annotated[ObjectsSettings, Setting("datasets.objects.{dataset}")]
    table: Output[Path]
    rejected: Output[Path]

    @property
    def about(self) -> str:
        return f"Read the object masks of {self.dataset}"


def declare(dataset: str, datasets: Datasets, root: Path) -> Iterator[Objects]:
    if dataset in datasets.objects:
        settings = datasets.objects[dataset]
        place = place_of(settings.path)
        # The masks of Open Images are next to their CSV, or below.
        masks = str(place.parent if settings.format == "open-images" else place)
        manifest, table, rejected = (MANIFESTS / f"{dataset}.{end}" for end in ("parquet", "objects.parquet", "objects.rejected.csv"))
        yield Objects(dataset, masks, manifest, settings, table, rejected)


@stage_flow()
def objects(stage: Objects, execution: Execution) -> None:
    from prefect import get_run_logger

    from changepair.flows.running.steps import HOUR, step
    from changepair.tasks.ingestion.ingest import Ingested
    from changepair.tasks.ingestion.objects.ingest import ingest_objects

    task = step(name="ingest objects", task_run_name="ingest objects of {dataset}", timeout_seconds=6 * HOUR)(ingest_objects)
    ingested: Ingested = task(stage.dataset, stage.objects, manifests=MANIFESTS)
    left_out = f", {ingested.rejected} rejected; see {stage.rejected}" if ingested.rejected else ""
    get_run_logger().info(f"{stage.dataset}: {ingested.kept} objects{left_out}")


if __name__ == "__main__":
    start_stage("objects")
