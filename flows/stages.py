"""The stages as DVC knows them: their order, and running one of them."""

from __future__ import annotations

from dataclasses import dataclass

import networkx
import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.secrets import hide
from tasks import stopping
from tasks.errors import BadInput

OF_A_DATASET = ("ingest@", "ingest-folder@", "objects@")


@dataclass(frozen=True)
class Stage:
    """A stage as dvc.yaml names it, and the dataset that it is of, if it is of one."""

    name: str

    @property
    def dataset(self) -> str | None:
        return self.name.partition("@")[2] if self.name.startswith(OF_A_DATASET) else None


def stages_of(pipeline: str) -> list[Stage]:
    """A pipeline's stages in dvc.yaml's order. Those of every dataset are among them, as in `dvc repro`: its sample stage depends on the
    folder of all manifests, so a run that left some out could not be reproduced."""
    with Repo() as repo:
        graph = repo.index.graph
        last = next(stage for stage in graph if stage.addressing == f"evaluate@{pipeline}")
        return [Stage(stage.addressing) for stage in networkx.dfs_postorder_nodes(graph, last)]


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
        raise BadInput(f"stage {stage} failed: {hide(causes[-1])}; what it printed above says why") from error


def forward_sigterm() -> None:
    """Asks the stage that DVC is running in a process of its own to stop."""
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
            if command[1:2] == ["-m"] and command[2:3] and command[2].startswith("flows."):
                process.terminate()
        except psutil.Error:
            continue
