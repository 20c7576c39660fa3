"""Print the progress of a run, and the last runs of this checkout and of the clones of scheduled runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from changepair.flows.promotion.history import folder_of, read_current, what_is_missing
from changepair.flows.running.console import Volume, volume
from changepair.flows.running.locks import FOLDER, holder
from changepair.flows.running.places import DATA, IN_USE
from changepair.flows.runs.journal import Run, read_runs, read_times
from changepair.flows.runs.states import RunState, StageState
from changepair.flows.settings.pipelines import read_pipelines
from changepair.flows.settings.reader import nearest
from changepair.flows.stage import SPLIT
from changepair.tasks.common.errors import BadInput


def print_status(pipeline: str | None, last: int) -> None:
    """Print the last runs of one pipeline, or of every enabled one. Raises BadInput for an unknown name."""
    read = read_pipelines()
    if pipeline is not None and pipeline not in read.pipelines:
        raise BadInput(f"no pipeline {pipeline!r} in pipelines.yaml{nearest(pipeline, read.pipelines)}")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for name in [pipeline] if pipeline else read.enabled:
        clone = Path(read.runs_of(name).workspaces).expanduser() / name
        for place, words in ((Path(), "this checkout"), (clone, f"scheduled, in {clone}")):
            lines = list(_lines(name, place, last))
            if lines or place == Path():
                console.print("\n".join([f"{name} ({words})", *(lines or ["  no run yet"])]))


def _lines(pipeline: str, place: Path, last: int) -> Iterator[str]:
    at_work = holder(place / FOLDER / "retrain.lock")
    if at_work is not None:
        yield f"  running: {at_work}"
    current = read_current(pipeline, place)
    if current is not None:
        yield f"  current model: {current.candidate[:8]} since {_time(current.time)}, {current.action}: {current.reason}"
        if current.choice:
            yield f"  active detector: {current.choice}"
        folder = folder_of(pipeline) / IN_USE
        wrong = what_is_missing(place / folder, current)
        if wrong:
            yield f"  {wrong}; restore them with `dvc pull {folder}.dvc`, or `dvc checkout --force {folder}.dvc`"
    times = read_times(pipeline, place / DATA)
    if times:
        each = ", ".join(f"{name} {1000 * taken.seconds:.0f} ms" for name, taken in sorted(times.items(), key=lambda item: item[1].seconds))
        yield f"  time per picture, last measured on {next(iter(times.values())).device}: {each}"
    for number, run in enumerate(read_runs(pipeline, place / DATA, last)):
        running = number == 0 and at_work is not None and f"retrain {pipeline}" in at_work
        yield from _run(run, running)


def _run(run: Run, running: bool) -> Iterator[str]:
    state = run.state if run.state != RunState.RUNNING or running else RunState.DIED
    outside = " " in run.commit and "," not in run.commit
    commit = "outside Git" if outside else f"at {run.commit[:8]}{run.commit[40:]}"
    lasted = ""
    if run.ended:
        seconds = (datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.started)).total_seconds()
        lasted = f", {seconds:.0f} s" if seconds >= 0 else ""  # the clock may have been set back
    yield f"  run {run.number}, {_time(run.started)}{lasted}, {commit}: {state}{f': {run.message}' if run.message else ''}"
    for stage in run.stages:
        stage_state = StageState.DIED if stage.state == StageState.RUNNING and not running else stage.state
        yield f"    {stage.name}: {stage_state}{f', {stage.seconds:.0f} s' if stage.seconds >= 1 else ''}"
    for target, detectors in run.metrics.items():
        for detector, values in detectors.items():
            metrics = (f"{name} {100 * value:.1f}" for name, value in values.items() if value is not None)
            yield f"    {target} {detector}: {', '.join(metrics)}"


def _time(time: str) -> str:
    return time[:16].replace("T", " ") + " UTC"


class ProgressDisplay:
    """Console output of one run."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = list(stages)
        self._console = Console(soft_wrap=True, highlight=False, markup=False, quiet=volume() == Volume.QUIET)

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line)

    def ended(self, name: str, state: StageState, seconds: float) -> None:
        """Print the duration of a stage, if it ran."""
        if state == StageState.RAN:
            self.say(f"stage {self._stages.index(name) + 1} of {len(self._stages)}: {name.replace(SPLIT, ' ')}, {seconds:.0f} s")
