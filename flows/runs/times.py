"""Keeps what a picture took a detector on this machine: data/runs/<pipeline>/times/<detector>.json. It is no artifact: it is never the same
twice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from changepair.flows.running.places import DATA
from changepair.flows.running.records import read_record
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text


@dataclass(frozen=True)
class Time:
    """What a picture takes."""

    seconds: float
    device: str


def write_time(pipeline: str, detector: str, taken: Time) -> None:
    write_text(_folder(pipeline, DATA) / f"{detector}.json", json.dumps(asdict(taken)) + "\n")


def read_times(pipeline: str, data: Path = DATA) -> dict[str, Time]:
    """Gives, by detector, what was measured last. One whose file cannot be read is left out."""
    times = {}
    for file in sorted(_folder(pipeline, data).glob("*.json")):
        try:
            times[file.stem] = read_record(Time, file)
        except BadInput:
            continue
    return times


def _folder(pipeline: str, data: Path) -> Path:
    return data / "runs" / pipeline / "times"
