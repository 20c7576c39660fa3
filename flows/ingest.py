"""Stage ingest: a dataset's pictures in, its manifest and list of rejected files out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

from prefect import flow, get_run_logger

from changepair.flows.plan import DVC_YAML, SPLIT, read_by_ingestion
from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CHECKPOINTS, MANIFESTS, PICTURES
from changepair.flows.running.steps import HOUR, step
from changepair.flows.running.workers import Sealed, cluster_or_threads, on_cluster, wait_for
from changepair.flows.settings.pipelines import Execution, read_pipelines
from changepair.flows.settings.reader import FILE, load_yaml, nearest
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import place_of
from changepair.tasks.ingestion import check
from changepair.tasks.ingestion.check import WARNED, Facts
from changepair.tasks.ingestion.ingest import Ingested, Look, LookHere, Places, ingest_folder, ingest_packaged
from changepair.tasks.ingestion.listing import DatasetFolder, Listed
from changepair.tasks.ingestion.packaged import PACKAGED
from changepair.tasks.ingestion.settings import FolderSettings

LEAST_GREYS = 64
"""Number of grey levels of a dataset below which a warning is logged: the range of the camera may be wrong."""
AT_ONCE = 8
"""Pictures that a worker of a cluster has open: most of the time it waits for the disk or the store."""


@step(name="look at pictures", timeout_seconds=HOUR)
def look_at(portion: Sealed[Sequence[Listed]], source: DatasetFolder) -> list[Facts]:
    return check.look_at(portion.value, source, AT_ONCE)


@dataclass(frozen=True)
class LookOnCluster:
    """Pictures are looked at by the workers of a cluster, a portion a task."""

    ahead: int = 32

    def begin(self, portion: Sequence[Listed], source: DatasetFolder) -> Callable[[], Sequence[Facts]]:
        part: Any = look_at.submit(Sealed(portion), source)

        def found() -> Sequence[Facts]:
            wait_for([part], lambda: f"ingest {source.name}")
            facts: Sequence[Facts] = part.result()
            return facts

        return found


@step(name="ingest dataset", task_run_name="ingest {dataset}", timeout_seconds=24 * HOUR)
def ingest_dataset(dataset: str, folder: FolderSettings | None, execution: Execution) -> Ingested:
    """Ingests a folder of the user's own or, where `folder` is None, a packaged dataset."""
    places = Places(PICTURES, MANIFESTS, CHECKPOINTS)
    look: Look = LookOnCluster() if on_cluster(execution) else LookHere(execution.workers)
    if folder is None:
        return ingest_packaged(dataset, places=places, look=look)
    return ingest_folder(
        dataset,
        place_of(folder.path),
        layout=folder.layout,
        licence=folder.licence,
        snapshot=folder.snapshot,
        intensity=folder.intensity,
        normal=folder.normal,
        abnormal=folder.abnormal,
        masks=folder.masks,
        places=places,
        look=look,
    )


def _refuse_an_old_plan(dataset: str, folder: FolderSettings) -> None:
    """Raise BadInput if dvc.yaml lacks a dependency of the dataset, as when its table names other folders than before."""
    stages = load_yaml(DVC_YAML).get("stages", {}) if DVC_YAML.is_file() else {}
    stage = stages.get(f"ingest{SPLIT}{dataset}", {})
    missing = [place for place in read_by_ingestion(folder) if place not in stage.get("deps", ())]
    if missing and not (stage.get("always_changed") or stage.get("frozen") or not stage):
        raise BadInput(
            f"{DVC_YAML}: {missing[0]} is read for {dataset}, but is not a dependency yet; run `changepair plan`, then this again"
        )


@flow(name="ingest", flow_run_name="ingest {dataset}")
@stoppable
def ingest(dataset: str) -> None:
    read = read_pipelines()
    folders = read.datasets.folders
    if dataset not in folders and dataset not in PACKAGED:
        raise BadInput(f"{FILE}: datasets: no dataset {dataset!r}{nearest(dataset, [*PACKAGED, *folders])}")
    if dataset in folders:
        _refuse_an_old_plan(dataset, folders[dataset])
    ingested: Ingested = ingest_dataset(dataset, folders.get(dataset), read.execution)
    for note, count in ingested.notes.items():
        get_run_logger().log(WARNING if note in WARNED else INFO, f"{dataset}: {count} pictures are {note}")
    if ingested.greys < LEAST_GREYS:
        advice = (
            f"; if the camera has more, set datasets.folders.{dataset}.intensity to its samples of black and white" if ingested.deep else ""
        )
        get_run_logger().log(
            WARNING if ingested.deep else INFO, f"{dataset}: the normal pictures show {ingested.greys} of 256 grey levels{advice}"
        )
    left_out = f", {ingested.rejected} left out: see {MANIFESTS}/{dataset}.rejected.csv" if ingested.rejected else ""
    get_run_logger().log(WARNING if left_out else INFO, f"{dataset}: {ingested.kept} pictures{left_out}")


if __name__ == "__main__":
    start_stage(ingest, runner=cluster_or_threads)
