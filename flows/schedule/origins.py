"""Check which repository's code a scheduled run may execute, and which repository a workspace belongs to.

A run executes the code of the repository that it clones. More people can reach the server's API than may change that code. So the
deployment names the repository, and the worker must allow it; a run cannot choose it.
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
OWN = "override"  # the only parameter that a run may set


def same_origin(one: str, other: str) -> bool:
    """Return whether two addresses name one repository. Trailing slashes and links to folders do not matter."""

    def normal(repository: str) -> str:
        place = Path(repository).expanduser()
        return str(place.resolve()) if "://" not in repository and place.is_dir() else repository.rstrip("/")

    return normal(one) == normal(other)


def refuse_secret(repository: str) -> None:
    """Raise BadInput if the address of a repository contains a password. The server and the states of runs would show it."""
    if holds_secret(repository):
        raise BadInput(
            f"runs.repository: {hide(repository)}: must not contain a password or a token, because the server would show it; use SSH or "
            "a Git credential helper"
        )


def refuse_unknown_code(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> None:
    """Raise BadInput if a run's parameters differ from its deployment's, or this machine does not allow the deployment's repository.

    A flow that is called from Python, without a deployment, is not checked. Its caller can run any code anyway.
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
                f"parameters of the run: {name}: {hide(str(value))}: only {OWN} can be set for one run; the deployment fixes {name} at "
                f"{expected[name]}; to change it, edit pipelines.yaml and run `changepair deploy`"
            )
    repository = str(parameters["repository"])
    allowed = os.environ.get(REPOSITORIES, "").split()
    if not any(same_origin(repository, one) for one in allowed):
        raise BadInput(
            f"{hide(repository)}: this worker may not run the code of this repository; if you trust the repository, set "
            f'{REPOSITORIES}="{" ".join(map(hide, (*allowed, repository)))}" in the environment of the worker and restart it'
        )


def refuse_other_origin(folder: Path, repository: str) -> None:
    """Raise BadInput if a clone belongs to another repository, whose results must not be mixed with this one's."""
    try:
        origin = git(folder, "config", "--get", "remote.origin.url")
    except CommandFailed:
        origin = ""
    if not same_origin(origin, repository):
        raise BadInput(
            f"{folder}: this clone belongs to {hide(origin) or 'another repository'}, not to {hide(repository)}; set runs.workspaces to "
            f"another folder, or move the clone; if the repository moved, run `git -C {folder} remote set-url origin {hide(repository)}`"
        )
