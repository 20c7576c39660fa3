"""Training as Prefect tasks, their progress in the UI. A retry goes on from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.detector_settings import InCTRLSettings, MetaUASSettings, TrainedName, TrainedSettings
from tasks.retries import worth_retrying
from tasks.training import inctrl, metauas
from tasks.training.loop import Places, Trained
from tasks.training.settings import InCTRLTrainingSettings, TrainingSettings
from tasks.training.use import use_model


@task(name="train metauas", retries=2, retry_delay_seconds=30, retry_condition_fn=worth_retrying, persist_result=False)
def train_metauas(detector: MetaUASSettings, settings: TrainingSettings, *, pairs: Path, places: Places, workers: int) -> Trained:
    return metauas.train_metauas(detector, settings, pairs=pairs, places=places, workers=workers, report=_progress("MetaUAS"))


@task(name="train inctrl", retries=2, retry_delay_seconds=30, retry_condition_fn=worth_retrying, persist_result=False)
def train_inctrl(
    detector: InCTRLSettings, settings: InCTRLTrainingSettings, *, pairs: Path, auxiliary: Path, places: Places, workers: int
) -> Trained:
    return inctrl.train_inctrl(
        detector, settings, pairs=pairs, auxiliary=auxiliary, places=places, workers=workers, report=_progress("InCTRL")
    )


@task(name="use model", task_run_name="use model {name}", retry_condition_fn=worth_retrying, persist_result=False)
def use_given_model(name: TrainedName, detector: TrainedSettings, folder: Path) -> None:
    use_model(name, detector, folder)


def _progress(name: str) -> Callable[[float], None]:
    artifact: Any = create_progress_artifact(0.0, description=f"{name}: share of the training steps done")

    def report(share: float) -> None:
        update_progress_artifact(artifact, round(100 * share, 1))

    return report
