"""Names the states of a run and of a stage in it, as the Prefect UI, the journal and `changepair status` name them."""

from __future__ import annotations

from enum import StrEnum


class StageState(StrEnum):
    """The states of a stage in a run."""

    RUNNING = "Running"
    RAN = "Ran"
    UP_TO_DATE = "Up to date"
    FAILED = "Failed"
    DIED = "Died"  # its process is gone and nobody has said so


class RunState(StrEnum):
    """The states of a retrain."""

    RUNNING = "Running"
    PROMOTED = "Promoted"
    KEPT = "Kept"
    IN_USE = "In use already"
    SKIPPED = "Skipped"
    STOPPED = "Stopped"
    FAILED = "Failed"
    DIED = "Died"
