"""Define the content of pipelines.yaml as pydantic models, and check that its parts agree."""

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

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]  # file names, which contain it, are limited to 255 characters
Runner = Literal["threads", "processes", "dask"]
PackagedName = Literal[
    "sample-photos",
    "vision-toolbox",
    "texture-defects",
    "development-textures",
    "development-letters",
    "development-surfaces",
    "development-parts",
    "development-labels",
    "development-sheets",
    "development-cells",
    "digits",
    "elpv",
]


READY = {"patch-residual": {}, "metric-residual": {"model": PACKAGED}}
NO_PAIRS: dict[str, dict[str, Any]] = {"inpainter": {"model": NONE}, "synthesis": {"pairs": 0}}


class Elsewhere(Strict):
    """A dataset that is not on this machine yet."""

    layout: LayoutName
    """Layout of the dataset. `changepair datasets` lists the layouts and where to download each dataset."""


class Datasets(Strict):
    """The datasets that pipelines can use. Each dataset is ingested once, however many pipelines use it."""

    packaged: Annotated[list[PackagedName], Unique()] = Field(default_factory=list)
    """Datasets inside installed packages. They need no download."""
    folders: dict[Name, FolderSettings] = Field(default_factory=dict)
    """Your own datasets, each under the name that pipelines use: at most 64 lowercase letters, digits and dashes."""
    objects: dict[str, ObjectsSettings] = Field(default_factory=dict)
    """Object masks for the photographs of a dataset, under the dataset's name."""
    elsewhere: dict[Name, Elsewhere] = Field(default_factory=dict)
    """Datasets that pipelines name but that are not on this machine. Move an entry to `folders` after you download the dataset."""

    @property
    def here(self) -> list[str]:
        return [*self.packaged, *self.folders]

    @property
    def names(self) -> list[str]:
        return [*self.here, *(name for name in self.elsewhere if name not in self.here)]


def cores() -> int:
    """Count the machine's cores."""
    return os.cpu_count() or 1


class Execution(Strict):
    """Distribution of work over cores and machines, and the packages that stages may use. Distribution never changes results."""

    workers: Annotated[int, Field(ge=1, le=1024)] = Field(default_factory=cores)
    """Number of parallel processes or threads in a stage, at most 1,024. Results do not depend on it."""
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Number of processes that train one detector together, at most 1,024. `auto` starts one process per GPU."""
    cached_features: Annotated[float, Field(ge=0, le=4096)] = 4.0
    """Largest size in GiB of the temporary file that a training on a CPU may write, at most 4,096. The file holds what the frozen encoder
    found in each pair, so that later epochs need no encoder. It takes at most half of the free disk. 0 writes no file. Results do not
    depend on it."""
    runner: Runner = "processes"
    """Place where shards of pairs are made: `threads` or `processes` on this machine, or a `dask` cluster. A Dask cluster also reads
    datasets and scores pictures."""
    address: str | None = None
    """Address of the Dask scheduler, such as tcp://10.0.0.5:8786. Null starts a local cluster for each run."""
    gpu: str | None = None
    """Name of the GPU resource on the cluster's workers, as in `dask worker --resources GPU=1`. Only workers with this resource then make
    pairs and score pictures. Null uses all workers."""

    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Experiment trackers that log trainings and metrics, in addition to the project's own files. `tensorboard` writes to
    data/runs/<pipeline>/tensorboard and needs the extra `trackers`. `mlflow` logs to the server of MLFLOW_TRACKING_URI; install the
    package mlflow yourself."""
    packages: Literal["locked", "installed"] = "locked"
    """Reaction to an installed package that differs from requirements.lock. `locked` refuses to run, so results stay reproducible.
    `installed` runs, records the installed version, and reruns the stages that use the package."""

    @model_validator(mode="after")
    def _of_a_cluster(self) -> Execution:
        if self.gpu is not None and (self.runner != "dask" or self.address is None):
            raise ValueError("gpu: must be null, unless runner is dask and address names a cluster")
        return self


class OwnRuns(Strict):
    """Settings of `runs` that one pipeline overrides."""

    revision: Revision | None = None
    """Branch, tag or commit that this pipeline's scheduled runs check out. Null uses `runs.revision`."""
    overlap: Overlap | None = None
    """Reaction to a run that is due while another one is running: `wait` or `skip`. Null uses `runs.overlap`."""
    tags: tuple[Tag, ...] = ()
    """Tags in the Prefect UI, in addition to `runs.tags`."""


