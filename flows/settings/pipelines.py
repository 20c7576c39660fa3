"""Defines the whole of pipelines.yaml as pydantic models, and checks what must hold between its parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from changepair.flows.running.places import WRITTEN
from changepair.flows.settings.detectors import Detectors, parse_detectors, parse_trainings
from changepair.flows.settings.reader import FILE, nearest, parse, read_yaml, renamed_setting
from changepair.flows.settings.runs import Overlap, Revision, Runs, ScheduleSettings, Strict, Tag, Watch
from changepair.tasks.common.bounds import NonEmpty, Unique
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_remote, place_of
from changepair.tasks.detectors.registry import DETECTORS, KIND, RENAMED, kind_of, missing_base, resolved
from changepair.tasks.encoders.settings import PACKAGED
from changepair.tasks.ingestion.settings import FolderSettings, LayoutName, ObjectsSettings
from changepair.tasks.inpainting.settings import NONE, InpainterSettings
from changepair.tasks.sampling.settings import SamplingSettings
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.training.settings import TrainingSettings

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]  # a file's name has room for 255 characters
Runner = Literal["threads", "processes", "dask"]
PackagedName = Literal[
    "sample-photos", "vision-toolbox", "texture-defects", "development-textures", "development-letters", "digits", "elpv"
]


READY = {"patch-residual": {}, "metric-residual": {"model": PACKAGED}}
NO_PAIRS: dict[str, dict[str, Any]] = {"inpainter": {"model": NONE}, "synthesis": {"pairs": 0}}


class Elsewhere(Strict):
    """A dataset to be had elsewhere."""

    layout: LayoutName
    """What it is; `changepair datasets` says where to get it."""


class Datasets(Strict):
    """The datasets that are here. Each is ingested once, whichever pipelines use it."""

    packaged: Annotated[list[PackagedName], Unique()] = Field(default_factory=list)
    """Those inside installed packages that are used."""
    folders: dict[Name, FolderSettings] = Field(default_factory=dict)
    """Your own, by the name that pipelines use."""
    objects: dict[str, ObjectsSettings] = Field(default_factory=dict)
    """Masks of the objects in a dataset's photographs, by the dataset's name."""
    elsewhere: dict[Name, Elsewhere] = Field(default_factory=dict)
    """Datasets that pipelines name but that are not on this machine. Move one to folders once it is."""

    @property
    def here(self) -> list[str]:
        return [*self.packaged, *self.folders]

    @property
    def names(self) -> list[str]:
        return [*self.here, *(name for name in self.elsewhere if name not in self.here)]


def cores() -> int:
    """Counts the machine's cores."""
    return os.cpu_count() or 1


class Execution(Strict):
    """How work is spread over cores and machines, which does not change results; and which packages it may use."""

    workers: Annotated[int, Field(ge=1, le=1024)] = Field(default_factory=cores)
    """Processes or threads that share a stage's work."""
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Processes that share each step of a training; auto for one a GPU."""
    runner: Runner = "processes"
    """Where the shards of pairs are made: threads or processes of this machine, or the workers of a Dask cluster, which read datasets and
    score pictures too."""
    address: str | None = None
    """Of the Dask scheduler, such as tcp://10.0.0.5:8786; without one, a cluster of this machine's own."""
    gpu: str | None = None
    """What the cluster's workers call the resource that a GPU is, as in `dask worker --resources GPU=1`: pairs are made and pictures scored
    by those that have it; null for by all."""

    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """What trainings and metrics are logged to beside their own files: TensorBoard's files in data/runs/<pipeline>/tensorboard, or the
    MLflow server of MLFLOW_TRACKING_URI. changepair[trackers] brings the first; mlflow is installed by itself."""
    packages: Literal["locked", "installed"] = "locked"
    """What happens if an installed package differs from requirements.lock: `locked` refuses to run; `installed` runs, records the installed
    version, and runs the stages again that use the package."""

    @model_validator(mode="after")
    def _of_a_cluster(self) -> Execution:
        if self.gpu is not None and (self.runner != "dask" or self.address is None):
            raise ValueError("gpu: runner: dask and the address of a cluster beside it, whose workers have one")
        return self


