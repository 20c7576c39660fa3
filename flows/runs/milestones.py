"""Shows where a run is while it runs: on the console a line a milestone, and on a terminal one bar for the whole and one for the stage that
runs; in the Prefect UI one progress artifact for the whole.

A stage's part of the whole is what it took the last time that it ran.
"""

from __future__ import annotations

import contextvars
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from changepair.flows.plan import SPLIT
from changepair.flows.running.console import Volume, volume
from changepair.flows.running.told import Told, told
from changepair.flows.runs.journal import Run
from changepair.flows.runs.states import StageState

LOOK = 1.0  # seconds between two looks at how far a stage is
REMIND = 600.0  # seconds after which a stage that runs is told of again where there is no terminal to show a bar
UNKNOWN = 10.0  # seconds: of a stage, where no run has told yet


class Milestones:
    """Tells of one run's stages. report: is given the share of the whole that is done, 0..1, from a thread."""

    def __init__(self, stages: Sequence[str], past: Sequence[Run], report: Callable[[float], None]) -> None:
        self._stages = list(stages)
        self._seconds = _seconds(stages, past)
        self._report = report
        self._console = Console(soft_wrap=True, highlight=False, markup=False, quiet=volume() == Volume.QUIET)
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        to = Console(stderr=True)
        self._bars = Progress(*columns, console=to, transient=True, disable=not to.is_terminal or volume() != Volume.NORMAL)
        self._done: list[str] = []

    def say(self, line: str) -> None:
        """Prints a line."""
        above = not self._bars.disable and self._console.is_terminal  # of the bars, which the console of their own moves out of the way
        (self._bars.console if above else self._console).print(line, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Shows the bars; the processes that are started within it show none of their own, as they tell how far they are."""
        if volume() != Volume.VERBOSE:
            os.environ["TQDM_DISABLE"] = "1"
        with self._bars:
            self._whole = self._bars.add_task(f"{len(self._stages)} stages", total=1.0)
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Shows how far a stage is, by what it tells, while it runs."""
        over = threading.Event()
        # The thread asks Prefect's API with the settings of this one.
        watching = threading.Thread(target=contextvars.copy_context().run, args=(self._watch, name, told(), over), daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def ended(self, name: str, state: StageState, seconds: float) -> None:
        """Tells how a stage ended."""
        self._done.append(name)
        self._show(0.0)
        if state == StageState.RAN:
            self.say(f"{self._words(name)}, {seconds:.0f} s")

    def _watch(self, name: str, said: Told, over: threading.Event) -> None:
        since = reminded = time.monotonic()
        bar = self._bars.add_task(self._words(name), total=None)
        while not over.wait(LOOK):
            share = said.share
            if share is not None:
                self._bars.update(bar, total=1.0, completed=share)
                self._show(share * self._seconds[name])
            if self._bars.disable and time.monotonic() - reminded >= REMIND:
                reminded = time.monotonic()
                self.say(f"{self._words(name)}: {'' if share is None else f'{share:.0%} '}after {(reminded - since) / 60:.0f} min")
        self._bars.remove_task(bar)

    def _show(self, more: float) -> None:
        """Shows the whole. more: seconds of the stage that runs."""
        share = (sum(self._seconds[name] for name in self._done) + more) / sum(self._seconds.values())
        self._bars.update(self._whole, completed=share)
        self._report(share)

    def _words(self, name: str) -> str:
        return f"stage {self._stages.index(name) + 1} of {len(self._stages)}: {name.replace(SPLIT, ' ')}"


def _seconds(stages: Sequence[str], past: Sequence[Run]) -> dict[str, float]:
    """Gives what each stage took when it last ran; to one that never did the median of the others."""
    known = {stage.name: stage.seconds for run in reversed(past) for stage in run.stages if stage.state == StageState.RAN}
    usual = statistics.median(known.values()) if known else UNKNOWN
    return {name: max(known.get(name, usual), 0.1) for name in stages}
