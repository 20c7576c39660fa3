"""Asks DVC which stages a pipeline has, in order, and has it run one of them."""

from __future__ import annotations

import networkx
import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.running.secrets import hide
from tasks.common import stopping
from tasks.common.errors import BadInput


def stages_before(last: str) -> list[str]:
    """Lists the names of a stage and of all that it depends on, in dvc.yaml's order, which has each after those that it reads from."""
    with Repo() as repo:
        graph = repo.index.graph
        wanted = next(stage for stage in graph if stage.addressing == last)
        needed = {stage.addressing for stage in networkx.descendants(graph, wanted)} | {last}
        return [stage.addressing for stage in repo.index.stages if stage.addressing in needed]


def reproduce(stage: str) -> bool:
    """Runs one stage if anything it depends on has changed; gives whether it ran. Raises BadInput if it failed, Stopped if SIGTERM came."""
    try:
        with Repo() as repo:
            return bool(repo.reproduce(stage, single_item=True))
    except (DvcException, OSError) as error:
        stopping.check(f"retrain, in stage {stage}")
        causes = []
        cause: BaseException | None = error
        while cause is not None:
            causes.append(str(cause))
            cause = cause.__cause__
        raise BadInput(f"stage {stage} failed ({hide(causes[-1])}); what it printed above says why") from error


def forward_sigterm() -> None:
    """Asks the stage that DVC is running in a process of its own to stop."""
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
            if command[1:2] == ["-m"] and command[2:3] and command[2].startswith("flows."):
                process.terminate()
        except psutil.Error:
            continue
