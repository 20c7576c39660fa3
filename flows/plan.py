"""Plans the stages that pipelines.yaml asks for, and writes them as dvc.yaml: what each runs, reads and writes.

DVC's own templates have the same inputs for every stage that they make. What a stage of ours reads follows from the settings: the datasets
that its pipeline uses, the detectors that it has, the files and folders that are named. So dvc.yaml is written from the settings, and has
each stage as it is. `changepair retrain` and `changepair plan` write it; the stage `code`, which every other depends on, refuses one that
is not as pipelines.yaml has it now.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML

from changepair.flows.running.places import (
    CANDIDATE,
    CODE,
    EPISODES,
    EVALUATION,
    IN_USE,
    INPAINTERS,
    MANIFESTS,
    MODELS,
    PAIRS,
    PICTURES,
    SCORES,
)
from changepair.flows.settings.pipelines import Datasets, Pipeline, Pipelines, read_pipelines
from changepair.flows.settings.reader import FILE
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.common.fingerprint import LOCK as PACKAGES
from changepair.tasks.common.fingerprint import is_checkout
from changepair.tasks.common.places import MARK, is_remote, is_url, place_of, unreadable
from changepair.tasks.detectors.registry import BUILT_IN, DETECTORS, KIND, base_of, files_of_prior, kind_of
from changepair.tasks.encoders.settings import PACKAGED
from changepair.tasks.ingestion.settings import OF_A_FILE, FolderSettings, ObjectsSettings
from changepair.tasks.inpainting.settings import NONE, OWN

DVC_YAML = Path("dvc.yaml")
PLAN = Path("plan.yaml")
"""A link to dvc.yaml. The stage `code` depends on it, so that an edit of dvc.yaml is noticed: DVC refuses dvc.yaml itself."""
HEAD = """\
# In which order: each stage, what it reads and what it writes. Written from pipelines.yaml by `changepair plan`; an edit here is lost.
"""
CODE_STAGE = "code"
OF_A_DATASET = ("ingest", "objects")
OF_A_DETECTOR = ("train", "score")
ROOTS = {
    kind: f"changepair.flows.{kind}" for kind in (*OF_A_DATASET, "sample", "inpainter", "synthesize", *OF_A_DETECTOR, "figures", "report")
}
"""The module of each kind of stage."""
KINDS = ("s3", "gs", "azure", "oss", "gdrive", "hdfs", "webhdfs", "ssh", "http", "https", "webdav", "webdavs")
"""Of URLs, as DVC's settings know them. Whether what reads each is installed is asked where one is named."""
SPLIT = "_"  # between a stage's parts: no name of pipelines.yaml has one


@dataclass(frozen=True)
class Stage:
    """A stage as DVC is to have it."""

    kind: str
    of: tuple[str, ...]
    """A dataset; or a pipeline, and of a kind that there is one a detector of, the detector."""
    about: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it depends on of pipelines.yaml, by key, with the defaults of what is not there."""
    in_git: tuple[str, ...] = ()
    """Outs that Git keeps, not DVC's cache."""
    metrics: tuple[str, ...] = ()
    plots: tuple[Mapping[str, Any] | str, ...] = field(default=(), compare=False)
    frozen: bool = False
    """Whether DVC takes its outs as they are: what it read is not here any more, and they hold all of it."""
    always: bool = False
    """Whether DVC runs it whenever it is asked: it cannot tell whether what is read has changed."""

    @property
    def name(self) -> str:
        return stage_name(self.kind, self.of)

    @property
    def entry(self) -> dict[str, Any]:
        """Gives the stage as dvc.yaml has it."""
        entry: dict[str, Any] = {"desc": self.about, "cmd": " ".join(("python -m", f"changepair.flows.{self.kind}", *self.of))}
        entry["deps"] = list(dict.fromkeys([*self.deps, *([settings_file(self.name).as_posix()] if self.settings else [])]))
        if self.metrics:
            entry["metrics"] = [{path: {"cache": False}} for path in self.metrics]
        if self.frozen:
            entry["frozen"] = True
        if self.always:
            entry["always_changed"] = True
        entry["outs"] = [*({path: {"cache": False}} for path in self.in_git), *self.outs]
        return entry