class OwnRuns(Strict):
    """The part of `runs` that a pipeline may say for itself."""

    revision: Revision | None = None
    """The branch, tag or commit that its runs work at."""
    overlap: Overlap | None = None
    """What a second run does while one is at work."""
    tags: tuple[Tag, ...] = ()
    """Beside those of all."""


class Pipeline(Strict):
    """One named pipeline: train on pairs made of `sources`, or on `auxiliary`, and be measured on `targets`.

    Only `targets` is required: `mine: {targets: [my-parts]}` measures the packaged detectors, and trains nothing.
    """

    schedule: ScheduleSettings | None = None
    """When to retrain: a cron line, or {cron or interval, timezone}; null for by hand."""
    runs: OwnRuns = OwnRuns()
    """Where this pipeline's scheduled runs differ from the others'."""
    sources: Annotated[list[str], Unique()] = Field(default_factory=list)
    """Photographs that pairs are made of. Without any, synthesis.pairs defaults to 0, and inpainter.model to none."""
    textures: Annotated[list[str], Unique()] = Field(default_factory=list)
    """Datasets that DRAEM's textures are cut from; [] for the sources."""
    auxiliary: Annotated[list[str], Unique()] = Field(default_factory=list)
    """Datasets with labelled anomalies to train on."""
    targets: Annotated[list[str], NonEmpty()]
    """What detectors are measured on; a picture that is also trained on is refused."""
    inpainter: InpainterSettings = InpainterSettings()
    """The model that repaints regions."""
    synthesis: SynthesisSettings = SynthesisSettings()
    """How change pairs are made."""
    sampling: SamplingSettings = SamplingSettings()
    """Which pictures prompt which queries."""
    detectors: Detectors = Field(default_factory=lambda: parse_detectors(READY))
    """The detectors to measure, by name; by default two that need no training. `kind` says what a detector is, and defaults to its name:
    with `patch-128: {kind: patch-residual, resolution: 128}` next to `patch-residual: {}`, two settings of one kind are compared."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How each detector is trained, by its name; by default as in its paper."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How they are measured."""
    promotion: PromotionSettings = PromotionSettings()
    """When a retrained model takes the place of the one in use."""
    watch: Watch | None = None
    """A folder whose new pictures `changepair watch` scores with the model in use; null for none."""

    @model_validator(mode="before")
    @classmethod
    def _with_current_names(cls, value: Any) -> Any:
        """Read settings by the names that they had in earlier versions; say so once. Raises ValueError if one has both names."""
        sections = value if isinstance(value, dict) else {}
        promotion, detectors = (found if isinstance(found := sections.get(key), dict) else {} for key in ("promotion", "detectors"))
        if "figure" in promotion:
            renamed_setting("promotion", promotion, "figure", "metric")
            promotion = {"metric" if key == "figure" else key: one for key, one in promotion.items()}
            value = {**sections, "promotion": promotion}
        for name, section in detectors.items():
            names = RENAMED.get(resolved(str(section.get(KIND, name)), {})[0], {}) if isinstance(section, dict) else {}
            for old, new in names.items():
                if old in section:
                    renamed_setting("detectors.<name>", section, old, new)  # which `resolved` reads
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_sources(cls, value: Any) -> Any:
        """Make no pairs where there are no photographs to make them of, unless the file says so."""
        if not isinstance(value, dict) or value.get("sources"):
            return value
        return {**value, **{key: {**section, **(value.get(key) or {})} for key, section in NO_PAIRS.items() if _is_section(value.get(key))}}

    @field_validator("training", mode="plain")
    @classmethod
    def _trainings(cls, value: Any, info: ValidationInfo) -> dict[str, Any]:
        return parse_trainings(value, info.data["detectors"]) if "detectors" in info.data else {}  # their errors are reported first

    @property
    def datasets(self) -> dict[str, list[str]]:
        return {"sources": self.sources, "textures": self.textures, "auxiliary": self.auxiliary, "targets": self.targets}

    @property
    def names(self) -> list[str]:
        """Lists the names of every dataset that it uses."""
        return list(dict.fromkeys(name for names in self.datasets.values() for name in names))

    def training_of(self, detector: str) -> TrainingSettings:
        """Gives the training settings of a detector: those that `training` has, else its paper's."""
        training = DETECTORS[kind_of(self.detectors[detector])].training
        assert training is not None
        chosen: TrainingSettings = self.training.get(detector) or training.settings()
        return chosen

    @property
    def trained(self) -> list[str]:
        """Lists the detectors that have a model folder, which the train stage writes."""
        return [name for name, one in self.detectors.items() if DETECTORS[kind_of(one)].training is not None]

    @property
    def trained_on(self) -> dict[str, str]:
        """Gives for each detector that is trained here what it is trained on, `pairs` or `auxiliary`."""
        return {name: self.training_of(name).learns_from for name in self.trained if self.detectors[name].model is None}


