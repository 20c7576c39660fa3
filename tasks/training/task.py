"""Training as a Prefect task, its progress in the UI. A retry goes on from the last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.detector_settings import MetaUASSettings
from tasks.retries import worth_retrying
from tasks.training import train
from tasks.training.settings import TrainingSettings


@task(name="train metauas", retries=2, retry_delay_seconds=30, retry_condition_fn=worth_retrying, persist_result=False)
def train_metauas(
    detector: MetaUASSettings, settings: TrainingSettings, *, pairs: Path, model_folder: Path, checkpoints: Path, workers: int
) -> train.Trained:
    artifact: Any = create_progress_artifact(0.0, description="MetaUAS: share of the training steps done")

    def report(share: float) -> None:
        update_progress_artifact(artifact, round(100 * share, 1))

    return train.train_metauas(
        detector, settings, pairs=pairs, model_folder=model_folder, checkpoints=checkpoints, workers=workers, report=report
    )