def stage_name(kind: str, of: Sequence[str]) -> str:
    """Return the name of a stage in dvc.yaml, which allows no plus."""
    return SPLIT.join((kind, *of)).replace("+", f"{SPLIT}plus")


def is_of(stage: str, pipeline: str) -> bool:
    """Tells whether a stage, by its name, belongs to a pipeline: it is of that one, or of no one alone."""
    kind, *of = stage.split(SPLIT)
    return kind in (CODE_STAGE, *OF_A_DATASET) or of[:1] == [pipeline]


def planned(root: Path = Path()) -> list[Stage]:
    """Lists every stage of the enabled pipelines, each after those that it reads from. root: the project's. Raises BadInput."""
    read = read_pipelines(root / FILE)
    used = list(dict.fromkeys(name for pipeline in read.enabled for name in read.pipelines[pipeline].names))
    stages = [_code(read, root)]
    for dataset in used:
        if dataset in read.datasets.here:
            stages += _of_dataset(dataset, read.datasets, root)
    for name in read.enabled:
        stages += _of_pipeline(name, read.pipelines[name], read.datasets)
    _refuse_what_dvc_refuses(stages)
    _refuse_a_circle(stages, root)
    return stages


def _refuse_what_dvc_refuses(stages: Sequence[Stage]) -> None:
    """Raises BadInput if a file or folder that the settings name is called as DVC's own are, which it lets no stage read, or is in a store
    that nothing here reads."""
    for stage in stages:
        for dep in stage.deps:
            name = os.path.basename(os.path.normpath(dep))
            if name.endswith(".dvc") or name in ("dvc.yaml", "dvc.lock"):
                raise BadInput(f"{FILE}: {dep}: a file of DVC's, by its name, which no stage can read; name another")
            if is_url(dep):
                if dep.partition(MARK)[0] not in KINDS:
                    raise BadInput(f"{FILE}: {dep}: DVC reads no such URL; it reads {', '.join(f'{kind}://' for kind in KINDS)}")
                try:
                    place_of(dep)
                except BadInput as error:
                    raise BadInput(f"{FILE}: {error}") from error


def _refuse_a_circle(stages: Sequence[Stage], root: Path) -> None:
    """Raises BadInput if a file or folder that the settings name is, holds, or lies in what a stage writes that waits for its reader. DVC
    orders stages by the same rule."""
    top = os.path.abspath(root)
    written = {os.path.join(top, out): stage.name for stage in stages for out in (*stage.outs, *stage.in_git, *stage.metrics)}
    above: dict[str, set[str]] = {}
    for out, writer in written.items():
        for folder in Path(out).parents:
            above.setdefault(str(folder), set()).add(writer)
    reads: dict[str, dict[str, str]] = {}
    for stage in stages:
        reads[stage.name] = {}
        for dep in stage.deps:
            place = Path(os.path.normpath(os.path.join(top, dep)))
            writers = above.get(str(place), set()) | {written[str(one)] for one in (place, *place.parents) if str(one) in written}
            reads[stage.name] |= dict.fromkeys(writers, dep)
    try:
        TopologicalSorter(reads).prepare()
    except CycleError as error:
        order = list(reads)  # ours have those they read from before them, so what does not was named
        reader, writer = next((two, one) for one, two in pairwise(error.args[1]) if order.index(two) <= order.index(one))
        where = "where it writes itself" if writer == reader else f"where {writer} writes, which waits for it"
        raise BadInput(f"{FILE}: {reader} would read {reads[reader][writer]}, {where}; name another file or folder") from error


