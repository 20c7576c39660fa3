"""Run the stage `metrics`: read scores; write metrics, comparisons, bootstrap draws, curves, and the recommendation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import EPISODES, EVALUATION, SCORES
from changepair.flows.settings.pipelines import Datasets, Execution, Pipeline
from changepair.flows.settings.reader import as_json
from changepair.flows.stage import InGit, Input, MetricsFile, OfDetectors, Output, Setting, Stage, stage_flow
from changepair.tasks.sampling.episodes import EpisodeFiles, TargetFiles
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.results import (
    COMPARISONS_NAME,
    CURVES_NAME,
    DECISION_NAME,
    DRAWS_NAME,
    METRICS_NAME,
    OPERATING_NAME,
    ROBUSTNESS_NAME,
    TABLE_NAME,
)
from changepair.tasks.scoring.settings import Convention, EvaluationSettings

if TYPE_CHECKING:
    from changepair.tasks.scoring.results import Results

PLOTS = (
    ("roc", "curves", "false_positive_rate", "true_positive_rate", "image ROC curve"),
    ("pr", "curves", "recall", "precision", "image precision-recall curve"),
    ("pro", "curves", "false_positive_rate", "overlap", "PRO curve"),
    ("histogram", "scores", "score", "share", "image scores of normal and anomalous pictures"),
    ("shots", "shots", "shots", "mean", "metrics by number of shots"),
)
"""Each curve: file, plot template, columns of the x and y axes, and title."""
ROBUSTNESS_PLOT = {
    "template": "robustness",
    "x": "flagged",
    "y": "perturbation",
    "title": "share of perturbed normal pictures above the threshold, and its 95 % interval",
}


def _for_decision(promotion: PromotionSettings) -> Any:
    """Return the settings that the recommendation depends on. Automatic promotion is not one of them."""
    return {key: value for key, value in as_json(promotion).items() if key != "automatic"}


@dataclass(frozen=True)
class Evaluation:
    """Files of an evaluation that the report reads in addition to the metrics."""

    comparisons: Path
    operating: Path
    curves: Path
    decision: Path
    robustness: Path | None
    """None without perturbations."""

    @classmethod
    def of(cls, pipeline: str, settings: EvaluationSettings) -> Evaluation:
        folder = EVALUATION / pipeline
        return cls(
            folder / COMPARISONS_NAME,
            folder / OPERATING_NAME,
            folder / CURVES_NAME,
            folder / DECISION_NAME,
            folder / ROBUSTNESS_NAME if settings.perturbations else None,
        )


@dataclass(frozen=True)
class Metrics(Stage):
    """Compute metrics with their spread, and recommend detector, prompts and threshold."""

    pipeline: str
    files: Input[TargetFiles]
    scores: Input[Mapping[str, Path]]
    """Folder of scores for each detector."""
    detectors: OfDetectors[Mapping[str, Any]]
    promotion: Annotated[PromotionSettings, Setting(dump=_for_decision)]
    resolution: Annotated[int, Setting("pipelines.{pipeline}.evaluation.resolution")]
    convention: Annotated[Convention, Setting("pipelines.{pipeline}.evaluation.convention")]
    summary: MetricsFile[Path]
    table: InGit[Path]
    evaluation: Output[Evaluation]
    draws: Output[Path]
    trained: Sequence[str]
    """Names of the detectors with weights. They follow from the settings of the detectors."""

    @property
    def plots(self) -> list[Mapping[str, Any]]:
        axes = {name: {"template": template, "x": x, "y": y, "title": title} for name, template, x, y, title in PLOTS}
        plots: list[Mapping[str, Any]] = [{(self.evaluation.curves / f"{name}.csv").as_posix(): entry} for name, entry in axes.items()]
        return [*plots, {self.evaluation.robustness.as_posix(): ROBUSTNESS_PLOT}] if self.evaluation.robustness else plots


def declare(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Metrics]:
    yield Metrics(
        name,
        files=EpisodeFiles.of(EPISODES, name).tested,
        scores={detector: SCORES / name / detector for detector in pipeline.detectors},
        detectors=pipeline.detectors,
        promotion=pipeline.promotion,
        resolution=pipeline.evaluation.resolution,
        convention=pipeline.evaluation.convention,
        summary=EVALUATION / name / METRICS_NAME,
        table=EVALUATION / name / TABLE_NAME,
        evaluation=Evaluation.of(name, pipeline.evaluation),
        draws=EVALUATION / name / DRAWS_NAME,
        trained=pipeline.trained,
    )


@stage_flow()
def metrics(stage: Metrics, execution: Execution) -> None:
    from changepair.flows.running.progress import has_listener
    from changepair.flows.running.steps import HOUR, show_rows, step
    from changepair.tasks.scoring.results import table

    task = step(name="compute metrics", task_run_name=f"compute metrics of {stage.pipeline}", timeout_seconds=6 * HOUR)(write_metrics)
    results: Results = task(stage)
    write_metrics_to_trackers(stage.pipeline, results, execution)
    rows = table(results.rows)
    show_rows(stage.pipeline, "results", rows, f"Metrics of {stage.pipeline} in percent, mean ± standard deviation over seeds")
    if not has_listener():  # a run prints the best ones at its end
        _print(rows)


def write_metrics(stage: Metrics) -> Results:
    import pyarrow as pa

    from changepair.tasks.ingestion.manifest import intensities_of
    from changepair.tasks.reporting.curves import curves_of
    from changepair.tasks.sampling.episodes import protocols_of, read_episodes, read_pictures
    from changepair.tasks.scoring.measure import measure
    from changepair.tasks.scoring.operating import kinds_of, operating_rows, write_operating
    from changepair.tasks.scoring.recommendation import recommend, write_recommendation
    from changepair.tasks.scoring.results import results_of, write_results
    from changepair.tasks.scoring.robustness import robustness_rows, write_robustness
    from changepair.tasks.scoring.scores import read_perturbed, read_scored, read_scores

    files, evaluation = stage.files, stage.evaluation
    measured = measure(stage.scores, files, EvaluationSettings(resolution=stage.resolution, convention=stage.convention))
    results = results_of(measured, protocols_of(files.episodes))
    write_results(stage.table.parent, results)
    scored = {name: list(read_scored(folder)) for name, folder in stage.scores.items()}
    episodes, pictures = read_episodes(files.episodes), read_pictures(files.targets)
    write_operating(evaluation.operating, operating_rows(scored, episodes, kinds_of(pictures)))
    robustness = robustness_rows(scored, {name: read_perturbed(folder) for name, folder in stage.scores.items()}, episodes)
    if evaluation.robustness is not None:
        write_robustness(evaluation.robustness, robustness)
    else:
        (evaluation.decision.parent / ROBUSTNESS_NAME).unlink(missing_ok=True)  # of earlier settings
    ranges = intensities_of(pictures)
    recommendation = recommend(results.draws, results.shared, episodes, scored, stage.promotion, stage.trained, ranges, robustness)
    write_recommendation(evaluation.decision, recommendation)
    scores = pa.concat_tables([read_scores(folder) for folder in stage.scores.values()])
    curves_of(measured, scores, results.rows, protocols_of(files.episodes)).write(evaluation.curves)
    return results


def write_metrics_to_trackers(pipeline: str, results: Results, execution: Execution) -> None:
    """Log the content of metrics.json to the trackers. The step is the time in seconds."""
    if execution.trackers:
        from changepair.flows.running.steps import tracking_of
        from changepair.tasks.training.tracking import tracked

        with tracked(tracking_of(execution, pipeline, "metrics"), {"pipeline": pipeline}) as trackers:
            values = {
                f"{target}/{detector}/{metric}": value
                for target, detectors in results.metrics.items()
                for detector, metrics in detectors.items()
                for metric, value in metrics.items()
            }
            trackers.write(values, int(time.time()))


def _print(rows: Sequence[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from changepair.tasks.scoring.metrics import heading

    printed = Table(title="Metrics in percent, mean ± standard deviation over seeds")
    for name in rows[0]:
        printed.add_column(heading(name), no_wrap=True)
    for row in rows:
        printed.add_row(*row.values())
    Console(width=200).print(printed)


if __name__ == "__main__":
    start_stage("metrics")
