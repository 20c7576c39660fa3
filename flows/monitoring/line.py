"""Find a pipeline's watched line: its settings, the scores of its pictures, and people's labels."""

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
        """List the prompts. Raises BadInput if there is none."""
        return files_of([self.settings.prompts])

    @property
    def intensity(self) -> Intensity:
        """The intensity ranges of the line's kit; the full ranges without a kit."""
        from changepair.tasks.prediction.kit import read_intensity  # torch

        kit = self.record.folder / KIT_FOLDER
        return read_intensity(kit) if is_kit(kit) else FULL

    @property
    def normals(self) -> list[Path]:
        """List the pictures that set the threshold. Raises BadInput if there is none."""
        return files_of([self.settings.normals])

    def check_normals(self) -> None:
        """Raise BadInput if the normal pictures are too few for the false alarm rate. This loads no model."""
        try:
            check_normals(self.normals, self.prompts, self.settings.false_alarms)
        except BadInput as error:
            raise BadInput(f"pipelines.yaml: pipelines.{self.pipeline}.watch.normals: {self.settings.normals}: {error}") from error


def line_of(pipeline: str) -> ProductionLine:
    """Return a pipeline's line. Raises BadInput if pipelines.yaml has no such pipeline, or it watches none."""
    settings = pipeline_named(pipeline).watch
    if settings is None:
        raise BadInput(f"pipelines.yaml: pipelines.{pipeline}.watch: not there; say which folder to watch, and what is normal in it")
    folder = WATCH / pipeline if settings.record is None else Path(settings.record).expanduser()
    return ProductionLine(pipeline, settings, Record(folder))