def dvc_yaml(stages: Sequence[Stage]) -> str:
    """Gives the text of dvc.yaml."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    content: dict[str, Any] = {"params": [FILE.as_posix()], "stages": {stage.name: stage.entry for stage in stages}}
    plots = [plot for stage in stages for plot in stage.plots]
    if plots:
        content["plots"] = plots
    models = {stage.of[0]: f"{MODELS}/{stage.of[0]}/{IN_USE}" for stage in stages if stage.kind == "report"}
    if models:
        content["artifacts"] = {
            name: {"path": path, "type": "model", "desc": f"The model of {name} that is in use"} for name, path in models.items()
        }
    stream = io.StringIO()
    yaml.dump(content, stream)
    return HEAD + stream.getvalue()


def write_plan(root: Path = Path()) -> bool:
    """Write dvc.yaml if it differs from what pipelines.yaml asks for, and the link to it; return whether it differed. Raises BadInput."""
    file, text, link = root / DVC_YAML, dvc_yaml(planned(root)), root / PLAN
    if not link.is_symlink() or os.readlink(link) != file.name:
        if os.path.lexists(link):
            raise BadInput(f"{link}: is not the link to {DVC_YAML} that changepair writes there; move it away, then run this again")
        link.symlink_to(file.name)
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return False
    write_text(file, text)
    return True


def roots(kind: str, detector: str | None = None) -> list[str]:
    """List the modules whose code a kind of stage depends on. detector: a kind of detector."""
    modules = [ROOTS[kind]]
    if detector is not None:
        own = DETECTORS[detector]
        modules += [module for name in (detector, own.base) if name is not None for module in DETECTORS[name].modules]
        if kind == "train" and own.training is not None:
            modules.append(own.training.module)
    return modules


def code_file(kind: str, detector: str | None = None) -> Path:
    """Gives the file in which the stage `code` says what a stage depends on."""
    name = kind if detector is None else f"{kind}{SPLIT}{detector}"
    return CODE / f"{name}.json"


def others_used(read: Pipelines) -> list[str]:
    """List the kinds of detectors of other packages that the enabled pipelines use."""
    kinds = (kind_of(settings) for name in read.enabled for settings in read.pipelines[name].detectors.values())
    return [kind for kind in dict.fromkeys(kinds) if kind not in BUILT_IN]


def settings_file(stage: str) -> Path:
    """Return the file in which the stage `code` writes the settings that a stage, by its name, depends on."""
    return CODE / "settings" / f"{stage}.json"


def settings_text(stage: Stage) -> str:
    """Return the content of that file."""
    return json.dumps(stage.settings, indent=1, ensure_ascii=False) + "\n"


def settings_of(kind: str, of: Sequence[str]) -> Mapping[str, Any]:
    """Return the current settings of a stage; {} if the enabled pipelines have no such stage."""
    read = read_pipelines()
    stages: Iterator[Stage] = iter(())
    if kind in OF_A_DATASET and of[0] in read.datasets.here:
        stages = _of_dataset(of[0], read.datasets, Path())
    elif of and of[0] in read.pipelines:
        stages = _of_pipeline(of[0], read.pipelines[of[0]], read.datasets)
    return next((stage.settings for stage in stages if stage.name == stage_name(kind, of)), {})


def dumped(value: Any) -> Any:
    """Return a part of the settings as JSON has it, with its defaults."""
    return TypeAdapter(Any).dump_python(value, mode="json")


def _code(read: Pipelines, root: Path) -> Stage:
    checkout = is_checkout(root)
    locked = (root / PACKAGES).is_file()
    return Stage(
        CODE_STAGE,
        (),
        "which code each stage runs, so that a comment reruns none and a change those that it can change; checks pipelines.yaml",
        deps=(*(("flows", "tasks") if checkout else ()), *((PACKAGES,) if locked else ()), FILE.as_posix(), PLAN.as_posix()),
        outs=(CODE.as_posix(),),
        # DVC does not look at what is installed.
        always=read.execution.packages == "installed" or not checkout or not locked or bool(others_used(read)),
    )


def _of_dataset(dataset: str, datasets: Datasets, root: Path) -> Iterator[Stage]:
    manifest, rejected = (f"{MANIFESTS}/{dataset}.{ending}" for ending in ("parquet", "rejected.csv"))
    folder = datasets.folders.get(dataset)
    gone = folder is not None and folder.snapshot and not _from(root, place_of(folder.path)).exists()
    how = "written out of an installed package, then read"
    if folder is not None:
        how = "copied, then read" if folder.snapshot else "read where they lie"
    read = [] if folder is None else read_by_ingestion(folder, root)
    odd = _unreadable(read, root)
    if odd:
        how += f"; each time anew, as DVC cannot read {odd}"
    yield Stage(
        "ingest",
        (dataset,),
        f"the pictures of {dataset}: {how}",
        deps=(*(read if not odd else []), code_file("ingest").as_posix()),
        settings={f"datasets.folders.{dataset}": dumped(folder)} if folder else {},
        outs=(f"{PICTURES}/{dataset}", manifest, rejected),
        frozen=gone,
        always=bool(odd),
    )
    if dataset in datasets.objects:
        yield Stage(
            "objects",
            (dataset,),
            f"the masks of the objects of {dataset}, whatever their format",
            deps=(_read_for_objects(datasets.objects[dataset]), manifest, code_file("objects").as_posix()),
            settings={f"datasets.objects.{dataset}": dumped(datasets.objects[dataset])},
            outs=(f"{MANIFESTS}/{dataset}.objects.parquet", f"{MANIFESTS}/{dataset}.objects.rejected.csv"),
        )


def read_by_ingestion(folder: FolderSettings, root: Path = Path()) -> list[str]:
    """List the files and folders that a dataset is read from: its folder, or its stated subfolders, or a table and the files it names."""
    place = place_of(folder.path)
    if folder.layout == OF_A_FILE:
        from changepair.tasks.ingestion.readers.tables import named_by  # pyarrow, which no other layout needs

        return [str(place), *(str(place.parent / name) for name in named_by(_from(root, place)))]
    stated = (*folder.normal, *folder.abnormal, *([folder.masks] if folder.masks else []))
    return [str(place / name) for name in stated] or [str(place)]


def _from(root: Path, place: Path) -> Path:
    return place if is_remote(place) else root / place


def _read_for_objects(settings: ObjectsSettings) -> str:
    """Return the file or folder that objects are read from. The masks of Open Images are next to their CSV, or below."""
    place = place_of(settings.path)
    return str(place.parent if settings.format == "open-images" else place)


def _unreadable(read: Sequence[str], root: Path) -> str:
    """Return the first file that DVC cannot hash without failing or hanging; "" if there is none.

    Ingestion leaves such a file out with the reason, and does not read unchanged files again.
    """
    for place in map(place_of, read):
        file = None if is_remote(place) else next(unreadable(root / place), None)
        if file is not None:
            return os.fsencode(os.path.relpath(file, root) if not place.is_absolute() else file).decode("utf-8", "backslashreplace")
    return ""


@dataclass(frozen=True)
class Parts:
    """A pipeline as its stages declare themselves from it."""

    name: str
    pipeline: Pipeline
    datasets: Datasets

    @property
    def inpainter(self) -> str:
        return f"{INPAINTERS}/{self.name}"

    @property
    def pairs(self) -> str:
        return f"{PAIRS}/{self.name}"

    @property
    def evaluation(self) -> str:
        return f"{EVALUATION}/{self.name}"

    @property
    def models(self) -> dict[str, str]:
        """The model folder of each trained detector."""
        return {detector: f"{MODELS}/{self.name}/{CANDIDATE}/{detector}" for detector in self.pipeline.trained}

    @property
    def scores(self) -> dict[str, str]:
        """The folder of each detector's scores."""
        return {detector: f"{SCORES}/{self.name}/{detector}" for detector in self.pipeline.detectors}

    @property
    def metrics(self) -> list[str]:
        """The tables of metrics; the first is in Git."""
        return [f"{self.evaluation}/{file}" for file in ("figures.csv", "comparisons.csv", "operating.csv", "curves")]

    @property
    def decision(self) -> str:
        return f"{self.evaluation}/decision.json"

    def episodes(self, *endings: str) -> tuple[str, ...]:
        return tuple(f"{EPISODES}/{self.name}.{ending}" for ending in endings)

    def settings(self, **sections: Any) -> dict[str, Any]:
        """Return sections of the pipeline, by their keys in pipelines.yaml."""
        return {f"pipelines.{self.name}.{key}": dumped(value) for key, value in sections.items()}

    def detectors(self, *names: str) -> dict[str, Any]:
        """Return the settings of detectors, with their kinds."""
        chosen = {one: self.pipeline.detectors[one] for one in names}
        return {f"pipelines.{self.name}.detectors.{one}": {KIND: kind_of(of), **dumped(of)} for one, of in chosen.items()}

    def measured_by(self, *keys: str) -> dict[str, Any]:
        """Return settings of the evaluation."""
        return {f"pipelines.{self.name}.evaluation.{key}": dumped(getattr(self.pipeline.evaluation, key)) for key in keys}


