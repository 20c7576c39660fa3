"""Keeps what runs did on disk, for whoever asks with no server running: data/runs/<pipeline>/<number>.json, one a run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from changepair.flows.running.places import DATA
from changepair.flows.running.records import Figures, Moment, read_record
from changepair.flows.runs.states import RunState, StageState
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text

KEPT = 100  # runs a pipeline; older ones are forgotten


@dataclass(frozen=True)
class StageRun:
    """A stage in a run, and what became of it."""

    name: str
    state: StageState
    seconds: float


@dataclass(frozen=True)
class Run:
    """A retrain, under way or ended."""

    number: int
    pipeline: str
    started: Moment
    commit: str
    id: str = ""  # of the Prefect run
    state: RunState = RunState.RUNNING
    message: str = ""
    ended: Moment | Literal[""] = ""
    stages: tuple[StageRun, ...] = ()
    figures: Figures = field(default_factory=dict)
    model: str = ""  # in use at its end: DVC's hash of the candidate that it was


class Journal:
    """Writes down one run while it happens. Numbers count up, whatever the clock says."""

    def __init__(self, pipeline: str, commit: str, run_id: str, data: Path = DATA) -> None:
        folder = data / "runs" / pipeline
        folder.mkdir(parents=True, exist_ok=True)
        numbers = sorted(_numbers(folder))
        for number in numbers[: 1 - KEPT]:
            (folder / f"{number}.json").unlink(missing_ok=True)
        self._folder = folder
        self._since = time.monotonic()
        self.run = Run((numbers or [0])[-1] + 1, pipeline, now(), commit, run_id)
        self._write()

    def begin(self, stage: str) -> None:
        self._since = time.monotonic()
        self._put(StageRun(stage, StageState.RUNNING, 0.0))

    def end(self, stage: str, state: StageState) -> None:
        self._put(StageRun(stage, state, round(time.monotonic() - self._since, 1)))

    def close(self, state: RunState, message: str, figures: Figures, model: str) -> None:
        self.run = replace(self.run, state=state, message=message, ended=now(), figures=figures, model=model)
        self._write()

    def _put(self, stage: StageRun) -> None:
        others = tuple(other for other in self.run.stages if other.name != stage.name)
        self.run = replace(self.run, stages=(*others, stage))
        self._write()

    def _write(self) -> None:
        write_text(self._folder / f"{self.run.number}.json", json.dumps(asdict(self.run), indent=1) + "\n")


def read_runs(pipeline: str, data: Path = DATA, last: int = KEPT) -> list[Run]:
    """Reads the last runs of a pipeline, the newest first. One whose file cannot be read is left out."""
    folder = data / "runs" / pipeline
    runs = []
    for number in sorted(_numbers(folder), reverse=True)[:last]:
        try:
            runs.append(read_record(Run, folder / f"{number}.json"))
        except BadInput:
            continue
    return runs


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _numbers(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("*.json") if file.stem.isdecimal()]


@dataclass(frozen=True)
class Time:
    """What a picture takes."""

    seconds: float
    device: str


def write_time(pipeline: str, detector: str, taken: Time) -> None:
    write_text(_times_folder(pipeline, DATA) / f"{detector}.json", json.dumps(asdict(taken)) + "\n")


def read_times(pipeline: str, data: Path = DATA) -> dict[str, Time]:
    """Gives, by detector, what was measured last. One whose file cannot be read is left out."""
    times = {}
    for file in sorted(_times_folder(pipeline, data).glob("*.json")):
        try:
            times[file.stem] = read_record(Time, file)
        except BadInput:
            continue
    return times


def _times_folder(pipeline: str, data: Path) -> Path:
    return data / "runs" / pipeline / "times"
