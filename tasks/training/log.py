"""Writes the training log: a CSV that DVC plots. It holds nothing of the clock, so that equal runs have equal logs."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from changepair.tasks.common.files import written_beside

LOG_NAME = "training_log.csv"


@dataclass(frozen=True)
class LogLine:
    step: int
    epoch: int
    loss: float  # mean over the steps since the line before
    learning_rate: float
    held_out_loss: float | None = None  # at the end of an epoch


def write_log(folder: Path, lines: list[LogLine]) -> None:
    with written_beside(folder / LOG_NAME) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(LogLine)], lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({name: _text(value) for name, value in asdict(line).items()})


def _text(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.8g}"