def code(kind: str, detector: str | None = None) -> str:
    """Return the file that a stage depends on for its code."""
    return code_file(kind, detector).as_posix()


def sample(parts: Parts) -> Iterator[Stage]:
    pipeline, datasets = parts.pipeline, parts.datasets
    manifests = [f"{MANIFESTS}/{dataset}.{ending}" for dataset in pipeline.names for ending in ("parquet", "rejected.csv")]
    manifests += [f"{MANIFESTS}/{dataset}.objects.parquet" for dataset in pipeline.names if dataset in datasets.objects]
    yield Stage(
        "sample",
        (parts.name,),
        "which pictures train, which prompt, which are queried; refuses an overlap before anything is made",
        deps=(*manifests, *_named(pipeline.sampling.prompts), code("sample")),
        settings={
            **parts.settings(**pipeline.datasets, sampling=pipeline.sampling),
            "datasets.objects": {one: dumped(of) for one, of in datasets.objects.items()},
        },
        outs=parts.episodes(
            "parquet",
            *(f"{table}.parquet" for table in ("sources", "textures", "auxiliary", "objects", "targets")),
            *(f"{table}.csv" for table in ("rejected", "near_duplicates")),
        ),
    )


def inpainter(parts: Parts) -> Iterator[Stage]:
    model = parts.pipeline.inpainter.model
    yield Stage(
        "inpainter",
        (parts.name,),
        "the model that repaints regions: trained on the sources, or named where it is another's",
        deps=(
            *(parts.episodes("sources.parquet") if model == OWN else ()),
            *(_named(model) if model not in (OWN, NONE, PACKAGED) and Path(model).is_dir() else ()),
            code("inpainter"),
        ),
        settings=parts.settings(inpainter=parts.pipeline.inpainter),
        outs=(parts.inpainter,),
        plots=(_log(f"{parts.inpainter}/training_log.csv", "the inpainting model"),) if model == OWN else (),
    )


