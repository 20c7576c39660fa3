"""Training the small inpainting model as a Prefect task, its progress in the UI. A retry goes on from the last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.inpainting import train
from tasks.inpainting.settings import InpainterSettings
from tasks.retries import worth_retrying


@task(name="train inpainter", retries=2, retry_delay_seconds=30, retry_condition_fn=worth_retrying, persist_result=False)
def train_inpainter(settings: InpainterSettings, sources: Path, *, folder: Path, checkpoints: Path) -> train.Trained:
    artifact: Any = create_progress_artifact(0.0, description="Inpainter: share of the training steps done")

    def report(share: float) -> None:
        update_progress_artifact(artifact, round(100 * share, 1))

    return train.train_inpainter(settings, sources, folder=folder, checkpoints=checkpoints, report=report)
