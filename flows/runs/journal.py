"""Record runs on disk, to be read without a server: data/runs/<pipeline>/<number>.json per run, and times/<detector>.json.

The times are not DVC artifacts, because they differ from run to run.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from changepair.flows.running.places import DATA
from changepair.flows.running.records import Metrics, Moment, read_records
from changepair.flows.runs.states import RunState, StageState
from changepair.tasks.common.files import write_text

KEPT = 100  # runs per pipeline; older records are deleted


@dataclass(frozen=True)
class StageRun:
    """State and duration of a stage in a run."""

    name: str
    state: StageState
    seconds: float


@dataclass(frozen=True)
class Run:
    """Record of a retrain run."""

    number: int
    pipeline: str
    started: Moment
    commit: str
    id: str = ""  # of the Prefect flow run
    state: RunState = RunState.RUNNING
    message: str = ""
    ended: Moment | Literal[""] = ""
    stages: tuple[StageRun, ...] = ()
    metrics: Metrics = field(default_factory=dict)
    model: str = ""  # the current model at the end of the run, as its candidate hash


class Journal:
    """Writer of the record of a run in progress. Run numbers always increase, even if the clock is set back."""

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

    def close(self, state: RunState, message: str, metrics: Metrics, model: str) -> None:
        self.run = replace(self.run, state=state, message=message, ended=now(), metrics=metrics, model=model)
        self._write()

    def _put(self, stage: StageRun) -> None:
        others = tuple(other for other in self.run.stages if other.name != stage.name)
        self.run = replace(self.run, stages=(*others, stage))
        self._write()

    def _write(self) -> None:
        write_text(self._folder / f"{self.run.number}.json", json.dumps(asdict(self.run), indent=1) + "\n")


def read_runs(pipeline: str, data: Path = DATA, last: int = KEPT) -> list[Run]:
    """Read the last runs of a pipeline, newest first. Damaged records are skipped."""
    folder = data / "runs" / pipeline
    files = [folder / f"{number}.json" for number in sorted(_numbers(folder), reverse=True)[:last]]
    return [run for _file, run in read_records(Run, files)]


def now() -> str:
    """Return the current time in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _numbers(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("*.json") if file.stem.isdecimal()]


@dataclass(frozen=True)
class Time:
    """Measured time that a detector takes per picture on this machine."""

    seconds: float
    device: str


def write_time(pipeline: str, detector: str, taken: Time) -> None:
    write_text(_times_folder(pipeline, DATA) / f"{detector}.json", json.dumps(asdict(taken)) + "\n")


def read_times(pipeline: str, data: Path = DATA) -> dict[str, Time]:
    """Read the last measured time of each detector. Damaged records are skipped."""
    return {file.stem: time for file, time in read_records(Time, sorted(_times_folder(pipeline, data).glob("*.json")))}


def _times_folder(pipeline: str, data: Path) -> Path:
    return data / "runs" / pipeline / "times"