def synthesize(parts: Parts) -> Iterator[Stage]:
    sam = parts.pipeline.synthesis.objects.sam
    yield Stage(
        "synthesize",
        (parts.name,),
        "change pairs out of the sources' normal pictures",
        deps=(
            *parts.episodes("sources.parquet", "textures.parquet", "objects.parquet"),
            parts.inpainter,
            *(_named(sam) if Path(sam).is_dir() else ()),
            code("synthesize"),
        ),
        settings=parts.settings(synthesis=parts.pipeline.synthesis),
        outs=(parts.pairs,),
        plots=tuple(_of_pairs(f"{parts.pairs}/overview", parts.pipeline)) if parts.pipeline.synthesis.pairs else (),
    )


def train(parts: Parts) -> Iterator[Stage]:
    """A stage for each detector that has weights of its own: trained here, or taken from a model folder."""
    pipeline = parts.pipeline
    for detector, folder in parts.models.items():
        chosen, learns = pipeline.detectors[detector], pipeline.trained_on.get(detector)
        examples = {None: _folder(chosen.model), "pairs": parts.pairs, "auxiliary": parts.episodes("auxiliary.parquet")[0]}
        training = {f"training.{detector}": pipeline.training_of(detector)} if learns else {}
        yield Stage(
            "train",
            (parts.name, detector),
            f"{detector}, trained" if learns else f"{detector}, as it is given",
            deps=(
                *_named(examples[learns]),
                *_named(_start_of(pipeline, detector)),
                *chosen.encoder.files,
                code("train", kind_of(chosen)),
            ),
            settings={**parts.detectors(detector), **parts.settings(**training)},
            outs=(folder,),
            plots=(_log(f"{folder}/training_log.csv", detector),) if learns else (),
        )


