"""The stages as DVC knows them: their order, and running one of them."""

from __future__ import annotations

from collections.abc import Collection

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo

from tasks.errors import BadInput

OF_A_DATASET = ("ingest@", "ingest-folder@", "objects@")


def stages_of(pipeline: str, datasets: Collection[str]) -> list[str]:
    """The names of a pipeline's stages in dvc.yaml's order. Of the stages of datasets, those of its own."""
    with Repo() as repo:
        graph = repo.index.graph
        last = next(stage for stage in graph if stage.addressing == f"evaluate@{pipeline}")
        names = [stage.addressing for stage in networkx.dfs_postorder_nodes(graph, last)]
    return [name for name in names if not name.startswith(OF_A_DATASET) or name.partition("@")[2] in datasets]


def reproduce(stage: str) -> bool:
    """Runs one stage if anything it depends on has changed; gives whether it ran. Raises BadInput if it failed."""
    try:
        with Repo() as repo:
            return bool(repo.reproduce(stage, single_item=True))
    except DvcException as error:
        causes = []
        cause: BaseException | None = error
        while cause is not None:
            causes.append(str(cause))
            cause = cause.__cause__
        raise BadInput(f"stage {stage} failed: {causes[-1]}; what it printed above says why") from error
