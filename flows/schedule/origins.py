"""Decide whose code a scheduled run may execute, and whose results a workspace holds.

A run executes the code of the repository that it clones. The server's API can be reached by more people than may change that code, so no
run chooses its repository: the deployment names it, and the machine that works has to allow it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.runtime import deployment

from changepair.flows.running.secrets import hide, holds_secret
from changepair.flows.schedule.commands import CommandFailed, git
from changepair.tasks.common.errors import BadInput

REPOSITORIES = "CHANGEPAIR_REPOSITORIES"  # environment variable of a worker: the repositories whose code it may run, separated by spaces
OWN = "override"  # the only parameter that a run may have of its own


def same_origin(one: str, other: str) -> bool:
    """Return whether two addresses name one repository, also with a slash at the end, or through a link to a folder."""

    def normal(repository: str) -> str:
        place = Path(repository).expanduser()
        return str(place.resolve()) if "://" not in repository and place.is_dir() else repository.rstrip("/")

    return normal(one) == normal(other)


def refuse_secret(repository: str) -> None:
    """Raise BadInput if the address of a repository has a password in it: the server would show it, and so would the states of runs."""
    if holds_secret(repository):
        raise BadInput(
            f"runs.repository: {hide(repository)}: must not have a password or a token in it, which the server would show; use SSH or "
            "Git's credential helper"
        )


def refuse_unknown_code(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> None:
    """Raise BadInput if a run has other parameters than its deployment, or this machine does not allow the deployment's repository.

    A flow that was called from Python, without a deployment, is not checked: who does that can run any code here.
    """
    identifier = deployment.get_id()
    if identifier is None:
        return
    with get_client(sync_client=True) as client:
        fixed = client.read_deployment(UUID(identifier)).parameters
    expected = {name: fixed.get(name, of.get("default")) for name, of in flow.parameters.properties.items()}
    for name, value in parameters.items():
        if name != OWN and value != expected[name]:
            raise BadInput(
                f"parameters of the run: {name}: {hide(str(value))}: only {OWN} can be set for one run; {name} is {expected[name]} in the "
                "deployment: change pipelines.yaml and run `changepair deploy`"
            )
    repository = str(parameters["repository"])
    allowed = os.environ.get(REPOSITORIES, "").split()
    if not any(same_origin(repository, one) for one in allowed):
        raise BadInput(
            f"{hide(repository)}: this worker may not run the code of this repository; if you trust it, set "
            f'{REPOSITORIES}="{" ".join(map(hide, (*allowed, repository)))}" in the environment of the worker and restart it'
        )


def refuse_other_origin(folder: Path, repository: str) -> None:
    """Raise BadInput if a clone is of another repository: its results are not those of this one."""
    try:
        origin = git(folder, "config", "--get", "remote.origin.url")
    except CommandFailed:
        origin = ""
    if not same_origin(origin, repository):
        raise BadInput(
            f"{folder}: is the workspace of {hide(origin) or 'another repository'}, not of {hide(repository)}; name another folder in "
            f"runs.workspaces, move it away, or if the repository has moved: `git -C {folder} remote set-url origin {hide(repository)}`"
        )
