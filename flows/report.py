"""Stage report: figures, curves and scores in; galleries and a page of everything out."""

from __future__ import annotations

from prefect import flow

from changepair.flows.plan import OF_A_DATASET, Stage, planned
from changepair.flows.promotion.history import read_recommendation
from changepair.flows.running import provenance
from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CANDIDATE, EPISODES, EVALUATION, INPAINTERS, MODELS, PAIRS, REPORT_NAME, SCORES
from changepair.flows.running.steps import HOUR, show_page, show_picture, step
from changepair.flows.settings.pipelines import Pipeline, pipeline_named, read_pipelines
from changepair.flows.settings.reader import read_yaml
from changepair.tasks.common.errors import BadInput
from changepair.tasks.reporting.curves import CURVES_NAME, Curves
from changepair.tasks.reporting.galleries import GALLERIES_NAME, Gallery, galleries_of, overlays_name, write_galleries
from changepair.tasks.reporting.report import Inputs, Origin, markdown, write_report
from changepair.tasks.sampling.episodes import EpisodeFiles, read_episodes, read_pictures, undefined_metrics
from changepair.tasks.scoring.operating import OPERATING_NAME, read_operating
from changepair.tasks.scoring.recommendation import DECISION_NAME, Recommendation
from changepair.tasks.scoring.results import COMPARISONS_NAME, FIGURES_NAME, read_comparisons, read_figures
from changepair.tasks.synthesis.shards import OVERVIEW_NAME


@step(name="draw galleries", task_run_name="draw galleries of {pipeline}", timeout_seconds=HOUR)
def draw_galleries(pipeline: str, settings: Pipeline) -> list[Gallery]:
    scores = {name: SCORES / pipeline / name for name in settings.detectors}
    galleries = galleries_of(scores, EpisodeFiles.of(EPISODES, pipeline), settings.evaluation.shown)
    folder = EVALUATION / pipeline
    recommended = _recommendation(pipeline)
    write_galleries(folder / GALLERIES_NAME, galleries, {use.target: recommended.detector for use in recommended.uses})
    return galleries


@step(name="write report", task_run_name="write report of {pipeline}", timeout_seconds=HOUR)
def write_page(pipeline: str, settings: Pipeline, galleries: list[Gallery]) -> None:
    folder, files = EVALUATION / pipeline, EpisodeFiles.of(EPISODES, pipeline)
    write_report(
        folder / REPORT_NAME,
        origin=_origin(pipeline, settings),
        inputs=Inputs(
            pairs=PAIRS / pipeline / OVERVIEW_NAME,
            models=MODELS / pipeline / CANDIDATE,
            inpainter=INPAINTERS / pipeline,
            rejected=files.rejected,
            near_duplicates=files.near_duplicates,
        ),
        figures=read_figures(folder / FIGURES_NAME),
        comparisons=read_comparisons(folder / COMPARISONS_NAME),
        operating=read_operating(folder / OPERATING_NAME),
        recommendation=_recommendation(pipeline),
        curves=Curves.read(folder / CURVES_NAME),
        galleries=galleries,
        evaluation=settings.evaluation,
        trained=list(settings.trained_on),
        undefined=undefined_metrics(read_episodes(files.episodes), read_pictures(files.targets)),
    )


def _recommendation(pipeline: str) -> Recommendation:
    recommendation = read_recommendation(EVALUATION / pipeline)
    if recommendation is None:
        raise BadInput(f"{EVALUATION / pipeline / DECISION_NAME}: no such file; the figures stage writes it, so run `dvc repro`")
    return recommendation


@flow(name="report", flow_run_name="report {pipeline}")
@stoppable
def report(pipeline: str) -> None:
    settings = pipeline_named(pipeline)
    galleries: list[Gallery] = draw_galleries(pipeline, settings)
    write_page(pipeline, settings, galleries)
    folder = EVALUATION / pipeline
    for gallery in galleries:
        picture = folder / GALLERIES_NAME / overlays_name(gallery.target)
        if picture.is_file():
            show_picture(pipeline, picture.stem, picture, f"Maps of {pipeline} on {gallery.target}")
    table = markdown(read_figures(folder / FIGURES_NAME))
    show_page(pipeline, "report", f"# {pipeline}\n\n{table}\nWhole report: `{folder / REPORT_NAME}`")


def _origin(pipeline: str, settings: Pipeline) -> Origin:
    section = {name: value for name, value in read_yaml()["pipelines"][pipeline].items() if name != "schedule"}
    read = read_pipelines()
    folders = read.datasets.folders
    return Origin(
        pipeline=pipeline,
        settings=section,
        layouts={target: folders[target].layout if target in folders else "" for target in settings.targets},
        artifacts=provenance.artifacts([stage.name for stage in planned() if _is_before(stage, pipeline, settings)]),
        versions=provenance.versions(),
    )


def _is_before(stage: Stage, pipeline: str, settings: Pipeline) -> bool:
    """Tells whether the report is made from what a stage left: it is of the pipeline, or of one of its datasets."""
    if stage.kind in OF_A_DATASET:
        return stage.of[0] in settings.names
    return stage.of[:1] == (pipeline,) and stage.kind != "report"


if __name__ == "__main__":
    start_stage(report)