def _is_section(value: Any) -> bool:
    return value is None or isinstance(value, dict)


class Pipelines(Strict):
    enabled: Annotated[list[str], Unique()]
    """Which pipelines `dvc repro` makes and which are deployed."""
    datasets: Datasets
    """The datasets that are here."""
    execution: Execution = Execution()
    """How work is spread."""
    runs: Runs = Runs()
    """How scheduled runs work."""
    pipelines: dict[Name, Pipeline]
    """What can be made, by name."""

    def runs_of(self, name: str) -> Runs:
        """Gives the settings of the scheduled runs of one pipeline."""
        own = self.pipelines[name].runs
        chosen = {key: value for key, value in (("revision", own.revision), ("overlap", own.overlap)) if value is not None}
        return self.runs.model_copy(update={**chosen, "tags": (*self.runs.tags, *own.tags)})


def read_pipelines(file: Path = FILE) -> Pipelines:
    """Reads pipelines.yaml, checked as a whole. Raises BadInput with the path of the wrong key and the nearest valid name."""
    read = parse(Pipelines, read_yaml(file), file=file)
    wrong = next(mistakes(read), None)
    if wrong is not None:
        raise BadInput(f"{file}: {wrong}")
    return read


def enabled_pipeline(name: str, file: Path = FILE) -> Pipeline:
    """Reads one pipeline that may be run. Raises BadInput if it does not exist, is not enabled, or names what is not on this machine."""
    pipeline_named(name, file)
    read = read_pipelines(file)
    if name not in read.enabled:
        raise BadInput(f"{file}: enabled: pipeline {name!r} is not among them; add it there to run it")
    for names in read.pipelines[name].datasets.values():
        for dataset in names:
            if dataset not in read.datasets.here:
                raise BadInput(
                    f"{file}: datasets.folders: {dataset} is not there, which pipeline {name} uses; get it (`changepair pipelines` "
                    f"says where) and give it as {dataset}: {{path: …, layout: {read.datasets.elsewhere[dataset].layout}}}"
                )
    return read.pipelines[name]


def pipeline_named(name: str, file: Path = FILE) -> Pipeline:
    """Reads a pipeline's settings, with all of the file checked. Raises BadInput."""
    read = read_pipelines(file)
    if name not in read.pipelines:
        raise BadInput(f"{file}: pipelines: no pipeline {name!r}{nearest(name, read.pipelines)}")
    return read.pipelines[name]


def detector_of(pipeline: Pipeline, name: str, detector: str) -> Any:
    """Gives the settings of one of a pipeline's detectors. Raises BadInput if it has none of that name. name: the pipeline's, for the
    error."""
    if detector not in pipeline.detectors:
        raise BadInput(f"{FILE}: pipelines.{name}.detectors: no detector {detector!r}{nearest(detector, pipeline.detectors)}")
    return pipeline.detectors[detector]


