"""List a pipeline's stages in DVC's order, and run one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import networkx
import psutil
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from ruamel.yaml.error import YAMLError

from changepair.flows.running.exit_handling import tell
from changepair.flows.running.provenance import locked
from changepair.flows.running.secrets import hide
from changepair.flows.settings.reader import FILE
from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput

POLL = 1.0  # seconds
LONGEST = 200  # characters of DVC's message about the process that holds its lock


def stages_before(last: str) -> list[str]:
    """List the names of a stage and of all stages that it depends on, in dvc.yaml's order, which lists dependencies first."""
    locked()  # reports an invalid dvc.lock more clearly than DVC
    with Repo() as repo:
        graph = repo.index.graph
        wanted = next(stage for stage in graph if stage.addressing == last)
        needed = {stage.addressing for stage in networkx.descendants(graph, wanted)} | {last}
        return [stage.addressing for stage in repo.index.stages if stage.addressing in needed]


def reproduce(stage: str) -> bool:
    """Run a stage if one of its dependencies has changed; return whether it ran. Wait for another DVC process in this checkout.

    Raises BadInput if the stage failed, Stopped on SIGTERM.
    """
    reported = False
    while True:
        try:
            with Repo() as repo:
                return bool(repo.reproduce(stage, single_item=True))
        except (DvcException, OSError, YAMLError) as error:
            stopping.check(f"retrain, in stage {stage}")
            why = [hide(" ".join((str(cause) or type(cause).__name__).split())) for cause in _causes(error)]
            busy = next((line for cause, line in zip(_causes(error), why, strict=True) if isinstance(cause, LockError)), None)
            if busy is None:
                gone = [cause.filename for cause in _causes(error) if isinstance(cause, FileNotFoundError) and cause.filename]
                hint = f"{gone[0]} not found; restore it, or correct its path in {FILE}" if gone else why[-1]
                raise BadInput(f"stage {stage} failed: {hint}") from error
        if not reported:
            tell(f"stage {stage}: waiting for another DVC process in this checkout ({busy[:LONGEST]})")
            reported = True
        time.sleep(POLL)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def forward_sigterm() -> None:
    """Ask the process of the running stage to stop."""
    for process in psutil.Process().children(recursive=True):
        try:
            command: list[str] = process.cmdline()
            module = command[2] if command[1:2] == ["-m"] and len(command) > 2 else ""
            # The servers of the run end after it, and a fork gets the signal from the command of its stage.
            if module.startswith("changepair.flows.") and not module.startswith("changepair.flows.running."):
                process.terminate()
        except psutil.Error:
            continue
