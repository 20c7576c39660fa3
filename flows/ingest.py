"""Run the stage `ingest`: read the pictures of a dataset; write its manifest and the list of rejected files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CHECKPOINTS, MANIFESTS, PICTURES
from changepair.flows.running.workers import Sealed, cluster_or_threads, on_cluster, wait_for
from changepair.flows.settings.pipelines import Datasets, Execution
from changepair.flows.settings.reader import load_yaml
from changepair.flows.stage import DVC_YAML, Input, Output, Setting, Stage, stage_flow
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_remote, place_of, unreadable
from changepair.tasks.ingestion.settings import OF_A_FILE, FolderSettings

if TYPE_CHECKING:
    from changepair.tasks.ingestion.check import Facts
    from changepair.tasks.ingestion.ingest import Ingested
    from changepair.tasks.ingestion.listing import DatasetFolder, ListedPicture

LEAST_GREYS = 64
"""Number of grey levels below which a warning is logged: the intensity range may be wrong for the camera."""
AT_ONCE = 8
"""Number of pictures that a worker of a cluster reads at the same time: it mostly waits for the disk or the store."""


@dataclass(frozen=True)
class Ingest(Stage):
    """Declare the ingestion of a folder or of a packaged dataset."""

    dataset: str
    read: Input[Sequence[str]]
    """Files and folders that it reads; empty if DVC cannot read one of them."""
    folder: Annotated[FolderSettings | None, Setting("datasets.folders.{dataset}")]
    """Settings of the folder; None for a packaged dataset."""
    pictures: Output[Path]
    manifest: Output[Path]
    rejected: Output[Path]
    unreadable: str
    """The first file that DVC cannot read; "" if DVC can read all files."""
    gone: bool
    """Whether the folder of a snapshot no longer exists. The outputs hold all of it."""

    @property
    def about(self) -> str:
        if self.folder is None:
            how = "extract them from an installed package"
        else:
            how = "copy them" if self.folder.snapshot else "read them in place"
        odd = f"; in every run, because DVC cannot read {self.unreadable}" if self.unreadable else ""
        return f"Ingest the pictures of {self.dataset}: {how}{odd}"

    @property
    def frozen(self) -> bool:
        return self.gone

    @property
    def always(self) -> bool:
        return bool(self.unreadable)


def declare(dataset: str, datasets: Datasets, root: Path) -> Iterator[Ingest]:
    folder = datasets.folders.get(dataset)
    read = [] if folder is None else read_by_ingestion(folder, root)
    odd = _unreadable(read, root)
    gone = folder is not None and folder.snapshot and not _from(root, place_of(folder.path)).exists()
    outputs = (PICTURES / dataset, MANIFESTS / f"{dataset}.parquet", MANIFESTS / f"{dataset}.rejected.csv")
    yield Ingest(dataset, [] if odd else read, folder, *outputs, odd, gone)


def read_by_ingestion(folder: FolderSettings, root: Path = Path()) -> list[str]:
    """List the files and folders of a dataset: its folder, its stated subfolders, or a table with the files it names."""
    place = place_of(folder.path)
    if folder.layout == OF_A_FILE:
        from changepair.tasks.ingestion.readers.tables import named_by

        return [str(place), *(str(place.parent / name) for name in named_by(_from(root, place)))]
    stated = (*folder.normal, *folder.abnormal, *([folder.masks] if folder.masks else []))
    return [str(place / name) for name in stated] or [str(place)]


def _from(root: Path, place: Path) -> Path:
    return place if is_remote(place) else root / place


def _unreadable(read: Sequence[str], root: Path) -> str:
    """Return the first file that DVC cannot hash without failing or hanging; "" if DVC can hash all files.

    Ingestion leaves such a file out with the reason, and does not read unchanged files again.
    """
    for place in map(place_of, read):
        file = None if is_remote(place) else next(unreadable(root / place), None)
        if file is not None:
            return os.fsencode(os.path.relpath(file, root) if not place.is_absolute() else file).decode("utf-8", "backslashreplace")
    return ""


def look_at(portion: Sealed[Sequence[ListedPicture]], source: DatasetFolder) -> list[Facts]:
    from changepair.tasks.ingestion import check

    return check.look_at(portion.value, source, AT_ONCE)


@dataclass(frozen=True)
class LookOnCluster:
    """Check pictures on the workers of a cluster, one portion for each task."""

    ahead: int = 32

    def begin(self, portion: Sequence[ListedPicture], source: DatasetFolder) -> Callable[[], Sequence[Facts]]:
        from changepair.flows.running.steps import HOUR, step

        part: Any = step(name="check pictures", timeout_seconds=HOUR)(look_at).submit(Sealed(portion), source)

        def found() -> Sequence[Facts]:
            wait_for([part], lambda: f"ingest {source.name}")
            facts: Sequence[Facts] = part.result()
            return facts

        return found


def ingest_dataset(dataset: str, folder: FolderSettings | None, execution: Execution) -> Ingested:
    """Ingest a folder, or a packaged dataset. folder: settings of the folder; None for a packaged dataset."""
    from changepair.tasks.ingestion.ingest import IngestionFolders, Look, LookHere, ingest_folder, ingest_packaged

    places = IngestionFolders(PICTURES, MANIFESTS, CHECKPOINTS)
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


def _refuse_an_old_plan(stage: Ingest) -> None:
    """Raise BadInput if dvc.yaml lacks a dependency of the dataset, for example after its table names other folders."""
    stages = load_yaml(DVC_YAML).get("stages", {}) if DVC_YAML.is_file() else {}
    planned = stages.get(stage.name, {})
    missing = [place for place in stage.read if place not in planned.get("deps", ())]
    if missing and not (planned.get("always_changed") or planned.get("frozen") or not planned):
        raise BadInput(
            f"{DVC_YAML}: {missing[0]} belongs to {stage.dataset}, but is no dependency yet; run `changepair plan`, then this command again"
        )


@stage_flow(runner=cluster_or_threads)
def ingest(stage: Ingest, execution: Execution) -> None:
    from prefect import get_run_logger

    from changepair.flows.running.steps import HOUR, step
    from changepair.tasks.ingestion.check import WARNED

    _refuse_an_old_plan(stage)
    logger, dataset = get_run_logger(), stage.dataset
    task = step(name="ingest dataset", task_run_name="ingest {dataset}", timeout_seconds=24 * HOUR)(ingest_dataset)
    ingested: Ingested = task(dataset, stage.folder, execution)
    for note, count in ingested.notes.items():
        logger.log(WARNING if note in WARNED else INFO, f"{dataset}: {count} {'picture' if count == 1 else 'pictures'}: {note}")
    if ingested.greys < LEAST_GREYS:
        advice = (
            f"; if the camera resolves more, set datasets.folders.{dataset}.intensity to its black and white values"
            if ingested.deep
            else ""
        )
        shown = f"{dataset}: normal pictures use {ingested.greys} of 256 grey levels{advice}"
        logger.log(WARNING if ingested.deep else INFO, shown)
    left_out = f", {ingested.rejected} rejected; see {stage.rejected}" if ingested.rejected else ""
    logger.log(WARNING if left_out else INFO, f"{dataset}: {ingested.kept} pictures{left_out}")


if __name__ == "__main__":
    start_stage("ingest")
