"""Print what a run does: a line for each stage that ran, and what the run says of its end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from changepair.flows.running.console import Volume, volume
from changepair.flows.runs.states import StageState
from changepair.flows.stage import SPLIT


class ProgressDisplay:
    """The lines of one run."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = list(stages)
        self._console = Console(soft_wrap=True, highlight=False, markup=False, quiet=volume() == Volume.QUIET)

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line)

    def ended(self, name: str, state: StageState, seconds: float) -> None:
        """Print how long a stage took, if it ran."""
        if state == StageState.RAN:
            self.say(f"stage {self._stages.index(name) + 1} of {len(self._stages)}: {name.replace(SPLIT, ' ')}, {seconds:.0f} s")
