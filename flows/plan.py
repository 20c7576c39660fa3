"""Collect the stages of pipelines.yaml, and write them as dvc.yaml.

DVC's templates give every stage the same inputs. Here the inputs of a stage follow from the settings: the datasets of its pipeline, its
detectors, and the files and folders that are named. So dvc.yaml is generated: `changepair retrain` and `changepair plan` write it.
The stage `code`, on which every other stage depends, refuses a dvc.yaml that is out of date.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from ruamel.yaml import YAML

from changepair.flows.running.places import IN_USE, MODELS
from changepair.flows.settings.pipelines import Datasets, PackagedName, Pipeline, detector_of, pipeline_named, read_pipelines
from changepair.flows.settings.reader import FILE, nearest
from changepair.flows.stage import CODE_STAGE, DVC_YAML, PLAN, SPLIT, Stage
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.common.places import MARK, is_url, place_of
from changepair.tasks.common.texts import read_text
from changepair.tasks.detectors.registry import DETECTORS

OF_A_DATASET = ("ingest", "objects")
OF_A_PIPELINE = ("sample", "inpainter", "synthesize", "train", "score", "metrics", "report")
"""Modules of the stages, each after those whose outputs it reads. Each declares its stages with `declare`."""
OF_A_DETECTOR = ("train", "score")
HEAD = """\
# Stages in order, with their inputs and outputs. `changepair plan` generates this file from pipelines.yaml and overwrites edits.
"""
EARLIER = ((".gitignore", "/figures.csv", "/metrics.csv"), (".dvc/plots/shots.json", '"figure"', '"metric"'))
"""Texts that an earlier version wrote to a project: the file, the text, and its replacement."""
KINDS = ("s3", "gs", "azure", "oss", "gdrive", "hdfs", "webhdfs", "ssh", "http", "https", "webdav", "webdavs")
"""Schemes of URLs that DVC's settings accept. The package for a scheme is checked where a URL is used."""


def is_of(stage: str, pipeline: str) -> bool:
    """Return whether a stage, by its name, belongs to a pipeline or is shared by several."""
    kind, *of = stage.split(SPLIT)
    return kind in (CODE_STAGE, *OF_A_DATASET) or of[:1] == [pipeline]


def planned(root: Path = Path()) -> list[Stage]:
    """List every stage of the enabled pipelines, each after those whose outputs it reads.

    root: folder of the project. Raises BadInput if the settings are invalid, or if a stage cannot be run by DVC.
    """
    read = read_pipelines(root / FILE)
    used = list(dict.fromkeys(name for pipeline in read.enabled for name in read.pipelines[pipeline].names))
    stages: list[Stage] = [*_module(CODE_STAGE).declare(read, root)]
    for dataset in used:
        if dataset in read.datasets.here:
            stages += [stage for kind in OF_A_DATASET for stage in _of_dataset(kind, dataset, read.datasets, root)]
    for name in read.enabled:
        stages += [stage for kind in OF_A_PIPELINE for stage in _of_pipeline(kind, name, read.pipelines[name], read.datasets)]
    _refuse_what_dvc_refuses(stages)
    _refuse_a_circle(stages, root)
    return stages


def stage_of(kind: str, *of: str) -> Stage:
    """Return a stage of pipelines.yaml, whether its pipeline is enabled or not.

    Raises BadInput if there is no such dataset, pipeline or detector.
    """
    read = read_pipelines()
    if kind in OF_A_DATASET:
        every = [*get_args(PackagedName), *read.datasets.folders]
        if of[0] not in every:
            raise BadInput(f"{FILE}: datasets: unknown dataset {of[0]!r}{nearest(of[0], every)}")
        stages = _of_dataset(kind, of[0], read.datasets, Path())
    else:
        pipeline = pipeline_named(of[0])
        if kind in OF_A_DETECTOR:
            detector_of(pipeline, *of)
        stages = _of_pipeline(kind, of[0], pipeline, read.datasets)
    stage = next((stage for stage in stages if stage.of == of), None)
    if stage is None:
        raise BadInput(f"{FILE}: {' '.join(of)} has no stage {kind}; `changepair plan` lists the stages")
    return stage