class Pipeline(Strict):
    """One named pipeline: it trains detectors on pairs made from `sources`, or on `auxiliary`, and evaluates them on `targets`.

    Only `targets` is required. `mine: {targets: [my-parts]}` evaluates two detectors that need no training.
    """

    schedule: ScheduleSettings | None = None
    """Schedule of retraining: a cron line, or {cron or interval, timezone}. Null retrains only on request."""
    runs: OwnRuns = OwnRuns()
    """Overrides of `runs` for this pipeline."""
    sources: Annotated[list[str], Unique()] = Field(default_factory=list)
    """Datasets of photographs to make pairs from. If empty, synthesis.pairs defaults to 0 and inpainter.model to `none`."""
    textures: Annotated[list[str], Unique()] = Field(default_factory=list)
    """Datasets to cut textures from, for DRAEM's texture anomalies. If empty, the sources are used."""
    auxiliary: Annotated[list[str], Unique()] = Field(default_factory=list)
    """Datasets with labelled anomalies to train on, as InCTRL does."""
    targets: Annotated[list[str], NonEmpty()]
    """Datasets to evaluate detectors on. A picture that is also used in training is refused."""
    inpainter: InpainterSettings = InpainterSettings()
    """Inpainting model that repaints regions of photographs."""
    synthesis: SynthesisSettings = SynthesisSettings()
    """Synthesis of change pairs: how many, which kinds, and at which resolution."""
    sampling: SamplingSettings = SamplingSettings()
    """Sampling of episodes: the prompts for each query, the shots and the seeds."""
    detectors: Detectors = Field(default_factory=lambda: parse_detectors(READY))
    """Detectors to evaluate, by name. The default is two detectors that need no training. `kind` selects the detector and defaults to the
    name. With `patch-128: {kind: patch-residual, resolution: 128}` next to `patch-residual: {}`, you compare two settings of one kind."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings of each detector, by its name. The defaults follow the detector's paper."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation of the detectors: resolution, metrics and confidence intervals."""
    promotion: PromotionSettings = PromotionSettings()
    """Conditions under which a retrained model replaces the current model."""
    watch: Watch | None = None
    """Folder whose new pictures `changepair watch` scores with the current model. Null watches no folder."""

    @model_validator(mode="before")
    @classmethod
    def _with_current_names(cls, value: Any) -> Any:
        """Accept the setting names of earlier versions, with one warning each. Raises ValueError if a section has both names."""
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
        """Default to no pairs if the pipeline has no sources."""
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
        """List the names of all datasets that the pipeline uses."""
        return list(dict.fromkeys(name for names in self.datasets.values() for name in names))

    def training_of(self, detector: str) -> TrainingSettings:
        """Return the training settings of a detector: the section in `training`, else the defaults of its kind."""
        training = DETECTORS[kind_of(self.detectors[detector])].training
        assert training is not None
        chosen: TrainingSettings = self.training.get(detector) or training.settings()
        return chosen

    @property
    def trained(self) -> list[str]:
        """List the detectors with a model folder, which the train stage writes."""
        return [name for name, one in self.detectors.items() if DETECTORS[kind_of(one)].training is not None]

    @property
    def trained_on(self) -> dict[str, str]:
        """Map each detector that this pipeline trains to its training data, `pairs` or `auxiliary`."""
        return {name: self.training_of(name).learns_from for name in self.trained if self.detectors[name].model is None}


def _is_section(value: Any) -> bool:
    return value is None or isinstance(value, dict)


class Pipelines(Strict):
    enabled: Annotated[list[str], Unique()]
    """Pipelines that `changepair retrain` and `dvc repro` run and `changepair deploy` deploys."""
    datasets: Datasets
    """Datasets that pipelines can use."""
    execution: Execution = Execution()
    """Distribution of work over cores and machines."""
    runs: Runs = Runs()
    """Settings of scheduled runs."""
    pipelines: dict[Name, Pipeline]
    """Pipelines, by name: at most 64 lowercase letters, digits and dashes."""

    def runs_of(self, name: str) -> Runs:
        """Return the settings of one pipeline's scheduled runs."""
        own = self.pipelines[name].runs
        chosen = {key: value for key, value in (("revision", own.revision), ("overlap", own.overlap)) if value is not None}
        return self.runs.model_copy(update={**chosen, "tags": (*self.runs.tags, *own.tags)})


def read_pipelines(file: Path = FILE) -> Pipelines:
    """Read and check the whole of pipelines.yaml. Raises BadInput with the path of the wrong key and the nearest valid name."""
    read = parse(Pipelines, read_yaml(file), file=file)
    wrong = next(mistakes(read), None)
    if wrong is not None:
        raise BadInput(f"{file}: {wrong}")
    return read


