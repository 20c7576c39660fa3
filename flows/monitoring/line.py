"""Find the watched line of a pipeline: settings, scores of its pictures, and labels from reviews."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from changepair.flows.prediction.options import check_normals
from changepair.flows.running.places import WATCH
from changepair.flows.settings.pipelines import pipeline_named
from changepair.tasks.common.decoding import FULL, Intensity
from changepair.tasks.common.errors import BadInput
from changepair.tasks.monitoring.record import KIT_FOLDER, VERDICTS_FOLDER, Record
from changepair.tasks.monitoring.settings import WatchSettings
from changepair.tasks.monitoring.verdicts import Verdicts
from changepair.tasks.prediction.files import files_of, is_kit


@dataclass(frozen=True)
class ProductionLine:
    """The watched line of a pipeline."""

    pipeline: str
    settings: WatchSettings
    record: Record

    @property
    def verdicts(self) -> Verdicts:
        return Verdicts(self.record.folder / VERDICTS_FOLDER)

    @property
    def prompts(self) -> list[Path]:
        """Files of the prompts. Raises BadInput if there are none."""
        return files_of([self.settings.prompts])

    @property
    def intensity(self) -> Intensity:
        """Intensity ranges of the kit; the full ranges without a kit."""
        from changepair.tasks.prediction.kit import read_intensity  # torch

        kit = self.record.folder / KIT_FOLDER
        return read_intensity(kit) if is_kit(kit) else FULL

    @property
    def normals(self) -> list[Path]:
        """Files of the pictures that set the threshold. Raises BadInput if there are none."""
        return files_of([self.settings.normals])

    def check_normals(self) -> None:
        """Raise BadInput if there are too few normal pictures for the false-alarm rate. No model is loaded."""
        try:
            check_normals(self.normals, self.prompts, self.settings.false_alarms)
        except BadInput as error:
            raise BadInput(f"pipelines.yaml: pipelines.{self.pipeline}.watch.normals: {self.settings.normals}: {error}") from error


def line_of(pipeline: str) -> ProductionLine:
    """Return the watched line of a pipeline. Raises BadInput if there is no such pipeline, or if it has no section `watch`."""
    settings = pipeline_named(pipeline).watch
    if settings is None:
        raise BadInput(f"pipelines.yaml: pipelines.{pipeline}.watch: is missing; add it with the folder to watch, prompts and normals")
    folder = WATCH / pipeline if settings.record is None else Path(settings.record).expanduser()
    return ProductionLine(pipeline, settings, Record(folder))
