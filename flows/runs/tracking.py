"""Says where a pipeline's trainings and figures are logged to beside their own files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from changepair.flows.running.places import DATA
from changepair.flows.settings.pipelines import Execution

if TYPE_CHECKING:
    from changepair.tasks.training.tracking import Tracking


def tracking_of(execution: Execution, pipeline: str, name: str) -> Tracking:
    """Gives the trackers of a detector's training, or of the figures."""
    from changepair.tasks.training.tracking import Tracking  # with torch

    return Tracking(execution.trackers, DATA / "runs" / pipeline / "tensorboard", name)