def enabled_pipeline(name: str, file: Path = FILE) -> Pipeline:
    """Read the settings of an enabled pipeline. Raises BadInput if it does not exist, is not enabled, or uses a dataset that is not on this
    machine."""
    pipeline_named(name, file)
    read = read_pipelines(file)
    if name not in read.enabled:
        raise BadInput(f"{file}: enabled: pipeline {name!r} is not enabled; add it to this list to run it")
    for names in read.pipelines[name].datasets.values():
        for dataset in names:
            if dataset not in read.datasets.here:
                raise BadInput(
                    f"{file}: datasets.folders: dataset {dataset} of pipeline {name} is missing; download it (`changepair pipelines` "
                    f"lists the source) and add {dataset}: {{path: …, layout: {read.datasets.elsewhere[dataset].layout}}}"
                )
    return read.pipelines[name]


def pipeline_named(name: str, file: Path = FILE) -> Pipeline:
    """Read a pipeline's settings and check the whole file. Raises BadInput."""
    read = read_pipelines(file)
    if name not in read.pipelines:
        raise BadInput(f"{file}: pipelines: no pipeline {name!r}{nearest(name, read.pipelines)}")
    return read.pipelines[name]


def detector_of(pipeline: Pipeline, name: str, detector: str) -> Any:
    """Return the settings of a pipeline's detector. Raises BadInput if there is no such detector. `name` is the pipeline's name."""
    if detector not in pipeline.detectors:
        raise BadInput(f"{FILE}: pipelines.{name}.detectors: no detector {detector!r}{nearest(detector, pipeline.detectors)}")
    return pipeline.detectors[detector]


def mistakes(read: Pipelines) -> Iterator[str]:
    """Yield contradictions between the parts of pipelines.yaml, each as the path of a key and the error."""
    for index, name in enumerate(read.enabled):
        if name not in read.pipelines:
            yield f"enabled[{index}]: no pipeline {name!r}{nearest(name, read.pipelines)}"
    for name, folder in read.datasets.folders.items():
        if name in get_args(PackagedName):
            yield f"datasets.folders.{name}: a packaged dataset has this name; choose another name for yours"
        stated = (*folder.normal, *folder.abnormal, *([folder.masks] if folder.masks else []))
        wrong = next(filter(None, (_no_place(folder.path, one) for one in stated or ("",))), "")
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


def _no_place(named: str, within: str = "") -> str:
    """Explain why a dataset cannot be at a path, or in a folder within it; "" if it can.

    DVC would end with a traceback or a cyclic graph at each of these paths.
    """
    try:
        place = place_of(named)
    except (BadInput, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        return str(error)
    if is_remote(place):
        return ""
    path, project = Path(os.path.realpath(place / within)), Path.cwd()
    written = next((one for one in WRITTEN if (project / one).is_relative_to(path) or path.is_relative_to(project / one)), None)
    where = os.path.join(named, within) if within else named
    return "" if written is None else f"{where} overlaps {written}, where stages write and delete files; move the dataset elsewhere"


def _of_pipeline(pipeline: Pipeline, datasets: Datasets) -> Iterator[str]:
    """Yield contradictions between the parts of a pipeline."""
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
            yield f"auxiliary: must not be empty: {detector} trains on it; add a dataset, or set training.{detector}.examples: pairs"
        if examples == "pairs" and not pipeline.synthesis.pairs:
            yield f"synthesis.pairs: must be at least 1: {detector} trains on pairs; or set detectors.{detector}.model to a trained model"
    if not pipeline.synthesis.pairs:
        return
    available = int(pipeline.synthesis.pairs * (1 - pipeline.synthesis.held_out))
    for detector, examples in pipeline.trained_on.items():
        size = pipeline.training_of(detector).batch_size
        if examples == "pairs" and available < size:
            yield (
                f"training.{detector}.batch_size: must be at most {available}, the number of training pairs (synthesis.pairs minus the "
                f"held-out pairs), not {size}; lower it, or raise synthesis.pairs"
            )
    if not pipeline.sources:
        yield "sources: must not be empty: pairs are made from photographs; add a dataset, or set synthesis.pairs: 0"
    if pipeline.synthesis.repaints and pipeline.inpainter.model == "none":
        yield (
            f"inpainter.model: must not be 'none': {', '.join(pipeline.synthesis.repaints)} in synthesis.kinds need an inpainting model; "
            "set 'packaged', 'exemplar', 'own', a hub id or a folder"
        )
    return