def mistakes(read: Pipelines) -> Iterator[str]:
    """Yields what does not hold between the parts of pipelines.yaml, each as the key's path and what is wrong with it."""
    for index, name in enumerate(read.enabled):
        if name not in read.pipelines:
            yield f"enabled[{index}]: no pipeline {name!r}{nearest(name, read.pipelines)}"
    for name, folder in read.datasets.folders.items():
        if name in get_args(PackagedName):
            yield f"datasets.folders.{name}: a dataset that comes in a package is called so; give yours another name"
        wrong = _no_place(folder.path)
        if wrong:
            yield f"datasets.folders.{name}.path: {wrong}"
    for name in read.datasets.objects:
        wrong = _no_place(read.datasets.objects[name].path)
        if wrong:
            yield f"datasets.objects.{name}.path: {wrong}"
        if name not in read.datasets.names:
            yield f"datasets.objects.{name}: no dataset {name!r} under datasets{nearest(name, read.datasets.names)}"
    for name, pipeline in read.pipelines.items():
        yield from (f"pipelines.{name}.{wrong}" for wrong in _of_pipeline(pipeline, read.datasets))


def _no_place(named: str) -> str:
    """Says why a file or folder of the user's cannot be where it is said to be; "" if it can. DVC would end at each of these in a
    traceback, or in a circle."""
    try:
        place = place_of(named)
    except (BadInput, RuntimeError) as error:  # ~ of a user that there is not
        return str(error)
    if is_remote(place):
        return ""
    path, project = Path(os.path.realpath(place)), Path.cwd()
    if any((project / folder).is_relative_to(path) for folder in WRITTEN):
        return f"{named} is or holds this project; put the dataset in a folder of its own, and name that"
    inside = next((folder for folder in WRITTEN if path.is_relative_to(project / folder)), None)
    return "" if inside is None else f"{named} lies in {inside}, which stages write to and delete; put the dataset elsewhere"


def _of_pipeline(pipeline: Pipeline, datasets: Datasets) -> Iterator[str]:
    """Yields what does not hold between a pipeline's parts."""
    for key, names in pipeline.datasets.items():
        for index, name in enumerate(names):
            if name not in datasets.names:
                yield f"{key}[{index}]: no dataset {name!r} under datasets{nearest(name, datasets.names)}"
    for name in pipeline.detectors:
        missing = missing_base(name, pipeline.detectors)
        if missing:
            yield f"detectors.{name}.{missing}"
    for name in pipeline.evaluation.subset:
        if name not in pipeline.detectors:
            yield f"evaluation.subset.{name}: no detector {name!r} under detectors{nearest(name, pipeline.detectors)}"
    if pipeline.watch is not None and pipeline.watch.detector not in (None, *pipeline.detectors):
        named = pipeline.watch.detector
        yield f"watch.detector: no detector {named!r} under detectors{nearest(str(named), pipeline.detectors)}"
    for index, name in enumerate(pipeline.promotion.detectors or ()):
        if name not in pipeline.detectors:
            yield f"promotion.detectors[{index}]: no detector {name!r} under detectors{nearest(name, pipeline.detectors)}"
    for detector, examples in pipeline.trained_on.items():
        if examples == "auxiliary" and not pipeline.auxiliary:
            yield f"auxiliary: {detector} is trained on it; name a dataset with anomalies, or say training.{detector}.examples: pairs"
        if examples == "pairs" and not pipeline.synthesis.pairs:
            yield f"synthesis.pairs: {detector} is trained on them, so more than 0; or give it a model that is trained already"
    if not pipeline.synthesis.pairs:
        return
    learnt = int(pipeline.synthesis.pairs * (1 - pipeline.synthesis.held_out))
    for detector, examples in pipeline.trained_on.items():
        size = pipeline.training_of(detector).batch_size
        if examples == "pairs" and learnt < size:
            yield (
                f"training.{detector}.batch_size: {learnt} pairs to learn from ({pipeline.synthesis.pairs} less those held out) fill no "
                f"batch of {size}; lower it, or raise synthesis.pairs"
            )
    if not pipeline.sources:
        yield "sources: pairs are made of photographs, so name some; or say synthesis.pairs: 0"
    if pipeline.synthesis.repaints and pipeline.inpainter.model == "none":
        yield (
            f"inpainter.model: synthesis.kinds needs an inpainting model ({', '.join(pipeline.synthesis.repaints)}), not 'none'; "
            "say 'own', a hub id or a folder"
        )
    return