def _module(kind: str) -> Any:
    return import_module(f"changepair.flows.{kind}")


def _of_dataset(kind: str, dataset: str, datasets: Datasets, root: Path) -> Iterator[Stage]:
    stages: Iterator[Stage] = _module(kind).declare(dataset, datasets, root)
    return stages


def _of_pipeline(kind: str, name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Stage]:
    stages: Iterator[Stage] = _module(kind).declare(name, pipeline, datasets)
    return stages


def _refuse_what_dvc_refuses(stages: Sequence[Stage]) -> None:
    """Raise BadInput if the settings name a file of DVC, which no stage may read, or a URL that DVC cannot read."""
    for stage in stages:
        for dep in stage.deps:
            name = os.path.basename(os.path.normpath(dep))
            if name.endswith(".dvc") or name in ("dvc.yaml", "dvc.lock"):
                raise BadInput(f"{FILE}: {dep}: no stage can read a file with this name, because it belongs to DVC; rename the file")
            if is_url(dep):
                if dep.partition(MARK)[0] not in KINDS:
                    raise BadInput(f"{FILE}: {dep}: DVC cannot read this URL; use one of {', '.join(f'{kind}://' for kind in KINDS)}")
                try:
                    place_of(dep)
                except BadInput as error:
                    raise BadInput(f"{FILE}: {error}") from error


def _refuse_a_circle(stages: Sequence[Stage], root: Path) -> None:
    """Raise BadInput if the inputs and outputs of stages form a cycle.

    A stage depends on another if its input is an output of the other, contains one, or lies in one. DVC orders stages by the same rule.
    """
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
        order = list(reads)  # our stages follow their inputs, so a pair out of order comes from a named file
        reader, writer = next((two, one) for one, two in pairwise(error.args[1]) if order.index(two) <= order.index(one))
        where = "but writes there itself" if writer == reader else f"but {writer} writes there and waits for {reader}"
        raise BadInput(f"{FILE}: {reader} would read {reads[reader][writer]}, {where}; name another file or folder") from error


def dvc_yaml(stages: Sequence[Stage]) -> str:
    """Return the text of dvc.yaml."""
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
            name: {"path": path, "type": "model", "desc": f"The current model of {name}"} for name, path in models.items()
        }
    stream = io.StringIO()
    yaml.dump(content, stream)
    return HEAD + stream.getvalue()


def write_plan(root: Path = Path()) -> bool:
    """Write dvc.yaml if it is out of date, and the link to it. Return whether it was out of date.

    Raises BadInput if pipelines.yaml is invalid, if a file of an earlier version needs an edit, or if another file blocks the link.
    """
    file, text, link = root / DVC_YAML, dvc_yaml(planned(root)), root / PLAN
    for name, old, new in EARLIER:
        if (root / name).is_file() and old in read_text(root / name):
            raise BadInput(f"{root / name}: contains {old!r} from an earlier version; replace it with {new!r}, then run this command again")
    if not link.is_symlink() or os.readlink(link) != file.name:
        if os.path.lexists(link):
            raise BadInput(f"{link}: changepair needs this path for a link to {DVC_YAML}; move the file, then run this command again")
        link.symlink_to(file.name)
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return False
    write_text(file, text)
    return True


def roots(kind: str, detector: str | None = None) -> list[str]:
    """List the modules that a kind of stage depends on. detector: a kind of detector."""
    modules = [f"changepair.flows.{kind}"]
    if detector is not None:
        own = DETECTORS[detector]
        modules += [module for name in (detector, own.base) if name is not None for module in DETECTORS[name].modules]
        if kind == "train" and own.training is not None:
            modules.append(own.training.module)
    return modules
