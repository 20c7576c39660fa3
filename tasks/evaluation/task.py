"""Evaluation as Prefect tasks: one a target, with its progress in the UI; then the figures, curves, galleries and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.evaluation import evaluate, gallery, report, results
from tasks.evaluation.curves import Curves
from tasks.evaluation.evaluate import TargetResult
from tasks.evaluation.score import Contender
from tasks.evaluation.settings import EvaluationSettings
from tasks.retries import worth_retrying
from tasks.sampling.episodes import EpisodeFiles

EVERY = 5.0  # seconds between two reports of progress


@task(
    name="evaluate target",
    task_run_name="evaluate {target}",
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=12 * 3600,
    persist_result=False,
)
def evaluate_target(
    target: str, contenders: Sequence[Contender], files: EpisodeFiles, settings: EvaluationSettings, device: str
) -> TargetResult:
    return evaluate.evaluate_target(target, contenders, files, settings, device, _progress(target))


write_results = task(name="write figures and scores", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)(
    results.write_results
)
write_curves = task(name="write curves", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)(Curves.write)
write_galleries = task(name="write galleries", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)(
    gallery.write_galleries
)
write_report = task(name="write report", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)(report.write_report)


def _progress(target: str) -> Callable[[float], None]:
    artifact: Any = create_progress_artifact(0.0, description=f"{target}: share of the queries scored")
    last = time.monotonic()

    def tell(share: float) -> None:
        nonlocal last
        if share >= 1 - 1e-9 or time.monotonic() - last >= EVERY:
            last = time.monotonic()
            update_progress_artifact(artifact, round(100 * share, 1))

    return tell
