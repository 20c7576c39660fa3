"""Run the stage `report`: read metrics, curves and scores; write galleries and the report page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from changepair.flows.metrics import Evaluation
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import (
    CANDIDATE,
    EPISODES,
    EVALUATION,
    GALLERIES_NAME,
    INPAINTERS,
    MODELS,
    PAIRS,
    REPORT_NAME,
    SCORES,
)
from changepair.flows.settings.pipelines import Datasets, Execution, Pipeline
from changepair.flows.settings.reader import as_json
from changepair.flows.stage import Input, OfDetectors, Output, Setting, Stage, stage_flow
from changepair.tasks.common.errors import BadInput
from changepair.tasks.sampling.episodes import EpisodeFiles, TargetFiles
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.results import TABLE_NAME
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.synthesis.shards import OVERVIEW_NAME

if TYPE_CHECKING:
    from changepair.tasks.reporting.galleries import Gallery
    from changepair.tasks.reporting.report import Origin
    from changepair.tasks.scoring.recommendation import Recommendation


NO_RESULT = {EvaluationSettings: "batch_size", PromotionSettings: "automatic"}
"""Settings in these sections that no result depends on."""


def _that_matter(section: Any) -> Any:
    dumped = as_json(section)
    return {key: value for key, value in dumped.items() if key != NO_RESULT[type(section)]} if type(section) in NO_RESULT else dumped


@dataclass(frozen=True)
class Report(Stage):
    """Draw galleries, and write the report."""

    pipeline: str
    files: Input[TargetFiles]
    rejected: Input[Path]
    near_duplicates: Input[Path]
    scores: Input[Mapping[str, Path]]
    table: Input[Path]
    evaluation: Input[Evaluation]
    models: Input[Sequence[Path]]
    inpainter: Input[Path]
    pairs: Input[Path]
    detectors: OfDetectors[Mapping[str, Any]]
    others: Annotated[Mapping[str, Any], Setting("pipelines.{pipeline}.*", _that_matter)]
    """Other settings of the pipeline that results depend on. The page shows them."""
    layouts: Annotated[Mapping[str, str], Setting("datasets.folders.*")]
    """Layout of the folder of each target, by `<dataset>.layout`."""
    galleries: Output[Path]
    page: Output[Path]

    @property
    def plots(self) -> tuple[str]:
        return (self.galleries.as_posix(),)


OPERATIONS = {"schedule", "runs", "watch"}
"""Sections of a pipeline that no result depends on."""


def declare(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Report]:
    files, folder = EpisodeFiles.of(EPISODES, name), EVALUATION / name
    training = {detector: pipeline.training_of(detector) for detector in pipeline.trained_on}
    sections = {key: getattr(pipeline, key) for key in type(pipeline).model_fields if key not in OPERATIONS}
    yield Report(
        name,
        files=files.tested,
        rejected=files.rejected,
        near_duplicates=files.near_duplicates,
        scores={detector: SCORES / name / detector for detector in pipeline.detectors},
        table=folder / TABLE_NAME,
        evaluation=Evaluation.of(name, pipeline.evaluation),
        models=[MODELS / name / CANDIDATE / detector for detector in pipeline.trained],
        inpainter=INPAINTERS / name,
        pairs=PAIRS / name,
        detectors=sections.pop("detectors"),
        others={**sections, "training": training},
        layouts={f"{target}.layout": datasets.folders[target].layout for target in pipeline.targets if target in datasets.folders},
        galleries=folder / GALLERIES_NAME,
        page=folder / REPORT_NAME,
    )


@stage_flow()
def report(stage: Report, execution: Execution) -> None:
    from changepair.flows.running.steps import HOUR, show_page, show_picture, step
    from changepair.tasks.reporting.galleries import overlays_name
    from changepair.tasks.reporting.report import markdown
    from changepair.tasks.scoring.results import read_metrics

    pipeline = stage.pipeline
    draw = step(name="draw galleries", task_run_name=f"draw galleries of {pipeline}", timeout_seconds=HOUR)(draw_galleries)
    galleries: list[Gallery] = draw(stage)
    step(name="write report", task_run_name=f"write report of {pipeline}", timeout_seconds=HOUR)(write_page)(stage, galleries)
    for gallery in galleries:
        picture = stage.galleries / overlays_name(gallery.target)
        if picture.is_file():
            show_picture(pipeline, picture.stem, picture, f"Anomaly maps of {pipeline} on {gallery.target}")
    rows = markdown(read_metrics(stage.table))
    show_page(pipeline, "report", f"# Metrics of {pipeline}\n\n{rows}\nFull report: `{stage.page}`")


def draw_galleries(stage: Report) -> list[Gallery]:
    from changepair.tasks.reporting.galleries import galleries_of, write_galleries

    galleries = galleries_of(stage.scores, stage.files, stage.others["evaluation"].shown)
    write_galleries(stage.galleries, galleries, {use.target: _recommendation(stage).detector for use in _recommendation(stage).uses})
    return galleries


def write_page(stage: Report, galleries: list[Gallery]) -> None:
    from changepair.tasks.reporting.curves import Curves
    from changepair.tasks.reporting.report import Inputs, write_report
    from changepair.tasks.sampling.episodes import read_episodes, read_pictures, undefined_metrics
    from changepair.tasks.scoring.operating import read_operating
    from changepair.tasks.scoring.results import read_comparisons, read_metrics
    from changepair.tasks.scoring.robustness import read_robustness

    write_report(
        stage.page,
        origin=_origin(stage),
        inputs=Inputs(stage.pairs / OVERVIEW_NAME, stage.models, stage.inpainter, stage.rejected, stage.near_duplicates),
        metrics=read_metrics(stage.table),
        comparisons=read_comparisons(stage.evaluation.comparisons),
        operating=read_operating(stage.evaluation.operating),
        robustness=read_robustness(stage.evaluation.robustness) if stage.evaluation.robustness is not None else [],
        recommendation=_recommendation(stage),
        curves=Curves.read(stage.evaluation.curves),
        galleries=galleries,
        evaluation=stage.others["evaluation"],
        scores=stage.scores,
        trained=list(stage.others["training"]),
        undefined=undefined_metrics(read_episodes(stage.files.episodes), read_pictures(stage.files.targets)),
    )


def _recommendation(stage: Report) -> Recommendation:
    from changepair.flows.promotion.history import read_recommendation

    file = stage.evaluation.decision
    recommendation = read_recommendation(file.parent)
    if recommendation is None:
        raise BadInput(f"{file}: no such file; run `dvc repro`, because the stage `metrics` writes it")
    return recommendation


def _origin(stage: Report) -> Origin:
    from changepair.flows.plan import OF_A_DATASET, planned
    from changepair.flows.running import provenance
    from changepair.tasks.reporting.report import Origin

    datasets = {one for names in (stage.others[use] for use in ("sources", "textures", "auxiliary", "targets")) for one in names}
    stages = planned()
    ours = [one.name for one in stages if one.of[:1] == (stage.pipeline,) and one.kind != stage.kind]
    read = [one.name for one in stages if one.kind in OF_A_DATASET and one.of[0] in datasets]
    layouts = {target: stage.layouts.get(f"{target}.layout", "") for target in stage.others["targets"]}
    return Origin(stage.pipeline, stage.settings, layouts, provenance.artifacts([*read, *ours]), provenance.versions())


if __name__ == "__main__":
    start_stage("report")