def score(parts: Parts) -> Iterator[Stage]:
    """A stage for each detector."""
    pipeline = parts.pipeline
    for detector, folder in parts.scores.items():
        base = base_of(detector, pipeline.detectors)
        yield Stage(
            "score",
            (parts.name, detector),
            f"what {detector} gives the targets' pictures, none of which were trained on",
            deps=(
                *parts.episodes("parquet", "targets.parquet"),
                *_named(parts.models.get(base)),
                *pipeline.detectors[base].encoder.files,
                *files_of_prior(pipeline.detectors[detector]),
                code("score", kind_of(pipeline.detectors[detector])),
            ),
            settings={
                **parts.detectors(*dict.fromkeys((detector, base))),
                **parts.settings(**{f"evaluation.subset.{detector}": pipeline.evaluation.subset.get(detector)}),
            },
            outs=(folder,),
        )


def figures(parts: Parts) -> Iterator[Stage]:
    in_git, *others = parts.metrics
    yield Stage(
        "figures",
        (parts.name,),
        "metrics with their spread, and the decision on detector, prompts and threshold",
        deps=(*parts.episodes("parquet", "targets.parquet"), *parts.scores.values(), code("figures")),
        settings={
            **parts.detectors(*parts.pipeline.detectors),
            **parts.settings(promotion=parts.pipeline.promotion),
            **parts.measured_by("resolution", "convention"),
        },
        metrics=(f"{parts.evaluation}/metrics.json",),
        in_git=(in_git,),
        outs=(*others, f"{parts.evaluation}/draws.parquet", parts.decision),
        plots=tuple(_of_curves(f"{parts.evaluation}/curves")),
    )


def report(parts: Parts) -> Iterator[Stage]:
    yield Stage(
        "report",
        (parts.name,),
        "galleries, and a page of everything",
        deps=(
            *parts.episodes("parquet", "targets.parquet", "rejected.csv", "near_duplicates.csv"),
            *parts.scores.values(),
            *parts.metrics,
            parts.decision,
            *parts.models.values(),
            parts.inpainter,
            parts.pairs,
            code("report"),
        ),
        settings={**parts.detectors(*parts.pipeline.detectors), **parts.measured_by("shown", "convention", "resolution")},
        outs=(f"{parts.evaluation}/galleries", f"{parts.evaluation}/report.html"),
        plots=(f"{parts.evaluation}/galleries",),
    )


OF_A_PIPELINE = (sample, inpainter, synthesize, train, score, figures, report)
"""The stages of a pipeline, each after those that it reads from."""


def _of_pipeline(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Stage]:
    parts = Parts(name, pipeline, datasets)
    for declare in OF_A_PIPELINE:
        yield from declare(parts)


def _named(file: str | None) -> tuple[str, ...]:
    return (file,) if file is not None else ()


def _start_of(pipeline: Pipeline, detector: str) -> str | None:
    """Gives the model folder that a detector's training starts from, if any."""
    return _folder(pipeline.training_of(detector).init) if detector in pipeline.trained_on else None


def _folder(given: str | None) -> str | None:
    """Gives the model folder that a setting names; None where it names none, or a model that comes with the package and is code."""
    return None if given == PACKAGED else given


def _log(file: str, title: str) -> dict[str, Any]:
    return {file: {"x": "step", "y": "loss", "title": f"training loss of {title}"}}


def _of_curves(folder: str) -> Iterator[dict[str, Any]]:
    for name, template, x, y, title in (
        ("roc", "curves", "false_positive_rate", "true_positive_rate", "ROC of images"),
        ("pr", "curves", "recall", "precision", "precision and recall of images"),
        ("pro", "curves", "false_positive_rate", "overlap", "PRO"),
        ("histogram", "scores", "score", "share", "scores of normal and anomalous pictures"),
        ("shots", "shots", "shots", "mean", "figures by shots"),
    ):
        yield {f"{folder}/{name}.csv": {"template": template, "x": x, "y": y, "title": title}}


def _of_pairs(folder: str, pipeline: Pipeline) -> Iterator[dict[str, Any] | str]:
    bars = {"template": "bar_horizontal"}
    yield {f"{folder}/kinds.csv": {**bars, "x": "pairs", "y": "kind", "title": "pairs by kind"}}
    yield {f"{folder}/changed_area.csv": {"x": "changed_area", "y": "pairs", "title": "share of the query that changed"}}
    yield {f"{folder}/drops.csv": {**bars, "x": "draws", "y": "reason", "title": "draws dropped, by reason"}}
    yield from (f"{folder}/{kind}.png" for kind, share in pipeline.synthesis.kinds.items() if share > 0)
