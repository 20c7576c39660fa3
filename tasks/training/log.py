"""Write the training log, a CSV that DVC plots. The log has no times, so equal trainings write equal logs. This module imports no torch."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from pathlib import Path

from changepair.tasks.common.files import write_csv

LOG_NAME = "training_log.csv"


@dataclass(frozen=True)
class LogLine:
    """A row of the training log."""

    step: int
    """Number of steps taken."""
    epoch: int
    """Epoch of the step, from 0."""
    loss: float
    """Mean loss over the steps since the previous row."""
    learning_rate: float
    held_out_loss: float | None = None
    """Mean loss over the held-out examples. Measured only at the end of an epoch."""


def write_log(folder: Path, lines: list[LogLine]) -> None:
    rows = [["" if value is None else f"{value:.8g}" if isinstance(value, float) else value for value in astuple(line)] for line in lines]
    write_csv(folder / LOG_NAME, [field.name for field in fields(LogLine)], rows)
