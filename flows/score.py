"""Stage score: one detector and the episodes in, its image scores and anomaly maps out."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CANDIDATE, CHECKPOINTS, EPISODES, MODELS, SCORES
from changepair.flows.running.steps import HOUR, progress, step
from changepair.flows.running.workers import cluster_or_threads, count_done, for_gpu, on_cluster, wait_for
from changepair.flows.runs.journal import Time, write_time
from changepair.flows.settings.pipelines import detector_of, pipeline_named, read_pipelines
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.scoring import batch_scoring
from changepair.tasks.scoring.batch_scoring import ScoredDetector, Scoring
from changepair.tasks.scoring.score import count_parts

score_part = step(name="score part", task_run_name="score {name}, part {part}", timeout_seconds=12 * HOUR)(batch_scoring.score_part)


@step(name="score detector", task_run_name="score {detector}", retries=1, timeout_seconds=12 * HOUR)
def score_detector(detector: str, scoring: Scoring) -> ScoredDetector:
    """A retry goes on from what is scored."""
    return batch_scoring.score_detector(detector, scoring, progress(f"{detector}: share of the queries scored"))


@flow(name="score", flow_run_name="score {pipeline} {detector}")
@stoppable
def score(pipeline: str, detector: str) -> None:
    settings = pipeline_named(pipeline)
    detector_of(settings, pipeline, detector)
    files = EpisodeFiles.of(EPISODES, pipeline)
    checkpoints = CHECKPOINTS / pipeline / "scores"
    scoring = Scoring(settings.detectors, settings.evaluation, files, MODELS / pipeline / CANDIDATE, SCORES / pipeline, checkpoints)
    execution = read_pipelines().execution
    if on_cluster(execution):
        with for_gpu(execution):
            parts: list[Any] = [score_part.submit(detector, scoring, part) for part in range(count_parts(files))]
        wait_for(parts, lambda: f"score {detector}, {count_done(parts)} of {len(parts)} parts")
    scored: ScoredDetector = score_detector(detector, scoring)
    write_time(pipeline, detector, Time(scored.seconds, scored.device))
    get_run_logger().info(f"{pipeline}: {detector}, {scored.count} scores; {1000 * scored.seconds:.0f} ms a picture on {scored.device}")


if __name__ == "__main__":
    start_stage(score, on_gpu=True, runner=cluster_or_threads)
