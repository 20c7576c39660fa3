"""The whole of pipelines.yaml as pydantic models, and what must hold between its parts."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flows.runner import Runner
from flows.settings import FILE, nearest, parse, read_yaml
from tasks.detector_settings import DetectorSettings
from tasks.errors import BadInput
from tasks.evaluation.settings import EvaluationSettings
from tasks.ingestion.settings import FolderSettings, ObjectsSettings
from tasks.inpainting.settings import InpainterSettings
from tasks.sampling.settings import SamplingSettings
from tasks.synthesis.settings import SynthesisSettings
from tasks.training.settings import TrainingSettings

PackagedName = Literal["sample-photos", "texture-defects", "digits", "elpv"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _cron(line: str) -> str:
    try:
        CronSim(line, datetime(2000, 1, 1))
    except CronSimError as error:
        raise ValueError(f'a cron line such as "0 3 * * 1", not {line!r}') from error
    return line


class Datasets(Strict):
    """The datasets that are here. Each is ingested once, whichever pipelines use it."""

    packaged: list[PackagedName] = []
    folders: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], FolderSettings] = {}
    objects: dict[str, ObjectsSettings] = {}
    """Masks of the objects in a dataset's photographs, by the dataset's name."""

    @property
    def names(self) -> list[str]:
        return [*self.packaged, *self.folders]


class Execution(Strict):
    """How work is spread; never what comes of it."""

    workers: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    runner: Runner = "processes"
    """Where the shards of pairs are made: threads or processes of this machine, or the workers of a Dask cluster."""
    address: str | None = None
    """Of the Dask scheduler, such as tcp://10.0.0.5:8786; without one, a cluster of this machine's own."""


class Pipeline(Strict):
    """One named pipeline: train on pairs made of `sources`, be measured on `targets`.

    Every section must be there, if only as `{}`: DVC compares sections to know what is out of date.
    """

    schedule: Annotated[str, AfterValidator(_cron)] | None = None
    """When to retrain: a cron line; null for by hand."""
    sources: Annotated[list[str], Field(min_length=1)]
    textures: list[str]
    """What DRAEM's textures are cut from; [] for the sources themselves."""
    targets: Annotated[list[str], Field(min_length=1)]
    inpainter: InpainterSettings
    synthesis: SynthesisSettings
    sampling: SamplingSettings
    detectors: DetectorSettings
    training: TrainingSettings
    evaluation: EvaluationSettings


class Pipelines(Strict):
    enabled: list[str]
    datasets: Datasets
    execution: Execution = Execution()
    pipelines: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], Pipeline]


def read_pipelines(file: Path = FILE) -> Pipelines:
    """pipelines.yaml, checked as a whole. Raises BadInput with the path of the wrong key and the nearest valid name."""
    read = parse(Pipelines, read_yaml(file), file=file)
    for index, name in enumerate(read.enabled):
        if name not in read.pipelines:
            raise BadInput(f"{file}: enabled[{index}]: no pipeline {name!r}{nearest(name, read.pipelines)}")
    for name in read.datasets.objects:
        if name not in read.datasets.names:
            raise BadInput(f"{file}: datasets.objects.{name}: no dataset {name!r} under datasets{nearest(name, read.datasets.names)}")
    for pipeline_name, pipeline in read.pipelines.items():
        if pipeline.synthesis.repaints and pipeline.inpainter.model == "none":
            raise BadInput(
                f"{file}: pipelines.{pipeline_name}.inpainter.model: synthesis.kinds needs an inpainting model "
                f"({', '.join(pipeline.synthesis.repaints)}), not 'none'; say 'own', a hub id or a folder"
            )
        for key, names in (("sources", pipeline.sources), ("textures", pipeline.textures), ("targets", pipeline.targets)):
            for index, name in enumerate(names):
                if name not in read.datasets.names:
                    path = f"pipelines.{pipeline_name}.{key}[{index}]"
                    raise BadInput(f"{file}: {path}: no dataset {name!r} under datasets{nearest(name, read.datasets.names)}")
    return read


def enabled_pipeline(name: str, file: Path = FILE) -> Pipeline:
    """One pipeline that may be run. Raises BadInput if it does not exist or is not enabled."""
    read = read_pipelines(file)
    if name not in read.pipelines:
        raise BadInput(f"{file}: pipelines: no pipeline {name!r}{nearest(name, read.pipelines)}")
    if name not in read.enabled:
        raise BadInput(f"{file}: enabled: pipeline {name!r} is not among them; add it there to run it")
    return read.pipelines[name]
