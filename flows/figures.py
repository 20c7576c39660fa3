"""Stage figures: read scores; write metrics, comparisons, bootstrap draws, curves, and the decision."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa
from prefect import flow
from rich.console import Console
from rich.table import Table

from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import EPISODES, EVALUATION, SCORES
from changepair.flows.running.progress import has_listener
from changepair.flows.running.steps import HOUR, show_rows, step, tracking_of
from changepair.flows.settings.pipelines import Pipeline, pipeline_named, read_pipelines
from changepair.tasks.ingestion.manifest import intensities_of
from changepair.tasks.reporting.curves import CURVES_NAME, curves_of
from changepair.tasks.sampling.episodes import EpisodeFiles, protocols_of, read_episodes, read_pictures
from changepair.tasks.scoring.figures import heading
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.operating import OPERATING_NAME, kinds_of, operating_rows, write_operating
from changepair.tasks.scoring.recommendation import DECISION_NAME, recommend, write_recommendation
from changepair.tasks.scoring.results import Results, results_of, table, write_results
from changepair.tasks.scoring.scores import read_scored, read_scores


@step(name="measure", task_run_name="measure {pipeline}", timeout_seconds=6 * HOUR)
def write_figures(pipeline: str, settings: Pipeline) -> Results:
    folders = {name: SCORES / pipeline / name for name in settings.detectors}
    files = EpisodeFiles.of(EPISODES, pipeline)
    measured = measure(folders, files, settings.evaluation)
    results = results_of(measured, protocols_of(files.episodes))
    write_results(EVALUATION / pipeline, results)
    scored = {name: list(read_scored(folder)) for name, folder in folders.items()}
    episodes = read_episodes(files.episodes)
    pictures = read_pictures(files.targets)
    operating = operating_rows(scored, episodes, kinds_of(pictures))
    write_operating(EVALUATION / pipeline / OPERATING_NAME, operating)
    ranges = intensities_of(pictures)
    recommendation = recommend(results.draws, results.shared, episodes, scored, settings.promotion, settings.trained, ranges)
    write_recommendation(EVALUATION / pipeline / DECISION_NAME, recommendation)
    scores = pa.concat_tables([read_scores(folder) for folder in folders.values()])
    curves_of(measured, scores, results.figures, protocols_of(files.episodes)).write(EVALUATION / pipeline / CURVES_NAME)
    return results


def write_figures_to_trackers(pipeline: str, results: Results) -> None:
    """Logs what metrics.json has, if trackers are asked for, at the second that it was measured in."""
    execution = read_pipelines().execution
    if execution.trackers:
        from changepair.tasks.training.tracking import tracked  # with torch

        with tracked(tracking_of(execution, pipeline, "figures"), {"pipeline": pipeline}) as trackers:
            values = {
                f"{target}/{detector}/{figure}": value
                for target, detectors in results.metrics.items()
                for detector, figures in detectors.items()
                for figure, value in figures.items()
            }
            trackers.write(values, int(time.time()))


@flow(name="figures", flow_run_name="figures {pipeline}")
@stoppable
def figures(pipeline: str) -> None:
    results: Results = write_figures(pipeline, pipeline_named(pipeline))
    write_figures_to_trackers(pipeline, results)
    rows = table(results.figures)
    show_rows(pipeline, "results", rows, f"Figures of {pipeline}: percent, mean ± std over seeds")
    if not has_listener():  # the run ends with the best of them
        _print(rows)


def _print(rows: Sequence[dict[str, str]]) -> None:
    printed = Table(title="percent, mean ± std over seeds")
    for name in rows[0]:
        printed.add_column(heading(name), no_wrap=True)
    for row in rows:
        printed.add_row(*row.values())
    Console(width=200).print(printed)


if __name__ == "__main__":
    start_stage(figures)
