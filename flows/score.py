"""Stage score: one detector and the episodes in, its image scores and anomaly maps out."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.running.entry import start_stage
from flows.running.places import CANDIDATE, CHECKPOINTS, EPISODES, MODELS, SCORES
from flows.running.steps import HOUR, progress, step
from flows.runs.times import Time, write_time
from flows.settings.pipelines import Pipeline, detector_of, pipeline_named
from tasks.common.stopping import stoppable
from tasks.sampling.episodes import EpisodeFiles
from tasks.scoring.contenders import ScoredDetector, score_detector


@step(name="score detector", task_run_name="score {detector}", retries=1, timeout_seconds=12 * HOUR)
def score_queries(detector: str, pipeline: str, settings: Pipeline) -> ScoredDetector:
    """A retry goes on from what is scored."""
    return score_detector(
        detector,
        settings.detectors,
        settings.evaluation,
        EpisodeFiles.of(EPISODES, pipeline),
        models=MODELS / pipeline / CANDIDATE,
        scores=SCORES / pipeline,
        checkpoints=CHECKPOINTS / pipeline / "scores",
        report=progress(f"{detector}: share of the queries scored"),
    )


@flow(name="score", flow_run_name="score {pipeline} {detector}")
@stoppable
def score(pipeline: str, detector: str) -> None:
    settings = pipeline_named(pipeline)
    detector_of(settings, pipeline, detector)
    scored: ScoredDetector = score_queries(detector, pipeline, settings)
    write_time(pipeline, detector, Time(scored.seconds, scored.device))
    get_run_logger().info(f"{pipeline}: {detector}, {scored.count} scores; {1000 * scored.seconds:.0f} ms a picture on {scored.device}")


if __name__ == "__main__":
    start_stage(score, on_gpu=True)
