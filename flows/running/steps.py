"""Runs a stage's work as Prefect tasks, which are tried again where that is worth it and show how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, cast

import httpx
from prefect import Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from changepair.flows.running.api import wait_for_server
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.stopping import Stopped

P = ParamSpec("P")
R = TypeVar("R")
EVERY = 5.0  # seconds between two reports of progress
HOUR = 3600.0  # seconds


def worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    """Tells Prefect, as its retry_condition_fn, what to try again: a disk or a network may recover; the user's mistake will not, and who
    was asked to stop stops."""
    return not isinstance(state.data, (BadInput, Stopped))


def step(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Makes a function a task: a step of a stage, tried again where that is worth it. DVC is the cache, so Prefect keeps no result."""
    defaults = {"retries": 2, "retry_delay_seconds": 5, "retry_condition_fn": worth_retrying, "persist_result": False}
    return cast(Any, task(**{**defaults, **options}))


def progress(description: str) -> Callable[[float], None]:
    """Gives a function for a task to call with the share that is done, 0..1, which the UI then shows."""
    wait_for_server()
    artifact: Any = create_progress_artifact(0.0, description=description)
    last = time.monotonic()

    def tell(share: float) -> None:
        nonlocal last
        if share >= 1 - 1e-9 or time.monotonic() - last >= EVERY:
            last = time.monotonic()
            with suppress(httpx.TransportError):  # a server that is away: the work goes on, and the next share is shown
                update_progress_artifact(artifact, round(100 * share, 1))

    return tell
