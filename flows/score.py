"""Run the stage `score`: read episodes and one detector; write its image scores and anomaly maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CANDIDATE, CHECKPOINTS, EPISODES, MODELS, SCORES
from changepair.flows.running.workers import cluster_or_threads, count_done, for_gpu, on_cluster, wait_for
from changepair.flows.settings.pipelines import Datasets, Execution, Pipeline
from changepair.flows.stage import Input, OfDetectors, Output, Setting, Stage, code_file, stage_flow
from changepair.tasks.detectors.registry import base_of, files_of_prior, kind_of
from changepair.tasks.sampling.episodes import EpisodeFiles, TargetFiles
from changepair.tasks.scoring.settings import EvaluationSettings

if TYPE_CHECKING:
    from changepair.tasks.scoring.batch_scoring import ScoredDetector, Scoring


@dataclass(frozen=True)
class Score(Stage):
    """Declare the scoring of target pictures by one detector. No detector was trained on these pictures."""

    pipeline: str
    detector: str
    files: Input[TargetFiles]
    model: Input[Path | None]
    """Model folder of the detector or of its base detector; None if it is not trained."""
    weights: Input[Sequence[str]]
    """Local files and folders of its encoders."""
    chosen: OfDetectors[Mapping[str, Any]]
    """Settings of the detector and of its base detector, by name."""
    subset: Annotated[int | None, Setting("pipelines.{pipeline}.evaluation.subset.{detector}")]
    perturbations: Annotated[Sequence[str] | None, Setting("pipelines.{pipeline}.evaluation.perturbations")]
    """None without perturbations."""
    perturbed: Annotated[int | None, Setting("pipelines.{pipeline}.evaluation.perturbed")]
    """Number of perturbed pictures. None without perturbations."""
    scores: Output[Path]
    others: Mapping[str, Any]
    """Settings of all detectors. Detectors with the same encoder are scored in one pass; their scores wait for their stage."""
    evaluation: EvaluationSettings
    """Batch sizes, and subsets of the other detectors."""

    @property
    def about(self) -> str:
        return f"Score the target pictures with {self.detector}"

    @property
    def code(self) -> Path:
        return code_file("score", kind_of(self.chosen[self.detector]))


def declare(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Score]:
    """Declare a stage for each detector."""
    evaluation = pipeline.evaluation
    for detector, settings in pipeline.detectors.items():
        base = base_of(detector, pipeline.detectors)
        yield Score(
            name,
            detector,
            files=EpisodeFiles.of(EPISODES, name).tested,
            model=MODELS / name / CANDIDATE / base if base in pipeline.trained else None,
            weights=[*pipeline.detectors[base].encoder.files, *files_of_prior(settings)],
            chosen={one: pipeline.detectors[one] for one in (detector, base)},
            subset=evaluation.subset.get(detector),
            perturbations=evaluation.perturbations or None,
            perturbed=evaluation.perturbed if evaluation.perturbations else None,
            scores=SCORES / name / detector,
            others=pipeline.detectors,
            evaluation=evaluation,
        )


@stage_flow(on_gpu=True, runner=cluster_or_threads)
def score(stage: Score, execution: Execution) -> None:
    from prefect import get_run_logger

    from changepair.flows.running.steps import HOUR, step
    from changepair.flows.runs.journal import Time, write_time
    from changepair.tasks.scoring import batch_scoring
    from changepair.tasks.scoring.score import count_parts

    pipeline, name = stage.pipeline, stage.detector
    models, checkpoints = MODELS / pipeline / CANDIDATE, CHECKPOINTS / pipeline / "scores"
    scoring = batch_scoring.Scoring(
        {**stage.others, **stage.chosen}, stage.evaluation, stage.files, models, stage.scores.parent, checkpoints
    )
    if on_cluster(execution):
        score_part = step(name="score part", task_run_name="score {name}, part {part}", timeout_seconds=12 * HOUR)(batch_scoring.score_part)
        with for_gpu(execution):
            parts: list[Any] = [score_part.submit(name, scoring, part) for part in range(count_parts(stage.files))]
        wait_for(parts, lambda: f"score {name}, {count_done(parts)} of {len(parts)} parts")
    task = step(name="score detector", task_run_name="score {name}", retries=1, timeout_seconds=12 * HOUR)(score_detector)
    scored: ScoredDetector = task(name, scoring)
    write_time(pipeline, name, Time(scored.seconds, scored.device))
    get_run_logger().info(f"{pipeline}: {name}: {scored.count} scores, {1000 * scored.seconds:.0f} ms per picture on {scored.device}")


def score_detector(name: str, scoring: Scoring) -> ScoredDetector:
    """Score the queries with one detector. A retry resumes from existing scores."""
    from changepair.flows.running.steps import progress
    from changepair.tasks.scoring import batch_scoring

    return batch_scoring.score_detector(name, scoring, progress(f"{name}: scoring progress"))


if __name__ == "__main__":
    start_stage("score")
